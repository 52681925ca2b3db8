"""Position schemes on torch tensors: what is added to the input, what is turned in attention."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench import native
from qkvbench.model import Position, Rotary, RotaryWithInverse, rotary_dim

Rows = Float[Tensor, "batch _heads time head_dim"]


class Table:
    """Rows of numbers for positions 0, 1, ...; grows with the longest asked for, never saved."""

    def __init__(self, rows: Callable[[Float[Tensor, " positions"]], Tensor]) -> None:
        """A table whose rows are made from positions, in fp64."""
        self._made = rows
        self._rows = torch.empty(0)

    def __call__(self, length: int, like: Tensor) -> Tensor:
        """At least `length` rows on the device of `like`, in fp32, or in fp64 where that is."""
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        rows = self._rows
        if len(rows) < length or rows.device != like.device or rows.dtype != kind:
            # A table first made in inference mode must serve training afterwards.
            with torch.inference_mode(mode=False):
                # In fp32 the angles of late positions would be coarse.
                places = torch.arange(
                    max(length, 2 * len(rows)), dtype=torch.float64, device=like.device
                )
                self._rows = self._made(places).to(kind)
        return self._rows


def sinusoids(
    places: Float[Tensor, "*places"], features: int, base: float
) -> Float[Tensor, "*places features"]:
    """Sine and cosine of each frequency side by side. arXiv:1706.03762, section 3.5."""
    pairs = torch.arange((features + 1) // 2, dtype=places.dtype, device=places.device)
    angle = places[..., None] * base ** (-2 * pairs / features)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :features]


class RotaryEmbedding(nn.Module):
    """Turns rows of heads by their positions, as the scheme says; holds nothing that is learned."""

    def __init__(self, position: Position, head_dim: int) -> None:
        """A turner for heads of `head_dim` coordinates."""
        super().__init__()
        self.turned = 0
        if isinstance(position, Rotary | RotaryWithInverse):
            self.turned = rotary_dim(position, head_dim)
            self.base = position.base
        self._table = Table(self._cos_sin)
        self._turns: native.RopeTable | None = None

    def table(self, slots: int, like: Tensor) -> Float[Tensor, "positions turned"]:
        """Cosines, then sines, of at least so many positions, for a kernel that turns rows."""
        return self._table(slots, like)

    def turns(self, slots: int) -> native.RopeTable:
        """How the native kernel turns rows of at least so many slots."""
        if self._turns is None or self._turns.capacity < slots:
            frequencies = self.base ** (-np.arange(self.turned // 2) / (self.turned // 2))
            self._turns = native.RopeTable(frequencies, 2 * slots)
        return self._turns

    def forward(self, rows: Rows, first: int = 0, *, back: bool = False) -> Rows:
        """The rows at positions first, first + 1, ..., turned."""
        length = first + rows.shape[2]
        return self._turned(rows, self._table(length, rows)[first:length], back=back)

    def at(
        self, rows: Rows, first: int, times: Int[Tensor, " batch"] | None, *, back: bool = False
    ) -> Rows:
        """One row for each sequence: at position `first`, or at its own of `times`, none later."""
        if times is None:
            return self(rows, first, back=back)
        table = self._table(first + 1, rows)[times][:, None, None]
        return self._turned(rows, table, back=back)

    def _cos_sin(self, places: Float[Tensor, " positions"]) -> Float[Tensor, "positions turned"]:
        """Cosines, then sines, of how far each pair turns. arXiv:2104.09864, eq. 34."""
        half = self.turned // 2
        pairs = torch.arange(half, dtype=places.dtype, device=places.device)
        angle = torch.outer(places, self.base ** (-pairs / half))
        return torch.cat([angle.cos(), angle.sin()], dim=-1)

    def _turned(self, rows: Rows, table: Tensor, *, back: bool) -> Rows:
        """Coordinate i and i + half turned as a pair; what is behind the pairs stays."""
        half = self.turned // 2
        cos, sin = table.to(rows.dtype).split(half, dim=-1)
        first, second, rest = rows.split([half, half, rows.shape[-1] - self.turned], dim=-1)
        sign = -1 if back else 1
        turned = [
            torch.addcmul(first * cos, second, sin, value=-sign),
            torch.addcmul(second * cos, first, sin, value=sign),
        ]
        return torch.cat([*turned, rest] if rest.shape[-1] else turned, dim=-1)
