"""What other items, or other seeds and items, would have shown: the bootstrap, where it holds.

A percentile bootstrap over three seeds covers about 73% where it says 95% (`simulation`), so seeds
are resampled only where there are `ENOUGH`. Items are many, so they always can be.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from qkvbench.results.critical import LEVEL

RESAMPLES = 10_000
ENOUGH = 20
_AT_ONCE = 500
_SEED = 0

Bounds = tuple[float, float]


@dataclass(frozen=True)
class OverItems:
    """A difference of means, seeds and items paired, and its 95% bounds by what varies.

    ``items`` holds for these seeds and other items like these, ``both`` for other seeds as well.
    ``resampled`` says whether seeds were resampled for it; else the seeds' own interval and the
    items' were added as independent errors, which is slightly too wide.
    """

    value: float
    blocks: int
    items: Bounds
    both: Bounds
    resampled: bool


def over_items(
    differences: Float[np.ndarray, "arms seeds blocks"],
    weights: Float[np.ndarray, " blocks"],
    seed_bounds: Sequence[Bounds | None],
) -> list[OverItems | None]:
    """Each arm's difference over items; `seed_bounds` are those over seeds, with these items.

    None where seeds are too few to be resampled and have no bounds. All arms see the same draws.
    """
    _, seeds, blocks = differences.shape
    means = _item_means(differences.mean(axis=1), weights)
    found: list[OverItems | None] = []
    for arm, bounds, resampled in zip(differences, seed_bounds, means.T, strict=True):
        value = float((arm @ weights).mean())
        items = _percentiles(resampled)
        if seeds >= ENOUGH:
            both = _percentiles(_two_way_means(arm, weights))
            found.append(OverItems(value, blocks, items, both, resampled=True))
        elif bounds is None:
            found.append(None)
        else:
            low = value - math.hypot(value - items[0], value - bounds[0])
            high = value + math.hypot(items[1] - value, bounds[1] - value)
            found.append(OverItems(value, blocks, items, (low, high), resampled=False))
    return found


def percentile_over_seeds(values: Float[np.ndarray, " seeds"], resamples: int = 2000) -> Bounds:
    """The percentile bootstrap of a mean over seeds, to show how short of 95% it falls for few."""
    rng = np.random.default_rng(_SEED).integers(len(values), size=(resamples, len(values)))
    return _percentiles(values[rng].mean(axis=1))


def _item_means(
    differences: Float[np.ndarray, "arms blocks"], weights: Float[np.ndarray, " blocks"]
) -> Float[np.ndarray, "resamples arms"]:
    # Resampling counts as one row each: a product instead of ten thousand selections.
    columns = np.concatenate([differences * weights, weights[None]]).T.astype(np.float32)
    parts = [counts @ columns for counts in _counts(len(weights), np.random.default_rng(_SEED))]
    sums = np.concatenate(parts).astype(np.float64)
    return sums[:, :-1] / sums[:, -1:]


def _two_way_means(
    differences: Float[np.ndarray, "seeds blocks"], weights: Float[np.ndarray, " blocks"]
) -> Float[np.ndarray, " resamples"]:
    """Seeds and items drawn anew, each on its own: every seed meets every item, so it did here."""
    generator = np.random.default_rng(_SEED)
    seeds = len(differences)
    columns = np.concatenate([differences * weights, weights[None]]).T.astype(np.float32)
    means: list[Float[np.ndarray, " some"]] = []
    for counts in _counts(len(weights), generator):
        sums = (counts @ columns).astype(np.float64)
        of_seeds = generator.multinomial(seeds, [1 / seeds] * seeds, size=len(counts)) / seeds
        means.append((of_seeds * sums[:, :-1]).sum(axis=1) / sums[:, -1])
    return np.concatenate(means)


def _counts(
    blocks: int, generator: np.random.Generator
) -> Iterator[Float[np.ndarray, "resamples blocks"]]:
    """How often each block is drawn in each resample, some resamples at a time."""
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = generator.integers(blocks, size=(_AT_ONCE, blocks))
        places = drawn + blocks * np.arange(_AT_ONCE)[:, None]
        counts = np.bincount(places.ravel(), minlength=_AT_ONCE * blocks)
        yield counts.reshape(_AT_ONCE, blocks).astype(np.float32)


def _percentiles(values: Sequence[float] | Float[np.ndarray, " resamples"]) -> Bounds:
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
