"""The results of a study, computed from its store: cells, comparisons, costs and missing runs.

Every report renders this value.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TypeVar

from qkvbench.cost.matched import unmarked
from qkvbench.experiment import Experiment
from qkvbench.model import AGAIN, parse_label
from qkvbench.results.across import CONTROLS, FLOOR, Front, aggregates, fronts, item_differences
from qkvbench.results.aggregate import Aggregate
from qkvbench.results.averages import Average, averages
from qkvbench.results.margins import Margins
from qkvbench.results.record import (
    Cost,
    Machine,
    Measurement,
    MetricInfo,
    Preregistration,
    Ratio,
    Record,
    StudyInfo,
    Tuning,
)
from qkvbench.results.resampling import ItemBounds
from qkvbench.results.stats import Comparison, Tally, Verdict, compare, reaches, tally, verdicts
from qkvbench.results.store import Damaged, Store
from qkvbench.results.tuning import FIRST_SEED, Sensitivity, sensitivities
from qkvbench.task_ref import short_names
from qkvbench.variant import CANONICAL, write

Value = TypeVar("Value")

BASELINE = write(CANONICAL)


@dataclass(frozen=True)
class Cell:
    """One arm on one task: its runs in the order of their seeds, and the missing seeds."""

    variant: str
    task: str
    runs: tuple[Record, ...]
    missing: tuple[int, ...]

    @property
    def scores(self) -> dict[int, float]:
        """The score of each seed that is done."""
        return self._scores

    @cached_property
    def _scores(self) -> dict[int, float]:
        return {run.seed: run.score for run in self.runs if run.status == "done"}

    @cached_property
    def solved(self) -> tuple[Record, ...]:
        """The runs that are done and reach the task's threshold; empty if it has none."""
        return tuple(
            run
            for run in self.runs
            if run.status == "done"
            and run.metric.solved is not None
            and reaches(run.score, run.metric.solved, better=run.metric.better)
        )

    @property
    def solved_steps(self) -> dict[int, float | None]:
        """The step at which each seed solved the task, None if it did not.

        Of the seeds that are done or diverged. One whose test score reaches the threshold, though
        no validation score on the way did, solved it at its last step.
        """
        return self._solved_steps

    @cached_property
    def _solved_steps(self) -> dict[int, float | None]:
        solved = {run.seed for run in self.solved}
        return {
            run.seed: float(run.solved_step or run.parsed_experiment.training.steps)
            if run.seed in solved
            else None
            for run in self.runs
            if run.status in ("done", "diverged")
        }

    @cached_property
    def ended_seeds(self) -> frozenset[int]:
        """The seeds of runs that were not interrupted."""
        return frozenset(run.seed for run in self.runs if run.status != "interrupted")

    @cached_property
    def failures(self) -> tuple[Record, ...]:
        """The runs that ended without a score."""
        return tuple(run for run in self.runs if run.status != "done")

    @property
    def diverged(self) -> tuple[int, ...]:
        """The seeds whose loss became infinite or NaN: a failure of the arm itself."""
        return tuple(run.seed for run in self.runs if run.status == "diverged")


