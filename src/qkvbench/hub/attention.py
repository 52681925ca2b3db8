"""Attention of any variant inside a model of transformers: one module for all architectures.

It is made from a plan, and follows the plan's paths with the functions of the torch backend. What
the plan keeps of a token goes into the library's own cache. Where that is one tensor, it lies where
keys lie, and the place of values holds the position of each row, or nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from qkvbench.backends.torch.attention.ops import (
    NORM_EPS,
    Heads,
    Maps,
    absorb_into_output,
    apply,
    make,
    rotation,
)
from qkvbench.hub.families import Family
from qkvbench.variant.plan import ApplyRope, Derivation, Plan
from qkvbench.variant.scores import ROLES, Role

Stream = Float[Tensor, "batch time d_model"]
# Cosines and sines of each position, as the library makes them.
Angles = tuple[Float[Tensor, "_batch time turned"], Float[Tensor, "_batch time turned"]]

# Under this name the attention below can be chosen like any other of the library's.
IMPLEMENTATION = "qkvbench"


class PlannedAttention(nn.Module):
    """The attention of one layer, with the linear maps that its plan has and no others.

    `like` is what it stands for: it takes over what the library's functions ask of it.
    """

    def __init__(
        self, plan: Plan, family: Family, config: Any, layer: int, like: nn.Module
    ) -> None:
        """The layer, without values that mean anything yet."""
        # Not super(): behind this class comes the one it stands for, which has maps of its own.
        nn.Module.__init__(self)
        self.plan, self.family, self.config, self.layer_idx = plan, family, config, layer
        size = plan.geometry
        self.head_dim = size.head_dim
        self.num_key_value_groups = size.heads // plan.heads("k")
        self.scaling = family.scaling(config, layer)
        self.is_causal = like.is_causal
        self.sliding_window = family.window(config, layer)
        self.attention_dropout = getattr(config, family.dropout)
        self.dropped = nn.Dropout(getattr(config, family.dropped) if family.dropped else 0.0)
        for name, matrices in self.maps.items():
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
        self.scale = nn.ParameterDict(
            {role: nn.Parameter(torch.ones(size.head_dim)) for role in plan.scaled_roles}
        )
        self.eps = getattr(config, "rms_norm_eps", NORM_EPS)
        # The library's own module that makes angles of positions; in a tuple it is no part of this.
        self.angles: tuple[nn.Module, ...] = ()
        self._remembered: tuple[Any, dict[Role, Tensor]] | None = None

    @property
    def maps(self) -> dict[str, tuple[str, ...]]:
        """The plan's matrices in each linear map."""
        if isinstance(self.family.names, str):
            return (
                {self.family.names: tuple(self.plan.matrix_rows)} if self.plan.matrix_rows else {}
            )
        return {self.family.names[role]: (role,) for role in ROLES if role in self.plan.matrix_rows}

    def start(self) -> None:
        """Give rotations their initial values; all else the library knows how to begin."""
        for numbers in self.rotation.values():
            nn.init.normal_(numbers, std=self.head_dim**-0.5)

    def forward(
        self,
        hidden_states: Stream,
        attention_mask: Any = None,
        position_embeddings: Angles | None = None,
        cache: Any = None,
        **more: Any,
    ) -> tuple[Stream, Tensor | None]:
        """What each position attends to, with the weights where the implementation gives them."""
        # Its name before transformers 5.24.
        cache = more.pop("past_key_values", cache)
        cache = getattr(cache, "self_attention_cache", cache)
        made, rotations = self.project(hidden_states), self.rotations()
        goes = partial(self._follow, rotations=rotations, angles=position_embeddings)
        query = make(self.plan.derivations["q"], made, goes)
        if cache is None:
            key, value = (make(self.plan.derivations[role], made, goes) for role in ("k", "v"))
        else:
            rows = [make(kept.derivation, made, goes) for kept in self.plan.cached]
            key, value = self._kept(rows, cache, rotations, more.get("position_ids"))
        seen, weights = _implementation(self.config)(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **({"sliding_window": self.sliding_window} | more),
        )
        if cache is not None and self.plan.absorbed_by_output:
            seen = absorb_into_output(
                seen.transpose(1, 2), self.plan.absorbed_by_output, rotations
            ).transpose(1, 2)
        return self._merge(seen.flatten(2)), weights

    def project(self, x: Stream) -> dict[Derivation, Heads]:
        """The roots, cut into heads: linear maps of the stream, or the stream itself."""
        parts: dict[str, Tensor] = {}
        for name, matrices in self.maps.items():
            rows = self.get_submodule(name)(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            heads = [self.plan.matrix_rows[matrix] // self.head_dim for matrix in matrices]
            parts |= dict(zip(matrices, rows.split(heads, dim=1), strict=True))
        return {
            Derivation(root.name, ()): parts[root.matrix]
            if root.matrix
            else x.unflatten(-1, (root.heads, self.head_dim)).transpose(1, 2)
            for root in self.plan.roots
        }

    def rotations(self) -> dict[Role, Float[Tensor, "heads head_dim head_dim"]]:
        """The learned rotations as orthogonal matrices, made once where nothing is learned."""
        if not self.rotation:
            return {}
        # Writing to a parameter raises its version, unless it was made in inference mode; a
        # compiled graph cannot ask for it.
        uncounted = any(numbers.is_inference() for numbers in self.rotation.values())
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or uncounted:
            return self._made_rotations()
        state = [(numbers._version, numbers.data_ptr()) for numbers in self.rotation.values()]
        if self._remembered is None or self._remembered[0] != state:
            self._remembered = state, self._made_rotations()
        return self._remembered[1]

    def _made_rotations(self) -> dict[Role, Tensor]:
        return {
            role: rotation(self.rotation[role], self.head_dim) for role in self.plan.rotated_roles
        }

    def _follow(
        self, ops: tuple[Any, ...], rows: Heads, rotations: Maps, angles: Angles | None
    ) -> Heads:
        """The rows after these operations, at positions with these angles."""
        turn = partial(_turned, angles=angles)
        return apply(ops, rows, rotations, self.scale.__getitem__, turn, self.eps)

    def _kept(
        self, rows: list[Heads], cache: Any, rotations: Maps, places: Tensor | None
    ) -> tuple[Heads, Heads]:
        """All keys, and all that is attended over, when these rows have been kept as well."""
        if len(rows) == 2:
            return cache.update(rows[0], rows[1], self.layer_idx)
        turned = ApplyRope() in self.plan.key_ops_on_read
        beside = _beside(rows[0], places, cache) if turned else rows[0][..., :0]
        kept, beside = cache.update(rows[0], beside, self.layer_idx)
        angles = self.angles[0](kept, beside[:, 0, :, 0]) if turned else None
        return self._follow(self.plan.key_ops_on_read, kept, rotations, angles), kept

    def _merge(self, seen: Float[Tensor, "batch time _width"]) -> Stream:
        """The output projection over all heads together, where it is part of this class."""
        if self.family.output is None:
            return seen
        return self.dropped(self.get_submodule(self.family.output)(seen))


def attend(
    module: nn.Module,
    query: Heads,
    key: Heads,
    value: Heads,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Float[Tensor, "batch time heads head_dim"], Float[Tensor, "batch heads time slots"]]:
    """softmax(q·k + mask)·v in the open, which gives the weights too; no head is repeated.

    Softmax is computed in fp32 or better. The mask is added, as the library's eager ones are.
    """
    batch, heads, time = query.shape[:3]
    roots = key.shape[1]
    grouped = (query * scaling).reshape(batch, roots, -1, query.shape[-1])
    scores = (grouped @ key.mT).view(batch, heads, time, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.dropout(scores.softmax(-1).to(value.dtype), dropout)
    seen = weights.view(batch, roots, -1, weights.shape[-1]) @ value
    return seen.view(batch, heads, time, -1).transpose(1, 2), weights


def _implementation(config: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that the config chooses; eager is ours, which groups heads."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, attend)


def _beside(
    rows: Heads, places: Int[Tensor, "_batch time"] | None, cache: Any
) -> Int[Tensor, "batch _heads time one"]:
    """The position of each row, for a cache to keep where values would be."""
    if places is None:
        raise ValueError("A kept root is turned when it is read, so its layer needs position_ids.")
    batch, heads, time, _ = rows.shape
    # A cache of fixed size has as many heads of values as of keys.
    heads = heads if cache.is_compileable else 1
    places = places.to(torch.int32).expand(batch, time)
    return places[:, None, :, None].expand(batch, heads, time, 1)


def _turned(rows: Heads, angles: Angles | None, *, back: bool = False) -> Heads:
    """Coordinate i and i + half turned as a pair, by the library's angles."""
    assert angles is not None, "what turns by position is given angles by the library"
    cos, sin = (part[:, None] for part in angles)
    first, second = rows.chunk(2, dim=-1)
    other = torch.cat([-second, first], dim=-1)
    return rows * cos - other * sin if back else rows * cos + other * sin


def _linear(family: Family, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    """A linear map as the family stores it."""
    if family.transposed:
        from transformers.pytorch_utils import Conv1D

        return Conv1D(outputs, inputs)
    return nn.Linear(inputs, outputs, bias=bias)
