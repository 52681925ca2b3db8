"""Linear attention: whole sequences in chunks, and one token over a matrix of fixed size.

Axes: batch, groups (heads of K), rows (queries of all heads of a group), features of a head. All
of it is computed in fp32 or better: sums run over the whole text.
"""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from qkvbench.backends.torch.attention.ops import Heads, without_autocast
from qkvbench.model.random_features import random_features
from qkvbench.variant import (
    CHUNK,
    DECAY,
    STRENGTH,
    Derivation,
    Elu,
    Favor,
    GatedDelta,
    Plan,
    State,
)

Lengths = Int[Tensor, " batch"]
# The matrix of each key/value head.
Memory = Float[Tensor, "batch groups rows width"]
Made = Mapping[Derivation, Heads]

# Beside the sum of squares, so that a vector of zeros stays one.
EPS = 1e-6


class RecurrentState:
    """The memories of one layer in a cache: one for each sequence, however long its text is."""

    def __init__(self, state: State, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        """Empty memories of `batch` sequences."""
        shape = (batch, state.heads, state.rows, state.width)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)
        # Of a prompt that is being read; None is all of it.
        self.lengths: Lengths | None = None

    def clear(self) -> None:
        """Forget all tokens."""
        self.memory = torch.zeros_like(self.memory)
        self.lengths = None

    def reorder(self, parents: Int[Tensor, " sequences"]) -> None:
        """Each sequence continues the one of its parent."""
        self.memory = self.memory[parents]


