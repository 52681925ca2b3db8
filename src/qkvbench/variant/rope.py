"""Positions inside attention: rotary embeddings of heads, and a bias of the scores."""

from dataclasses import dataclass

from qkvbench.variant.frequencies import RopeScaling, attention_factor_of, base_frequencies
from qkvbench.variant.scores import Bucketed, Relative, Role, Separable


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, arXiv:2104.09864: pairs of coordinates rotated by position.

    The first ``dims`` coordinates of each head, coordinate i paired with i + dims/2; frequencies
    ``base`` ** (-2i/dims), changed by ``scaling``. ``roles`` are rotated; if V is one, the output
    is rotated back by the query's position (the inverse).
    """

    base: float
    dims: int
    roles: tuple[Role, ...] = ("q", "k")
    scaling: RopeScaling | None = None

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Radians per position of each pair."""
        if self.scaling is None:
            return tuple(base_frequencies(self.base, self.dims))
        return tuple(self.scaling.frequencies(self.base, self.dims))

    @property
    def attention_factor(self) -> float:
        """The number by which Q and K are multiplied where they are rotated."""
        return attention_factor_of(self.scaling)


@dataclass(frozen=True)
class AlibiBias:
    """Minus a slope per head times the distance. arXiv:2108.12409."""

    def slopes(self, heads: int) -> list[float]:
        """A geometric sequence from 2^(-8/heads), one for each head (section 3).

        If `heads` is no power of two: that of the power of two below, then every other slope of
        twice as many heads, as in the authors' code and in BLOOM.
        """
        power = 1 << (heads.bit_length() - 1)
        between = [2.0 ** (-4 * head / power) for head in range(1, 2 * (heads - power), 2)]
        return [2.0 ** (-8 * head / power) for head in range(1, power + 1)] + between


ScoreBias = AlibiBias | Separable | Relative | Bucketed
