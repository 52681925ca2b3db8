"""`qkvbench run`: a study from words to a table, resumed by the same words."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from qkvbench import backends, recipes
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cli.progress import Told
from qkvbench.cli.report import write_reports
from qkvbench.cli.train import write_files
from qkvbench.experiment import Experiment
from qkvbench.recipes import Study
from qkvbench.results.store import Store, StoreError
from qkvbench.train.origin import kept_weights

DEFAULT_SEEDS = 3


def answer(request: Request) -> int:
    """Carry out the study, print its table, write its page."""
    study = asked(request)
    experiments = checked(study)
    store = Store(Path("results") / folder(study) if request.out is None else Path(request.out))
    try:
        missing = [run for run in experiments if store.done(run) is None]
        if request.files:
            write_files(experiments, Path(request.files))
            print(f"{len(experiments)} experiments are in {request.files}, for 'qkvbench train'.")
            return 0
        if request.dry_run:
            print(_plan(study, experiments, len(missing), store))
            return 0
        return _carried_out(request, study, store)
    except StoreError as error:
        raise RequestError(f"{error}\nGive another folder with --out DIR.") from None


def asked(request: Request) -> Study:
    """The study that the words mean: a recipe, changed by the flags, or variants × tasks."""
    if request.recipe:
        study = names.recipe(request.recipe)
    elif request.variants and request.tasks:
        study = Study(name="study", variants=(), seeds={})
    else:
        raise RequestError(
            "What shall run? A recipe, as in 'qkvbench run quick', "
            "or --variants and --tasks, as in 'run --variants q,k,v q,k=v --tasks digits'.\n"
            f"Recipes: {', '.join(recipes.names())}; 'qkvbench ls recipes' says what they are."
        )
    if request.variants:
        wanted = names.arms(request.variants)
        study = replace(study, variants=wanted)
    seeds: dict[str, int] = dict(study.seeds)
    if request.tasks:
        wanted = dict.fromkeys(names.task(name) for name in request.tasks)
        seeds = {name: seeds.get(name, DEFAULT_SEEDS) for name in wanted}
    if request.seeds:
        seeds = dict.fromkeys(seeds, int(request.seeds))
    if request.smoke:
        # Two seeds, so that the statistics run their road as well.
        seeds = {name: min(count, 2) for name, count in seeds.items()}
    return replace(
        study,
        name=f"{study.name}-smoke" if request.smoke else study.name,
        seeds=seeds,
        backend=names.backend(request.backend),
        model=study.model if request.model is None else names.model(request.model),
        position=request.position or study.position,
        pooling=study.pooling if request.pooling is None else names.pooling(request.pooling),
        start=study.start if request.start is None else names.task(request.start),
        precision=names.precision(request.precision or study.precision),
        compiled=request.compile or study.compiled,
        checkpointing=request.checkpointing or study.checkpointing,
        micro_batches=request.micro_batches or study.micro_batches,
        devices=request.devices or study.devices,
        sharding=names.sharding(request.sharding or study.sharding),
        smoke=request.smoke,
    )


def folder(study: Study) -> str:
    """Where the study goes if nobody says: its name; with a mark where it is not the recipe itself.

    The number of seeds makes no other study: more of them go on in the same place.
    """
    plain = study.name.removesuffix("-smoke")
    if plain in recipes.names():
        recipe = recipes.find(plain)
        if replace(study, name=plain, smoke=False, seeds=recipe.seeds) == recipe:
            return study.name
    one_seed = replace(study, seeds=dict.fromkeys(study.seeds, 1)).experiments()
    marks = "".join(run.id for run in one_seed)
    return f"{study.name}-{sha256(marks.encode()).hexdigest()[:6]}"


def checked(study: Study) -> tuple[Experiment, ...]:
    """The study's runs, each of which can be built; RequestError where one cannot."""
    try:
        experiments = study.experiments()
        for experiment in experiments:
            _ = experiment.model.plans
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None
    return experiments


def _plan(study: Study, experiments: Sequence[Experiment], missing: int, store: Store) -> str:
    runs = len(experiments)
    seeds = ", ".join(f"{task}: {count}" for task, count in study.seeds.items())
    lines = [
        f"{study.name}: {runs} runs, of which {runs - missing} are done in {store.path}.",
        f"Arms   {'   '.join(study.variants)}",
        f"Seeds  {seeds}",
        f"Runs   {experiments[0].execution}, {study.backend}, threads: {study.threads}",
    ]
    if needed := {first for run in experiments for first in run.needed}:
        weights = sum(kept_weights(first) is not None for first in needed)
        names = ", ".join(sorted({first.task for first in needed}))
        lines.append(
            f"First  {len(needed)} runs on {names} come first, of which {weights} are kept."
        )
    return "\n".join(lines)


def _carried_out(request: Request, study: Study, store: Store) -> int:
    # After the request is checked: the engine imports the backend.
    from qkvbench.sweep.local import stoppable
    from qkvbench.sweep.study import carry_out

    if study.compiled and (reason := backends.find(study.backend).cannot_compile()):
        raise RequestError(f"{reason}\nRun without --compile. Nothing was run.")
    if study.devices > 1:
        try:
            reason = backends.spreading(study.backend).cannot_spread(study.devices)
        except ValueError as error:
            reason = str(error)
        if reason:
            raise RequestError(f"{reason}\nNothing was run.")
    command = "qkvbench " + shlex.join(sys.argv[1:])
    endings: Counter[str] = Counter()
    with stoppable(), Told(endings) as progress:
        carry_out(
            study,
            store,
            command=command,
            jobs=request.jobs,
            fail_fast=request.fail_fast,
            progress=progress,
        )
    write_reports(store)
    failed = sum(count for status, count in endings.items() if status != "done")
    return 1 if failed else 0
