"""What is added to the scores and what a query sees; attention by rows where that is needed."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qkvbench.backends.torch.position import Table
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
        if self.plain and self.spec.diagonal:
            return self._fused(q, k, v, lengths)
        if self.plain and self.causal:
            # Each token but the first sees what the one before it would see, itself left out.
            alone = v[:, :, :1].repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            if q.shape[2] == 1:
                return alone
            rest = self._fused(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], None)
            return torch.cat([alone, rest], dim=2)
        time = q.shape[2]
        rows = max(1, HELD // (q.shape[0] * q.shape[1] * k.shape[2]))
        if rows >= time:
            return self._rows(q, k, v, 0, lengths)
        parts = []
        for first in range(0, time, rows):
            last = min(first + rows, time)
            end = last if self.causal else k.shape[2]
            # Made again in the backward pass: kept, the scores would grow with time × time.
            parts.append(
                checkpoint(
                    self._rows,
                    q[:, :, first:last],
                    k[:, :, :end],
                    v[:, :, :end],
                    first,
                    lengths,
                    use_reentrant=False,
                    preserve_rng_state=False,
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
        columns = torch.arange(first, first + products.shape[-1], device=products.device)
        # Autocast would make products of features coarse.
        with torch.autocast(products.device.type, enabled=False):
            if self.spec.correction:
                scores = scores * self.correction["temperature"]
                scores = scores + self._corrected(rows, columns, scores)
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
        if lengths is not None:
            seen = seen & _within(lengths, columns)[:, None]
        if not self.spec.diagonal:
            others = seen & (distance != 0)
            seen = torch.where(others.any(-1, keepdim=True), others, seen)
        return seen

    def _rows(self, q: Heads, k: Heads, v: Heads, first: int, lengths: Lengths | None) -> Heads:
        """What the queries at positions first, first + 1, ... attend to."""
        batch, heads, time, head_dim = q.shape
        groups = k.shape[1]
        # The query heads of a group are rows of one product: K is not repeated for each.
        grouped = (q * head_dim**-0.5).reshape(batch, groups, -1, head_dim)
        products = (grouped @ k.mT).view(batch, heads, time, -1)
        rows = torch.arange(first, first + time, device=q.device)
        shares = self.shares(products, rows, lengths).to(v.dtype)
        return (shares.view(batch, groups, -1, k.shape[2]) @ v).view(batch, heads, time, head_dim)

    def _corrected(self, rows: Rows, columns: Columns, like: Tensor) -> Tensor:
        """The learned functions of the column, or of the distance, for all heads."""
        features = self.correction["features"].to(like.dtype)
        table = self._described(columns.shape[-1], like)
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