@dataclass(frozen=True)
class TaskView:
    """One task of a study: a cell for each arm, in the study's order, and their statistics.

    ``label`` is the name in tables and sentences, which is shorter if it is a path.
    ``init_from`` is the task on which each run's initial weights were trained, by the same arm and
    seed; None for random initial weights.

    ``items`` are the differences to the baseline over the test items, for arms whose records all
    have item scores; ``fronts`` is the Pareto status of each arm on quality and one cost.
    """

    name: str
    label: str
    metric: MetricInfo
    model: str
    causal: bool
    steps: int
    init_from: str | None
    cells: tuple[Cell, ...]
    result: Comparison | Tally
    costs: dict[str, Cost]
    items: dict[str, ItemBounds]
    fronts: tuple[Front, ...]

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each arm that is compared."""
        return verdicts(self.result, self.metric.better)

    def cell(self, variant: str) -> Cell:
        """The cell of this arm."""
        return next(cell for cell in self.cells if cell.variant == variant)


@dataclass(frozen=True)
class View:
    """A whole study. `arms` are equations, the baseline first.

    ``cost_task`` is the task whose model the cost columns describe. ``waiting`` has the tasks
    without a run; ``others`` counts runs of the store that are neither part of this study nor a
    dependency of its runs, nor tune it. ``aggregates`` has one figure over the tasks for each arm
    that is complete on all of them. ``tuning`` has the learning rates that were tried for each arm
    and task; empty if the arms of a task share one, or have those of another study, ``carried``.
    ``preregistered`` is what was stored before the
    first run; None if nothing was.
    """

    name: str
    command: str
    arms: tuple[str, ...]
    tasks: tuple[TaskView, ...]
    cost_task: str | None
    measurements: dict[str, Measurement]
    damaged: tuple[Damaged, ...]
    waiting: tuple[str, ...]
    others: int
    aggregates: dict[str, Aggregate]
    averages: tuple[Average, ...]
    tuning: tuple[Sensitivity, ...] = ()
    carried: Tuning | None = None
    preregistered: Preregistration | None = None

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def candidates(self) -> tuple[str, ...]:
        """The arms that may take the baseline's place: no control, and no arm a second time."""
        return tuple(
            arm for arm in self.arms[1:] if arm not in CONTROLS and not arm.endswith(AGAIN)
        )

    @property
    def costs(self) -> dict[str, Cost]:
        """The cost of each arm in the model of `cost_task`."""
        none: dict[str, Cost] = {}
        return next((task.costs for task in self.tasks if task.name == self.cost_task), none)

    def label(self, name: str) -> str:
        """The name of a task in tables and sentences."""
        return next((task.label for task in self.tasks if task.name == name), name)

    def decode_ratio(self, arm: str) -> Ratio | None:
        """The time of a decode step divided by the baseline's; None if it was not recorded."""
        measurement = self.measurements.get(arm)
        decode = measurement.timings.get("decode") if measurement else None
        ratio = decode.ratio if decode else None
        return ratio if ratio is not None and ratio.to == self.baseline else None

    @property
    def runs(self) -> tuple[Record, ...]:
        """All runs of the study, task by task and arm by arm."""
        return tuple(run for task in self.tasks for cell in task.cells for run in cell.runs)

    @property
    def failures(self) -> tuple[Record, ...]:
        """The runs that ended without a score."""
        return tuple(run for run in self.runs if run.status != "done")

    @property
    def machines(self) -> tuple[Machine, ...]:
        """The distinct machines and software of done runs and measurements, ignoring load."""
        machines = [run.machine for run in self.runs if run.status == "done"]
        machines += [measurement.machine for measurement in self.measurements.values()]
        by_name = {
            (each.device, each.cores, each.platform, each.code, *each.versions.items()): each
            for each in machines
        }
        return tuple(by_name.values())

    @property
    def revisions(self) -> tuple[str, ...]:
        """The code revisions of the runs, in order of first use."""
        ordered = sorted(self.runs, key=lambda run: run.started)
        return tuple(dict.fromkeys(run.machine.code for run in ordered))


