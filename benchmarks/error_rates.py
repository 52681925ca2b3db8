"""Error rates, coverage and power of the verdicts, on simulated studies whose truth is known.

Thousands of studies are tested at once by scipy's Welch test; `verdict_p` checks some of them
against the function that a report calls.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from qkvbench.results.aggregate import Scale, aggregate
from qkvbench.results.critical import LEVEL
from qkvbench.results.log_rank import log_rank
from qkvbench.results.planning import seeds_needed
from qkvbench.results.record import MetricInfo
from qkvbench.results.resampling import MIN_SEEDS, bounds_over_items
from qkvbench.results.stats import CERTAIN, difference
from qkvbench.results.welch import detectable_difference

BITS = MetricInfo(name="bits", unit="bits", better="lower", chance=1e3, solved=None)
Noise = Callable[[np.random.Generator, int, int, int], Float[np.ndarray, "studies arms seeds"]]


def _normal(rng: np.random.Generator, studies: int, arms: int, seeds: int) -> np.ndarray:
    return rng.normal(size=(studies, arms, seeds))


def _quarter_loud(rng: np.random.Generator, studies: int, arms: int, seeds: int) -> np.ndarray:
    noise = _normal(rng, studies, arms, seeds)
    # Neither the baseline nor the arm whose power is looked at.
    noise[:, arms - arms // 4 :] *= 5
    return noise


def _log_uniform(rng: np.random.Generator, studies: int, arms: int, seeds: int) -> np.ndarray:
    deviations = 10 ** rng.uniform(-1, 1, size=(studies, arms, 1))
    deviations[:, :2] = 1
    return deviations * _normal(rng, studies, arms, seeds)


def _loud_baseline(rng: np.random.Generator, studies: int, arms: int, seeds: int) -> np.ndarray:
    noise = _normal(rng, studies, arms, seeds)
    noise[:, 0] *= 3
    return noise


def _quiet_baseline(rng: np.random.Generator, studies: int, arms: int, seeds: int) -> np.ndarray:
    noise = _normal(rng, studies, arms, seeds)
    noise[:, 1:] *= 5
    return noise


def _heavy_tails(rng: np.random.Generator, studies: int, arms: int, seeds: int) -> np.ndarray:
    return rng.standard_t(3, size=(studies, arms, seeds))


def _bad_seeds(rng: np.random.Generator, studies: int, arms: int, seeds: int) -> np.ndarray:
    noise = _normal(rng, studies, arms, seeds)
    return noise + 8 * (rng.random(noise.shape) < 0.1)


# The noise of each arm, the baseline first, the arm whose power is looked at second.
PROFILES: dict[str, Noise] = {
    "alike": _normal,
    "a quarter of the arms varies 5 times as much": _quarter_loud,
    "deviations spread evenly from .1 to 10": _log_uniform,
    "the baseline varies 3 times as much": _loud_baseline,
    # For Welch's test: forty all but independent comparisons, each of two unequal noises.
    "all arms vary 5 times as much as the baseline": _quiet_baseline,
    "heavy tails (Student's t, 3 degrees)": _heavy_tails,
    "one run in ten is worse by 8 deviations": _bad_seeds,
}
WORST = "all arms vary 5 times as much as the baseline"
ARMS = (8, 15, 40)
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


def highest_rate(studies: int, level: float = LEVEL, *, quantile: float = 0.975) -> float:
    """This quantile of the rate in `studies` studies if the true rate is `level`."""
    return float(stats.binom.ppf(quantile, studies, level)) / studies


def every_outcome(studies: int, *, draw: int = 0) -> Iterator[Outcome]:
    """All rows, one at a time; `draw` is the random seed of the studies."""
    for profile in PROFILES:
        for arms in ARMS:
            for seeds in SEEDS:
                yield from error_rates(profile, arms, seeds, studies, draw=draw)
    for seeds in (*SEEDS, MIN_SEEDS):
        yield from power(seeds, studies, draw=draw)
        yield solving_alarms(seeds, max(100, studies // 5), draw=draw)
        yield bootstrap_coverage(seeds, studies, draw=draw)
    yield from planned(studies, draw=draw)
    for seeds in (3, 5, MIN_SEEDS):
        yield from item_coverage(seeds, max(100, studies // 5), draw=draw)
    for seeds in SEEDS:
        yield from aggregate_coverage(seeds, max(100, studies // 5), draw=draw)


def error_rates(
    profile: str, arms: int, seeds: int, studies: int, *, draw: int
) -> Iterator[Outcome]:
    """False verdicts in studies without differences, and the power of a quiet arm among others."""
    rng = np.random.default_rng([draw, seeds, arms])
    tables = PROFILES[profile](rng, studies, arms, seeds)
    p = verdict_p(tables)
    row = _rows(f"{arms} arms, {profile}", seeds, studies)
    any_arm = row("any arm is worse or better, though none is", (p < CERTAIN).any(axis=1), 0.0)
    if profile == WORST:
        # 40 arms and five seeds: 5.6% of 4,000 studies, the highest rate that was found.
        any_arm = replace(any_arm, high=highest_rate(studies, 0.06))
    yield any_arm
    alarms = row("the second arm is likely worse or better, though it is not", p[:, 0] < LEVEL, 0.0)
    # This rate is 5%, not at most that, and of a hundred such rows some are high by chance.
    yield replace(alarms, high=highest_rate(studies, quantile=0.9995))
    # What the arm would detect with 80% power if it were the only one.
    shift = detectable_difference(1.0, seeds=seeds, level=LEVEL, power=0.8)
    tables[:, 1] += shift
    alone = verdict_p(tables[:, :2])[:, 0] < LEVEL
    among = verdict_p(tables)[:, 0] < LEVEL
    kept = float(among.mean() / max(alone.mean(), 1e-9))
    yield Outcome("power of a quiet arm, of what it has alone", *_where(row), kept, 0.9, 1.0)
    # The second arm is truly at the margin, so a match is false.
    margin = 3.0 * shift
    tables[:, 1] += margin - shift
    matched = _match_p(tables[:, :2], margin) < LEVEL
    matches = row("an arm at the margin likely matches", matched, 0.0)
    yield replace(matches, high=highest_rate(studies, quantile=0.9995))


def verdict_p(tables: Float[np.ndarray, "studies arms seeds"]) -> np.ndarray:
    """The p value of each arm against the first, alone: (studies, arms − 1)."""
    base, others = tables[:, :1], tables[:, 1:]
    p = np.asarray(stats.ttest_ind(others, base, axis=2, equal_var=False).pvalue)
    for study in range(0, len(tables), max(1, len(tables) // 5)):
        # A report's own function, on the same scores.
        own = difference(list(base[study, 0]), list(others[study, 0]), metric=BITS).p
        assert own is not None
        assert math.isclose(own, p[study, 0], rel_tol=1e-6)
    return p


def power(seeds: int, studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often what should be seen with 80% power is."""
    rng = np.random.default_rng([draw, seeds, 2])
    row = _rows("2 arms, alike", seeds, studies)
    for name, level in (("likely", LEVEL), ("certain", CERTAIN)):
        tables = _normal(rng, studies, 2, seeds)
        tables[:, 1] += detectable_difference(1.0, seeds=seeds, level=level, power=0.8)
        yield row(
            f"the {name} detectable difference is found", verdict_p(tables)[:, 0] < level, 0.8
        )


