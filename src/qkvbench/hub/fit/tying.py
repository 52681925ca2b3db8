"""A mode put into a pretrained model: tied weights are fitted, then converted exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qkvbench.hub.conversion import norms_otherwise, with_weights
from qkvbench.hub.fit.moments import Calibration, Moments, not_finite
from qkvbench.hub.fit.outputs import refit
from qkvbench.hub.fit.progress import Progress
from qkvbench.hub.fit.projections import Layer, Weights, layers_of
from qkvbench.hub.fit.roots import ROUNDINGS
from qkvbench.hub.fit.starts import (
    FITTED_STARTS,
    LEAST_ERROR,
    REFITTED,
    STARTS,
    fit_latent,
    fold,
    parse_start,
    problems,
    separate,
    turn,
)
from qkvbench.hub.modes import Mode, variants
from qkvbench.variant import Latent, Own, Same, Variant, write

DEFAULT_START = REFITTED
TIE = Same("k")


@dataclass(frozen=True)
class Change:
    """One layer's equation and the number of key/value heads that it leaves."""

    layer: int
    variant: Variant
    kv_heads: int

    @property
    def tied(self) -> bool:
        """Whether V is K."""
        return self.variant.v == TIE

    @property
    def turned(self) -> bool:
        """Whether V gets RoPE, too, and the output its inverse."""
        return self.variant.scores.rope_value is not None

    @property
    def rank(self) -> int | None:
        """The rank of the latent of K and V; None if there is none."""
        return self.variant.v.rank if isinstance(self.variant.v, Latent) else None


def changes(mode: Mode, model: Any) -> tuple[Change, ...]:
    """The layers that a mode changes; ValueError if an equation of it cannot be fitted."""
    found = []
    layers = layers_of(model)
    for layer, variant in zip(layers, variants(mode, len(layers)), strict=True):
        change = check_change(layer, variant)
        if change is not None:
            found.append(change)
    return tuple(found)


def check_change(layer: Layer, variant: Variant) -> Change | None:
    """The change of one layer, None if there is none; ValueError if it cannot be fitted."""
    source_heads = layer.geometry.kv_heads
    if norms_otherwise(variant, layer.family):
        raise ValueError(
            f"'{write(variant)}' has other norms of heads than the checkpoint, and no fit makes "
            "them.\nLeave the suffix out: a checkpoint's own norms are there without it."
        )
    latent = isinstance(variant.k, Latent) and variant.v == variant.k and variant.k.groups == 1
    own = variant.k == Own() and variant.v in (Own(), TIE)
    turned = variant.scores.rope_value is not None
    unfit = turned and (variant.scores.rope_value != "back" or variant.v != TIE)
    if variant.q != Own() or not (latent or own) or (latent and variant.kv_heads) or unfit:
        raise ValueError(
            f"'{write(variant)}' cannot be fitted to a pretrained model.\n"
            "Weights are fitted for 'q,k=v', 'q,k,v/g', 'q,k=v/g', 'q,k=v+ropevalue' and "
            "'q,k=L(r),v=L(r)': g is the number of key/value heads that is left, r that of cached "
            "numbers.\n"
            "Weights that satisfy any other tie exactly are converted by qkvbench.hub.convert."
        )
    heads = variant.kv_heads or source_heads
    if source_heads % heads:
        divisors = [str(n) for n in range(1, source_heads + 1) if source_heads % n == 0]
        raise ValueError(
            f"{source_heads} key/value heads cannot be merged into {heads}; "
            f"write /{' or /'.join(divisors)}."
        )
    changed = latent or variant.v == TIE or heads < source_heads
    return Change(layer.number, variant, heads) if changed else None


def fit_layer(
    layer: Layer, change: Change, moments: Moments | None, start: str, weights: Weights
) -> Weights:
    """The layer's weights after the change, still with a K and a V for every head, all equal.

    A refitted output projection comes afterwards: see `is_refitted`.
    """
    if not all(
        bool(part.isfinite().all()) for part in (weights.q, weights.k, weights.v, weights.o)
    ):
        raise ValueError(not_finite(layer))
    how = parse_start(start)
    if moments is None and how.is_fitted:
        raise ValueError(start_needs_text(start))
    moments = moments or _no_text(layer, weights)
    if change.rank is not None:
        if not how.has_least_error:
            raise ValueError(f"A latent is fitted by --start {' or '.join(LEAST_ERROR)} alone.")
        return fit_latent(layer, weights, moments, change.rank)
    found = problems(layer, weights, moments, change.kv_heads, ROUNDINGS[how.rows])
    keys, values = found, found
    if not change.tied:
        keys, values = separate(found)
    make = STARTS[how.name]
    if change.turned and how.has_least_error:
        assert layer.frequencies is not None, "a family without RoPE is refused"
        make = partial(turn, frequencies=layer.frequencies)
    mean = moments.mean if how.is_fitted else None
    roots = [make(one) for one in keys]
    if change.tied:
        return fold(layer, weights, roots, roots, mean)
    return fold(layer, weights, roots, [make(one) for one in values], mean)


def start_needs_text(start: str) -> str:
    """The message for a start that is fitted to a text if there is none."""
    others = ", ".join(name for name in STARTS if name not in FITTED_STARTS)
    return f"The start {start} is fitted to a text: add --text FILE, or take one of {others}."


def is_refitted(change: Change, start: str) -> bool:
    """Whether the output projection is fitted to what the changed heads give.

    The library's own attention gives it, which turns no values.
    """
    return parse_start(start).name == REFITTED and not change.turned


@torch.no_grad()
def fits(
    model: Any,
    wanted: Sequence[Change],
    text: Calibration | None,
    start: str,
    progress: Progress = lambda line: None,
) -> dict[tuple[int, str], Weights]:
    """The weights of each change, by its layer and its equation; the model stays as it is.

    ValueError if a start needs a text.
    """
    layers, found = layers_of(model), {}
    for change in wanted:
        layer = layers[change.layer]
        row = None if text is None else text.moments[change.layer]
        key = (change.layer, write(change.variant))
        found[key] = fit_layer(layer, change, row, start, layer.read())
    again = [c for c in wanted if is_refitted(c, start)]
    if again and text is not None:
        keys = [(change.layer, write(change.variant)) for change in again]
        unfitted = {key: found[key] for key in keys}
        found |= refit(model, layers, unfitted, text.batches, progress)
    return found


@torch.no_grad()
def tie(model: Any, mode: Mode, text: Calibration | None = None, start: str = DEFAULT_START) -> Any:
    """The model with this mode, its changed layers fitted; `model` itself is changed, too.

    ValueError if an equation cannot be fitted or a start needs a text.
    """
    layers = layers_of(model)
    for (number, _), weights in fits(model, changes(mode, model), text, start).items():
        layers[number].write(weights)
    return with_weights(model, mode)


def _no_text(layer: Layer, weights: Weights) -> Moments:
    """Moments that favour no direction, for the starts that read none."""
    size, width = layer.geometry, weights.k.shape[2]
    identity: Tensor = torch.eye(size.head_dim, dtype=torch.float64)
    return Moments(
        torch.eye(max(width, size.d_model + 1), dtype=torch.float64),
        identity.repeat(size.kv_heads, 1, 1),
        torch.ones(size.heads, dtype=torch.float64),
        1,
    )
