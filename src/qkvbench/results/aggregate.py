"""One figure over tasks: interquartile mean and probability of improvement (arXiv:2108.13264).

Scores are normalized so that chance is 0 and the baseline's mean on the task is 1. A run that
diverged counts as chance. The bootstrap is stratified: seeds are resampled within each task, with
the same draws for an arm and its baseline, because their seeds are pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.results.critical import LEVEL, wilson
from qkvbench.results.resampling import RESAMPLES

# Fraction trimmed at each end, so that neither one bad run nor one easy task decides.
TRIM = 0.25
_RESAMPLING_SEED = 0

# Two arms by seeds; tasks have different numbers of them.
Pair = Float[np.ndarray, "2 _"]


@dataclass(frozen=True)
class Aggregate:
    """An arm against the baseline over several tasks; 95% bounds for this arm alone.

    ``mean`` is the interquartile mean of the arm's normalized scores, ``difference`` is that minus
    the baseline's. ``improvement`` is the probability that a run of the arm beats a run of the
    baseline on a task drawn at random; ties count one half.
    """

    tasks: tuple[str, ...]
    mean: float
    baseline_mean: float
    difference: float
    low: float
    high: float
    improvement: float
    improvement_low: float
    improvement_high: float


def normalized(score: float, *, chance: float, reference: float) -> float:
    """A score rescaled so that chance is 0 and the reference is 1; works in both directions."""
    return (score - chance) / (reference - chance)


def interquartile_mean(values: Float[np.ndarray, "*studies runs"]) -> Float[np.ndarray, "*studies"]:
    """The mean without the lowest and the highest quarter (rounded down)."""
    cut = int(TRIM * values.shape[-1])
    return np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)


def aggregate(names: Sequence[str], pairs: Sequence[Pair]) -> Aggregate | None:
    """The arm (second row of each task's normalized scores) against the baseline (first row).

    None if a task has one seed, because the variance over seeds is then unknown.

    Bootstrap resamples of n seeds have (n − 1)/n of the variance, and their percentiles are too
    narrow for small n. So the interval is Student's t with the resamples' corrected deviation.
    """
    if not pairs or any(pair.shape[1] < 2 for pair in pairs):
        return None
    both = np.concatenate(pairs, axis=1)
    base, arm = interquartile_mean(both)
    fewest = min(pair.shape[1] for pair in pairs)
    degrees = sum(pair.shape[1] - 1 for pair in pairs)
    deviation = float(_resampled_differences(pairs).std()) * math.sqrt(fewest / (fewest - 1))
    half = float(stats.t.isf(LEVEL / 2, degrees)) * deviation
    improvement = float(np.mean([_win_rate(pair) for pair in pairs]))
    # The effective number of independent pairs of runs; using all pairs is at least as precise.
    count = len(pairs) ** 2 / sum(1 / pair.shape[1] for pair in pairs)
    low, high = wilson(improvement, count)
    return Aggregate(
        tasks=tuple(names),
        mean=float(arm),
        baseline_mean=float(base),
        difference=float(arm - base),
        low=float(arm - base) - half,
        high=float(arm - base) + half,
        improvement=improvement,
        improvement_low=low,
        improvement_high=high,
    )


def _resampled_differences(pairs: Sequence[Pair]) -> Float[np.ndarray, " resamples"]:
    """The difference of interquartile means in each resample."""
    generator = np.random.default_rng(_RESAMPLING_SEED)
    resamples: list[Float[np.ndarray, "arms resamples seeds"]] = []
    for pair in pairs:
        seeds = pair.shape[1]
        resamples.append(pair[:, generator.integers(seeds, size=(RESAMPLES, seeds))])
    base, arm = interquartile_mean(np.concatenate(resamples, axis=2))
    return arm - base


def _win_rate(pair: Pair) -> float:
    """The share of pairs of runs that the arm wins; ties count one half."""
    base, arm = pair
    above = arm[:, None] > base[None]
    return float((above + 0.5 * (arm[:, None] == base[None])).mean())
