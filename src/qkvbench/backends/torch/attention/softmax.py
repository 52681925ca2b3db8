"""Softmax attention as a plan describes it: mask, biases of the scores, by rows if that is needed.

Axes: batch, heads (of Q), groups (heads of K), rows (queries), columns (keys), width of a head.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qkvbench.backends.torch.attention.ops import without_autocast
from qkvbench.backends.torch.attention.rope import PositionTable
from qkvbench.variant import FEATURES, AlibiBias, Bucketed, Constant, Parameter, Plan, Relative

# `_` is checked for nothing: queries and keys may differ in it.
Heads = Float[Tensor, "batch _heads _time _width"]
Rows = Int[Tensor, "*batch rows"]
Columns = Int[Tensor, " columns"]
Lengths = Int[Tensor, " batch"]

# Scores that exist at a time if they are computed by rows, in all heads and sequences.
MAX_SCORES = 2**22

# Queries per block under a window; a block's mask covers the union of their windows.
WINDOW_BLOCK = 256


class SoftmaxAttention(nn.Module):
    """softmax(temperature·q·k / sqrt(width) + bias)·v, under the plan's mask."""

    def __init__(self, plan: Plan) -> None:
        """The softmax of `plan`, with its learned numbers if it has any."""
        super().__init__()
        self.mask = plan.mask
        self.biases = plan.biases
        self.scores = plan.scores
        self.plain = plan.plain_scores
        learned = [each for each in plan.parameters if each.name.startswith("correction.")]
        # One by one: torch sorts the keys of a dict, and a gradient norm's bits depend on order.
        self.correction = nn.ParameterDict()
        for each in learned:
            self.correction[each.name.split(".")[1]] = nn.Parameter(constant(each))
        self.slopes = next(
            (
                bias.slopes(plan.geometry.heads)
                for bias in plan.biases
                if isinstance(bias, AlibiBias)
            ),
            None,
        )
        self._buckets = _bucket_table(plan)
        self._features = PositionTable(_position_features)

    def forward(self, q: Heads, k: Heads, v: Heads, lengths: Lengths | None = None) -> Heads:
        """The attention output over a whole sequence.

        `lengths` counts the leading keys of each sequence that are not padding. Nothing of size
        time × time is saved for the backward pass.
        """
        time, keys = q.shape[2], k.shape[2]
        mask = self.mask
        if self.plain and mask.is_full:
            return self._fused(q, k, v, lengths)
        if self.plain and mask.diagonal:
            if mask.hides_no_key(time):
                return self._fused(q, k, v, lengths)
            return self._fused_by_rows(q, k, v, lengths)
        if self.plain and mask.causal and not mask.is_sparse:
            # Each token but the first sees the keys of the one before it: a shift by one.
            first = v[:, :, :1].repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            if time == 1:
                return first
            rest = self._fused(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], None)
            return torch.cat([first, rest], dim=2)
        rows = self._rows_at_a_time(q.shape[0] * q.shape[1], keys)
        if rows >= time:
            every = torch.arange(keys, device=q.device)
            return self._attend_rows(q, k, v, 0, every, max(time, keys), lengths)
        parts = []
        for first in range(0, time, rows):
            last = min(first + rows, time)
            chosen, columns = self._columns(first, last, keys, q.device)
            # Computed again in the backward pass: saved scores would grow with time × time.
            parts.append(
                checkpoint(
                    self._attend_rows,
                    q[:, :, first:last],
                    k[:, :, chosen],
                    v[:, :, chosen],
                    first,
                    columns,
                    keys,
                    lengths,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
        return torch.cat(parts, dim=2)

    def attention_weights(
        self,
        products: Tensor,
        rows: Rows,
        columns: Columns,
        end: int,
        lengths: Lengths | None = None,
    ) -> Tensor:
        """Softmax over the visible columns, in fp32 or better.

        `products` (batch, heads, rows, columns) are q·k / sqrt(width) at these positions, all of
        them before `end`.
        """
        scores = products.to(torch.promote_types(products.dtype, torch.float32))
        if cap := self.scores.softcap:
            scores = cap * torch.tanh(scores / cap)
        # Autocast would make products of features coarse.
        with without_autocast(products.device):
            if "temperature" in self.correction:
                scores = scores * self.correction["temperature"]
                scores = scores + self._learned_bias(rows, columns, end, scores)
            if "buckets" in self.correction:
                scores = scores + self._bucketed(rows, columns).to(scores.dtype)
            if self.slopes is not None:
                slopes = scores.new_tensor(self.slopes)[:, None, None]
                distance = rows[..., None, :, None] - columns  # (..., 1, rows, columns)
                scores = scores - slopes * distance.abs()
        hidden = ~self.visible(rows, columns, lengths)
        scores = scores.masked_fill(hidden, -torch.inf)
        if "sink" in self.correction:
            sink = self.correction["sink"].to(scores.dtype)[:, None, None]
            joined = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], dim=-1)
            return joined.softmax(-1)[..., :-1]
        return scores.softmax(-1)

    def visible(
        self, rows: Rows, columns: Columns, lengths: Lengths | None
    ) -> Bool[Tensor, "... one rows columns"]:
        """The mask: True if a row may attend to a column, alike in all heads."""
        valid = None if lengths is None else (columns < lengths[:, None])[:, None]
        return self.mask.visible(rows, columns, valid).unsqueeze(-3)

    def _rows_at_a_time(self, heads: int, columns: int) -> int:
        """Rows that are scored at a time, in all these heads of all sequences."""
        if self.mask.local is None:
            return max(1, MAX_SCORES // (heads * columns))
        most = max(self.mask.local, WINDOW_BLOCK)
        return max(1, min(most, MAX_SCORES // (heads * min(columns, 2 * most))))

    def _columns(
        self, first: int, last: int, keys: int, device: torch.device
    ) -> tuple[slice | Tensor, Columns]:
        """The keys that any row from `first` up to `last` sees: an index of K, and positions."""
        parts = self.mask.keys_of(first, last, keys)
        columns = torch.cat([torch.arange(part.start, part.stop, device=device) for part in parts])
        return parts[0] if len(parts) == 1 else columns, columns

    def _fused_by_rows(self, q: Heads, k: Heads, v: Heads, lengths: Lengths | None) -> Heads:
        """Attention under a window by torch's kernel, with one small mask per block of rows."""
        parts = []
        for first in range(0, q.shape[2], WINDOW_BLOCK):
            last = min(first + WINDOW_BLOCK, q.shape[2])
            chosen, columns = self._columns(first, last, k.shape[2], q.device)
            rows = torch.arange(first, last, device=q.device)
            mask = self.visible(rows, columns, lengths)
            parts.append(
                _library_attention(
                    q[:, :, first:last],
                    k[:, :, chosen],
                    v[:, :, chosen],
                    # With a mask of three dimensions torch makes all scores, slowly.
                    attn_mask=mask if mask.dim() > 3 else mask[None],
                    enable_gqa=k.shape[1] != q.shape[1],
                )
            )
        return torch.cat(parts, dim=2)

    def _fused(self, q: Heads, k: Heads, v: Heads, lengths: Lengths | None) -> Heads:
        """Attention under at most a causal mask, by torch's kernel."""
        valid = None
        if lengths is not None:
            columns = torch.arange(k.shape[2], device=k.device)
            valid = (columns < lengths[:, None])[:, None, None]  # (batch, 1, 1, columns)
        return _library_attention(
            q,
            k,
            v,
            attn_mask=valid,
            is_causal=self.mask.causal,
            enable_gqa=k.shape[1] != q.shape[1],
        )

    def _attend_rows(
        self,
        q: Heads,
        k: Heads,
        v: Heads,
        first: int,
        columns: Columns,
        end: int,
        lengths: Lengths | None,
    ) -> Heads:
        """The output of the rows from position `first` on, over the keys at `columns`."""
        batch, heads, time, width = q.shape
        groups = k.shape[1]
        # The query heads of a group are rows of one product: K is not repeated for each.
        grouped = (q * width**-0.5).reshape(batch, groups, -1, width)
        products = (grouped @ k.mT).view(batch, heads, time, -1)
        rows = torch.arange(first, first + time, device=q.device)
        weights = self.attention_weights(products, rows, columns, end, lengths).to(v.dtype)
        context = weights.view(batch, groups, -1, k.shape[2]) @ v
        return context.view(batch, heads, time, v.shape[-1])

    def _bucketed(self, rows: Rows, columns: Columns) -> Float[Tensor, "... heads rows columns"]:
        """The learned number of each head and bucket of distance."""
        assert self._buckets is not None
        table, longest = self._buckets
        distance = rows[..., :, None] - columns
        bucket = table.to(rows.device)[distance.clamp(-longest, longest) + longest]
        # (heads, ..., rows, columns) -> (..., heads, rows, columns)
        return self.correction["buckets"][:, bucket].movedim(0, -3)

    def _learned_bias(self, rows: Rows, columns: Columns, end: int, like: Tensor) -> Tensor:
        """The learned functions of the column, or of the distance, for all heads."""
        features = self.correction["features"].to(like.dtype)
        table = self._features(end, like)
        if any(isinstance(bias, Relative) for bias in self.biases):
            # sin(i - j) and cos(i - j) are products of those of i and of j.
            sin, cos = table[rows].chunk(2, dim=-1)
            of_sin, of_cos = features.chunk(2)
            left = [of_cos * sin - of_sin * cos, of_sin * sin + of_cos * cos]
            return (torch.cat(left, dim=-1) @ table[columns].mT).unsqueeze(-3)
        return table[columns] @ features


def _bucket_table(plan: Plan) -> tuple[Tensor, int] | None:
    """The bucket of each distance, and the longest of these distances."""
    found = next((bias for bias in plan.biases if isinstance(bias, Bucketed)), None)
    if found is None:
        return None
    return torch.tensor(found.table(causal=plan.mask.causal)), found.longest


def _library_attention(q: Heads, k: Heads, v: Heads, **settings: Any) -> Heads:
    """Torch's attention. Its kernels that save no scores need K and V of one width."""
    width, own = v.shape[-1], q.shape[-1]
    if width > own:
        q, k = (functional.pad(each, (0, width - own)) for each in (q, k))
        settings["scale"] = own**-0.5
    elif width < own:
        v = functional.pad(v, (0, own - width))
    context = functional.scaled_dot_product_attention(q, k, v, **settings)
    return context if width >= own else context[..., :width]


def constant(parameter: Parameter) -> Tensor:
    """The initial value of a parameter whose numbers begin as one."""
    assert isinstance(parameter.init, Constant)
    return torch.full(parameter.shape, parameter.init.value)


def _position_features(
    positions: Float[Tensor, " positions"],
) -> Float[Tensor, "positions features"]:
    """The features of a position: sines, then cosines, of falling frequencies."""
    half = FEATURES // 2
    pairs = torch.arange(half, dtype=positions.dtype, device=positions.device)
    angle = torch.outer(positions, 10_000.0 ** (-pairs / half))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
