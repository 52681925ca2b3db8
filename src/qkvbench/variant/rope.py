"""Positions inside attention: rotary embeddings of heads, and a bias of the scores."""

from dataclasses import dataclass

from qkvbench.variant.scores import Bucketed, Relative, Role, Separable


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, arXiv:2104.09864: pairs of coordinates rotated by position.

    The first ``dims`` coordinates of each head, coordinate i paired with i + dims/2; frequencies
    ``base`` ** (-2i/dims). ``roles`` are rotated; if V is one, the output is rotated back by the
    query's position (the inverse).
    """

    base: float
    dims: int
    roles: tuple[Role, ...] = ("q", "k")


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