class LinearAttention:
    """The output of linear attention as a plan describes it; nothing here is learned."""

    def __init__(self, plan: Plan) -> None:
        """The attention of `plan`."""
        assert plan.linear
        self.plan = plan
        self.linear = plan.linear
        self._drawn: Tensor | None = None

    def __call__(
        self,
        q: Heads,
        k: Heads,
        v: Heads,
        made: Made,
        lengths: Lengths | None = None,
        state: RecurrentState | None = None,
    ) -> Heads:
        """The output over a whole sequence; its memory is left in `state`.

        `lengths` counts the leading positions of each sequence that are not padding. Nothing of
        size time × time is made.
        """
        lengths = state.lengths if state else lengths
        with without_autocast(q.device):
            q, k, wide = (_wide(each) for each in (q, k, v))
            match self.linear:
                case GatedDelta():
                    context, memory = self._delta(q, k, wide, made, lengths)
                case Elu() | Favor():
                    context, memory = self._weighted(q, k, wide, lengths)
        if state:
            state.memory = memory
        return context.to(v.dtype)

    def step(self, q: Heads, k: Heads, v: Heads, made: Made, state: RecurrentState) -> Heads:
        """The output of the next tokens of each sequence, which go into the memory one by one."""
        with without_autocast(q.device):
            q, k, wide = (_wide(each) for each in (q, k, v))
            memory, gates = state.memory, None
            if isinstance(self.linear, GatedDelta):
                q, k, gates = _unit(q), _unit(k), self._gates(made)
            else:
                q, k, wide = self.features(q, of_query=True), self.features(k), _counted(wide)
            rows: list[Tensor] = []
            for time in range(q.shape[2]):
                now = slice(time, time + 1)
                key, value = k[:, :, now], wide[:, :, now]
                if gates:
                    log_decay, strength = (each[:, :, now] for each in gates)
                    memory = memory * log_decay.exp()
                    value = strength * (value - key @ memory)
                memory = memory + key.mT * value
                # (batch, groups, heads of the group, width)
                rows.append(_grouped(q[:, :, now], k.shape[1]) @ memory)
            summed = torch.stack([each.flatten(1, 2) for each in rows], dim=2)
            context = summed if gates else _shares(summed)
        state.memory = memory
        return context.to(v.dtype)

    def features(self, rows: Heads, *, of_query: bool = False) -> Heads:
        """F of each head, all of its numbers above 0; heads of one group have the same f.

        Those of FAVOR+ as in the reference, but of a query times a number that makes the largest 1:
        the share of each V is the same, and the features of a long query do not all become 0.
        """
        if isinstance(self.linear, Elu):
            return torch.where(rows > 0, rows + 1, rows.clamp(max=0).exp())
        drawn = self._features_like(rows)  # (groups, features, width)
        x = rows * rows.shape[-1] ** -0.25
        products = _grouped(x, len(drawn)) @ drawn.mT
        exponents = products.view(*rows.shape[:3], -1) - x.square().sum(-1, keepdim=True) / 2
        if of_query:
            return (exponents - exponents.detach().amax(-1, keepdim=True)).exp()
        return exponents.exp() * drawn.shape[1] ** -0.5

    def attention_weights(
        self, q: Heads, k: Heads, made: Made, visible: Tensor
    ) -> Float[Tensor, "batch heads time time"]:
        """The share of each V in each output; those of the delta rule need not be above 0."""
        if isinstance(self.linear, GatedDelta):
            ones = torch.eye(k.shape[2], dtype=k.dtype, device=k.device)
            return self(q, k, ones.expand(*k.shape[:2], -1, -1), made)
        q, k = self.features(_wide(q), of_query=True), self.features(_wide(k))
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        weights = (q @ keys.mT).masked_fill(~visible, 0)
        return weights / _above_zero(weights.sum(-1, keepdim=True))

    def _weighted(
        self, q: Heads, k: Heads, v: Heads, lengths: Lengths | None
    ) -> tuple[Heads, Memory]:
        """Σ f(q)·f(k)·v / Σ f(q)·f(k) of visible keys, and the sums over all of them."""
        batch, heads, time, _ = q.shape
        groups = k.shape[1]
        f_q, f_k, counted = self.features(q, of_query=True), self.features(k), _counted(v)
        if lengths is not None:
            f_k = f_k * _valid(lengths, time)
        if not self.plan.mask.causal:
            memory = f_k.mT @ counted
            summed = (_grouped(f_q, groups) @ memory).view(batch, heads, time, -1)
            return _shares(summed), memory
        size = min(CHUNK, time)
        # (batch, groups, chunks, rows, features): the heads of a group are rows of one product.
        f_q = _in_chunks(f_q, groups, size)
        f_k, counted = (_in_chunks(each, groups, size) for each in (f_k, counted))
        sums = (f_k.mT @ counted).cumsum(2)
        before = functional.pad(sums[:, :, :-1], (0, 0, 0, 0, 1, 0))
        weights = (f_q @ f_k.mT).unflatten(3, (-1, size)).tril().flatten(3, 4)
        summed = f_q @ before + weights @ counted
        return _shares(_from_chunks(summed, size, heads, time)), sums[:, :, -1]

    def _delta(
        self, q: Heads, k: Heads, v: Heads, made: Made, lengths: Lengths | None
    ) -> tuple[Heads, Memory]:
        """The gated delta rule, chunk by chunk: arXiv:2412.06464, section 3.3.

        In a chunk that begins with the memory S, with g the decay from its beginning, each token t
        writes u_t = β_t·(v_t − g_t·Sᵀk_t − Σ g_t/g_j·(k_j·k_t)·u_j) over earlier tokens j.
        """
        _, heads, time, _ = q.shape
        groups, size = k.shape[1], min(CHUNK, time)
        log_decay, strength = self._gates(made)
        if lengths is not None:
            # A token of padding writes nothing, and nothing is forgotten.
            valid = _valid(lengths, time)
            log_decay, strength = log_decay * valid, strength * valid
        q = _in_chunks(_unit(q), groups, size)  # (batch, groups, chunks, rows, width)
        k, v = (_in_chunks(each, groups, size) for each in (_unit(k), v))
        log_decay, strength = (_in_chunks(each, groups, size) for each in (log_decay, strength))
        total = log_decay.cumsum(3)  # log g
        between = (total - total.mT).tril().exp().tril()  # g_t/g_j, at most 1
        decayed = total.exp()
        earlier = strength * (k @ k.mT * between).tril(-1)
        wanted = torch.cat([strength * v, strength * decayed * k], dim=-1)
        one = torch.eye(size, dtype=k.dtype, device=k.device)
        solved = torch.linalg.solve_triangular(one + earlier, wanted, upper=False)
        own, recalled = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
        repeat = q.shape[3] // size
        seen = (q @ k.mT).unflatten(3, (repeat, size)) * between[:, :, :, None]
        seen = seen.flatten(3, 4)
        of_query = q * decayed.repeat(1, 1, 1, repeat, 1)
        writing = k * (total[:, :, :, -1:] - total).exp()
        memory = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
        rows: list[Tensor] = []
        # Unbound at once: the gradient of an index is as large as all chunks.
        parts = (own, recalled, of_query, seen, writing, decayed[:, :, :, -1:])
        for chunk in zip(*(each.unbind(2) for each in parts), strict=True):
            own_part, recalled_part, query_part, seen_part, writing_part, kept = chunk
            written = own_part - recalled_part @ memory
            rows.append(query_part @ memory + seen_part @ written)
            memory = kept * memory + writing_part.mT @ written
        return _from_chunks(torch.stack(rows, dim=2), size, heads, time), memory

    def _gates(self, made: Made) -> tuple[Heads, Heads]:
        """The logarithm of the decay, and the strength, of each token in each key/value head."""
        linear = cast(GatedDelta, self.linear)
        decay, strength = (_wide(made[Derivation(name, ())]) for name in (DECAY, STRENGTH))
        rates = decay.new_tensor(linear.rates(decay.shape[1]))[:, None, None]
        return -rates * functional.softplus(decay), strength.sigmoid()

    def _features_like(self, rows: Heads) -> Float[Tensor, "groups features width"]:
        """The random features, where and as the rows are."""
        linear, drawn = cast(Favor, self.linear), self._drawn
        if drawn is None or drawn.dtype != rows.dtype or drawn.device != rows.device:
            array = random_features(linear, self.plan.heads("k"), rows.shape[-1])
            drawn = torch.from_numpy(array).to(rows.device, rows.dtype)
            self._drawn = drawn
        return drawn


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _unit(rows: Heads) -> Heads:
    """Each vector with length 1."""
    return rows * (rows.square().sum(-1, keepdim=True) + EPS).rsqrt()


