"""Whether the statistics keep what they promise, found by trying them on studies with known truth.

The simulated studies go through the very functions that a report uses. Scores are arm + seed +
noise, the seeds' deviation twice the noise's; nothing depends on its size, because arms are paired.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from qkvbench.results.aggregate import aggregate
from qkvbench.results.critical import LEVEL
from qkvbench.results.layout import detectable, differences, provable
from qkvbench.results.planning import boschloo_table, needs
from qkvbench.results.resampling import ENOUGH, over_items, percentile_over_seeds

SEED_DEVIATION = 2.0
# How much each arm varies, the baseline first.
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
    """How often something happened in simulated studies, and between which bounds it should.

    ``exempt`` rows are there to show why something is *not* used.
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
        """Whether it lies where it should."""
        return self.low <= self.found <= self.high


def highest_rate(studies: int, level: float = LEVEL) -> float:
    """The largest share of studies that a true rate of `level` is likely (97.5%) to show."""
    return float(stats.binom.ppf(0.975, studies, level)) / studies


def every_outcome(studies: int, *, draw: int = 0) -> Iterator[Outcome]:
    """The whole table, one row at a time; `draw` seeds the studies."""
    for profile in PROFILES:
        for seeds in SEEDS:
            yield from error_rates(profile, seeds, studies, draw=draw)
    for seeds in SEEDS:
        yield from pair_coverage(seeds, studies, draw=draw)
        yield from power(seeds, studies, draw=draw)
    yield from planned(studies, draw=draw)
    for seeds in (*SEEDS, ENOUGH):
        yield counted_alarms(seeds, studies, draw=draw)
        yield bootstrap_coverage(seeds, studies, draw=draw)
    for seeds in (3, 5, ENOUGH):
        yield from item_coverage(seeds, max(100, studies // 5), draw=draw)
    for seeds in SEEDS:
        yield from aggregate_coverage(seeds, max(100, studies // 5), draw=draw)


def error_rates(profile: str, seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """False alarms of a study without differences, and false matches of arms at the margin."""
    deviations = PROFILES[profile]
    found = differences(_tables(deviations, seeds, studies, draw))
    clear = np.abs(found.value) > found.width
    # Each bound alone: the intervals hold together, so any that misses is a false alarm.
    row = _rows(profile, seeds, studies)
    alike = len(set(deviations)) == 1
    yield row("a difference is found where there is none", clear.any(axis=1), 0.0)
    if alike:
        pooled = np.abs(found.value) > found.widths[0]
        yield row("… by the pooled interval alone", pooled.any(axis=1), 0.0)
    else:
        pooled = np.abs(found.value) > found.widths[0]
        yield row("… by the pooled interval alone (not used)", pooled.any(axis=1), 0.0, exempt=True)
    yield row("an arm at the margin matches", _matched(deviations, seeds, studies, draw), 0.0)


def pair_coverage(seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often the interval of two arms alone, and all intervals of a study, hold the truth."""
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
    shift = detectable(arms=arms, seeds=seeds, power=0.8)
    tables[:, 1] += shift
    found = differences(tables)
    seen = found.value[:, 0] - found.width[:, 0] > 0
    row = _rows("8 arms alike", seeds, studies)
    yield row("the detectable difference is found", seen, 0.8)
    margin = provable(arms=arms, seeds=seeds, power=0.8)
    equal = differences(_tables(deviations, seeds, studies, draw + 1))
    inside = np.abs(equal.value) + equal.equivalence_width(LEVEL / (arms - 1)) < margin
    yield row("an equal arm matches within the provable margin", inside[:, 0], 0.8)


def planned(studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often a study with as many seeds as `plan` says finds, or proves, what it was to."""
    for margin in (1.0, 2.0):
        for aim in (0.8, 0.9):
            need = needs(margin=margin, deviation=1.0, arms=3, power=aim)
            assert need.detect is not None
            assert need.match is not None
            tables = _tables((1, 1, 1), need.detect, studies, draw)
            tables[:, 1] += margin
            found = differences(tables)
            row = _rows("3 arms alike", need.detect, studies)
            seen = found.value[:, 0] - found.width[:, 0] > 0
            yield row(f"planned to find {margin:g} σ with {aim:.0%}", seen, aim, above=True)
            equal = differences(_tables((1, 1, 1), need.match, studies, draw + 1))
            inside = np.abs(equal.value) + equal.equivalence_width(LEVEL / 2) < margin
            row = _rows("3 arms alike", need.match, studies)
            what = f"planned to match within {margin:g} σ with {aim:.0%}"
            yield row(what, inside[:, 0], aim, above=True)


def counted_alarms(seeds: int, studies: int, *, draw: int) -> Outcome:
    """False alarms where seeds are counted: eight arms that all solve the task with 80%."""
    counts = np.random.default_rng([draw, seeds, 7]).binomial(seeds, 0.8, size=(studies, 8))
    table = boschloo_table(seeds)
    p = table[counts[:, 1:], counts[:, :1]]
    # The baseline must have learned, as in `tally`; Holm's first step decides whether any is told.
    alarmed = (p.min(axis=1) * 7 < LEVEL) & (2 * counts[:, 0] > seeds)
    row = _rows("8 arms that solve 80%", seeds, studies)
    return row("a count is told apart where there is no difference", alarmed, 0.0)


def bootstrap_coverage(seeds: int, studies: int, *, draw: int) -> Outcome:
    """Why seeds are not resampled where they are few: what a percentile bootstrap covers."""
    values = np.random.default_rng([draw, seeds, 3]).normal(size=(studies, seeds))
    bounds = [percentile_over_seeds(each) for each in values]
    inside = np.array([low <= 0 <= high for low, high in bounds])
    row = _rows("one arm", seeds, studies)
    used = "" if seeds >= ENOUGH else " (not used)"
    return row(
        f"a percentile bootstrap over seeds holds the truth{used}", inside, None, exempt=True
    )


def item_coverage(seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often the intervals over items, and over seeds and items, hold the truth.

    A difference is a seed's part, an item's part and their own: 0.05, 1 and 1 in 400 items.
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
        (found,) = over_items(table[None], weights, [bounds])
        assert found is not None
        # Over other items, and these seeds, the truth is these seeds' mean.
        these = float(of_seeds.mean())
        hits.append((_holds(found.items, these), _holds(found.both, 0.0)))
    inside = np.array(hits)
    row = _rows("400 items", seeds, studies)
    yield row("the interval over items holds the truth", inside[:, 0], None)
    both = row("the interval over seeds and items holds the truth", inside[:, 1], None)
    # It may be too wide, never too narrow.
    yield replace(both, high=1.0)


def aggregate_coverage(seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often the interval of an interquartile mean over four tasks holds the truth."""
    generator = np.random.default_rng([draw, seeds, 11])
    hits: list[tuple[bool, bool]] = []
    for _ in range(studies):
        shared = generator.normal(size=(4, 1, seeds))
        tables = 1 + 0.05 * (shared + generator.normal(size=(4, 2, seeds)))
        found = aggregate(("a", "b", "c", "d"), list(tables))
        assert found is not None
        hits.append(
            (
                found.low <= 0 <= found.high,
                found.improvement_low <= 0.5 <= found.improvement_high,
            )
        )
    inside = np.array(hits)
    row = _rows("4 tasks, 2 arms alike", seeds, studies)
    for column, what in enumerate(("interquartile means", "probability of improvement")):
        found = row(f"the interval of the {what} holds the truth", inside[:, column], None)
        yield replace(found, high=1.0)


def _matched(
    deviations: Sequence[float], seeds: int, studies: int, draw: int
) -> Float[np.ndarray, " studies"]:
    """Whether any arm is shown to match (Holm) where all lie exactly at the margin."""
    arms = len(deviations)
    margin = 3.0 * provable(arms=arms, seeds=seeds, power=0.8)
    tables = _tables(deviations, seeds, studies, draw + 2)
    tables[:, 1:] += margin
    found = differences(tables)
    p = np.maximum(found.above_p(-margin), found.below_p(margin))
    return (p.min(axis=1) * (arms - 1) < LEVEL).astype(float)


def _tables(
    deviations: Sequence[float], seeds: int, studies: int, draw: int
) -> Float[np.ndarray, "studies arms seeds"]:
    generator = np.random.default_rng([draw, seeds, len(deviations)])
    noise = generator.normal(size=(studies, len(deviations), seeds))
    shared = SEED_DEVIATION * generator.normal(size=(studies, 1, seeds))
    return np.array(deviations)[None, :, None] * noise + shared


def _rows(profile: str, seeds: int, studies: int) -> Callable[..., Outcome]:
    """Makes a row of whether something happened; `aim` 0 an alarm, None 95%, else a power."""

    def row(
        what: str,
        happened: Shaped[np.ndarray, " studies"],
        aim: float | None,
        *,
        above: bool = False,
        exempt: bool = False,
    ) -> Outcome:
        # Where `above`, whole seeds are rounded up, so more than the aim is right.
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
