"""How an arm's gap to the baseline changes with the training budget, and with the model's size.

The runs come from several studies, each with its own number of steps or its own model. A gap is a
difference of means; a slope is a sum of means, by least squares over the logarithms.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qkvbench.experiment import Experiment
from qkvbench.results.critical import LEVEL
from qkvbench.results.evidence import Run, shared
from qkvbench.results.record import MetricInfo, Record
from qkvbench.results.stats import CERTAIN
from qkvbench.results.sums import Sum, sum_of
from qkvbench.results.view import BASELINE, without_rate

Axis = Literal["tokens", "parameters"]
AXES: tuple[Axis, ...] = ("tokens", "parameters")
# Powers of ten over which an axis must spread beside the other.
LEAST_SPREAD = 0.05


@dataclass(frozen=True, order=True)
class Place:
    """A training budget and a size: the tokens that are read, and the baseline's parameters."""

    tokens: int
    parameters: int
    steps: int


@dataclass(frozen=True)
class ArmTrend:
    """An arm's gaps, positive if it is worse, and how they change with ten times as much.

    ``share`` is the share of the budget with which the baseline has the arm's mean score, on a line
    between its own scores over the logarithm of the tokens; None beyond them, without a visible
    gap, or if sizes differ.
    """

    arm: str
    gaps: Mapping[Place, Sum]
    slopes: Mapping[Axis, Sum]
    share: Mapping[Place, float | None]

    def verdict(self, axis: Axis) -> str | None:
        """Whether the gap shrinks, grows or changes sign; None if that is not decided."""
        slope = self.slopes.get(axis)
        # By the other axes' values: what changes between these is no change along this one.
        signs: dict[tuple[int, ...], set[bool]] = defaultdict(set)
        for place, gap in self.gaps.items():
            if abs(gap.value) > gap.half:
                beside = tuple(getattr(place, other) for other in self.slopes if other != axis)
                signs[beside].add(gap.value > 0)
        if slope is None or slope.p >= LEVEL or not signs:
            return None
        everywhere = set[bool]().union(*signs.values())
        if any(len(each) > 1 for each in signs.values()):
            word = "changes sign"
        elif len(everywhere) > 1:
            return None
        else:
            word = "grows" if (slope.value > 0) == everywhere.pop() else "shrinks"
        return word if slope.p < CERTAIN else f"likely {word}"


@dataclass(frozen=True)
class TaskTrend:
    """All arms on one task: the places, the baseline's mean score at each, and the trends."""

    task: str
    metric: MetricInfo
    places: tuple[Place, ...]
    baseline: Mapping[Place, float]
    arms: tuple[ArmTrend, ...]
    axes: tuple[Axis, ...]

    @property
    def one_length(self) -> bool:
        """True if a step reads as many tokens at each place."""
        return len({each.tokens / each.steps for each in self.places}) == 1


@dataclass(frozen=True)
class Trends:
    """The tasks that have a trend, and those left out with the reason."""

    tasks: tuple[TaskTrend, ...]
    left_out: Mapping[str, str]


def trends(runs: Iterable[Run], against: str = BASELINE) -> Trends:
    """The trend on each task of which the runs have several budgets or sizes.

    Runs that differ in more, such as positions, have a trend of their own. ValueError if two
    studies have one budget and size under different conditions.
    """
    groups: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.record.status != "interrupted":
            groups[_kind(run)].append(run)
    found: list[TaskTrend] = []
    left_out: dict[str, str] = {}
    answered: set[str] = set()
    for own in groups.values():
        plain, metric = str(shared(own[0].experiment).task), own[0].record.metric
        if metric.solved is not None or metric.unit == "share":
            left_out.setdefault(plain, "shares and solved seeds have no line")
        elif trend := _of_task(_name(own[0]), metric, own, against):
            found.append(trend)
            answered.add(plain)
        else:
            left_out.setdefault(plain, "one budget and one size")
    left_out = {task: why for task, why in left_out.items() if task not in answered}
    return Trends(tuple(found), left_out)


def _of_task(task: str, metric: MetricInfo, runs: Sequence[Run], against: str) -> TaskTrend | None:
    places = _places(task, runs, against)
    scores: dict[str, dict[Place, dict[int, float | None]]] = defaultdict(lambda: defaultdict(dict))
    for run in sorted(runs, key=lambda each: each.record.started):
        if (place := places.get(_condition(run))) is not None:
            known = scores[run.record.arm][place]
            if known.get(run.record.seed) is None:
                done = run.record.status == "done"
                known[run.record.seed] = _loss(run.record) if done else None
    samples = {
        arm: {place: own for place, seeds in sorted(of.items()) if (own := _whole(seeds))}
        for arm, of in scores.items()
    }
    base = samples.pop(against, {})
    if len(base) < 2:
        return None
    axes = _axes(list(base))
    arms = [
        _arm(arm, {place: own for place, own in of.items() if place in base}, base, axes)
        for arm, of in samples.items()
        if len(of.keys() & base.keys()) > 1
    ]
    sign = 1 if metric.better == "lower" else -1
    means = {place: sign * float(np.mean(own)) for place, own in base.items()}
    return TaskTrend(task, metric, tuple(base), means, tuple(arms), axes) if arms else None


