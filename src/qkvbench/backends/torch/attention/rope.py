"""Rotary embeddings on torch tensors, and tables of numbers for each position."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench import native
from qkvbench.variant import Rope

Rows = Float[Tensor, "batch _heads time head_dim"]


class PositionTable:
    """Rows of numbers for positions 0, 1, ...; grows with the longest request, never saved."""

    def __init__(self, rows: Callable[[Float[Tensor, " positions"]], Tensor]) -> None:
        """A table whose rows are computed from positions, in fp64."""
        self._compute = rows
        self._rows = torch.empty(0)

    def __call__(self, length: int, like: Tensor) -> Tensor:
        """At least `length` rows on the device of `like`, in fp32, or in fp64 if that is."""
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        rows = self._rows
        if len(rows) < length or rows.device != like.device or rows.dtype != kind:
            # A table first made in inference mode must serve training afterwards. The argument is
            # positional because torch.compile cannot trace it as a keyword.
            with torch.inference_mode(False):  # noqa: FBT003
                # In fp32 the angles of late positions would be coarse.
                room = max(length, 2 * len(rows)) if len(rows) < length else len(rows)
                positions = torch.arange(room, dtype=torch.float64, device=like.device)
                self._rows = self._compute(positions).to(kind)
        return self._rows


def sinusoids(
    positions: Float[Tensor, "*positions"], features: int, base: float
) -> Float[Tensor, "*positions features"]:
    """Sine and cosine of each frequency side by side. arXiv:1706.03762, section 3.5."""
    pairs = torch.arange((features + 1) // 2, dtype=positions.dtype, device=positions.device)
    angle = positions[..., None] * base ** (-2 * pairs / features)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :features]


class RotaryEmbedding(nn.Module):
    """Applies RoPE to rows of heads; nothing is learned."""

    def __init__(self, rope: Rope) -> None:
        """RoPE with these settings."""
        super().__init__()
        self.rope = rope
        self._frequencies = rope.frequencies
        self._table = PositionTable(self._cos_sin)
        self._native_table: native.RopeTable | None = None

    def table(self, slots: int, like: Tensor) -> Float[Tensor, "positions dims"]:
        """Cosines, then sines, of at least so many positions, for a kernel that applies RoPE."""
        return self._table(slots, like)

    def native_table(self, slots: int) -> native.RopeTable:
        """The table of the native kernel, for at least so many slots."""
        if self._native_table is None or self._native_table.capacity < slots:
            self._native_table = native.RopeTable(np.array(self._frequencies), 2 * slots)
        return self._native_table

    def forward(self, rows: Rows, first: int = 0, *, back: bool = False) -> Rows:
        """The rows at positions first, first + 1, ..., rotated; `back` is the inverse."""
        length = first + rows.shape[2]
        return self._rotate(rows, self._table(length, rows)[first:length], back=back)

    def at(
        self, rows: Rows, first: int, positions: Int[Tensor, " batch"] | None, *, back: bool = False
    ) -> Rows:
        """One row of each sequence: at position `first`, or at its own, none later than `first`."""
        if positions is None:
            return self(rows, first, back=back)
        table = self._table(first + 1, rows)[positions][:, None, None]  # (batch, 1, 1, dims)
        return self._rotate(rows, table, back=back)

    def _cos_sin(self, positions: Float[Tensor, " positions"]) -> Float[Tensor, "positions dims"]:
        """Cosines, then sines, of the angle of each pair. arXiv:2104.09864, eq. 34."""
        frequencies = torch.tensor(
            self._frequencies, dtype=positions.dtype, device=positions.device
        )
        angle = torch.outer(positions, frequencies)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def _rotate(self, rows: Rows, table: Tensor, *, back: bool) -> Rows:
        """Coordinates i and i + half rotated as a pair; those after the pairs stay."""
        dims = self.rope.dims
        half = dims // 2
        cos, sin = table.to(rows.dtype).split(half, dim=-1)
        first, second, rest = rows.split([half, half, rows.shape[-1] - dims], dim=-1)
        sign = -1 if back else 1
        rotated = [
            torch.addcmul(first * cos, second, sin, value=-sign),
            torch.addcmul(second * cos, first, sin, value=sign),
        ]
        return torch.cat([*rotated, rest] if rest.shape[-1] else rotated, dim=-1)