def _counted(v: Heads) -> Heads:
    """V with a column of ones, whose sum is that of the weights."""
    return functional.pad(v, (0, 1), value=1.0)


def _shares(summed: Tensor) -> Tensor:
    """The sums of V over those of the weights, which are the last column."""
    return summed[..., :-1] / _above_zero(summed[..., -1:])


def _above_zero(total: Tensor) -> Tensor:
    """Sums of weights, of which random features of huge keys may leave nothing.

    So far from the smallest number that a gradient, divided by one of them, is finite.
    """
    return total.clamp(min=torch.finfo(total.dtype).tiny ** 0.8)


def _grouped(rows: Heads, groups: int) -> Float[Tensor, "batch groups rows width"]:
    """The heads of a group, one after the other."""
    return rows.reshape(len(rows), groups, -1, rows.shape[-1])


def _valid(lengths: Lengths, time: int) -> Bool[Tensor, "batch 1 time 1"]:
    """True for each position that is no padding."""
    positions = torch.arange(time, device=lengths.device)
    return (positions < lengths[:, None])[:, None, :, None]


def _in_chunks(
    rows: Heads, groups: int, size: int
) -> Float[Tensor, "batch groups chunks rows width"]:
    """The rows of each chunk of `size` tokens, filled up with zeros: head by head of a group."""
    batch, heads, time, width = rows.shape
    rows = functional.pad(rows, (0, 0, 0, -time % size))
    split = rows.reshape(batch, groups, heads // groups, -1, size, width)
    return split.transpose(2, 3).flatten(3, 4)


def _from_chunks(rows: Tensor, size: int, heads: int, time: int) -> Heads:
    """The inverse of `_in_chunks`."""
    batch, _, chunks, _, width = rows.shape
    split = rows.unflatten(3, (-1, size)).transpose(2, 3)
    return split.reshape(batch, heads, chunks * size, width)[:, :, :time]
