"""Learning rates, tuned for each arm on each task by validation scores of runs of their own.

Every arm gets the same effort: the same factors of the task's own rate, the same seeds. The seeds
are none of a study's, and the test split is never read.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from qkvbench.results.record import Record, Tuning
from qkvbench.results.stats import Better, reaches

# Factors of the task's own rate. Powers of two: a rate times 1 is the same number, so that a run
# with it has the same id whether its rate was tuned or not.
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# A study counts its seeds from 0; from here on they belong to tuning.
FIRST_SEED = 1000
SEEDS = (FIRST_SEED, FIRST_SEED + 1)


@dataclass(frozen=True)
class RateScore:
    """One rate of one arm on one task, over the tuning seeds.

    ``score`` is the mean of the last validation score, None if a run diverged or is missing.
    ``solved`` counts the seeds that reached the task's threshold and still hold it at the end (None
    without a threshold); ``solved_step`` is their mean first step, None if there is none.
    ``missing`` counts runs that neither finished nor diverged.
    """

    factor: float
    learning_rate: float | None
    score: float | None
    diverged: int
    missing: int
    solved: int | None
    solved_step: float | None


@dataclass(frozen=True)
class Sensitivity:
    """The rates of one arm on one task, in the order of their factors, and the ``chosen`` factor.

    ``seeds`` are those of each rate, ``metric`` is that of the scores. ``chosen`` is None as long
    as a run is missing.
    """

    task: str
    arm: str
    metric: str
    better: Better
    seeds: tuple[int, ...]
    rates: tuple[RateScore, ...]
    chosen: float | None

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the lowest or highest tried: a better one may be beyond."""
        return self.chosen in (self.rates[0].factor, self.rates[-1].factor)


def sensitivities(tuning: Tuning, records: Iterable[Record]) -> tuple[Sensitivity, ...]:
    """Every task and arm of the tuning, with the factors that it has chosen."""
    by_id = {record.id: record for record in records}
    return tuple(
        _sensitivity(task, arm, tuning, ids, by_id)
        for task, arms in tuning.runs.items()
        for arm, ids in arms.items()
    )


def choose(tuning: Tuning, records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """The best factor by task and arm, for those whose runs have all finished or diverged.

    The highest mean validation score; if runs are counted as solved, first the number of seeds that
    solved the task, then the earliest mean step, then the score. A rate at which a run diverged
    comes last. Of equal rates the one nearest to the task's own is taken, the lower of two.
    """
    chosen: dict[str, dict[str, float]] = {}
    for each in sensitivities(tuning, records):
        if not any(rate.missing for rate in each.rates):
            best = max(each.rates, key=lambda rate, better=each.better: _preference(rate, better))
            chosen.setdefault(each.task, {})[each.arm] = best.factor
    return chosen


def tuning_ended(record: Record | None) -> bool:
    """Whether a tuning run needs no repetition: it finished, or its rate let it diverge."""
    return record is not None and record.status in ("done", "diverged")


def validation_metric(record: Record) -> tuple[str, Better]:
    """The metric of the validation split: the task's own, or the loss if only test texts have it.

    A translation is generated for the test split alone.
    """
    own = record.metric
    if record.curve and own.name not in record.curve[-1].metrics:
        return "loss", "lower"
    return own.name, own.better


def _sensitivity(
    task: str, arm: str, tuning: Tuning, ids: list[str], by_id: Mapping[str, Record]
) -> Sensitivity:
    count = len(tuning.seeds)
    groups = [ids[first : first + count] for first in range(0, len(ids), count)]
    done = [by_id[each] for each in ids if each in by_id and by_id[each].status == "done"]
    unknown: tuple[str, Better] = ("", "higher")
    metric, better = validation_metric(done[0]) if done else unknown
    return Sensitivity(
        task=task,
        arm=arm,
        metric=metric,
        better=better,
        seeds=tuple(tuning.seeds),
        rates=tuple(
            _rate_score(factor, [by_id.get(each) for each in group], metric)
            for factor, group in zip(tuning.factors, groups, strict=True)
        ),
        chosen=tuning.chosen.get(task, {}).get(arm),
    )


def _rate_score(factor: float, runs: list[Record | None], metric: str) -> RateScore:
    ended = [run for run in runs if run is not None and tuning_ended(run)]
    done = [run for run in ended if run.status == "done" and run.curve]
    diverged = sum(run.status == "diverged" for run in ended)
    solving = [run for run in done if _solves(run)]
    steps = [run.solved_step for run in solving if run.solved_step is not None]
    return RateScore(
        factor=factor,
        learning_rate=ended[0].parsed_experiment.training.learning_rate if ended else None,
        score=fmean(run.curve[-1].metrics[metric] for run in done)
        if len(done) == len(runs)
        else None,
        diverged=diverged,
        missing=len(runs) - len(done) - diverged,
        solved=len(solving) if ended and ended[0].metric.solved is not None else None,
        solved_step=fmean(steps) if steps else None,
    )


def _solves(run: Record) -> bool:
    """Whether a run reached its task's threshold on the validation split, and ends beyond it."""
    threshold, last = run.metric.solved, run.curve[-1].metrics.get(run.metric.name)
    if threshold is None or last is None or run.solved_step is None:
        return False
    return reaches(last, threshold, better=run.metric.better)


def _preference(rate: RateScore, better: Better) -> tuple[float, ...]:
    """A key whose maximum is the best rate."""
    sign = 1.0 if better == "higher" else -1.0
    score = -math.inf if rate.score is None else sign * rate.score
    step = math.inf if rate.solved_step is None else rate.solved_step
    near = -abs(math.log2(rate.factor))
    return (rate.diverged == 0, rate.solved or 0, -step, score, near, -rate.factor)
