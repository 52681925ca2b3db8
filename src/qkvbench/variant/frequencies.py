"""RoPE frequencies for texts longer than those of the training, each kind a value."""

import math
from dataclasses import dataclass
from itertools import starmap


def base_frequencies(base: float, dims: int) -> list[float]:
    """Radians per position of each pair. arXiv:2104.09864, section 3.2.2."""
    return [base ** (-pair / (dims // 2)) for pair in range(dims // 2)]


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency divided by `factor`: position interpolation, arXiv:2306.15595, eq. 4."""

    factor: float

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers by which it is written."""
        return (self.factor,)

    def frequencies(self, base: float, dims: int) -> list[float]:
        """Radians per position of each pair."""
        return [each / self.factor for each in base_frequencies(base, dims)]


@dataclass(frozen=True)
class Llama3Scaling:
    """Frequencies of Llama 3.1, from Meta's code: those of long waves divided by `factor`.

    Waves that fit 4 times or more into ``length``, the tokens of the training, stay. Those that do
    not fit once are divided, and between them both are mixed.
    """

    factor: float
    length: float = 8192

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers by which it is written."""
        return self.factor, self.length

    def frequencies(self, base: float, dims: int) -> list[float]:
        """Radians per position of each pair."""
        found: list[float] = []
        for frequency in base_frequencies(base, dims):
            waves = self.length * frequency / (2 * math.pi)
            kept = min(1.0, max(0.0, (waves - 1) / (4 - 1)))
            found.append(frequency * (kept + (1 - kept) / self.factor))
        return found


@dataclass(frozen=True)
class YarnScaling:
    """YaRN, arXiv:2309.00071: frequencies by parts, and scores times the attention factor squared.

    Pairs that rotate 32 times or more in ``length``, the tokens of the training, keep their
    frequency. Those that do not rotate once are divided by ``factor``; between the two it falls
    with the number of the pair (section 3.2). ``rounded``: both bounds are moved outwards to whole
    pairs, as in the authors' code. ``attention`` multiplies Q and K, None as in section 3.4.
    """

    factor: float
    length: float = 4096
    attention: float | None = None
    rounded: bool = True

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers by which it is written."""
        last = () if self.attention is None else (self.attention,)
        return self.factor, self.length, *last

    @property
    def attention_factor(self) -> float:
        """The number by which Q and K are multiplied."""
        if self.attention is not None:
            return self.attention
        return 0.1 * math.log(self.factor) + 1

    def frequencies(self, base: float, dims: int) -> list[float]:
        """Radians per position of each pair."""

        def pair_of(rotations: float) -> float:
            per_pair = 2 * math.log(base) / dims
            return math.log(self.length / (rotations * 2 * math.pi)) / per_pair

        first, last = pair_of(32), pair_of(1)
        if self.rounded:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dims - 1)
        # Equal bounds are moved apart as in the authors' code.
        width = last - first or 0.001

        def changed(pair: int, frequency: float) -> float:
            divided = min(1.0, max(0.0, (pair - first) / width))
            return frequency * (1 - divided + divided / self.factor)

        return list(starmap(changed, enumerate(base_frequencies(base, dims))))


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def attention_factor_of(scaling: RopeScaling | None) -> float:
    """The number by which Q and K are multiplied where they are rotated."""
    return scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0
