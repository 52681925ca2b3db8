"""The log-rank test of two groups of times, some of which are censored; exact by permutation.

With five seeds the usual normal approximation is off by a factor in the tails, so the p value is
the share of all ways to divide the times among two groups of these sizes (Mantel 1966; the scores
of a permutation test are those of Peto and Peto 1972).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

# Scores are rounded to this, so that sums of them are counted on a grid.
STEP = 1e-3
# Of more times than this the normal law is as good, and counting all sums would take minutes.
MOST_EXACT = 100


@lru_cache(maxsize=4096)
def log_rank(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, float]:
    """How much later the second group's events are than expected, and the two-sided p.

    An infinite time is one that had not come when all were last looked at. The first number is the
    sum of the scores of the second group, in events; below 0 if its events come sooner. 0 and 1 if
    no time tells the groups apart.
    """
    scores = np.round(_scores([*first, *second]) / STEP).astype(np.int64)
    size = len(second)
    observed = int(scores[len(first) :].sum())
    centre = size * float(scores.mean())
    if len(scores) > MOST_EXACT:
        # The variance over all ways to divide the times, and the normal law.
        variance = size * len(first) / len(scores) * float(scores.var(ddof=1))
        p = (
            2 * float(special.ndtr(-abs(observed - centre) / math.sqrt(variance)))
            if variance
            else 1.0
        )
        return (observed - centre) * STEP, p
    counts, lowest = _sums(tuple(sorted(scores.tolist())), size)
    sums = lowest + np.arange(len(counts))
    # Sums that are equal may differ by the rounding of their scores: they count as extreme.
    extreme = np.abs(sums - centre) >= abs(observed - centre) - size / 2
    p = float(counts[extreme].sum() / counts.sum())
    return float(observed - centre) * STEP, min(1.0, p)


def _scores(times: Sequence[float]) -> np.ndarray:
    """Events that were expected up to a time, minus the event itself: larger if it came late."""
    values = np.asarray(times)
    scores = np.zeros(len(values))
    for time in np.unique(values[np.isfinite(values)]):
        at_risk = values >= time
        events = values == time
        scores[at_risk] += events.sum() / at_risk.sum()
    return scores - np.isfinite(values)


@lru_cache(maxsize=512)
def _sums(scores: tuple[int, ...], size: int) -> tuple[np.ndarray, int]:
    """How many subsets of this size have each sum, and the smallest sum of the grid."""
    lowest = min(scores)
    shifted = [score - lowest for score in scores]
    width = sum(sorted(shifted)[-size:]) + 1
    counts = np.zeros((size + 1, width))
    counts[0, 0] = 1
    total = 0
    for index, score in enumerate(shifted):
        total = min(total + score, width - 1)
        left = len(shifted) - index - 1
        # From the largest subsets down, so that each score is taken once; none that is too small to
        # reach `size` with the scores that are left.
        for members in range(min(index + 1, size), max(0, size - left - 1), -1):
            counts[members, score : total + 1] += counts[members - 1, : total + 1 - score]
    # A copy, so that the smaller subsets are not kept with it.
    return counts[size].copy(), lowest * size
