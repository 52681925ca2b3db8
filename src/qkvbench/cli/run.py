"""`qkvbench run`: run a study and report it; the same command resumes it."""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkvbench import backends, hardware, recipes, tasks
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cli.progress import StudyProgress
from qkvbench.cli.rates import with_rates_of
from qkvbench.cli.registration import hypotheses_text, registration_of
from qkvbench.cli.report import write_reports
from qkvbench.cli.train import write_files
from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.data import DataUnavailableError
from qkvbench.data.cache import cache_folder, check_usable
from qkvbench.experiment import Experiment
from qkvbench.measure.machine import cores
from qkvbench.model import Model
from qkvbench.recipes import Study
from qkvbench.reports.parts.formatting import plural, printable
from qkvbench.results.continuing import difference
from qkvbench.results.record import Preregistration
from qkvbench.results.store import Store, StoreError
from qkvbench.results.tuning import FACTORS, FIRST_SEED, SEEDS, tuning_ended
from qkvbench.train.artifacts import kept_weights
from qkvbench.train.dependencies import in_order

if TYPE_CHECKING:
    from qkvbench.sweep.engines import EngineChoice
    from qkvbench.sweep.forecast import Forecast

DEFAULT_SEEDS = 5
# All runs are planned in memory before the first one begins.
MOST_RUNS = 20_000
# Runs at a time: each is a process with a backend of its own.
MOST_JOBS_PER_CORE, MOST_JOBS = 16, 10_000
# Runs of less arithmetic are for the machine at hand: a week at 100 billion operations a second.
LEAST_FLOPS = 7 * 24 * 3600 * 1e11
# A laboratory's node, and the share of a device's peak that its trainings reach: PaLM's was 0.46
# (arXiv:2204.02311, section 4.1), smaller ones' is less.
LAB_DEVICES, LAB_SHARE, LEAST_WATTS = 8, 0.4, 300
# The fields of a study that a flag of the same name replaces, and how its text is parsed.
STUDY_FIELDS: Mapping[str, Callable[[Any], object]] = {
    "variants": names.arms,
    "backend": names.backend,
    "model": names.model,
    "position": str,
    "pooling": names.pooling,
    "init_from": names.task,
    "precision": names.precision,
    "compiled": bool,
    "checkpointing": bool,
    "micro_batches": int,
    "quantizations": names.quantizations,
    "devices": int,
    "sharding": names.sharding,
    "smoke": bool,
}


def answer(request: Request) -> int:
    """Run the study, print its table, write its page."""
    study = requested_study(request)
    engine = names.engine(request.engine, request.options)
    trackers = names.trackers(request.track)
    check_buildable(study)
    _check_jobs(request.jobs, engine.name)
    # A recipe may be planned for another machine; what is asked for here must be here.
    if not request.dry_run or request.devices:
        _check_machine(study)
    for line in _remarks(request, study):
        print(line, file=sys.stderr)
    store = Store(
        Path("results") / default_folder(study) if request.out is None else Path(request.out)
    )
    if request.preregister and request.files:
        raise RequestError(
            "--files runs nothing, so nothing is registered before it; leave out --preregister, "
            "or leave out --files.\nNothing was written."
        )
    try:
        # Files of experiments are written elsewhere; the store is only read for them.
        if not request.files:
            store.check_writable()
        registered = registration_of(request.preregister, study, store)
        if not (request.files or request.replace):
            _check_continues(study, store)
        if request.dry_run:
            print(_dry_run_text(study, store, request.jobs or engine.default_jobs))
            if registered is not None:
                print(hypotheses_text(registered))
            return 0
        if request.files:
            return _write_files(study, store, Path(request.files))
        return _run_study(request, study, store, engine, trackers, registered)
    except StoreError as error:
        raise RequestError(f"{error}\nGive another folder with --out DIR.") from None


