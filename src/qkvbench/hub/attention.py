"""Attention of any variant inside a model of transformers: one module for all architectures.

It is built from a plan and follows the plan's derivations with the functions of the torch backend.
The tensors that the plan caches go into the library's own cache. If there is one, it takes the
place of keys, and the place of values holds the position of each row, or nothing.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qkvbench.backends.torch.attention.ops import (
    Heads,
    Maps,
    absorb_into_output,
    absorb_into_query,
    apply,
    make,
    rotation,
)
from qkvbench.hub.decoding import KernelAttention
from qkvbench.hub.families import Family, rope_on_read
from qkvbench.hub.growing_tensor import Cached, FewBitsRows
from qkvbench.variant import LATENT, Derivation, Plan

Stream = Float[Tensor, "batch time d_model"]
# Cosines and sines of each position, as the library makes them.
PositionEmbeddings = tuple[
    Float[Tensor, "_batch time rotary_dim"], Float[Tensor, "_batch time rotary_dim"]
]

# The tensors that a cache keeps for a layer: two, or one and positions or nothing.
Kept = tuple[Cached, Cached | Int[Tensor, "_batch _heads _time one"]]

# The ``attn_implementation`` under which `attention_forward` is registered.
IMPLEMENTATION = "qkvbench"


class HeadScale(nn.Module):
    """The learned scale of normed heads; the norm itself is an operation of the plan."""

    def __init__(self, head_dim: int) -> None:
        """A scale of ones."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))