def planned(studies: int, *, draw: int) -> Iterator[Outcome]:
    """How often a study of the size of `qkvbench plan` detects a difference, or shows a match."""
    for deviations in ((1.0, 1.0), (1.0, 3.0), (3.0, 1.0)):
        need = seeds_needed(deviations, 2.0)
        assert need.likely is not None
        assert need.certain is not None
        assert need.match is not None
        scale = np.array(deviations)[None, :, None]
        profile = f"deviations {deviations[0]:g} and {deviations[1]:g}"
        for name, level, seeds in (
            ("likely", LEVEL, need.likely),
            ("certain", CERTAIN, need.certain),
        ):
            rng = np.random.default_rng([draw, seeds, 3])
            tables = scale * _normal(rng, studies, 2, seeds)
            tables[:, 1] += 2.0
            found = verdict_p(tables)[:, 0] < level
            row = _rows(profile, seeds, studies)
            yield row(f"planned to find 2 σ as {name}", found, 0.8, above=True)
        rng = np.random.default_rng([draw, need.match, 5])
        equal = scale * _normal(rng, studies, 2, need.match)
        row = _rows(profile, need.match, studies)
        matched = _match_p(equal, 2.0) < LEVEL
        yield row("planned to match within 2 σ", matched, 0.8, above=True)


def solving_alarms(seeds: int, studies: int, *, draw: int) -> Outcome:
    """False verdicts on arms that solve a task alike: 80% of seeds, at steps 100 to 1,000."""
    rng = np.random.default_rng([draw, seeds, 7])
    steps = 100.0 * rng.integers(1, 11, size=(studies, 2, seeds))
    steps[rng.random(steps.shape) < 0.2] = math.inf
    alarms = np.array([log_rank(tuple(a), tuple(b))[1] < LEVEL for a, b in steps.tolist()])
    row = _rows("2 arms that solve 80%", seeds, studies)
    return row("an arm likely solves sooner or later, though it does not", alarms, 0.0)


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


def _match_p(tables: Float[np.ndarray, "studies 2 seeds"], margin: float) -> np.ndarray:
    """The p value of the second arm's match with the first."""
    base, other = tables[:, 0], tables[:, 1]
    above = stats.ttest_ind(other + margin, base, axis=1, equal_var=False, alternative="greater")
    below = stats.ttest_ind(other - margin, base, axis=1, equal_var=False, alternative="less")
    return np.maximum(above.pvalue, below.pvalue)


def _where(row: Callable[..., Outcome]) -> tuple[str, int, int]:
    """Profile, seeds and studies of the rows that this makes."""
    made = row("", np.zeros(1), 0.0)
    return made.profile, made.seeds, made.studies


def _percentile_bounds(values: Float[np.ndarray, " seeds"]) -> tuple[float, float]:
    """The percentile bootstrap of a mean over seeds."""
    samples = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[samples].mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


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