def requested_study(request: Request) -> Study:
    """The study of a request: a recipe, changed by the flags, or variants × tasks."""
    if request.recipe:
        study = names.recipe(request.recipe, request.size)
    elif request.size:
        raise RequestError("--size is that of a recipe, as in 'qkvbench run frontier --size 300m'.")
    elif request.variants and request.tasks:
        study = Study(name="study", variants=(), seeds={})
    else:
        raise RequestError(
            "Nothing to run: name a recipe, as in 'qkvbench run quick', "
            "or --variants and --tasks, as in 'run --variants q,k,v q,k=v --tasks digits'.\n"
            f"Recipes: {', '.join(recipes.names())}; 'qkvbench ls recipes' describes them."
        )
    seeds = _requested_seeds(request, study.seeds)
    changes = {
        field: parse(value)
        for field, parse in STUDY_FIELDS.items()
        if (value := getattr(request, field)) is not None and value is not False and value != ()
    }
    if request.tune:
        changes["tuned"] = True
        if max(seeds.values()) > FIRST_SEED:
            raise RequestError(
                f"Learning rates are tuned with the seeds from {FIRST_SEED} on, so a study that is "
                f"tuned has at most {FIRST_SEED} seeds of its own; leave out --tune, or take fewer."
            )
    name = f"{study.name}-smoke" if request.smoke else study.name
    study = replace(study, name=name, seeds=seeds, **changes)
    if request.rates:
        if request.tune:
            raise RequestError(
                "--rates takes the rates of --tune from another study: leave out one."
            )
        study = with_rates_of([Path(folder) for folder in request.rates], study)
    if (count := len(study.variants) * sum(seeds.values())) > MOST_RUNS:
        raise RequestError(
            f"{len(study.variants)} arms with {sum(seeds.values()):,} seeds over all tasks are "
            f"{count:,} runs; a study has at most {MOST_RUNS:,}.\n"
            "Take fewer --seeds, --tasks or --variants. Nothing was run."
        )
    return study


def _requested_seeds(request: Request, own: Mapping[str, int]) -> dict[str, int]:
    """The tasks of a request, each with its number of seeds; `own` are those of its recipe."""
    seeds = dict(own)
    if request.tasks:
        tasks = dict.fromkeys(names.task(name) for name in request.tasks)
        seeds = {name: seeds.get(name, DEFAULT_SEEDS) for name in tasks}
    if request.seeds:
        seeds = dict.fromkeys(seeds, int(request.seeds))
    if request.smoke:
        # Two seeds, so that the statistics are computed as well.
        seeds = {name: min(count, 2) for name, count in seeds.items()}
    return seeds


def default_folder(study: Study) -> str:
    """The default folder of a study: its name, with a hash if it differs from the recipe.

    The number of seeds is not hashed, so that more seeds are added to the same folder. A tuned
    study's is beside that of the same study without tuning.
    """
    if study.tuned:
        return f"{default_folder(replace(study, tuned=False))}-tuned"
    plain = study.name.removesuffix("-smoke")
    recipe = recipes.named(plain)
    if recipe and replace(study, name=plain, smoke=False, seeds=recipe.seeds) == recipe:
        return study.name
    one_seed = replace(study, seeds=dict.fromkeys(study.seeds, 1)).experiments()
    ids = "".join(run.id for run in one_seed)
    return f"{study.name}-{sha256(ids.encode()).hexdigest()[:6]}"


def check_buildable(study: Study) -> None:
    """Raise RequestError if the model of one of the study's runs cannot be built."""
    try:
        for experiment in study.experiments():
            _ = experiment.model.plans
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None


def _remarks(request: Request, study: Study) -> list[str]:
    """Arms that are written twice or compute the same, and masks that hide nothing: a line each."""
    found: dict[str, None] = {
        f"{' and '.join(texts)} are one arm, {arm}; it runs once.": None
        for arm, texts in names.same_arm(request.variants or ()).items()
    }
    alike = {(run.arm, str(run.task)): run for run in study.experiments()}
    for task in study.seeds:
        computed: list[tuple[object, str]] = []
        for run in (run for (_, name), run in alike.items() if name == task):
            what = _computation(run.model)
            same = next((arm for other, arm in computed if other == what), None)
            if same is not None:
                found[
                    f"On {task} {run.arm} computes what {same} does, number by number: there is no "
                    "difference to find."
                ] = None
            computed.append((what, run.arm))
    for run in alike.values():
        tokens = tasks.find(run.task).tokens
        sparse = [plan for plan in run.model.plans if plan and plan.mask.is_sparse]
        if sparse and all(plan.mask.hides_no_key(tokens) for plan in sparse):
            found[
                f"{run.arm} hides no key of the {tokens} tokens of {run.task}: it computes what "
                "the arm without its mask does."
            ] = None
    return list(found)


def _computation(model: Model) -> object:
    """The computation of a model, however its arm is written."""
    plans = [
        [plan and plan.computation for plan in layer] for tower in model.layers for layer in tower
    ]
    blocks = [
        replace(block, attention=None, cross=None)
        for tower in model.towers
        for block in tower.blocks
    ]
    return plans, blocks, model.architecture, model.position, model.init, model.changes


def _check_jobs(jobs: int | None, engine: str) -> None:
    """Raise RequestError if more runs are asked for at a time than can help."""
    most = MOST_JOBS_PER_CORE * cores() if engine == "local" else MOST_JOBS
    if jobs is not None and jobs > most:
        where = f"{cores()} cores here" if engine == "local" else f"the engine {engine}"
        raise RequestError(
            f"--jobs {jobs} are more runs at a time than {where} can carry out; "
            f"write --jobs {most} or less. Nothing was run."
        )