class QkvModeAttention(nn.Module):
    """The attention of one layer, with the projections of its plan and no others."""

    def __init__(
        self, plan: Plan, family: Family, config: Any, layer: int, replaced: nn.Module
    ) -> None:
        """The layer, uninitialized; `replaced` is the library's module."""
        # Not super(): the next class is the library's, which would make all its projections.
        nn.Module.__init__(self)
        self.plan, self.family, self.config = plan, family, config
        # The place in a cache, which cross-attention shares with the layer before it.
        self.layer_idx = getattr(replaced, "layer_idx", layer)
        size = plan.geometry
        self.head_dim, self.embed_dim = size.head_dim, size.d_model
        self.num_key_value_groups = size.heads // plan.heads("k")
        self.scaling = family.scaling(config, layer)
        self.is_causal = replaced.is_causal
        self.sliding_window = family.window(config, layer)
        self.attention_dropout = getattr(config, family.attention_dropout)
        residual = family.residual_dropout
        self.residual_dropout = nn.Dropout(getattr(config, residual) if residual else 0.0)
        for name, matrices in self.projections.items():
            rows = sum(plan.matrix_rows[matrix] for matrix in matrices)
            self.add_module(name, _linear(family, size.d_model, rows, bias=family.bias(config)))
        if family.output:
            width, bias = size.heads * size.head_dim, family.output_bias(config)
            self.add_module(family.output, _linear(family, width, size.d_model, bias=bias))
        pairs = size.head_dim * (size.head_dim - 1) // 2
        self.rotation = nn.ParameterDict(
            {
                role: nn.Parameter(torch.zeros(n, pairs))
                for role, n in [(role, plan.heads(role)) for role in plan.rotated_roles]
            }
        )
        # The library's name, by which its Trainer leaves a scale out of weight decay.
        for role in plan.scaled_roles:
            self.add_module(f"{role}_norm", HeadScale(size.head_dim))
        # The up-projections of a latent to K and to V; and any other matrices of heads.
        learned = {
            role: nn.Parameter(torch.zeros(part.shape))
            for role, part in plan.maps.items()
            if role not in plan.rotated_roles
        }
        mapped = plan.mapped_roles
        self.up = nn.ParameterDict({role: learned[role] for role in learned if role not in mapped})
        self.map = nn.ParameterDict({role: learned[role] for role in learned if role in mapped})
        # The model's rotary embedding; in a tuple, so that it is not a submodule of this layer.
        self.rotary_emb: tuple[nn.Module, ...] = ()
        self._cached_rotations: tuple[Any, dict[str, Tensor]] | None = None
        self.kernel = KernelAttention(plan)
        self.rope_on_read = rope_on_read(plan)
        self._roots = [(Derivation(root.name, ()), root) for root in plan.roots]
        self._has_maps = bool(plan.maps)

    @cached_property
    def projections(self) -> dict[str, tuple[str, ...]]:
        """The plan's matrices in each linear module."""
        if isinstance(self.family.names, str):
            return (
                {self.family.names: tuple(self.plan.matrix_rows)} if self.plan.matrix_rows else {}
            )
        names = {LATENT: "latent", **self.family.names}
        return {names[matrix]: (matrix,) for matrix in self.plan.matrix_rows}

    @property
    def absent_projections(self) -> tuple[str, ...]:
        """The names of modules that the library's attention has and the plan does not need."""
        names = self.family.names
        if isinstance(names, str):
            return ()
        return tuple(name for name in names.values() if name not in self._modules)

    @cached_property
    def by_head(self) -> bool:
        """Whether a fused module has the rows of one head of each matrix, then of the next head."""
        equal = len(set(self.plan.matrix_rows.values())) == 1
        return self.family.fused_by == "head" and equal and LATENT not in self.plan.matrix_rows

    def init_maps(self) -> None:
        """Initialize the maps of heads; the library initializes everything else."""
        config: Any = self.config
        names = ("initializer_range", "init_std", "initializer_factor")
        std = next(getattr(config, name) for name in names if hasattr(config, name))
        for numbers in self.rotation.values():
            nn.init.normal_(numbers, std=self.head_dim**-0.5)
        for numbers in self.up.values():
            nn.init.normal_(numbers, std=std)
        for numbers in self.map.values():
            for head in numbers:
                nn.init.orthogonal_(head)

    def forward(
        self,
        hidden_states: Stream,
        attention_mask: Any = None,
        position_embeddings: PositionEmbeddings | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[Stream, Tensor | None]:
        """The layer's output, and the attention weights if the implementation returns them."""
        # The name of `cache` before transformers 5.24, and in GPT-NeoX.
        for name in ("past_key_values", "layer_past"):
            cache = kwargs.pop(name, cache)
        source, known = kwargs.pop("key_value_states", None), False
        if source is None:
            cache = getattr(cache, "self_attention_cache", cache)
        elif cache is not None:
            # The encoder's rows are cached by the first step, and read by the others.
            known = bool(cache.is_updated.get(self.layer_idx))
            cache.is_updated[self.layer_idx] = True
            cache = cache.cross_attention_cache
        roots, rotations = self.project(hidden_states), self._maps()
        apply_ops = partial(self._apply_ops, rotations=rotations, cos_sin=position_embeddings)
        query = make(self.plan.derivations["q"], roots, apply_ops)
        if source is not None and not known:
            roots = self.project(source)
        if cache is None:
            key, value = (
                make(self.plan.derivations[role], roots, apply_ops) for role in ("k", "v")
            )
            attn_output, attn_weights = self._attend(query, key, value, attention_mask, kwargs)
        else:
            if known:
                cached = cache.layers[self.layer_idx]
                kept = cached.keys, cached.values
            else:
                rows = [make(each.derivation, roots, apply_ops) for each in self.plan.cached]
                kept = self._update(cache, rows, kwargs.get("position_ids"))
            attn_output, attn_weights = self._attend_cached(
                query, kept, attention_mask, rotations, kwargs
            )
        if self.plan.output_ops:
            heads = apply_ops(self.plan.output_ops, attn_output.transpose(1, 2))
            attn_output = heads.transpose(1, 2)
        return self._project_output(attn_output.flatten(2)), attn_weights

    def project(self, x: Stream) -> dict[Derivation, Heads]:
        """The roots, cut into heads: linear maps of the stream, or the stream itself."""
        parts: dict[str, Tensor] = {}
        for name, matrices in self.projections.items():
            rows = getattr(self, name)(x)
            if len(matrices) == 1:
                parts[matrices[0]] = rows
                continue
            widths = [self.plan.matrix_rows[matrix] for matrix in matrices]
            if self.by_head:
                rows = rows.unflatten(-1, (-1, len(matrices), self.head_dim)).transpose(-2, -3)
                rows = rows.flatten(-3)
            parts |= dict(zip(matrices, rows.split(widths, dim=-1), strict=True))
        batch, time, _ = x.shape
        return {
            derivation: (parts[root.matrix] if root.matrix else x)
            .view(batch, time, root.heads, -1)
            .transpose(1, 2)
            for derivation, root in self._roots
        }

    def rotations(self) -> dict[str, Float[Tensor, "heads head_dim head_dim"]]:
        """The learned rotations as orthogonal matrices, cached while nothing is trained."""
        if not self.rotation:
            return {}
        # `is_inference` cannot be traced, so ask the compiler first.
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self._make_rotations()
        # By their values: fused optimizers and writes to `.data` raise no version of a parameter.
        numbers = list(self.rotation.values())
        if self._cached_rotations is not None:
            before, made = self._cached_rotations
            if all(map(_equal, before, numbers)):
                return made
        made = self._make_rotations()
        self._cached_rotations = [each.detach().clone() for each in numbers], made
        return made

    def _maps(self) -> dict[str, Tensor]:
        """All learned maps of heads."""
        return {**self.rotations(), **self.up, **self.map} if self._has_maps else {}

    def scale(self, role: str) -> Tensor:
        """The learned scale of a role's normed heads."""
        return self.get_parameter(f"{role}_norm.weight")

    def _make_rotations(self) -> dict[str, Tensor]:
        return {
            role: rotation(self.rotation[role], self.head_dim) for role in self.plan.rotated_roles
        }

    def _apply_ops(
        self,
        ops: tuple[Any, ...],
        rows: Heads,
        rotations: Maps,
        cos_sin: PositionEmbeddings | None,
    ) -> Heads:
        """The rows after these operations, with the cosines and sines of their positions."""
        rope = partial(_apply_rope, cos_sin=cos_sin)
        return apply(ops, rows, rotations, self._vector, rope)

    def _vector(self, name: str) -> Tensor:
        """The learned scale of heads under this name of the plan."""
        return self.scale(name.removesuffix(".scale"))

    def _update(self, cache: Any, rows: list[Heads], position_ids: Tensor | None) -> Kept:
        """Append the rows to the cache: all that it keeps."""
        if len(rows) == 2:
            second = rows[1]
        elif self.rope_on_read:
            second = _cached_positions(rows[0], position_ids, cache)
        else:
            second = rows[0][..., :0]
        self.kernel.grow(cache, self.layer_idx)
        return cache.update(rows[0], second, self.layer_idx)

    def _attend(
        self, query: Heads, key: Heads, value: Heads, mask: Any, options: dict[str, Any]
    ) -> tuple[Float[Tensor, "batch time heads width"], Tensor | None]:
        """Attention by the function that the config chooses, and its weights if it returns them."""
        return _implementation(self.config)(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **({"sliding_window": self.sliding_window} | options),
        )

    def _attend_cached(
        self,
        query: Heads,
        kept: Kept,
        mask: Any,
        rotations: Maps,
        options: dict[str, Any],
    ) -> tuple[Float[Tensor, "batch time heads width"], Tensor | None]:
        """Attention over what a cache keeps, by the native kernel if that can be."""
        query = absorb_into_query(query, self.plan.absorbed_by_query, rotations, self._vector)
        attn_output, attn_weights = self._decode(query, kept, mask, options), None
        if attn_output is None:
            key, value = self._key_value(kept, rotations)
            attn_output, attn_weights = self._attend(query, key, value, mask, options)
        if self.plan.absorbed_by_output:
            attn_output = absorb_into_output(
                attn_output.transpose(1, 2), self.plan.absorbed_by_output, rotations
            ).transpose(1, 2)
        return attn_output, attn_weights

    def _decode(
        self, query: Heads, kept: Kept, mask: Any, options: dict[str, Any]
    ) -> Tensor | None:
        """The output of attention by the native kernel; None if that cannot be.

        What is kept may be the `FewBitsRows` of a cache of ours.
        """
        if not self.kernel.is_wanted(self, _implementation(self.config), options):
            return None
        keys, second = kept
        rotary: Any = self.rotary_emb[0] if self.rope_on_read else None
        return self.kernel(
            query,
            keys,
            second if len(self.plan.cached) == 2 else None,
            mask,
            # Some kinds of RoPE multiply cosines and sines, and so keys, by a factor.
            scaling=self.scaling * (rotary.attention_scaling if rotary else 1.0),
            positions=cast(Tensor, second) if rotary else None,
            frequencies=rotary.inv_freq if rotary else None,
            vectors=self._vector,
        )

    def _key_value(self, kept: Kept, rotations: Maps) -> tuple[Heads, Heads]:
        """K, and all that the weights are applied to, from what a cache keeps."""
        roots, positions = (x.whole() if isinstance(x, FewBitsRows) else x for x in kept)
        if len(self.plan.cached) == 2:
            return roots, positions
        # A latent is one head, which all heads of K read.
        heads = self.plan.heads("k") if self.plan.cached[0].name == LATENT else -1
        rope = self.rope_on_read
        cos_sin = self.rotary_emb[0](roots, positions[:, 0, :, 0]) if rope else None
        keys = self._apply_ops(self.plan.key_ops_on_read, roots, rotations, cos_sin)
        return keys.expand(-1, heads, -1, -1), roots.expand(-1, heads, -1, -1)

    def _project_output(self, attn_output: Float[Tensor, "batch time _width"]) -> Stream:
        """The output projection over all heads together, if it is part of this class."""
        if self.family.output is None:
            return attn_output
        output = getattr(self, self.family.output)(attn_output)
        return self.residual_dropout(output) if self.training else output


class RelativeAttention(QkvModeAttention):
    """A layer of T5: a table of relative positions is added to the scores, and returned."""

    def __init__(self, plan: Plan, family: Family, config: Any, layer: int, replaced: Any) -> None:
        """The layer, uninitialized, with the table of the library's module."""
        super().__init__(plan, family, config, layer, replaced)
        self.is_decoder = replaced.is_decoder
        self.gradient_checkpointing = False
        self.has_relative_attention_bias = replaced.has_relative_attention_bias
        self.relative_attention_num_buckets = replaced.relative_attention_num_buckets
        self.relative_attention_max_distance = replaced.relative_attention_max_distance
        if self.has_relative_attention_bias:
            self.relative_attention_bias = replaced.relative_attention_bias

    def forward(self, hidden_states: Stream, *args: Any, **kwargs: Any) -> Any:
        """The output, the biases of the scores, and the attention weights if they are returned."""
        if kwargs.get("position_bias") is None:
            cache = kwargs.get("cache", kwargs.get("past_key_values"))
            source = kwargs.get("key_value_states")
            kwargs["position_bias"] = self._bias(hidden_states, source, cache)
        mask = kwargs.pop("mask", None)
        output, weights = super().forward(hidden_states, *args, attention_mask=mask, **kwargs)
        return output, kwargs["position_bias"], weights

    def _bias(self, hidden_states: Stream, source: Any, cache: Any) -> Tensor:
        """The biases of every query and key; zeros for the places of another sequence."""
        time = hidden_states.shape[1]
        if not self.has_relative_attention_bias:
            keys = time if source is None else source.shape[1]
            return hidden_states.new_zeros(1, self.plan.geometry.heads, time, keys)
        before, keys = 0, time
        if cache is not None:
            before = cache.get_seq_length(self.layer_idx)
            # A static cache counts in place, and has all of its places as keys.
            before = before.clone() if isinstance(before, Tensor) else before
            keys, _ = cache.get_mask_sizes(time, self.layer_idx)
        library: Any = self
        return library.compute_bias(
            time, keys, device=hidden_states.device, past_seen_tokens=before
        )


def attention_forward(
    module: nn.Module,
    query: Heads,
    key: Heads,
    value: Heads,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "batch time heads head_dim"], Float[Tensor, "batch heads time slots"]]:
    """softmax(q·k + mask)·v and the attention weights, without repeating K/V heads.

    Softmax is computed in fp32 or better. The mask is added, as the library's eager ones are.
    """
    batch, heads, time = query.shape[:3]
    kv_heads = key.shape[1]
    # Query heads of one K/V head become rows: (batch, kv_heads, group * time, head_dim).
    grouped = (query * scaling).reshape(batch, kv_heads, -1, query.shape[-1])
    scores = (grouped @ key.mT).view(batch, heads, time, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    for added in (position_bias, attention_mask):
        if added is not None:
            scores = scores + added
    weights = functional.dropout(scores.softmax(-1).to(value.dtype), dropout)
    attn_output = weights.view(batch, kv_heads, -1, weights.shape[-1]) @ value
    return attn_output.view(batch, heads, time, -1).transpose(1, 2), weights


def _implementation(config: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that the config chooses; "eager" is `attention_forward`."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, attention_forward)


def _cached_positions(
    rows: Heads, position_ids: Int[Tensor, "_batch time"] | None, cache: Any
) -> Int[Tensor, "batch _heads time one"]:
    """The position of each row, which the cache keeps in the place of values."""
    if position_ids is None:
        raise ValueError("RoPE is applied to cached roots on read: pass position_ids.")
    batch, heads, time, _ = rows.shape
    # A static cache allocates as many heads of values as of keys.
    heads = heads if cache.is_compileable else 1
    return position_ids.to(torch.int32)[:, None, :, None].expand(batch, heads, time, 1)


def _equal(before: Tensor, now: Tensor) -> bool:
    return (
        before.device == now.device and before.dtype == now.dtype and bool(torch.equal(before, now))
    )


def _apply_rope(rows: Heads, cos_sin: PositionEmbeddings | None, *, back: bool = False) -> Heads:
    """RoPE over coordinates i and i + half, with the library's cosines and sines.

    If these are fewer than the numbers of a head, the others are not rotated. Some kinds of RoPE
    multiply both by a factor, which `back` takes out again.
    """
    assert cos_sin is not None, "the library passes position_embeddings to layers with RoPE"
    cos, sin = (part[:, None] for part in cos_sin)  # (batch, 1, time, rotary_dim)
    rotary_dim = cos.shape[-1]
    if rotary_dim < rows.shape[-1]:
        rotated = _apply_rope(rows[..., :rotary_dim], cos_sin, back=back)
        return torch.cat([rotated, rows[..., rotary_dim:]], dim=-1)
    first, second = rows.chunk(2, dim=-1)
    other = torch.cat([-second, first], dim=-1)
    if back:
        return (rows * cos - other * sin) / (cos.square() + sin.square())
    return rows * cos + other * sin


def _linear(family: Family, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    """A linear module of the class that the family uses."""
    if family.transposed:
        from transformers.pytorch_utils import Conv1D

        return Conv1D(outputs, inputs)
    return nn.Linear(inputs, outputs, bias=bias)
