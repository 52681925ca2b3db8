"""Cached rows and weights in few bits, as values: what a trained model is scored with.

    int8 int4 int3 int2    every cached row at once, by token: one scale for each head of a row
                           (int8), or for 32 numbers of it
    …:channel              one scale for each channel of 32 tokens
    …:kivi                 K by channel, V by token (arXiv:2402.02750); a tensor that is
                           read as both is stored once, by token
    …:late                 by token, as those two store it: see below
    …:hadamard             by token, after a fixed rotation that spreads each channel over all
    …:before-rope          by token, K as it is before RoPE
    …:nope                 by token; the key that alone has RoPE beside a latent stays as it is
    w8 w4                  the matrices of the blocks in int8, one scale for each row; in int4, one
                           for 32 numbers of it

A scale of several tokens is known once they are all there, so schemes by channel keep the newest
rows, up to 32, as they are. `late` does the same by token, which makes the two comparable.
Numbers are symmetric: q = round(x / s), s = max|x| / (2^(bits - 1) - 1).
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Scheme = Literal["token", "channel", "kivi", "late", "hadamard", "before-rope", "nope"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
BITS = (8, 4, 3, 2)
# The form of what is not quantized.
PLAIN = "plain"
# Numbers that share a scale.
GROUP = 32

_ROWS = rf"int([{''.join(map(str, BITS))}])(?::([a-z-]+))?"
_TEXT = re.compile(rf"(?:{_ROWS})?(\+)?(?:w([84]))?")


@dataclass(frozen=True)
class Quantization:
    """Bits of cached rows and how they share scales, and bits of matrices; None: as they are."""

    bits: int | None = None
    scheme: Scheme = "token"
    weight_bits: int | None = None

    @property
    def waits(self) -> bool:
        """True if the newest rows stay as they are until a group of tokens is complete."""
        return self.scheme in ("channel", "kivi", "late")


def parse_quantization(text: str) -> Quantization:
    """The quantization that is written; ValueError if there is none."""
    match = _TEXT.fullmatch(text)
    bits, scheme, plus, weights = match.groups() if match else (None,) * 4
    if (
        not (bits or weights)
        or bool(plus) != bool(bits and weights)
        or scheme not in (None, *SCHEMES[1:])
    ):
        raise ValueError(
            f"'{text}' is no quantization: write int8, int4, int3 or int2 for cached rows, with "
            f":{', :'.join(SCHEMES[1:])} or nothing behind it, w8 or w4 for matrices, or int4+w8."
        )
    return Quantization(
        int(bits) if bits else None,
        scheme or "token",  # pyright: ignore[reportArgumentType]
        int(weights) if weights else None,
    )


def in_few_bits(metric: str, text: str) -> str:
    """The name of a metric's value in this form."""
    return f"{metric}@{text}"