def _check_machine(study: Study) -> None:
    """Raise RequestError if this machine lacks what every run of the study needs."""
    if study.compiled and (reason := backends.find(study.backend).compile_error()):
        raise RequestError(f"{reason}\nRun without --compile. Nothing was run.")
    if study.devices > 1:
        try:
            reason = backends.multi_device_backend(study.backend).multi_device_error(study.devices)
        except ValueError as error:
            reason = str(error)
        if reason:
            raise RequestError(f"{reason}\nNothing was run.")
    if any(tasks.find(each).tier in ("packaged", "hub") for each in study.tasks):
        try:
            check_usable()
        except DataUnavailableError as error:
            raise RequestError(f"{error}\nNothing was run.") from None


def _check_continues(study: Study, store: Store) -> None:
    """Raise RequestError if the folder has another study, whose description would be lost."""
    if (damage := store.study_damage()) is not None and damage.newer:
        raise RequestError(f"{damage.path}: {damage.reason}\nNothing was run.")
    if (before := store.study()) is None:
        return
    from qkvbench.sweep.study import info, with_chosen_rates

    asked = info(with_chosen_rates(study, store), command="")
    other = difference(before, asked)
    if other is None and (gone := {*before.runs} - {*asked.runs}):
        print(
            f"{plural(len(gone), 'run')} of {store.path} will not be in its report: this request "
            "is for fewer. The records stay, and the whole request takes them in again.",
            file=sys.stderr,
        )
    if other is not None:
        raise RequestError(
            f"{store.path} has another study, {printable(before.name)}: {printable(other)}.\n"
            "Name another folder with --out DIR; or --replace, which makes this its study: the "
            "records stay, but the report will not show those of the other.\nNothing was run."
        )


def _write_files(study: Study, store: Store, folder: Path) -> int:
    """Write the runs as files: of a tuned study, those that are known without a run."""
    from qkvbench.sweep.study import runnable_experiments, untuned, with_chosen_rates

    study = with_chosen_rates(study, store)
    experiments = (*study.tuning_experiments(), *runnable_experiments(study))
    write_files(experiments, folder)
    print(f"{len(experiments)} experiments are in {folder}, for 'qkvbench train'.")
    if waiting := untuned(study):
        print(
            f"The runs of {len(waiting)} arms are not among them: their learning rates are known "
            f"once the tuning runs are in {store.path}; then the same command writes them."
        )
    return 0


def _dry_run_text(study: Study, store: Store, jobs: int | None) -> str:
    """The runs of the study, and a forecast of their time and memory."""
    from qkvbench.sweep.forecast import forecasts
    from qkvbench.sweep.study import runnable_experiments, with_chosen_rates

    study = with_chosen_rates(study, store)
    experiments, tuning = study.experiments(), study.tuning_experiments()
    # A run whose rate is not known yet is not done, whatever it will be.
    done = {each for each in runnable_experiments(study) if store.done(each) is not None}
    tuned = {each for each in tuning if tuning_ended(store.run(each))}
    planned = [*tuning, *experiments]
    missing = in_order(each for each in planned if each not in done | tuned)
    seeds = ", ".join(f"{task}: {count}" for task, count in study.seeds.items())
    known = forecasts(planned, missing, store)
    lines = [
        f"{study.name}: {len(experiments)} runs, of which {len(done)} are done in {store.path}.",
        f"Takes  {_takes_text(study, known, jobs)}.",
        f"Arms   {'   '.join(study.variants)}",
        f"Seeds  {seeds}",
        f"Runs   {experiments[0].execution}, {study.backend}, threads: {study.threads}",
    ]
    if study.rates_of is not None:
        lines.append(f"Rates  of {study.rates_of}, which were tuned for each arm")
    if study.quantizations:
        lines.append(f"Bits   decoders are scored again with {', '.join(study.quantizations)}")
    lines += _uneven_parts(experiments)
    if tuning:
        lines.append(
            f"Tuning {len(tuning)} runs come first, {len(FACTORS)} learning rates × {len(SEEDS)} "
            f"seeds for each arm and task, of which {len(tuned)} are done."
        )
    if needed := {first for run in planned for first in run.needed}:
        weights = sum(kept_weights(first) is not None for first in needed)
        first = ", ".join(sorted({str(first.task) for first in needed}))
        lines.append(
            f"First  {len(needed)} runs on {first} come first; the weights of {weights} are kept."
        )
    return "\n".join([*lines, *_forecast_lines(known)])


