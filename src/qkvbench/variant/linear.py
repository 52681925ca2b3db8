"""Linear attention, which makes no softmax: a closed union of values.

Keys and values go into one matrix for each key/value head, whose size does not grow with the text.
"""

from dataclasses import dataclass
from typing import ClassVar

# Tokens of a whole pass that are computed together: each is multiplied with those of its own chunk,
# and with the matrix that all chunks before it left.
CHUNK = 64


@dataclass(frozen=True)
class State:
    """The cache of a text of any length: `rows` by `width` numbers for each key/value head."""

    heads: int
    rows: int
    width: int

    @property
    def numbers(self) -> int:
        """All of them."""
        return self.heads * self.rows * self.width


@dataclass(frozen=True)
class Elu:
    """Weights f(q)·f(k) over their sum, f(x) = elu(x) + 1: arXiv:2006.16236, eq. 7 and 9."""

    # The numbers by which it is written.
    numbers: ClassVar[tuple[float, ...]] = ()

    def state(self, heads: int, key_width: int, value_width: int) -> State:
        """The sum of f(k)·vᵀ, and a column for the sum of f(k)."""
        return State(heads, key_width, value_width + 1)


@dataclass(frozen=True)
class Favor:
    """FAVOR+: the softmax's weights by random features that are positive. arXiv:2009.14794, 2.3.

    ``features`` of each head, orthogonal in blocks as wide as it (section 2.4). They are drawn once
    for every layer and run, and never again: `draw` is the number of the draw.
    """

    features: float
    draw: float = 1

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers by which it is written."""
        return (self.features,) if self.draw == 1 else (self.features, self.draw)

    def state(self, heads: int, key_width: int, value_width: int) -> State:
        """The sum of f(k)·vᵀ, and a column for the sum of f(k)."""
        del key_width
        return State(heads, int(self.features), value_width + 1)


@dataclass(frozen=True)
class GatedDelta:
    """Gated DeltaNet's rule, arXiv:2412.06464, eq. 10, without its convolutions.

    S = decay·(S − strength·k·(kᵀS)) + strength·k·vᵀ and Sᵀq is the output, with Q and K of length
    1. The strength is a sigmoid of the stream; the decay is exp(−rate·softplus) of it.
    """

    numbers: ClassVar[tuple[float, ...]] = ()

    def state(self, heads: int, key_width: int, value_width: int) -> State:
        """The matrix S."""
        return State(heads, key_width, value_width)

    def rates(self, heads: int) -> list[float]:
        """How fast each head forgets: a geometric sequence, 2^(-4) in its middle."""
        return [2.0 ** (-8 * (head + 0.5) / heads) for head in range(heads)]


Linear = Elu | Favor | GatedDelta
