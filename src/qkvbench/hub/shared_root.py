"""K and V from one projection: V is kept, and K is made of it when it is read.

So it is in the layers of Gemma 4 that look at the whole text, where ``attention_k_eq_v`` is set: V
is the normed root, and K is V times learned numbers, turned by its position. transformers keeps
both. In the notation of this package the layer is `q,k=v+qkvnorm` with rotary positions, and what
is kept is what its plan keeps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.hub.reading import Allowed, Queries, shares, stand_in, stretches
from qkvbench.hub.rows import Heads, Rows

# Kinds of rotary positions whose angles change while a text grows: a row that is turned when it is
# read would not be turned as it was.
MOVING = ("dynamic", "longrope")
# How far K may be from what is made for it, in steps of its type: norm, scale and turn round once
# each, and a low precision has rounded V before.
STEPS = 8


@dataclass(frozen=True)
class SharedRoot:
    """How K is made of V in one layer: the learned numbers, and the angle of each pair a token."""

    layer: int
    scale: nn.Parameter
    rotary: nn.Module
    kind: str

    def tables(self) -> int:
        """Bytes that reading needs beside the rows."""
        return 0

    def keys(self, roots: Heads, positions: Heads) -> Heads:
        """K of these rows, in the library's own order of operations, so to the same bits."""
        scaled = (roots.float() * self.scale.to(roots.device).float()).type_as(roots)
        inverse = getattr(self.rotary, f"{self.kind}_inv_freq").to(roots.device)
        factor = getattr(self.rotary, f"{self.kind}_attention_scaling")
        # Only the first pairs turn where rotation is partial; the frequency of the others is 0.
        turning = len(inverse) if factor != 1 else int((inverse != 0).sum())
        angles = positions * inverse[:turning].float()
        cos, sin = ((f(angles) * factor).to(roots.dtype) for f in (torch.cos, torch.sin))
        half = roots.shape[-1] // 2
        first, second = scaled[..., :turning], scaled[..., half : half + turning]
        turned = first * cos - second * sin, second * cos + first * sin
        scaled[..., :turning], scaled[..., half : half + turning] = turned
        return scaled

    def check(self, key: Heads, value: Heads, positions: Heads) -> None:
        """Refuse a layer whose K is not what is made of V; ValueError."""
        made = self.keys(value, positions)
        step = torch.finfo(torch.promote_types(value.dtype, torch.float32)).eps
        step = max(step, torch.finfo(torch.float32).eps, torch.finfo(value.dtype).eps)
        if (made - key).abs().max() > STEPS * step * key.abs().max().clamp_min(1):
            raise ValueError(
                f"In layer {self.layer} K is not V, scaled and turned, so it cannot be made of V.\n"
                "The model's code does something else than its settings say: use transformers' "
                "own cache."
            )


def shared_roots(model: nn.Module) -> dict[int, SharedRoot]:
    """The layers of a model whose K is made of V, by number; ValueError where it cannot be."""
    found: dict[int, SharedRoot] = {}
    for part in model.modules():
        rotary = getattr(part, "rotary_emb", None)
        for layer in getattr(part, "layers", ()) if isinstance(rotary, nn.Module) else ():
            attention = getattr(layer, "self_attn", None)
            if not getattr(attention, "use_alternative_attention", False):
                continue
            if getattr(attention, "is_kv_shared_layer", False):
                continue
            kind, number = attention.layer_type, attention.layer_idx
            rope = rotary.rope_type[kind]
            if rope in MOVING:
                raise ValueError(
                    f"Layer {number} has rotary positions of the kind {rope}, whose angles change "
                    "while a text grows, so K cannot be made again of what is kept."
                )
            found[number] = SharedRoot(number, attention.k_norm.weight, rotary, kind)
    return found


class RootReader:
    """The roots of one layer and the position of each, and attention over them."""

    def __init__(self, how: SharedRoot, reserve: int = 0) -> None:
        """No rows yet."""
        self.how = how
        self.roots = Rows(reserve)
        # A number in fp32, in which transformers multiplies it, too: exact up to 16 million.
        self.positions = Rows(reserve)

    @property
    def rows(self) -> tuple[Rows, ...]:
        """All that lies in memory."""
        return self.roots, self.positions

    def append(
        self, key: Heads, value: Heads, position_ids: Tensor | None
    ) -> tuple[Heads, Heads] | None:
        """Keep new rows; K and V where these are all that there are."""
        if position_ids is None:
            raise ValueError(
                f"Layer {self.how.layer} does not tell its cache at which positions it is, so K "
                "cannot be made of V.\nUse a version of transformers whose layers pass "
                "position_ids to the cache, such as the one in constraints.txt."
            )
        places = position_ids.to(torch.float32).expand(len(value), -1)[:, None, :, None]
        first = not self.roots.length
        if first:
            self.how.check(key[:, :, :2], value[:, :, :2], places[:, :, :2])
        self.roots.append(value)
        self.positions.append(places)
        return (key, value) if first else None

    def handed(self) -> tuple[Heads, Heads]:
        """What the layer is given: for K a stand-in, and V."""
        return stand_in(self.roots.kept, self), self.roots.kept

    def whole(self) -> tuple[Heads, Heads]:
        """K, made for now, and V."""
        return self.how.keys(self.roots.kept, self.positions.kept), self.roots.kept

    def attend(self, query: Queries, allowed: Allowed | None, scaling: float) -> Queries:
        """softmax(q·k·scaling)·v; K is made a tile at a time."""
        roots = self.roots.kept
        batch, heads, queries, width = query.shape
        # Queries of one group read the same root.
        asked = query.reshape(batch, roots.shape[1], -1, width)
        products = torch.cat([asked @ keys.mT for keys in self._keys()], dim=-1) * scaling
        weights = shares(products.view(batch, heads, queries, -1), allowed)
        seen = weights.to(roots.dtype).view(batch, roots.shape[1], -1, roots.shape[2]) @ roots
        return seen.view(batch, heads, queries, width)

    def _keys(self) -> Iterator[Float[Tensor, "batch heads rows width"]]:
        """K, a tile at a time."""
        roots, positions = self.roots.kept, self.positions.kept
        for rows in stretches(roots.shape[2]):
            yield self.how.keys(roots[:, :, rows], positions[:, :, rows])
