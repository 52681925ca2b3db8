"""The measures of a checkpoint's weights in sentences: what they suggest, and what they cannot say.

The bounds are conventions for words such as *nearly*; none of them was fitted to losses.
"""

import math
from collections.abc import Mapping

# A residual of at most this is called nearly the same; of at most this part of the residual of
# independent matrices, related.
NEARLY_SAME = 0.1
RELATED = 0.75
# A symmetry of at least this is called close to symmetric.
SYMMETRIC = 0.5
# An effective rank of at most this part of the width is called low.
LOW_RANK = 0.5

Measures = Mapping[str, float]

CAUTION = (
    "This describes the weights alone: what a tie loses is shown by training with it, "
    "as 'qkvbench run' does; no bound used here was tested against losses."
)


def random_residual(head_dim: int, d_model: int) -> float:
    """About the residual of K and V if they are independent random matrices."""
    return 1 - (8 / (3 * math.pi)) ** 2 * head_dim / d_model


def conclusions(
    layers: Mapping[str, Measures], *, sizes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """A few sentences on layers by their short names; `sizes` are (heads, head_dim, d_model)."""
    found = [_on_keys_and_values(layers, sizes), _on_queries(layers), _on_ranks(layers, sizes)]
    return [*filter(None, found), CAUTION]


def _on_keys_and_values(
    layers: Mapping[str, Measures], sizes: Mapping[str, tuple[int, ...]]
) -> str:
    residuals = _finite(layers, "kv_weight_residual")
    if not residuals:
        own = " and ".join(role.upper() for role in ("k", "v") if role in sizes) or "neither"
        return f"K and V cannot be compared: of the two, {own} has a matrix of its own."
    _, head_dim, d_model = sizes["k"]
    chance = random_residual(head_dim, d_model)
    closest = min(residuals, key=residuals.__getitem__)
    scale = f"0 is the same up to a rotation of each head, about {chance:.2f} unrelated"
    least = f"residual {residuals[closest]:.2f}; {scale}"
    near = [name for name, value in residuals.items() if value <= NEARLY_SAME]
    if len(near) == len(residuals):
        return (
            f"K and V are nearly the same in every layer ({least}): tying them there (k=v, or "
            "v=R(k)) changes the weights least."
        )
    if near:
        return (
            f"K and V of {_names(near)} are nearly the same ({least}): a tie there (k=v, or "
            "v=R(k)) changes the weights less than in any other layer."
        )
    if residuals[closest] <= RELATED * chance:
        return (
            f"K and V are related, but not the same; they are closest in {_names([closest])} "
            f"({least}): if one layer is to be tied, this one changes least."
        )
    farthest = max(residuals.values())
    return (
        f"K and V are about as different as unrelated matrices in every layer (residual "
        f"{residuals[closest]:.2f} to {farthest:.2f}; {scale}): nothing in the weights suggests "
        "that one can take the other's place without training."
    )


def _on_queries(layers: Mapping[str, Measures]) -> str | None:
    close = {n: v for n, v in _finite(layers, "qk_weight_symmetry").items() if v >= SYMMETRIC}
    if not close:
        return None
    most = max(close, key=close.__getitem__)
    return (
        f"Q and K of {_names(list(close))} make scores that are close to symmetric "
        f"({close[most]:.2f} in {_names([most])}; 1 is symmetric, 0 unrelated), as those of q=k."
    )


def _on_ranks(layers: Mapping[str, Measures], sizes: Mapping[str, tuple[int, ...]]) -> str | None:
    parts: list[str] = []
    for role in ("k", "v"):
        ranks = _finite(layers, f"{role}_weight_rank")
        if not ranks:
            continue
        heads, head_dim, d_model = sizes[role]
        width = min(heads * head_dim, d_model)
        low = {name: rank for name, rank in ranks.items() if rank <= LOW_RANK * width}
        if low:
            least = min(low, key=low.__getitem__)
            parts.append(f"{role.upper()} in {_names(list(low))} ({low[least]:.1f} of {width})")
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


def _names(layers: list[str]) -> str:
    """The layers; of many the first and their number."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) <= 4:
        return f"layers {', '.join(layers[:-1])} and {layers[-1]}"
    return f"{len(layers)} layers (the first is {layers[0]})"