def _uneven_parts(experiments: Sequence[Experiment]) -> list[str]:
    """A line for each size of a batch that its micro-batches do not divide evenly."""
    sizes = {(run.training.batch, run.training.micro_batches) for run in experiments}
    return [
        f"Parts  a batch of {batch} is computed in {parts} parts of {batch // parts} or "
        f"{batch // parts + 1} sequences; the step is still that of the whole batch."
        for batch, parts in sorted(sizes)
        if batch % parts
    ]


def _forecast_lines(by_task: "Sequence[Forecast]") -> list[str]:
    """The time, memory and disk of each task with their source."""
    rows = [("task", "runs", "left", "per run", "memory", "records", "known from")]
    rows += [
        (
            each.task,
            str(each.runs),
            str(each.left),
            "?" if each.run_s is None else seconds_text(each.run_s),
            bytes_text(each.step_bytes),
            "?" if each.disk_bytes is None else bytes_text(each.disk_bytes),
            each.source or "nothing",
        )
        for each in by_task
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [
        *table,
        "Memory is that of a training step, without backend and data.",
        *_compute_lines(by_task),
        *_data_lines(by_task),
    ]


def _compute_lines(by_task: "Sequence[Forecast]") -> list[str]:
    """The arithmetic of runs whose time is not known, on devices that can hold them; computed."""
    unknown = [each for each in by_task if each.left and each.left_s is None]
    flops = sum(each.flops for each in unknown)
    if flops < LEAST_FLOPS:
        return []
    most = max(each.step_bytes for each in unknown)
    lines = [
        f"Products of matrices in these runs: {flops:.2g} operations, computed. On {LAB_DEVICES} "
        "devices they take, at the peak",
        f"of the data sheet and at {LAB_SHARE:.0%} of it, an assumption, with nothing beside:",
    ]
    for name in hardware.names():
        device = hardware.find(name)
        rate = device.flops_per_s.get("bf16")
        if rate is None or device.watts is None or device.watts.value < LEAST_WATTS:
            continue
        peak_s = flops / (LAB_DEVICES * rate.value)
        fits = "" if most <= device.memory_bytes.value else "; a step does not fit its memory"
        lines.append(
            f"  {name:<12} {seconds_text(peak_s)}, {seconds_text(peak_s / LAB_SHARE)}{fits}"
        )
    return lines


def _data_lines(by_task: "Sequence[Forecast]") -> list[str]:
    """The download of each task of the Hugging Face Hub, and the disk that it takes."""
    lines: list[str] = []
    for each in by_task:
        if (data := each.data) is None:
            continue
        size = "an unknown size" if data.download_bytes is None else bytes_text(data.download_bytes)
        terms = "; its terms must be accepted first" if data.gated else ""
        lines.append(
            f"Data   {each.task}: {size} of {data.repository} are read, about "
            f"{bytes_text(data.prepared_bytes)} kept in {cache_folder()}{terms}."
        )
    return lines


def _takes_text(study: Study, by_task: "Sequence[Forecast]", jobs: int | None) -> str:
    """The time of the remaining runs, as far as runs of the same task and model are known."""
    known_s = [each.left_s for each in by_task if each.left and each.left_s is not None]
    unknown = sum(each.left for each in by_task if each.left_s is None)
    if not unknown and not known_s:
        return "no time: every run is done"
    parallel = jobs or max(1, cores() // study.threads)
    about = f"about {seconds_text(sum(known_s) / parallel)}, {parallel} at a time"
    if not unknown:
        return about
    texts = [f"{about}, and a time that is not known"] if known_s else ["not known"]
    texts[0] += f": no record of {unknown} of the runs, or of the like, is here"
    if recipes.named(study.name) == replace(study, rates={}) and study.name in recipes.names():
        texts.append(f"by the recipe: {recipes.takes(study.name)}")
    return "; ".join(texts)


def _run_study(
    request: Request,
    study: Study,
    store: Store,
    engine: "EngineChoice",
    trackers: Sequence[str],
    registered: Preregistration | None,
) -> int:
    # Imported after the request is checked, because the engine imports the backend.
    from qkvbench.sweep.local import stoppable
    from qkvbench.sweep.study import run_study
    from qkvbench.sweep.trackers import Mirror

    # A word may have bytes that are no text.
    command = ("qkvbench " + shlex.join(sys.argv[1:])).encode(errors="replace").decode()
    endings: Counter[str] = Counter()
    with stoppable(), StudyProgress(endings) as progress:
        progress.store = store
        progress.mirrors = [
            Mirror(name, store.path / "trackers" / name, study.name, progress.on_tracker_error)
            for name in trackers
        ]
        run_study(
            study,
            store,
            command=command,
            jobs=request.jobs,
            fail_fast=request.fail_fast,
            progress=progress,
            engine=engine,
            preregistered=registered,
        )
    write_reports(store)
    failed = sum(count for status, count in endings.items() if status != "done")
    return 1 if failed else 0