def _condition(run: Run) -> Experiment:
    """The conditions that the arms of a place share; tuned arms have a rate each."""
    key = shared(run.experiment)
    return without_rate(key) if run.tuned else key


def _places(task: str, runs: Sequence[Run], against: str) -> dict[Experiment, Place]:
    """The place of each condition; ValueError if two have the same."""
    found: dict[Experiment, Place] = {}
    folders: dict[Place, str] = {}
    for run in runs:
        key = _condition(run)
        if run.record.arm != against or key in found:
            continue
        training = run.experiment.training
        tokens = training.steps * training.batch * run.record.cost.tokens
        place = Place(tokens, run.record.cost.total_parameters, training.steps)
        if place in folders:
            both = folders[place], run.folder
            who = f"{both[0]} has" if both[0] == both[1] else f"{both[0]} and {both[1]} have"
            raise ValueError(
                f"{who} {task} with {place.steps:,} steps and {place.parameters:,} parameters "
                "under different conditions, such as the learning rate.\nGive folders with one of "
                "them."
            )
        found[key], folders[place] = place, run.folder
    return found


def _whole(seeds: Mapping[int, float | None]) -> tuple[float, ...]:
    """The losses, at least two; none if a run diverged or failed: no arm gains by losing one."""
    found = tuple(each for each in seeds.values() if each is not None)
    return found if 1 < len(found) == len(seeds) else ()


def _name(run: Run) -> str:
    """The task, and what sets its runs apart from others of it."""
    key = shared(run.experiment)
    parts = [str(key.task)]
    parts += [f"{key.model.position.kind} positions"] if key.model.position.kind != "rotary" else []
    parts += ["rates tuned"] if run.tuned else []
    parts += [f"taught by {key.teacher.arm}"] if key.teacher else []
    parts += [each for each in (key.backend, key.precision) if each not in ("torch", "fp32")]
    return ", ".join(parts)


def _kind(run: Run) -> tuple[object, ...]:
    """The conditions that all places share: all but budget and size."""
    key = shared(run.experiment)
    model, teacher = key.model, key.teacher and key.teacher.arm
    architecture = (type(model.position), type(model.architecture), model.changes)
    conditions = (key.backend, key.precision, teacher, key.init_from is not None, run.tuned)
    return (str(key.task), *architecture, *conditions)


def _axes(places: Sequence[Place]) -> tuple[Axis, ...]:
    """The axes along which places differ; the size alone if the budget goes with it."""
    axes: list[Axis] = [axis for axis in AXES if len({getattr(each, axis) for each in places}) > 1]
    return tuple(axes) if _has_slopes(places, axes) else ("parameters",)


def _has_slopes(places: Sequence[Place], axes: Sequence[Axis]) -> bool:
    """True if the places tell a slope for each axis.

    Budgets that are rounded shares of the sizes tell none: their own spread is that of rounding.
    """
    if not axes or len(places) <= len(axes):
        return False
    columns = _design(places, axes)[:, 1:]
    spreads = np.linalg.svd(columns - columns.mean(axis=0), compute_uv=False)
    return bool(spreads[-1] > LEAST_SPREAD)


def _design(places: Sequence[Place], axes: Sequence[Axis]) -> np.ndarray:
    columns = [[1.0] * len(places)]
    columns += [[math.log10(getattr(each, axis)) for each in places] for axis in axes]
    return np.array(columns).T


def _arm(
    arm: str,
    own: Mapping[Place, Sequence[float]],
    base: Mapping[Place, Sequence[float]],
    axes: Sequence[Axis],
) -> ArmTrend:
    places = list(own)
    gaps = {place: sum_of((1, own[place]), (-1, base[place])) for place in places}
    slopes: dict[Axis, Sum] = {}
    if _has_slopes(places, axes):
        weights = np.linalg.pinv(_design(places, axes))
        for axis, row in zip(axes, weights[1:], strict=True):
            slopes[axis] = sum_of(
                *(
                    (sign * float(weight), samples[place])
                    for weight, place in zip(row, places, strict=True)
                    for sign, samples in ((1, own), (-1, base))
                )
            )
    same_size = len({place.parameters for place in base}) == 1
    share = {
        place: _share(place, own, base) if same_size and abs(gap.value) > gap.half else None
        for place, gap in gaps.items()
    }
    return ArmTrend(arm, gaps, slopes, share)


def _share(
    place: Place, own: Mapping[Place, Sequence[float]], base: Mapping[Place, Sequence[float]]
) -> float | None:
    """The share of the tokens with which the baseline has the arm's mean."""
    level = float(np.mean(own[place]))
    curve = sorted((float(np.mean(scores)), math.log(at.tokens)) for at, scores in base.items())
    if not curve[0][0] <= level <= curve[-1][0]:
        return None
    levels, logarithms = ([point[part] for point in curve] for part in (0, 1))
    return math.exp(float(np.interp(level, levels, logarithms))) / place.tokens


def _loss(record: Record) -> float:
    """The score, with the sign that makes more of it worse."""
    return record.score if record.metric.better == "lower" else -record.score
