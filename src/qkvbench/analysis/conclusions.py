"""The measures of a checkpoint's weights in sentences: what they suggest, and what they cannot say.

The bounds are conventions for words such as *nearly*; none of them was fitted to losses.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean

import numpy as np

from qkvbench.analysis.similarity import rotation_residual
from qkvbench.variant import Role

# A residual of at most this is called nearly the same; of at most this part of the residual of
# independent matrices, related.
NEARLY_SAME = 0.1
RELATED = 0.75
# A symmetry of at least this is called close to symmetric.
SYMMETRIC = 0.5
# An effective rank of at most this part of the width is called low.
LOW_RANK = 0.5

# So many columns are simulated at most, in twice four such matrices; of fewer columns, in more.
MAX_FEATURES = 64
KEY_VALUE: tuple[Role, ...] = ("k", "v")

Measures = Mapping[str, float]
# The shape of each role's matrix in a layer: heads, head_dim, d_model.
Sizes = Mapping[Role, tuple[int, ...]]

CAUTION = (
    "This describes the weights alone: what a tie loses is shown by training with it, "
    "as 'qkvbench run' does; no bound used here was tested against losses."
)


@lru_cache(maxsize=64)
def random_residual(head_dim: int, d_model: int) -> float:
    """The mean residual of K and V if they are independent random matrices, by simulation.

    Wide heads are drawn with fewer columns and rows in the same proportion, on which it depends.
    """
    features = min(head_dim, MAX_FEATURES)
    samples = max(1, round(d_model * features / head_dim))
    rng = np.random.default_rng(0)
    draws = (
        rng.standard_normal((2, samples, features)) for _ in range(4 * MAX_FEATURES // features)
    )
    return fmean(rotation_residual(key, value) for key, value in draws)


def conclusions(layers: Mapping[str, Measures], *, sizes: Mapping[str, Sizes]) -> list[str]:
    """A few sentences on layers by their short names, and their sizes."""
    found = [
        _on_keys_and_values(layers, sizes),
        _on_queries(layers),
        _on_streams(sizes),
        _on_ranks(layers, sizes),
    ]
    return [*filter(None, found), CAUTION]


def layer_names(layers: Sequence[str]) -> str:
    """The layers; of many the first and their number."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) <= 4:
        return f"layers {', '.join(layers[:-1])} and {layers[-1]}"
    return f"{len(layers)} layers (the first is {layers[0]})"


def _on_keys_and_values(layers: Mapping[str, Measures], sizes: Mapping[str, Sizes]) -> str:
    residuals = _finite(layers, "kv_weight_residual")
    if not residuals:
        return _not_compared(sizes)
    chance = {name: random_residual(*sizes[name]["k"][1:]) for name in residuals}
    closest = min(residuals, key=lambda name: residuals[name] / chance[name])
    scale = f"0 is the same up to a rotation of each head, about {_span(chance.values())} unrelated"
    least = f"residual {residuals[closest]:.2f}; {scale}"
    near = [name for name, value in residuals.items() if value <= NEARLY_SAME]
    every = "every layer" if len(residuals) == len(layers) else "every layer that has both"
    if len(near) == len(residuals):
        return (
            f"K and V are nearly the same in {every} ({least}): tying them there (k=v, or "
            "v=R(k)) changes the weights least."
        )
    if near:
        return (
            f"K and V of {layer_names(near)} are nearly the same ({least}): a tie there (k=v, or "
            "v=R(k)) changes the weights less than in any other layer."
        )
    if residuals[closest] <= RELATED * chance[closest]:
        return (
            f"K and V are related, but not the same; they are closest in {layer_names([closest])} "
            f"({least}): if one layer is to be tied, this one changes least."
        )
    return (
        f"K and V are about as different as unrelated matrices in {every} (residual "
        f"{min(residuals.values()):.2f} to {max(residuals.values()):.2f}; {scale}): nothing in the "
        "weights suggests that one can take the other's place without training."
    )


def _not_compared(sizes: Mapping[str, Sizes]) -> str:
    own = [role.upper() for role in KEY_VALUE if any(role in each for each in sizes.values())]
    match own:
        case []:
            reason = "neither has a matrix of its own"
        case [role]:
            reason = f"{role} alone has a matrix of its own"
        case _:
            reason = "in no layer do both have a matrix of one shape that is not zero"
    return f"K and V cannot be compared: {reason}."


def _on_streams(sizes: Mapping[str, Sizes]) -> str | None:
    crossed = [
        name
        for name, own in sizes.items()
        if "q" in own and "k" in own and own["q"][2] != own["k"][2]
    ]
    if not crossed:
        return None
    own = sizes[crossed[0]]
    return (
        f"Q and K of {layer_names(crossed)} read streams of different widths ({own['q'][2]} and "
        f"{own['k'][2]}), as in cross-attention, so the symmetry of their scores is not defined."
    )


def _on_queries(layers: Mapping[str, Measures]) -> str | None:
    close = {n: v for n, v in _finite(layers, "qk_weight_symmetry").items() if v >= SYMMETRIC}
    if not close:
        return None
    most = max(close, key=close.__getitem__)
    return (
        f"Q and K of {layer_names(list(close))} make scores that are close to symmetric "
        f"({close[most]:.2f} in {layer_names([most])}; 1 is symmetric, 0 unrelated), as "
        "those of q=k."
    )


def _on_ranks(layers: Mapping[str, Measures], sizes: Mapping[str, Sizes]) -> str | None:
    parts: list[str] = []
    for role in KEY_VALUE:
        ranks = _finite(layers, f"{role}_weight_rank")
        widths = {name: _width(sizes[name][role]) for name in ranks}
        low = [name for name, rank in ranks.items() if rank <= LOW_RANK * widths[name]]
        if low:
            least = min(low, key=lambda name: ranks[name] / widths[name])
            named = f"{role.upper()} in {layer_names(low)}"
            parts.append(f"{named} ({ranks[least]:.1f} of {widths[least]})")
    if not parts:
        return None
    return (
        f"The effective rank is at most half of the width of {' and of '.join(parts)}: fewer "
        "key/value heads or a latent would be the next to try."
    )


def _finite(layers: Mapping[str, Measures], name: str) -> dict[str, float]:
    return {
        layer: row[name]
        for layer, row in layers.items()
        if name in row and math.isfinite(row[name])
    }


def _width(shape: tuple[int, ...]) -> int:
    """The largest rank that a matrix of this shape can have."""
    heads, head_dim, d_model = shape
    return min(heads * head_dim, d_model)


def _span(values: Iterable[float]) -> str:
    """One value, or the smallest and the largest."""
    texts = sorted(f"{each:.2f}" for each in values)
    low, high = texts[0], texts[-1]
    return low if low == high else f"{low} to {high}"
