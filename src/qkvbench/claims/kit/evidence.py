"""Comparisons of two arms over all the runs in some folders. Only this file reads records."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from qkvbench import tasks
from qkvbench.claims.kit.measured import Benchmark, MeasuredChange, changes, read_benchmarks
from qkvbench.experiment import Experiment, from_json
from qkvbench.results.record import Measurement, MetricInfo, Record
from qkvbench.results.stats import Comparison, Difference, compare, tally
from qkvbench.results.store import Store
from qkvbench.results.view import View
from qkvbench.task_ref import TaskRef, parse_task
from qkvbench.variant import CANONICAL, NO_ATTENTION, write

BASELINE, FLOOR = write(CANONICAL), write(NO_ATTENTION)


@dataclass(frozen=True)
class StoreView:
    """The contents of one folder: its name, its runs, and all that was timed or measured there."""

    name: str
    records: tuple[Record, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()


@dataclass(frozen=True)
class ScoreDifference:
    """The arm's mean score minus the other's, with its 95% interval and p value."""

    metric: str
    better: Literal["higher", "lower"]
    value: float
    low: float
    high: float
    p: float

    @property
    def gain(self) -> float:
        """The difference with the sign that makes a gain positive."""
        return self.value if self.better == "higher" else -self.value

    @property
    def largest_loss(self) -> float:
        """The loss at the interval's worse end."""
        return -self.low if self.better == "higher" else self.high

    @property
    def smallest_loss(self) -> float:
        """The loss at the interval's better end."""
        return -self.high if self.better == "higher" else self.low

    @property
    def text(self) -> str:
        """The difference with its interval, in the task's own unit."""
        places = 3 if min(abs(self.low), abs(self.high)) >= 0.01 else 4
        value, low, high = (
            f"{each:+.{places}f}".replace("-", "−") for each in (self.value, self.low, self.high)
        )
        return f"{self.metric} {value} ({low} to {high})"


@dataclass(frozen=True)
class SolvedCounts:
    """The seeds of the arm, and of the other, that solved the task; p of the exact test."""

    arm: int
    other: int
    seeds: int
    p: float

    @property
    def gain(self) -> float:
        """The arm's count minus the other's."""
        return self.arm - self.other

    @property
    def text(self) -> str:
        """Both counts and the p value."""
        p = "p<0.001" if self.p < 0.001 else f"p={self.p:.2g}"
        return f"solved {self.arm} of {self.seeds} seeds against {self.other}, {p}"


@dataclass(frozen=True)
class Conditions:
    """The size of training runs, and how well their baseline does.

    ``parameters`` are the baseline's, ``tokens`` the length of a sequence, ``sequences`` the number
    of them in training. ``score`` is the baseline's mean accuracy; None for other metrics, and for
    tasks of which solved seeds are counted.
    """

    parameters: int
    tokens: int
    sequences: int
    score: float | None


@dataclass(frozen=True)
class Evidence:
    """The comparison of one arm with another in all runs of one experiment.

    ``stores`` are the folders that have such runs, ``runs`` the ids of the records of both arms.
    """

    stores: tuple[str, ...]
    task: str
    arm: str
    against: str
    seeds: int
    steps: int
    conditions: Conditions
    runs: tuple[str, ...]
    outcome: ScoreDifference | SolvedCounts

    @property
    def place(self) -> str:
        """The folders, in a few words."""
        first, *others = self.stores
        return f"{first} and {len(others)} more" if others else first

    @property
    def short(self) -> str:
        """Task and outcome."""
        return f"{self.task} {self.outcome.text}"

    @property
    def summary(self) -> str:
        """Task, folders, steps and outcome."""
        return f"{self.task} ({self.place}, {self.steps:,} steps): {self.outcome.text}"

    @property
    def text(self) -> str:
        """Task, arms, outcome, and the size of the evidence."""
        return (
            f"{self.task} in {', '.join(self.stores)}: `{self.arm}` against `{self.against}`, "
            f"{self.outcome.text}; {self.seeds} seeds, {self.steps:,} steps, "
            f"{self.conditions.parameters:,} parameters"
        )


