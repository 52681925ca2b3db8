"""Error rates, coverage and power of the statistics, on simulated studies whose truth is known.

The simulated studies use the same functions as a report. Scores are arm + seed + noise; the
deviation of the seeds does not matter, because arms are paired.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from qkvbench.results.aggregate import Scale, aggregate
from qkvbench.results.critical import LEVEL
from qkvbench.results.layout import detectable_difference, differences, provable_margin
from qkvbench.results.planning import boschloo_table, seeds_needed
from qkvbench.results.resampling import MIN_SEEDS, bounds_over_items

SEED_DEVIATION = 2.0
# The standard deviation of each arm, the baseline first.
PROFILES: dict[str, tuple[float, ...]] = {
    "8 arms alike": (1,) * 8,
    "3 arms alike": (1,) * 3,
    "one arm varies 4 times as much": (*(1,) * 7, 4),
    "the baseline varies 3 times as much": (3, *(1,) * 7),
    "the baseline varies a third as much": (1 / 3, *(1,) * 7),
    "variances spread 1 to 36": (1, 0.5, 0.5, 1, 2, 2, 3, 1),
}
SEEDS = (3, 5, 10)


@dataclass(frozen=True)
class Outcome:
    """The rate of an event in simulated studies, and the bounds in which it should be.

    ``exempt`` rows show why a method is *not* used.
    """

    what: str
    profile: str
    seeds: int
    studies: int
    found: float
    low: float
    high: float
    exempt: bool = False

    @property
    def kept(self) -> bool:
        """Whether the rate is within its bounds."""
        return self.low <= self.found <= self.high


def highest_rate(studies: int, level: float = LEVEL) -> float:
    """The 97.5% quantile of the rate in `studies` studies if the true rate is `level`."""
    return float(stats.binom.ppf(0.975, studies, level)) / studies


def every_outcome(studies: int, *, draw: int = 0) -> Iterator[Outcome]:
    """All rows, one at a time; `draw` is the random seed of the studies."""
    for profile in PROFILES:
        for seeds in SEEDS:
            yield from error_rates(profile, seeds, studies, draw=draw)
    for seeds in SEEDS:
        yield from pair_coverage(seeds, studies, draw=draw)
        yield from power(seeds, studies, draw=draw)
    yield from planned(studies, draw=draw)
    for seeds in (*SEEDS, MIN_SEEDS):
        yield counted_alarms(seeds, studies, draw=draw)
        yield bootstrap_coverage(seeds, studies, draw=draw)
    for seeds in (3, 5, MIN_SEEDS):
        yield from item_coverage(seeds, max(100, studies // 5), draw=draw)
    for seeds in SEEDS:
        yield from aggregate_coverage(seeds, max(100, studies // 5), draw=draw)


def error_rates(profile: str, seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """False alarms of a study without differences, and false matches of arms at the margin."""
    deviations = PROFILES[profile]
    null = differences(_tables(deviations, seeds, studies, draw))
    clear = np.abs(null.value) > null.width
    row = _rows(profile, seeds, studies)
    # The intervals are simultaneous, so one that misses zero makes the study a false alarm.
    yield row("a difference is found although there is none", clear.any(axis=1), 0.0)
    pooled = (np.abs(null.value) > null.widths[0]).any(axis=1)
    if len(set(deviations)) == 1:
        yield row("… by the pooled interval alone", pooled, 0.0)
    else:
        yield row("… by the pooled interval alone (not used)", pooled, 0.0, exempt=True)
    yield row("an arm at the margin matches", _false_matches(deviations, seeds, studies, draw), 0.0)


def pair_coverage(seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often the interval of a pair covers the truth, with equal and unequal variances."""
    row = _rows("3 arms alike", seeds, studies)
    two = differences(_tables((1, 1), seeds, studies, draw))
    yield row("`compare`'s interval holds the truth", (np.abs(two.value) <= two.width)[:, 0], None)
    unlike = differences(_tables((1, 4), seeds, studies, draw + 1))
    row = _rows("one arm varies 4 times as much", seeds, studies)
    inside = (np.abs(unlike.value) <= unlike.width)[:, 0]
    yield row("`compare`'s interval holds the truth", inside, None)


