"""Costs of storing cached rows and weights in few bits, by arm: of the same trained weights.

A cost is a score less the score of the same run on the same items as it was trained, with the sign
that makes a loss of quality positive. So it is paired by run, and arms are compared by Welch's test
on their costs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from qkvbench.model.quantization import PLAIN, in_few_bits
from qkvbench.results.across import CONTROLS
from qkvbench.results.critical import holm
from qkvbench.results.record import MetricInfo, Record
from qkvbench.results.stats import Difference, difference
from qkvbench.results.view import TaskView, View
from qkvbench.results.welch import mean_bounds, unit_of

Key = TypeVar("Key", str, tuple[str, str])

# The unit of a cost: a difference is no proportion, so it is not analysed as one.
COST_UNIT = "difference"

# A scheme is compared with the one that stores the same rows at the same time.
REFERENCES = {
    "channel": "late",
    "kivi": "late",
    "hadamard": "",
    "before-rope": "",
    "nope": "",
}


@dataclass(frozen=True)
class Cost:
    """A mean over an arm's seeds with its 95% bounds (None without spread), in the metric's unit.

    ``against`` is the difference from the baseline's, ``p`` its p value after Holm's adjustment
    over all costs of the task; None for the baseline and for controls, which have little to lose.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    against: Difference | None = None
    p: float | None = None


@dataclass(frozen=True)
class TaskCosts:
    """Costs on one task, by form and arm; ``contrasts`` has those of a scheme less its reference.

    ``whole`` is each arm's mean score as it was trained.
    """

    task: str
    metric: MetricInfo
    baseline: str
    whole: Mapping[str, float]
    costs: Mapping[str, Mapping[str, Cost]]
    contrasts: Mapping[tuple[str, str], Mapping[str, Cost]]


def quantization_costs(view: View) -> tuple[TaskCosts, ...]:
    """The costs on each task whose runs were scored in few bits."""
    found = (_task(task) for task in view.tasks)
    return tuple(each for each in found if each.costs)


def _task(task: TaskView) -> TaskCosts:
    # An arm of which a run failed is left out: the others alone would make it look cheaper.
    runs = {
        cell.variant: list(cell.runs) if all(run.status == "done" for run in cell.runs) else []
        for cell in task.cells
    }
    baseline = task.cells[0].variant
    forms = dict.fromkeys(
        form for own in runs.values() for run in own for form in run.parsed_experiment.quantizations
    )
    costs = {form: {arm: _values(own, form, PLAIN) for arm, own in runs.items()} for form in forms}
    contrasts = {
        pair: {arm: _values(own, *pair) for arm, own in runs.items()} for pair in _pairs(forms)
    }
    metric = task.metric.model_copy(update={"unit": COST_UNIT, "better": "lower"})
    return TaskCosts(
        task.name,
        task.metric,
        baseline,
        {arm: float(np.mean([run.score for run in own])) for arm, own in runs.items() if own},
        _compared(costs, baseline, metric),
        _compared(contrasts, baseline, metric),
    )


def _pairs(forms: Iterable[str]) -> list[tuple[str, str]]:
    """Each form whose scheme has a reference that was scored, too, with that reference."""
    own = list(forms)
    found: list[tuple[str, str]] = []
    for form in own:
        bits, _, scheme = form.partition(":")
        reference = REFERENCES.get(scheme)
        if reference is not None:
            other = f"{bits}:{reference}" if reference else bits
            found += [(form, other)] if other in own else []
    return found


def _values(runs: Sequence[Record], form: str, other: str) -> list[float]:
    """By run, the score in one form less that in another.

    None at all if a run has no finite score in a form that was wanted: the others alone would make
    it look cheaper.
    """
    found: list[float] = []
    for run in runs:
        name = run.metric.name
        score = run.metrics.get(in_few_bits(name, form))
        base = run.metrics.get(in_few_bits(name, other))
        wanted = run.parsed_experiment.quantizations
        if (score is None and form in wanted) or (base is None and other in wanted):
            return []
        if score is not None and base is not None:
            found.append((base - score) if run.metric.better == "higher" else (score - base))
    return found


def _compared(
    values: Mapping[Key, Mapping[str, Sequence[float]]], baseline: str, metric: MetricInfo
) -> dict[Key, dict[str, Cost]]:
    table: dict[Key, dict[str, Cost]] = {}
    p: dict[tuple[Key, str], float] = {}
    for form, by_arm in values.items():
        table[form] = {}
        for arm, own in by_arm.items():
            if not own:
                continue
            low, high = mean_bounds(own, unit_of(metric.unit)) or (None, None)
            against = None
            if arm not in (baseline, *CONTROLS) and by_arm.get(baseline):
                against = difference(by_arm[baseline], own, metric=metric)
                if against.p is not None:
                    p[form, arm] = against.p
            table[form][arm] = Cost(float(np.mean(own)), low, high, len(own), against)
    for (form, arm), adjusted in holm(p).items():
        table[form][arm] = replace(table[form][arm], p=adjusted)
    return table