@dataclass(frozen=True)
class Setup:
    """All runs that differ in arm and seed alone, from any folder; each run counts once.

    The name under which a task was run is no part of an experiment if inputs and model agree:
    recall with four heads of 16 is the same experiment whether or not its name gives the heads.
    """

    experiment: Experiment
    tasks: frozenset[str]
    runs: Mapping[str, Mapping[int, Record]]
    stores: Mapping[str, frozenset[str]]

    @property
    def metric(self) -> MetricInfo:
        """The metric of its runs."""
        return next(run.metric for by_seed in self.runs.values() for run in by_seed.values())

    def is_of(self, task: str) -> bool:
        """Whether runs of this task, with whatever budget, belong here."""
        if task in self.tasks:
            return True
        ref = parse_task(task)
        return self.experiment.task == ref.inputs and self.experiment.model == tasks.find(ref).model

    def scores(self, *arms: str) -> tuple[dict[str, dict[int, float]], list[int]]:
        """The scores of done runs by arm and seed, and the seeds on which all arms were run."""
        runs = {arm: self.runs.get(arm, {}) for arm in arms}
        seeds = set.intersection(*(set(each) for each in runs.values()))
        scores = {
            arm: {seed: run.score for seed, run in by_seed.items() if run.status == "done"}
            for arm, by_seed in runs.items()
        }
        return scores, sorted(seeds)

    def diverged(self, arm: str) -> list[int]:
        """The seeds of this arm whose loss became infinite or NaN."""
        return [seed for seed, run in self.runs[arm].items() if run.status == "diverged"]


@dataclass(frozen=True)
class Pool:
    """All that some folders hold together, the same in whichever order they are given.

    ``records`` are the runs of plain arms, by the inputs of their task, each with its folder's
    name; ``measured`` the measured changes, each with the place of its record.
    """

    records: Mapping[TaskRef, Sequence[tuple[str, Record]]]
    measured: tuple[tuple[str, MeasuredChange], ...]

    def comparisons(self, task: str, *, arm: str, against: str) -> tuple[Evidence, ...]:
        """The two arms on this task: one comparison for each experiment, most seeds first."""
        found = (
            _evidence(setup, task, arm, against)
            for setup in self.setups(parse_task(task).inputs)
            if {arm, against} <= set(setup.runs) and setup.is_of(task)
        )
        return tuple(
            sorted((each for each in found if each is not None), key=lambda each: -each.seeds)
        )

    def changes(self, quantity: str, arms: Sequence[str]) -> tuple[tuple[str, MeasuredChange], ...]:
        """Measured changes of a quantity, for these arms."""
        return tuple(
            (place, each)
            for place, each in self.measured
            if each.quantity == quantity and each.arm in arms
        )

    def setups(self, inputs: TaskRef) -> tuple[Setup, ...]:
        """All setups whose runs have these inputs."""
        if inputs not in self._setups:
            self._setups[inputs] = _setups(self.records.get(inputs, ()))
        return self._setups[inputs]

    @cached_property
    def _setups(self) -> dict[TaskRef, tuple[Setup, ...]]:
        """The setups that were asked for: most tasks have no claim, and their runs are not read."""
        return {}


def open_store(folder: Path) -> StoreView:
    """The records in this folder; StoreError if they cannot be read."""
    store, name = Store(folder), folder.resolve().name
    benchmarks = read_benchmarks(folder)
    return StoreView(name, store.runs().good, store.measurements().good, benchmarks)


def of_study(study: View) -> StoreView:
    """The runs and measurements of one study."""
    return StoreView(study.name, study.runs, tuple(study.measurements.values()))


def pool(stores: Sequence[StoreView]) -> Pool:
    """All that these folders hold."""
    records: dict[TaskRef, list[tuple[str, Record]]] = defaultdict(list)
    for store in stores:
        for run in store.records:
            if run.arm == run.variant:
                records[parse_task(run.task).inputs].append((store.name, run))
    measured = [found for store in stores for found in _measured(store)]
    measured.sort(key=lambda found: (found[0], found[1].model, found[1].setting))
    return Pool(records, tuple(measured))