def view(store: Store, margins: Margins | None = None, *, first_seeds: int | None = None) -> View:
    """The study in this store; without a readable `study.json` it consists of all runs.

    `margins` are those of the command line; by default those of each task's unit. With
    `first_seeds` it is the study as if no task had more seeds than these.
    """
    runs, measurements, damage = store.runs(), store.measurements(), store.study_damage()
    needed = {first.id for run in runs.good for first in run.parsed_experiment.needed}
    stored = store.study()
    own = _untuned(run for run in runs.good if run.id not in needed)
    study = stored or _inferred_study(own, {each.model for each in measurements.good})
    seeds = {
        task: range(count)[:first_seeds] if stored else _seeds(own, task)[:first_seeds]
        for task, count in study.seeds.items()
    }
    arms = tuple(dict.fromkeys(study.variants)) or (BASELINE,)
    study_ids, tuning_ids = set(study.runs), study.tuning.ids if study.tuning else set[str]()
    chosen = [
        run
        for run in runs.good
        if run.arm in arms
        and run.task in study.tasks
        and run.seed in seeds.get(run.task, ())
        # No run of a tuned study begins before its rate is known.
        and (run.id in study_ids or not (study_ids or study.tuning))
    ]
    by_task: dict[str, list[Record]] = defaultdict(list)
    for run in chosen:
        by_task[run.task].append(run)
    matched = {
        name: _comparable_runs(by_task[name], tuned=study.tuning is not None)
        for name in study.tasks
        if by_task[name]
    }
    cost_task = study.cost_task if study.cost_task in matched else next(iter(matched), None)
    timed = _same_conditions(
        each
        for each in measurements.good
        if each.arm in arms
        and cost_task is not None
        and _own_model(each) == _own_model(matched[cost_task][0])
        and (each.id in study.measurements or not study.measurements)
    )
    labels = short_names(study.tasks)
    tasks = tuple(
        _task(
            name,
            labels[name],
            arms,
            same,
            seeds[name] if stored else _seeds(same, name),
            margins=margins or Margins(),
            measurements=timed if name == cost_task else {},
        )
        for name, same in matched.items()
    )
    study_runs = {run.id for task in tasks for cell in task.cells for run in cell.runs}
    return View(
        name=study.name,
        command=study.command,
        arms=arms,
        tasks=tasks,
        cost_task=cost_task,
        measurements=timed,
        damaged=((damage,) if damage else ()) + runs.damaged + measurements.damaged,
        waiting=tuple(name for name in study.tasks if name not in matched),
        others=len({run.id for run in runs.good} - needed - study_runs - tuning_ids),
        aggregates=aggregates(tasks, arms),
        averages=averages(tasks, study.benchmarks, margins or Margins()),
        tuning=sensitivities(study.tuning, runs.good) if study.tuning else (),
        carried=study.tuning if study.tuning and study.tuning.taken_from else None,
        preregistered=study.preregistered,
    )


def with_margin(task: TaskView, margin: float | None) -> TaskView:
    """The same task with its verdicts at another margin; items and fronts stay as they are."""
    result = compare_cells(task.cells, task.metric, task.result.seeds, margin)
    return replace(task, result=result)


def _untuned(runs: Iterable[Record]) -> list[Record]:
    """The runs but those that tuned a rate: of a task that has lower seeds, those from there on."""
    every = list(runs)
    lowest = {task: min(_seeds(every, task)) for task in {run.task for run in every}}
    return [run for run in every if run.seed < FIRST_SEED or lowest[run.task] >= FIRST_SEED]


def _seeds(runs: Iterable[Record], task: str) -> tuple[int, ...]:
    """The seeds that these runs have on a task."""
    return tuple(sorted({run.seed for run in runs if run.task == task}))


def _inferred_study(runs: Sequence[Record], measured: set[str]) -> StudyInfo:
    """A study of all these runs; its cost task is one whose model was measured, if possible."""
    decoders = [run for run in runs if run.cost.cache_bytes_per_token is not None]
    decoders.sort(key=lambda run: run.model not in measured)
    arms = sorted({run.arm for run in runs}, key=lambda arm: (arm != BASELINE, arm))
    tasks = sorted({run.task for run in runs})
    return StudyInfo(
        name="runs without a study",
        command="",
        variants=arms,
        tasks=tasks,
        cost_task=next((run.task for run in decoders), None),
        seeds={task: len(_seeds(runs, task)) for task in tasks},
        threads=runs[0].threads if runs else 1,
        precision=runs[0].precision if runs else "",
        backend=runs[0].backend if runs else "",
    )


def _comparable_runs(runs: Sequence[Record], *, tuned: bool) -> list[Record]:
    """The runs that differ only in arm and seed; of several such sets the largest.

    The arms of a `tuned` study differ in learning rate as well. An arm that is matched to a size
    differs in its feed-forward width: it joins the set that is equal but for that.
    """
    sets: dict[Experiment, list[Record]] = defaultdict(list)
    sized: dict[Experiment, list[Record]] = defaultdict(list)
    for own, same in _by_arm(runs).items():
        (shared,) = own.vary(variants=[BASELINE], seeds=[0])
        shared = without_rate(shared) if tuned else shared
        if same[0].arm == same[0].variant:
            sets[shared] += same
        else:
            sized[_unmarked(shared)] += same
    if not sets:
        sets = sized
    chosen, largest = max(
        sets.items(), key=lambda item: (len(item[1]), max(run.started for run in item[1]))
    )
    return largest if sets is sized else [*largest, *sized[_unmarked(chosen)]]


