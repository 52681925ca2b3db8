"""A slim cache of the root that K and V share: V is cached, and K is made from it on read.

It serves the full-attention layers of Gemma 4 with ``attention_k_eq_v`` and of DiffusionGemma's
encoder: V is the normed root, and K is V times a learned scale, with RoPE. transformers caches
both. The layer's plan is that of `q,k=v+qkvnorm`; what it caches, and how K is read from it, is in
the plan.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.hub.decoding import KernelAttention
from qkvbench.hub.families import SHARED_ROOT, shared_root_plan
from qkvbench.hub.growing_tensor import GrowingTensor, Heads
from qkvbench.hub.key_only import TOLERANCE
from qkvbench.hub.slim_attention import Mask, Queries, attention_weights, placeholder, tiles
from qkvbench.variant import ApplyRope, Plan, Scale

# Kinds of RoPE whose frequencies depend on the length of the sequence: a row could not be rotated
# on read as it was when it was new.
LENGTH_DEPENDENT_ROPE_TYPES = ("dynamic", "longrope")


@dataclass(frozen=True)
class KeyFromRoot:
    """How one layer makes K from the cached root: the learned scale and the rotary embedding."""

    layer: int
    plan: Plan
    scale: nn.Parameter
    rotary_emb: nn.Module
    kind: str
    tolerance: float = TOLERANCE

    def keys(self, roots: Heads, positions: Heads) -> Heads:
        """K of these rows, in the library's order of operations, so with its bits."""
        keys = roots
        for op in self.plan.key_ops_on_read:
            match op:
                case Scale():
                    # Gemma's norm multiplies in fp32, whatever the dtype of the model is.
                    scale = self.scale.to(roots.device).float()
                    keys = (keys.float() * scale).type_as(roots)
                case ApplyRope():
                    keys = self._apply_rope(keys, positions)
                case _:
                    raise AssertionError("the plan of a shared root has a scale and RoPE")
        return keys

    @property
    def frequencies(self) -> Float[Tensor, " pairs"]:
        """Radians per position of the pairs of a head; of the last ones that may be 0."""
        return getattr(self.rotary_emb, f"{self.kind}_inv_freq")

    @property
    def rope_factor(self) -> float:
        """The factor of K after RoPE."""
        return getattr(self.rotary_emb, f"{self.kind}_attention_scaling")

    def _apply_rope(self, rows: Heads, positions: Heads) -> Heads:
        """RoPE by the model's frequencies; `rows` is overwritten."""
        inverse, factor = self.frequencies.to(rows.device), self.rope_factor
        # Partial RoPE rotates the first pairs; the frequency of the others is 0.
        pairs = len(inverse) if factor != 1 else int((inverse != 0).sum())
        angles = positions * inverse[:pairs].float()  # (batch, 1, time, pairs)
        cos, sin = ((f(angles) * factor).to(rows.dtype) for f in (torch.cos, torch.sin))
        half = rows.shape[-1] // 2
        first, second = rows[..., :pairs], rows[..., half : half + pairs]
        rotated = first * cos - second * sin, second * cos + first * sin
        rows[..., :pairs], rows[..., half : half + pairs] = rotated
        return rows


def keys_from_roots(model: nn.Module, tolerance: float = TOLERANCE) -> dict[int, KeyFromRoot]:
    """The layers whose K and V share a root, by number; ValueError if their RoPE forbids it."""
    found: dict[int, KeyFromRoot] = {}
    for part in model.modules():
        rotary: Any = getattr(part, "rotary_emb", None)
        for layer in getattr(part, "layers", ()) if isinstance(rotary, nn.Module) else ():
            attention: Any = getattr(layer, "self_attn", None)
            if type(attention).__name__ not in SHARED_ROOT:
                continue
            # A layer that reads the cache of another has neither projection.
            if getattr(attention, "k_proj", None) is None or attention.v_proj is not None:
                continue
            kind, number = attention.layer_type, attention.layer_idx
            rope = cast(Any, rotary).rope_type[kind]
            if rope in LENGTH_DEPENDENT_ROPE_TYPES:
                raise ValueError(
                    f"Layer {number} has RoPE of the type {rope}, whose frequencies depend on the "
                    "length of the sequence, so K cannot be made again from the cached root."
                )
            plan, scale = shared_root_plan(attention), attention.k_norm.weight
            found[number] = KeyFromRoot(number, plan, scale, rotary, kind, tolerance)
    return found


class SharedRootReader:
    """The cached roots of one layer and the position of each, and attention over them."""

    def __init__(self, recipe: KeyFromRoot, reserve: int = 0) -> None:
        """An empty cache with room for `reserve` tokens."""
        self.recipe = recipe
        self.roots = GrowingTensor(reserve)
        self.kernel = KernelAttention(recipe.plan)
        # In fp32, in which transformers multiplies positions: exact up to 16 million.
        self.positions = GrowingTensor(reserve)

    @property
    def tensors(self) -> tuple[GrowingTensor, ...]:
        """All tensors that take memory."""
        return self.roots, self.positions

    def append(self, key: Heads, value: Heads, position_ids: Tensor | None) -> None:
        """Cache the roots of new tokens, which are their values, and their positions."""
        if position_ids is None:
            raise ValueError(
                f"Layer {self.recipe.layer} passes no position_ids to its cache, so K cannot be "
                "made from V.\nUse a version of transformers whose layers pass them, such as the "
                "one in constraints.txt."
            )
        self.roots.append(value)
        positions = position_ids.to(torch.float32).expand(len(value), -1)
        self.positions.append(positions[:, None, :, None])

    def placeholders(self) -> tuple[Heads, Heads]:
        """A placeholder for K, and V."""
        return placeholder(self.roots.rows, self), self.roots.rows

    def materialize(self, rows: slice = slice(None)) -> tuple[Heads, Heads]:
        """K and V of these rows."""
        roots = self.roots.rows[:, :, rows]
        return self.recipe.keys(roots, self.positions.rows[:, :, rows]), roots

    def attend(self, query: Queries, mask: Mask | None, scaling: float) -> Queries:
        """softmax(q·k·scaling + mask)·v; by the native kernel, or K is made a tile at a time."""
        roots, recipe = self.roots.rows, self.recipe
        output = self.kernel(
            query,
            roots,
            None,
            mask,
            scaling=scaling * recipe.rope_factor,
            positions=self.positions.rows,
            frequencies=recipe.frequencies,
            vectors=lambda _: recipe.scale,
        )
        if output is not None:
            return output.transpose(1, 2)
        batch, heads, queries, width = query.shape
        # Query heads of one root become rows: (batch, kv_heads, group * queries, width).
        grouped = query.reshape(batch, roots.shape[1], -1, width)
        keys = (self.materialize(tile)[0] for tile in tiles(roots.shape[2]))
        scores = torch.cat([grouped @ each.mT for each in keys], dim=-1) * scaling
        weights = attention_weights(scores.view(batch, heads, queries, -1), mask).to(roots.dtype)
        output = weights.view(batch, roots.shape[1], -1, roots.shape[2]) @ roots
        return output.view(batch, heads, queries, width)
