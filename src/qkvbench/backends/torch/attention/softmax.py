"""What is added to the scores and what a query sees; attention by rows where that is needed."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qkvbench.backends.torch.attention.rope import Table
from qkvbench.model import Alibi, Position
from qkvbench.variant import FEATURES, Relative, Separable
from qkvbench.variant import Scores as Spec

# `_` is checked for nothing: queries and keys may differ in it.
Heads = Float[Tensor, "batch _heads _time head_dim"]
Rows = Int[Tensor, "*batch rows"]
Columns = Int[Tensor, " columns"]
Lengths = Int[Tensor, " batch"]

# Scores that are held at a time where they are made by rows, in all heads and sequences.
HELD = 2**22

# Rows that see through a window by one mask: it has a column for each that any of them sees.
MASKED = 256


class Scores(nn.Module):
    """softmax(temperature·q·k / sqrt(head_dim) + shift)·v, with everything that makes the shift."""

    def __init__(
        self,
        spec: Spec,
        position: Position,
        heads: int,
        *,
        causal: bool,
        window: int | None = None,
    ) -> None:
        """The scores of `heads` query heads, each of which sees less than `window` places away."""
        super().__init__()
        self.spec = spec
        self.window = window
        self.causal = causal
        self.correction = nn.ParameterDict()
        if spec.correction:
            self.correction["temperature"] = nn.Parameter(torch.ones(1))
            self.correction["features"] = nn.Parameter(torch.zeros(FEATURES))
        # arXiv:2108.12409, section 3: a geometric sequence of slopes from 2^(-8/heads).
        self.slopes = (
            [2.0 ** (-8 * head / heads) for head in range(1, heads + 1)]
            if isinstance(position, Alibi)
            else None
        )
        self._described = Table(_described)

    @property
    def plain(self) -> bool:
        """Whether the scores are Q·K and nothing is added to them."""
        return self.slopes is None and self.spec.correction is None

    def forward(self, q: Heads, k: Heads, v: Heads, lengths: Lengths | None = None) -> Heads:
        """What each query attends to, over a whole sequence.

        `lengths` counts the leading rows of each sequence that are seen. Nothing of size
        time × time is kept.
        """
        time = q.shape[2]
        if self.plain and self.spec.diagonal:
            if self.window is None or self.window >= time:
                return self._fused(q, k, v, lengths)
            return self._fused_by_rows(q, k, v, lengths)
        if self.plain and self.causal and self.window is None:
            # Each token but the first sees what the one before it would see, itself left out.
            alone = v[:, :, :1].repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            if q.shape[2] == 1:
                return alone
            rest = self._fused(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], None)
            return torch.cat([alone, rest], dim=2)
        rows = self._at_a_time(q.shape[0] * q.shape[1], k.shape[2])
        if rows >= time:
            return self._rows(q, k, v, (0, 0), lengths)
        parts = []
        for first in range(0, time, rows):
            last = min(first + rows, time)
            seen = self._columns(first, last, k.shape[2])
            # Made again in the backward pass: kept, the scores would grow with time × time.
            parts.append(
                checkpoint(
                    self._rows,
                    q[:, :, first:last],
                    k[:, :, seen],
                    v[:, :, seen],
                    (first, seen.start),
                    lengths,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
        return torch.cat(parts, dim=2)

    def _at_a_time(self, heads: int, columns: int) -> int:
        """Rows that are scored at a time, in all these heads of all sequences."""
        if self.window is None:
            return max(1, HELD // (heads * columns))
        most = max(self.window, MASKED)
        return max(1, min(most, HELD // (heads * min(columns, 2 * most))))

    def _columns(self, first: int, last: int, columns: int) -> slice:
        """The columns that any of the rows from `first` up to `last` sees."""
        end = last if self.causal else columns
        if self.window is None:
            return slice(0, end)
        return slice(max(0, first - self.window + 1), min(end, last + self.window - 1))

    def _fused_by_rows(self, q: Heads, k: Heads, v: Heads, lengths: Lengths | None) -> Heads:
        """Attention through a window, by the framework's own kernel, under small masks."""
        parts = []
        for first in range(0, q.shape[2], MASKED):
            last = min(first + MASKED, q.shape[2])
            seen = self._columns(first, last, k.shape[2])
            rows = torch.arange(first, last, device=q.device)
            columns = torch.arange(seen.start, seen.stop, device=q.device)
            parts.append(
                functional.scaled_dot_product_attention(
                    q[:, :, first:last],
                    k[:, :, seen],
                    v[:, :, seen],
                    attn_mask=self.seen(rows, columns, lengths),
                    enable_gqa=k.shape[1] != q.shape[1],
                )
            )
        return torch.cat(parts, dim=2)

    def _fused(self, q: Heads, k: Heads, v: Heads, lengths: Lengths | None) -> Heads:
        """Attention under at most a causal mask, by the framework's own kernel."""
        seen = None
        if lengths is not None:
            seen = _within(lengths, torch.arange(k.shape[2], device=k.device))[:, None]
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=self.causal, enable_gqa=k.shape[1] != q.shape[1]
        )

    def shares(
        self, products: Tensor, rows: Rows, lengths: Lengths | None = None, first: int = 0
    ) -> Tensor:
        """The weights of attention, in fp32 or better, from products scaled by 1/sqrt(head_dim).

        `products` are (batch, heads, rows, columns), columns at positions first, first + 1, ....
        """
        scores = products.to(torch.promote_types(products.dtype, torch.float32))
        end = first + products.shape[-1]
        columns = torch.arange(first, end, device=products.device)
        # Autocast would make products of features coarse.
        with torch.autocast(products.device.type, enabled=False):
            if self.spec.correction:
                scores = scores * self.correction["temperature"]
                scores = scores + self._corrected(rows, columns, end, scores)
            if self.slopes is not None:
                slopes = scores.new_tensor(self.slopes)[:, None, None]
                scores = scores - slopes * _distance(rows, columns).abs()
        unseen = ~self.seen(rows, columns, lengths)
        return scores.masked_fill(unseen, -torch.inf).softmax(-1)

    def seen(
        self, rows: Rows, columns: Columns, lengths: Lengths | None
    ) -> Bool[Tensor, "... one rows columns"]:
        """Which columns each row sees, alike in all heads."""
        distance = _distance(rows, columns)
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window is not None:
            seen = seen & (distance.abs() < self.window)
        if lengths is not None:
            seen = seen & _within(lengths, columns)[:, None]
            if self.window is not None:
                # Behind the end of a sequence there may be nothing in sight; it means nothing.
                seen = seen | (~seen.any(-1, keepdim=True) & (distance == 0))
        if not self.spec.diagonal:
            others = seen & (distance != 0)
            seen = torch.where(others.any(-1, keepdim=True), others, seen)
        return seen

    def _rows(
        self, q: Heads, k: Heads, v: Heads, first: tuple[int, int], lengths: Lengths | None
    ) -> Heads:
        """What queries attend to, where the first of them and the first key are at `first`."""
        batch, heads, time, head_dim = q.shape
        groups = k.shape[1]
        # The query heads of a group are rows of one product: K is not repeated for each.
        grouped = (q * head_dim**-0.5).reshape(batch, groups, -1, head_dim)
        products = (grouped @ k.mT).view(batch, heads, time, -1)
        rows = torch.arange(first[0], first[0] + time, device=q.device)
        shares = self.shares(products, rows, lengths, first[1]).to(v.dtype)
        return (shares.view(batch, groups, -1, k.shape[2]) @ v).view(batch, heads, time, head_dim)

    def _corrected(self, rows: Rows, columns: Columns, end: int, like: Tensor) -> Tensor:
        """The learned functions of the column, or of the distance, for all heads.

        No row and no column is at `end` or behind it.
        """
        features = self.correction["features"].to(like.dtype)
        table = self._described(end, like)
        match self.spec.correction:
            case Relative():
                # sin(i - j) and cos(i - j) are products of those of i and of j.
                sin, cos = table[rows].chunk(2, dim=-1)
                of_sin, of_cos = features.chunk(2)
                left = [of_cos * sin - of_sin * cos, of_sin * sin + of_cos * cos]
                return (torch.cat(left, dim=-1) @ table[columns].mT).unsqueeze(-3)
            case Separable() | None:
                return table[columns] @ features


def _distance(rows: Rows, columns: Columns) -> Int[Tensor, "... one rows columns"]:
    """From each column to each row; positive where the column is earlier."""
    return (rows[..., None] - columns).unsqueeze(-3)


def _within(lengths: Lengths, columns: Columns) -> Bool[Tensor, "batch one columns"]:
    return (columns < lengths[:, None])[:, None]


def _described(places: Float[Tensor, " positions"]) -> Float[Tensor, "positions features"]:
    """The features of a position: sines, then cosines, of falling frequencies."""
    half = FEATURES // 2
    pairs = torch.arange(half, dtype=places.dtype, device=places.device)
    angle = torch.outer(places, 10_000.0 ** (-pairs / half))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