def _by_arm(runs: Sequence[Record]) -> dict[Experiment, list[Record]]:
    """The runs of each arm: those that differ in their seed alone, under the experiment of seed 0.

    Hashing an experiment takes as long as reading its file, so runs whose experiments have the
    same objects in all other fields, as most runs of an arm do, are hashed once.
    """
    others = [field.name for field in fields(Experiment) if field.name != "seed"]
    by_parts: dict[tuple[int, ...], list[Record]] = defaultdict(list)
    for run in runs:
        own = run.parsed_experiment
        by_parts[tuple(id(getattr(own, name)) for name in others)].append(run)
    found: dict[Experiment, list[Record]] = defaultdict(list)
    for same in by_parts.values():
        found[replace(same[0].parsed_experiment, seed=0)] += same
    return found


def without_rate(experiment: Experiment) -> Experiment:
    """The experiment without its own learning rate; that of its initial weights stays."""
    training = replace(experiment.training, learning_rate=0.0, final_learning_rate=0.0)
    return replace(experiment, training=training)


def _unmarked(experiment: Experiment) -> Experiment:
    """The experiment, and the one that it is initialized from, without their size match."""
    init_from = experiment.init_from and _unmarked(experiment.init_from)
    return replace(experiment, model=unmarked(experiment.model), init_from=init_from)


def _own_model(run: Record | Measurement) -> str:
    """The name of the model that the arms vary."""
    return parse_label(run.model)[0]


def _task(
    name: str,
    label: str,
    arms: tuple[str, ...],
    runs: Sequence[Record],
    seeds: Sequence[int],
    *,
    margins: Margins,
    measurements: Mapping[str, Measurement],
) -> TaskView:
    by_arm: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        by_arm[run.arm].append(run)
    cells = tuple(_cell(name, arm, by_arm[arm], seeds) for arm in arms)
    first, metric = runs[0].parsed_experiment, runs[0].metric
    result = compare_cells(cells, metric, seeds, margins.of(name, metric))
    costs = {cell.variant: cell.runs[0].cost for cell in cells if cell.runs}
    return TaskView(
        name=name,
        label=label,
        metric=metric,
        model=_own_model(runs[0]),
        causal=first.model.causal,
        steps=first.training.steps,
        init_from=first.init_from and str(first.init_from.task),
        cells=cells,
        result=result,
        costs=costs,
        items=item_differences(cells, result),
        fronts=fronts(cells, result, metric, costs, measurements),
    )


def compare_cells(
    cells: Sequence[Cell],
    metric: MetricInfo,
    seeds: Iterable[int],
    margin: float | None,
    floor: str | None = FLOOR,
) -> Comparison | Tally:
    """The statistics of some arms on one task, the first the baseline, over these seeds."""
    own = tuple(seeds)
    if metric.solved is None:
        return compare(
            {cell.variant: _only(cell.scores, own) for cell in cells},
            baseline=cells[0].variant,
            seeds=own,
            metric=metric,
            margin=margin,
            diverged={
                cell.variant: [seed for seed in cell.diverged if seed in own] for cell in cells
            },
            floor=floor,
        )
    return tally(
        {cell.variant: _only(cell.solved_steps, own) for cell in cells},
        baseline=cells[0].variant,
        seeds=own,
        margin=margin,
        floor=floor,
    )


def _only(by_seed: Mapping[int, Value], seeds: Sequence[int]) -> dict[int, Value]:
    own = set(seeds)
    return {seed: value for seed, value in by_seed.items() if seed in own}


def _cell(task: str, arm: str, runs: Sequence[Record], seeds: Iterable[int]) -> Cell:
    own = sorted(runs, key=lambda run: run.seed)
    present = {run.seed for run in own}
    return Cell(arm, task, tuple(own), tuple(seed for seed in seeds if seed not in present))


def _same_conditions(measurements: Iterable[Measurement]) -> dict[str, Measurement]:
    """One measurement for each arm under the same conditions: those that most arms have."""
    by_conditions: dict[tuple[object, ...], dict[str, Measurement]] = defaultdict(dict)
    for each in measurements:
        conditions = (each.context, each.batch, each.backend, each.precision, each.threads)
        by_conditions[conditions][each.arm] = each
    if not by_conditions:
        return {}
    return max(by_conditions.items(), key=lambda item: (len(item[1]), str(item[0])))[1]
