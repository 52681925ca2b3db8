"""Position schemes, and their names on the command line: ``rotary``, ``rotary/0.25``, ``alibi``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from qkvbench.variant import ROLES, AlibiBias, Rope


@dataclass(frozen=True)
class NoPosition:
    """No position information but the causal mask."""

    kind: Literal["none"] = "none"
    added_to_input: ClassVar[bool] = False


@dataclass(frozen=True)
class Learned:
    """One learned vector for each of `length` positions, added to the input."""

    length: int
    kind: Literal["learned"] = "learned"
    added_to_input: ClassVar[bool] = True


@dataclass(frozen=True)
class Sinusoidal:
    """Sines and cosines of the position, added to the input. arXiv:1706.03762, section 3.5."""

    base: float = 10_000.0
    kind: Literal["sinusoidal"] = "sinusoidal"
    added_to_input: ClassVar[bool] = True


@dataclass(frozen=True)
class Rotary:
    """RoPE on Q and K. arXiv:2104.09864. ``share`` is the rotated part of each head."""

    base: float = 10_000.0
    share: float = 1.0
    kind: Literal["rotary"] = "rotary"
    added_to_input: ClassVar[bool] = False


def _renamed(kind: object) -> object:
    """Records of the first version call the scheme "turned-back"."""
    return "rotary-inverse" if kind == "turned-back" else kind


@dataclass(frozen=True)
class RotaryWithInverse:
    """RoPE on Q, K and V, and the inverse RoPE of the query's position on the output.

    A value then depends on its distance, too. If K and V are one tensor, the cache holds it with
    RoPE applied, and reading needs no work.
    """

    base: float = 10_000.0
    share: float = 1.0
    kind: Annotated[Literal["rotary-inverse"], BeforeValidator(_renamed)] = "rotary-inverse"
    added_to_input: ClassVar[bool] = False


@dataclass(frozen=True)
class Alibi:
    """Scores fall in proportion to the distance, by a slope for each head. arXiv:2108.12409."""

    kind: Literal["alibi"] = "alibi"
    added_to_input: ClassVar[bool] = False


Position = NoPosition | Learned | Sinusoidal | Rotary | RotaryWithInverse | Alibi


def rope_of(position: Position, head_dim: int) -> Rope | None:
    """The RoPE settings of the scheme; ValueError if the rotated coordinates are not pairs."""
    match position:
        case Rotary(base, share):
            return Rope(base, _rotary_dim(position.kind, share, head_dim))
        case RotaryWithInverse(base, share):
            return Rope(base, _rotary_dim(position.kind, share, head_dim), ROLES)
        case _:
            return None


def alibi_of(position: Position) -> AlibiBias | None:
    """The bias of the scores of the scheme."""
    return AlibiBias() if isinstance(position, Alibi) else None


def _rotary_dim(kind: str, share: float, head_dim: int) -> int:
    count = share * head_dim
    if not 0 < share <= 1 or count % 2:
        raise ValueError(
            f"{kind} positions rotate pairs of coordinates, so the rotated share of head_dim "
            f"must be an even number; here it is {share:g} of {head_dim}."
        )
    return int(count)


@dataclass(frozen=True)
class Named:
    """A scheme with a name. `make` takes the longest sequence, which only learned ones need."""

    about: str
    make: Callable[[int], Position]


POSITIONS: dict[str, Named] = {
    "none": Named("no position information but the causal mask", lambda _: NoPosition()),
    "learned": Named("a learned vector for each position, added to the input", Learned),
    "sinusoidal": Named("sines and cosines, added to the input", lambda _: Sinusoidal()),
    "rotary": Named("RoPE on Q and K; rotary/0.25: on a quarter of a head", lambda _: Rotary()),
    "rotary-inverse": Named(
        "RoPE on Q, K and V, its inverse on the output", lambda _: RotaryWithInverse()
    ),
    "alibi": Named("scores fall with the distance", lambda _: Alibi()),
}


def named(text: str, length: int) -> Position:
    """The scheme that `text` names, for sequences of at most `length`; ValueError if none."""
    name, slash, share = text.strip().lower().partition("/")
    name = str(_renamed(name))
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
        raise ValueError(
            f"'{text}': only rotary and rotary-inverse have a share, as in 'rotary/0.5'."
        )
    try:
        return replace(position, share=float(share))
    except ValueError:
        raise ValueError(f"'{text}': write a share of a head after '/', as in '0.5'.") from None


def written(position: Position) -> str:
    """The scheme's name, with its share unless that is the whole: the text that `named` reads."""
    match position:
        case Rotary(share=share) | RotaryWithInverse(share=share) if share != 1:
            return f"{position.kind}/{share!r}"
        case _:
            return position.kind