def power(seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often the smallest detectable difference is found, and the provable margin shown."""
    deviations = PROFILES["8 arms alike"]
    arms = len(deviations)
    tables = _tables(deviations, seeds, studies, draw)
    shift = detectable_difference(arms=arms, seeds=seeds, power=0.8)
    tables[:, 1] += shift
    shifted = differences(tables)
    clear = shifted.value[:, 0] - shifted.width[:, 0] > 0
    row = _rows("8 arms alike", seeds, studies)
    yield row("the detectable difference is found", clear, 0.8)
    margin = provable_margin(arms=arms, seeds=seeds, power=0.8)
    equal = differences(_tables(deviations, seeds, studies, draw + 1))
    inside = np.abs(equal.value) + equal.equivalence_width(LEVEL / (arms - 1)) < margin
    yield row("an equal arm matches within the provable margin", inside[:, 0], 0.8)


def planned(studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often a study of the size of `qkvbench plan` detects a difference, or shows a match."""
    for margin in (1.0, 2.0):
        for aim in (0.8, 0.9):
            need = seeds_needed(margin=margin, deviation=1.0, arms=3, power=aim)
            assert need.detect is not None
            assert need.match is not None
            tables = _tables((1, 1, 1), need.detect, studies, draw)
            tables[:, 1] += margin
            shifted = differences(tables)
            row = _rows("3 arms alike", need.detect, studies)
            clear = shifted.value[:, 0] - shifted.width[:, 0] > 0
            yield row(f"planned to find {margin:g} σ with {aim:.0%}", clear, aim, above=True)
            equal = differences(_tables((1, 1, 1), need.match, studies, draw + 1))
            inside = np.abs(equal.value) + equal.equivalence_width(LEVEL / 2) < margin
            row = _rows("3 arms alike", need.match, studies)
            what = f"planned to match within {margin:g} σ with {aim:.0%}"
            yield row(what, inside[:, 0], aim, above=True)


def counted_alarms(seeds: int, studies: int, *, draw: int) -> Outcome:
    """False alarms of counts of solved seeds: eight arms that all solve the task with 80%."""
    counts = np.random.default_rng([draw, seeds, 7]).binomial(seeds, 0.8, size=(studies, 8))
    table = boschloo_table(seeds)
    p = table[counts[:, 1:], counts[:, :1]]
    # As in `tally`, the baseline must have learned. Holm's first step decides about any alarm.
    alarms = (p.min(axis=1) * 7 < LEVEL) & (2 * counts[:, 0] > seeds)
    row = _rows("8 arms that solve 80%", seeds, studies)
    return row("a count differs although there is no difference", alarms, 0.0)


def bootstrap_coverage(seeds: int, studies: int, *, draw: int) -> Outcome:
    """The coverage of a percentile bootstrap over seeds: too low if there are few."""
    values = np.random.default_rng([draw, seeds, 3]).normal(size=(studies, seeds))
    bounds = [_percentile_bounds(each) for each in values]
    inside = np.array([low <= 0 <= high for low, high in bounds])
    row = _rows("one arm", seeds, studies)
    used = "" if seeds >= MIN_SEEDS else " (not used)"
    return row(
        f"a percentile bootstrap over seeds holds the truth{used}", inside, None, exempt=True
    )


def item_coverage(seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often the intervals over items, and over seeds and items, cover the truth.

    A difference is the sum of effects of seed, item and their interaction, with deviations 0.05, 1
    and 1, over 400 items.
    """
    generator = np.random.default_rng([draw, seeds, 5])
    blocks = 400
    weights = np.full(blocks, 1 / blocks)
    hits: list[tuple[bool, bool]] = []
    for _ in range(studies):
        of_seeds = 0.05 * generator.normal(size=(seeds, 1))
        own = generator.normal(size=(seeds, blocks))
        table = of_seeds + generator.normal(size=blocks) + own
        means = table.mean(axis=1)
        half = float(stats.t.isf(LEVEL / 2, seeds - 1) * means.std(ddof=1) / math.sqrt(seeds))
        bounds = (float(means.mean() - half), float(means.mean() + half))
        (over_items,) = bounds_over_items(table[None], weights, [bounds])
        assert over_items is not None
        # For these seeds and other items, the truth is the mean effect of these seeds.
        truth = float(of_seeds.mean())
        hits.append((_holds(over_items.items, truth), _holds(over_items.both, 0.0)))
    inside = np.array(hits)
    row = _rows("400 items", seeds, studies)
    yield row("the interval over items holds the truth", inside[:, 0], None)
    both = row("the interval over seeds and items holds the truth", inside[:, 1], None)
    # It may be too wide, but not too narrow.
    yield replace(both, high=1.0)


def aggregate_coverage(seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often the interval of a mean over four tasks covers the truth."""
    generator = np.random.default_rng([draw, seeds, 11])
    hits: list[bool] = []
    for _ in range(studies):
        scores = 1 + 0.05 * generator.normal(size=(4, 2, seeds))
        floor = np.zeros(seeds)
        over_tasks = aggregate(
            {str(task): Scale(floor, base, arm) for task, (base, arm) in enumerate(scores)}
        )
        assert over_tasks is not None
        hits.append(over_tasks.low <= 1 <= over_tasks.high)
    row = _rows("4 tasks, 2 arms alike", seeds, studies)
    outcome = row("the interval of the mean over tasks holds the truth", np.array(hits), None)
    # It may be too wide, but not too narrow.
    yield replace(outcome, high=1.0)


def _false_matches(
    deviations: Sequence[float], seeds: int, studies: int, draw: int
) -> Float[np.ndarray, " studies"]:
    """Whether any arm is shown to match (Holm) although all are exactly at the margin."""
    arms = len(deviations)
    margin = 3.0 * provable_margin(arms=arms, seeds=seeds, power=0.8)
    tables = _tables(deviations, seeds, studies, draw + 2)
    tables[:, 1:] += margin
    at_margin = differences(tables)
    p = np.maximum(at_margin.above_p(-margin), at_margin.below_p(margin))
    return (p.min(axis=1) * (arms - 1) < LEVEL).astype(float)


def _percentile_bounds(values: Float[np.ndarray, " seeds"]) -> tuple[float, float]:
    """The percentile bootstrap of a mean over seeds."""
    samples = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[samples].mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _tables(
    deviations: Sequence[float], seeds: int, studies: int, draw: int
) -> Float[np.ndarray, "studies arms seeds"]:
    generator = np.random.default_rng([draw, seeds, len(deviations)])
    noise = generator.normal(size=(studies, len(deviations), seeds))
    shared = SEED_DEVIATION * generator.normal(size=(studies, 1, seeds))
    return np.array(deviations)[None, :, None] * noise + shared


def _rows(profile: str, seeds: int, studies: int) -> Callable[..., Outcome]:
    """Makes a row from events; `aim` is 0 for false alarms, None for 95% coverage, else a power."""

    def row(
        what: str,
        happened: Shaped[np.ndarray, " studies"],
        aim: float | None,
        *,
        above: bool = False,
        exempt: bool = False,
    ) -> Outcome:
        # If `above`, the number of seeds was rounded up, so the rate may exceed the aim.
        if aim == 0.0:
            low, high = 0.0, highest_rate(studies)
        elif aim is None:
            room = max(0.02, 2.5 * math.sqrt(0.95 * 0.05 / studies))
            low, high = 0.95 - room, 0.95 + room
        else:
            room = 3 * math.sqrt(aim * (1 - aim) / studies)
            low, high = aim - room, 1.0 if above else aim + room
        found = float(np.mean(happened))
        return Outcome(what, profile, seeds, studies, found, low, high, exempt)

    return row


def _holds(bounds: tuple[float, float], truth: float) -> bool:
    return bounds[0] <= truth <= bounds[1]
