"""One figure over tasks: interquartile mean and probability of improvement (arXiv:2108.13264).

A score is put on a scale where chance is 0 and the baseline's mean on the task is 1. A run that
diverged stands at chance. The resampling is stratified: seeds are drawn anew within each task, the
same ones for an arm and its baseline, whose seeds are pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.results.critical import LEVEL, wilson
from qkvbench.results.resampling import RESAMPLES

# What is cut off at each end, so that neither one bad run nor one easy task decides.
CUT = 0.25
_SEED = 0

# Two arms by seeds; tasks have different numbers of them.
Pair = Float[np.ndarray, "2 _"]


@dataclass(frozen=True)
class Aggregate:
    """An arm over several tasks beside the baseline; 95% bounds for this arm alone.

    ``mean`` is the interquartile mean of the arm's normalized scores and ``difference`` that minus
    the baseline's. ``improvement`` is how probable it is that a run of the arm beats a run of the
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
    """A score where chance is 0 and the reference 1; either direction of better."""
    return (score - chance) / (reference - chance)


def interquartile_mean(values: Float[np.ndarray, "*studies runs"]) -> Float[np.ndarray, "*studies"]:
    """The mean of what is left without the lowest and the highest quarter, rounded down."""
    cut = int(CUT * values.shape[-1])
    return np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)


def aggregate(names: Sequence[str], pairs: Sequence[Pair]) -> Aggregate | None:
    """The arm (second row of each task's normalized scores) over tasks, beside the baseline.

    None where a task has one seed: nothing would say how much seeds matter.

    Few seeds drawn from few seeds vary too little, by (n − 1)/n, and their percentiles are no
    bounds. So only the resamples' deviation is used, set right by that factor, with Student's t.
    """
    if not pairs or any(pair.shape[1] < 2 for pair in pairs):
        return None
    both = np.concatenate(pairs, axis=1)
    base, arm = interquartile_mean(both)
    fewest = min(pair.shape[1] for pair in pairs)
    degrees = sum(pair.shape[1] - 1 for pair in pairs)
    deviation = float(_resampled(pairs).std()) * math.sqrt(fewest / (fewest - 1))
    half = float(stats.t.isf(LEVEL / 2, degrees)) * deviation
    improvement = float(np.mean([_beats(pair) for pair in pairs]))
    # So many independent pairs of runs would tell it as well; all pairs tell it no worse.
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


def _resampled(pairs: Sequence[Pair]) -> Float[np.ndarray, " resamples"]:
    """The difference of interquartile means in each resample."""
    generator = np.random.default_rng(_SEED)
    drawn: list[Float[np.ndarray, "arms resamples seeds"]] = []
    for pair in pairs:
        seeds = pair.shape[1]
        drawn.append(pair[:, generator.integers(seeds, size=(RESAMPLES, seeds))])
    base, arm = interquartile_mean(np.concatenate(drawn, axis=2))
    return arm - base


def _beats(pair: Pair) -> float:
    base, arm = pair
    above = arm[:, None] > base[None]
    return float((above + 0.5 * (arm[:, None] == base[None])).mean())
