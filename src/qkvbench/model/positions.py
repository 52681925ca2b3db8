"""Position schemes by the names that a person writes: ``rotary``, ``rotary/0.25``, ``alibi``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from qkvbench.model.spec import (
    Alibi,
    Learned,
    NoPosition,
    Position,
    Rotary,
    RotaryWithInverse,
    Sinusoidal,
)


@dataclass(frozen=True)
class Named:
    """A scheme with a name. `make` takes the longest sequence, which only learned ones need."""

    about: str
    make: Callable[[int], Position]


POSITIONS: dict[str, Named] = {
    "none": Named("nothing but the causal mask tells positions apart", lambda _: NoPosition()),
    "learned": Named("a learned vector for each position, added to the input", Learned),
    "sinusoidal": Named("sines and cosines, added to the input", lambda _: Sinusoidal()),
    "rotary": Named("Q and K turned; rotary/0.25 turns a quarter of a head", lambda _: Rotary()),
    "turned-back": Named(
        "Q, K and V turned, the output turned back", lambda _: RotaryWithInverse()
    ),
    "alibi": Named("scores fall with the distance", lambda _: Alibi()),
}


def named(text: str, length: int) -> Position:
    """The scheme that `text` names, for sequences of at most `length`; ValueError where none."""
    name, slash, share = text.strip().lower().partition("/")
    if name not in POSITIONS:
        near = get_close_matches(name, POSITIONS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"There are no positions '{text}'; there are {', '.join(POSITIONS)}.{hint}"
        )
    position = POSITIONS[name].make(length)
    if not slash:
        return position
    if not isinstance(position, Rotary | RotaryWithInverse):
        raise ValueError(f"'{text}': only rotary and turned-back take a share, as in 'rotary/0.5'.")
    try:
        return replace(position, share=float(share))
    except ValueError:
        raise ValueError(f"'{text}': after '/' stands a share of a head, as in '0.5'.") from None


def written(position: Position) -> str:
    """The scheme's name, with its share where that is not the whole: what `named` reads."""
    match position:
        case Rotary(share=share) | RotaryWithInverse(share=share) if share != 1:
            return f"{position.kind}/{share:g}"
        case _:
            return position.kind
