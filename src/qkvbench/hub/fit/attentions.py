"""Attention layers with a `qkv_mode` in the place of a model's own, some at a time.

They are the modules that a converted model has, over the cache that it is to have, so a layer that
is judged here computes what it will compute there.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qkvbench.hub.attention import QkvModeAttention
from qkvbench.hub.conversion import auto_of, convert_layer
from qkvbench.hub.families import family_of
from qkvbench.hub.fit.projections import Layer, Weights, layers_of
from qkvbench.hub.fit.quality import cache_of
from qkvbench.hub.fit.roots import DEFAULT_ROWS
from qkvbench.hub.models import attention_layers, model_classes, with_mode

UNCHANGED = "q,k,v"


@dataclass(frozen=True, eq=False)
class Attentions:
    """Layers for a model of the library's own, by their number and equation.

    ``rows`` is what the cache stores. If those are few bits, layers that are not changed store
    them, too, and are here as well.
    """

    model: Any
    layers: Sequence[Layer]
    made: Mapping[tuple[int, str], QkvModeAttention]
    rows: str

    @property
    def few_bits(self) -> bool:
        """Whether cached rows are rounded."""
        return self.rows != DEFAULT_ROWS

    def new_cache(self) -> Any:
        """An empty cache for the model, with all its layers in place; None if rows stay whole."""
        new_cache = cache_of(self.model, self.rows)
        return None if new_cache is None else new_cache()

    @contextmanager
    def in_place(self, changes: Sequence[tuple[int, str]]) -> Iterator[None]:
        """The model has these layers while the block runs."""
        unchanged = {n: UNCHANGED for n in range(len(self.layers)) if self.few_bits}
        chosen = {n: self.made[n, equation] for n, equation in (unchanged | dict(changes)).items()}
        try:
            for number, attention in chosen.items():
                self._put(self.layers[number], attention)
            yield
        finally:
            for number in chosen:
                self._put(self.layers[number], self.layers[number].attention)

    def _put(self, layer: Layer, attention: nn.Module) -> None:
        parent, _, attribute = layer.name.rpartition(".")
        setattr(self.model.get_submodule(parent), attribute, attention)


@torch.no_grad()
def attentions(
    model: Any, fitted: Mapping[tuple[int, str], Weights], rows: str = DEFAULT_ROWS
) -> Attentions:
    """The layers that `fitted` has weights for, by number and equation, and a cache of such rows.

    The model stays as it is. ValueError if weights do not satisfy their equation.
    """
    layers = layers_of(model)
    wanted = dict(fitted)
    if rows != DEFAULT_ROWS:
        wanted |= {(layer.number, UNCHANGED): layer.read() for layer in layers}
    made = {}
    for equation in dict.fromkeys(equation for _, equation in wanted):
        for layer, attention in zip(layers, _empty(model, equation), strict=True):
            if (layer.number, equation) in wanted:
                _fill(attention, layer, wanted[layer.number, equation])
                made[layer.number, equation] = attention
    return Attentions(model, layers, made, rows)


def _empty(model: Any, equation: str) -> list[QkvModeAttention]:
    """A layer of this equation for each of the model's, without weights."""
    classes = model_classes(family_of(model.config))
    with torch.device("meta"):
        shell: Any = classes[auto_of(model)](with_mode(model.config, equation))
    shell.to(dtype=model.dtype).eval().requires_grad_(requires_grad=False)
    if shell._can_set_attn_implementation():
        shell.set_attn_implementation(model.config._attn_implementation)
    rotary = [part for name, part in model.named_modules() if name.endswith("rotary_emb")]
    found = [attention for _, attention in attention_layers(shell)]
    for attention in found:
        attention.rotary_emb = tuple(rotary[:1])
    return found


def _fill(attention: QkvModeAttention, layer: Layer, weights: Weights) -> None:
    """Give the layer of ours these weights, by way of the library's, which are put back."""
    before = layer.read()
    try:
        layer.write(weights)
        old = {name: part.detach() for name, part in layer.attention.state_dict().items()}
        new = convert_layer(attention, old, layer.number)
        # Some are the library's own, which get their old numbers back.
        attention.load_state_dict({name: part.clone() for name, part in new.items()}, assign=True)
    finally:
        layer.write(before)
