"""Bootstrap intervals over test items, and over seeds and items.

A percentile bootstrap over three seeds covers about 73% instead of 95% (benchmarks/error_rates.py),
so seeds are resampled only if there are `MIN_SEEDS`. Items are always many enough.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from qkvbench.results.critical import LEVEL

RESAMPLES = 10_000
MIN_SEEDS = 20
_CHUNK = 500
_RESAMPLING_SEED = 0

Bounds = tuple[float, float]


@dataclass(frozen=True)
class ItemBounds:
    """A difference of means, paired by seed and item, with 95% bounds.

    ``items`` bounds it for these seeds and other items, ``both`` for other seeds as well.
    If not ``resampled``, ``both`` adds the errors over seeds and over items as independent, which
    is slightly too wide.
    """

    value: float
    blocks: int
    items: Bounds
    both: Bounds
    resampled: bool


def bounds_over_items(
    differences: Float[np.ndarray, "arms seeds blocks"],
    weights: Float[np.ndarray, " blocks"],
    seed_bounds: Sequence[Bounds | None],
) -> list[ItemBounds | None]:
    """Each arm's difference with bounds; `seed_bounds` are its bounds over seeds, for these items.

    None if there are too few seeds to resample and no bounds. All arms share the same resamples.
    """
    _, seeds, blocks = differences.shape
    means = _item_means(differences.mean(axis=1), weights)
    result: list[ItemBounds | None] = []
    for arm, bounds, resampled in zip(differences, seed_bounds, means.T, strict=True):
        value = float((arm @ weights).mean())
        items = _percentiles(resampled)
        if seeds >= MIN_SEEDS:
            both = _percentiles(_two_way_means(arm, weights))
            result.append(ItemBounds(value, blocks, items, both, resampled=True))
        elif bounds is None:
            result.append(None)
        else:
            low = value - math.hypot(value - items[0], value - bounds[0])
            high = value + math.hypot(items[1] - value, bounds[1] - value)
            result.append(ItemBounds(value, blocks, items, (low, high), resampled=False))
    return result


def _item_means(
    differences: Float[np.ndarray, "arms blocks"], weights: Float[np.ndarray, " blocks"]
) -> Float[np.ndarray, "resamples arms"]:
    # One row of counts per resample: a matrix product instead of 10,000 gathers.
    rng = np.random.default_rng(_RESAMPLING_SEED)
    columns = np.concatenate([differences * weights, weights[None]]).T.astype(np.float32)
    parts = [counts @ columns for counts in _resample_counts(len(weights), rng)]
    sums = np.concatenate(parts).astype(np.float64)
    return sums[:, :-1] / sums[:, -1:]


def _two_way_means(
    differences: Float[np.ndarray, "seeds blocks"], weights: Float[np.ndarray, " blocks"]
) -> Float[np.ndarray, " resamples"]:
    """Seeds and items resampled independently, because the two factors are crossed."""
    rng = np.random.default_rng(_RESAMPLING_SEED)
    seeds = len(differences)
    columns = np.concatenate([differences * weights, weights[None]]).T.astype(np.float32)
    means: list[Float[np.ndarray, " some"]] = []
    for counts in _resample_counts(len(weights), rng):
        sums = (counts @ columns).astype(np.float64)
        seed_weights = rng.multinomial(seeds, [1 / seeds] * seeds, size=len(counts)) / seeds
        means.append((seed_weights * sums[:, :-1]).sum(axis=1) / sums[:, -1])
    return np.concatenate(means)


def _resample_counts(
    blocks: int, rng: np.random.Generator
) -> Iterator[Float[np.ndarray, "resamples blocks"]]:
    """How often each block occurs in each resample, in chunks of resamples."""
    for _ in range(RESAMPLES // _CHUNK):
        samples = rng.integers(blocks, size=(_CHUNK, blocks))
        bins = samples + blocks * np.arange(_CHUNK)[:, None]
        counts = np.bincount(bins.ravel(), minlength=_CHUNK * blocks)
        yield counts.reshape(_CHUNK, blocks).astype(np.float32)


def _percentiles(values: Sequence[float] | Float[np.ndarray, " resamples"]) -> Bounds:
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
