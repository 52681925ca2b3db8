"""Position schemes on torch tensors: what is added to the input, what is turned in attention."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.model import Position, Rotary

Rows = Float[Tensor, "batch _heads time head_dim"]


class Turner(nn.Module):
    """Turns rows of Q and K by their positions, as the scheme says; holds nothing that is learned.

    The table of angles grows with the longest sequence seen and is never saved.
    """

    def __init__(self, position: Position, head_dim: int) -> None:
        """A turner for heads of `head_dim` coordinates."""
        super().__init__()
        self.position = position
        self.head_dim = head_dim
        self._cos = torch.empty(0, head_dim // 2)
        self._sin = torch.empty(0, head_dim // 2)

    @property
    def turns(self) -> bool:
        """Whether the scheme turns anything at all."""
        return isinstance(self.position, Rotary)

    def forward(self, rows: Rows, first: int = 0) -> Rows:
        """The rows at positions first, first + 1, ..., turned."""
        if not self.turns:
            return rows
        cos, sin = self._table(first + rows.shape[2], rows)
        return _turned(rows, cos[first : first + rows.shape[2]], sin[first : first + rows.shape[2]])

    def at(self, rows: Rows, first: int, times: Int[Tensor, " batch"] | None) -> Rows:
        """One row for each sequence: at position `first`, or at its own of `times`, none later."""
        if times is None or not self.turns:
            return self(rows, first)
        cos, sin = self._table(first + 1, rows)
        return _turned(rows, cos[times][:, None, None], sin[times][:, None, None])

    def _table(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least `length` positions, in fp32, or in fp64 for fp64 rows."""
        if not isinstance(self.position, Rotary):
            raise TypeError("Only rotary positions have a table.")
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        if len(self._cos) < length or self._cos.device != like.device or self._cos.dtype != kind:
            rows = max(length, 2 * len(self._cos))
            # A table first made in inference mode must serve training afterwards.
            with torch.inference_mode(mode=False):
                angle = self._angles(self.position.base, rows, like.device)
                self._cos, self._sin = angle.cos().to(kind), angle.sin().to(kind)
        return self._cos, self._sin

    def _angles(
        self, base: float, positions: int, device: torch.device
    ) -> Float[Tensor, "positions pairs"]:
        """How far each pair turns, in fp64: in fp32 the angles of late positions are coarse."""
        half = self.head_dim // 2
        # arXiv:2104.09864, eq. 34.
        frequency = base ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
        return torch.outer(torch.arange(positions, dtype=torch.float64, device=device), frequency)


def _turned(rows: Rows, cos: Tensor, sin: Tensor) -> Rows:
    """Coordinate i and i + half turned as a pair."""
    first, second = rows.chunk(2, dim=-1)
    cos, sin = cos.to(rows.dtype), sin.to(rows.dtype)
    turned = [
        torch.addcmul(first * cos, second, sin, value=-1),
        torch.addcmul(second * cos, first, sin),
    ]
    return torch.cat(turned, dim=-1)
