"""`qkvbench run`: a study from words to a table, resumed by the same words."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from qkvbench import backends, recipes
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cli.progress import Told
from qkvbench.cli.report import write_reports
from qkvbench.cli.train import write_files
from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.experiment import Experiment
from qkvbench.measure.machine import cores
from qkvbench.recipes import Study
from qkvbench.results.store import Store, StoreError
from qkvbench.train.artifacts import kept_weights

if TYPE_CHECKING:
    from qkvbench.sweep.engines import Chosen
    from qkvbench.sweep.forecast import Forecast

DEFAULT_SEEDS = 3


def answer(request: Request) -> int:
    """Carry out the study, print its table, write its page."""
    study = asked(request)
    engine = names.engine(request.engine, request.options)
    trackers = names.trackers(request.track)
    experiments = checked(study)
    store = Store(Path("results") / folder(study) if request.out is None else Path(request.out))
    try:
        if request.files:
            write_files(experiments, Path(request.files))
            print(f"{len(experiments)} experiments are in {request.files}, for 'qkvbench train'.")
            return 0
        if request.dry_run:
            print(_plan(study, experiments, store, request.jobs))
            return 0
        return _carried_out(request, study, store, engine, trackers)
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
        init_from=study.init_from if request.init_from is None else names.task(request.init_from),
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


def _plan(study: Study, experiments: Sequence[Experiment], store: Store, jobs: int | None) -> str:
    """What would run, and what it would take, in words."""
    from qkvbench.sweep.forecast import forecasts
    from qkvbench.sweep.study import to_run

    missing = to_run(experiments, store)
    done = sum(store.done(each) is not None for each in experiments)
    seeds = ", ".join(f"{task}: {count}" for task, count in study.seeds.items())
    lines = [
        f"{study.name}: {len(experiments)} runs, of which {done} are done in {store.path}.",
        f"Arms   {'   '.join(study.variants)}",
        f"Seeds  {seeds}",
        f"Runs   {experiments[0].execution}, {study.backend}, threads: {study.threads}",
    ]
    if needed := {first for run in experiments for first in run.needed}:
        weights = sum(kept_weights(first) is not None for first in needed)
        first = ", ".join(sorted({str(first.task) for first in needed}))
        lines.append(
            f"First  {len(needed)} runs on {first} come first, of which {weights} are kept."
        )
    return "\n".join(
        [*lines, *_forecast_lines(study, forecasts(experiments, missing, store), jobs)]
    )


def _forecast_lines(study: Study, found: "Sequence[Forecast]", jobs: int | None) -> list[str]:
    """Each task's time, memory and disk, and from where that is known; then the whole."""
    rows = [("task", "runs", "left", "a run", "a step holds", "records", "known from")]
    rows += [
        (
            each.task,
            str(each.runs),
            str(each.left),
            "?" if each.run_s is None else seconds_text(each.run_s),
            "?" if each.step_bytes is None else bytes_text(each.step_bytes),
            "?" if each.disk_bytes is None else bytes_text(each.disk_bytes),
            each.source or "nothing",
        )
        for each in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    told = [each.left_s for each in found if each.left_s is not None]
    left = sum(each.left for each in found if each.left_s is None)
    at_once = jobs or max(1, cores() // study.threads)
    whole = f"Takes  about {seconds_text(sum(told) / at_once)}, {at_once} at a time"
    if left:
        takes = recipes.takes(study.name) if study.name in recipes.names() else None
        whole += f", and {left} runs of which no record tells"
        whole += f"; the recipe says: {takes}" if takes else ""
    whole += ". Beside a step, each process holds what its backend and the data take."
    return [*table, whole]


def _carried_out(
    request: Request, study: Study, store: Store, engine: "Chosen", trackers: Sequence[str]
) -> int:
    # After the request is checked: the engine imports the backend.
    from qkvbench.sweep.local import stoppable
    from qkvbench.sweep.study import carry_out
    from qkvbench.sweep.trackers import Mirror

    if request.seeds_together and (reason := backends.find(study.backend).cannot_join()):
        raise RequestError(f"{reason}\nRun without --seeds-together. Nothing was run.")
    if study.compiled and (reason := backends.find(study.backend).compile_error()):
        raise RequestError(f"{reason}\nRun without --compile. Nothing was run.")
    if study.devices > 1:
        try:
            reason = backends.multi_device_backend(study.backend).multi_device_error(study.devices)
        except ValueError as error:
            reason = str(error)
        if reason:
            raise RequestError(f"{reason}\nNothing was run.")
    command = "qkvbench " + shlex.join(sys.argv[1:])
    endings: Counter[str] = Counter()
    with stoppable(), Told(endings) as progress:
        progress.mirrors = [
            Mirror(name, store.path / "trackers" / name, study.name, progress.unmirrored)
            for name in trackers
        ]
        carry_out(
            study,
            store,
            command=command,
            jobs=request.jobs,
            fail_fast=request.fail_fast,
            progress=progress,
            engine=engine,
            seeds_together=request.seeds_together,
        )
    write_reports(store)
    failed = sum(count for status, count in endings.items() if status != "done")
    return 1 if failed else 0