def _setups(records: Sequence[tuple[str, Record]]) -> tuple[Setup, ...]:
    """The setups of these runs; a run that is in several folders is read once."""
    keys: dict[str, str] = {}
    setups: dict[str, Experiment] = {}
    names: dict[str, set[str]] = defaultdict(set)
    runs: dict[str, dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
    places: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for store, run in records:
        if run.id not in keys:
            setup = _setup(run)
            keys[run.id] = setup.id
            setups[setup.id] = setup
        key = keys[run.id]
        names[key].add(run.task)
        places[key][run.arm].add(store)
        others = runs[key][run.arm]
        others[run.seed] = min(run, others.get(run.seed, run), key=_precedence)
    return tuple(
        Setup(
            setups[key],
            frozenset(names[key]),
            {arm: dict(sorted(by_seed.items())) for arm, by_seed in runs[key].items()},
            {arm: frozenset(each) for arm, each in places[key].items()},
        )
        for key in sorted(setups)
    )


def _setup(run: Record) -> Experiment:
    """The run's experiment without what the runs of a setup may differ in."""
    (shared,) = from_json(run.experiment).vary(variants=[CANONICAL], seeds=[0])
    return replace(shared, task=shared.task.inputs)


def _precedence(run: Record) -> tuple[bool, str, str]:
    """Of several records of one run the first that is done counts."""
    return run.status != "done", run.started, run.id


def _measured(store: StoreView) -> list[tuple[str, MeasuredChange]]:
    timed = [(store.name, each) for record in store.measurements for each in changes(record)]
    return timed + [(each.command, found) for each in store.benchmarks for found in each.found]


def _evidence(setup: Setup, task: str, arm: str, against: str) -> Evidence | None:
    outcome = _outcome(setup, arm, against)
    if outcome is None:
        return None
    scores, seeds = setup.scores(against, arm)
    base, training = setup.runs[against], setup.experiment.training
    accuracy = setup.metric.name == "accuracy" and isinstance(outcome, ScoreDifference)
    return Evidence(
        stores=tuple(sorted(setup.stores[arm] | setup.stores[against])),
        task=task,
        arm=arm,
        against=against,
        seeds=len(seeds),
        steps=training.steps,
        conditions=Conditions(
            parameters=base[seeds[0]].cost.total_parameters,
            tokens=tasks.find(task).tokens,
            sequences=training.steps * training.batch,
            score=sum(scores[against][seed] for seed in seeds) / len(seeds) if accuracy else None,
        ),
        runs=tuple(setup.runs[each][seed].id for each in (against, arm) for seed in seeds),
        outcome=outcome,
    )


def _outcome(setup: Setup, arm: str, against: str) -> ScoreDifference | SolvedCounts | None:
    """The comparison of two arms on the seeds of both; None if it says nothing.

    Neither an incomplete arm is compared, nor a task that is solved as well without attention. Only
    this function uses the statistics of the results.
    """
    metric = setup.metric
    scores, seeds = setup.scores(against, arm)
    if metric.solved is not None:
        diverged = {each: setup.diverged(each) for each in scores}
        counted = tally(
            scores,
            baseline=against,
            seeds=seeds,
            solved=metric.solved,
            better=metric.better,
            diverged=diverged,
        )
        own = counted.counts.get(arm)
        if counted.standing != "compared" or own is None or own.p is None:
            return None
        return SolvedCounts(own.solved, counted.counts[against].solved, len(seeds), own.p)
    if _needs_no_attention(setup):
        return None
    result = compare(
        scores, baseline=against, seeds=seeds, chance=metric.chance, better=metric.better
    )
    match result:
        case Comparison(standing="compared", differences=differences):
            match differences.get(arm):
                case Difference(value, float(low), float(high), float(p)):
                    name = metric.name.replace("_", " ")
                    return ScoreDifference(name, metric.better, value, low, high, p)
                case _:
                    return None
        case _:
            return None


def _needs_no_attention(setup: Setup) -> bool:
    """Whether runs without attention do as well as the baseline; False without such runs."""
    if not {BASELINE, FLOOR} <= set(setup.runs):
        return False
    scores, seeds = setup.scores(BASELINE, FLOOR)
    metric = setup.metric
    found = compare(
        scores,
        baseline=BASELINE,
        seeds=seeds,
        chance=metric.chance,
        better=metric.better,
        floor=FLOOR,
    )
    return found.standing == "attention not needed"
