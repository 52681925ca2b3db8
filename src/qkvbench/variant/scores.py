"""How scores differ from plain Q·K / sqrt(head_dim), and how each difference is written.

A suffix of the notation is one row of `SUFFIXES`; it sets fields of `Scores`.
"""

import re
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

Role = Literal["q", "k", "v"]
ROLES: tuple[Role, ...] = ("q", "k", "v")

# Numbers that describe a position to a learned bias: sines and cosines of five frequencies.
# The study uses 10 channels for row and column together, arXiv:2606.04032.
FEATURES = 10


@dataclass(frozen=True)
class Separable:
    """Scores times a learned number, plus a learned function of the row and one of the column.

    The study's 2-D encoding, arXiv:2606.04032: position features of row and column beside each
    score, and a 1×1 convolution over them. Softmax cancels the part that depends on the row alone.
    """


@dataclass(frozen=True)
class Relative:
    """Scores times a learned number, plus a learned function of the distance from row to column.

    The features are those of `Separable`, taken of the signed difference.
    """


Correction = Separable | Relative


@dataclass(frozen=True)
class Scores:
    """Everything that happens to the scores besides Q·K; the defaults are plain attention.

    ``normed`` are the roles whose heads get RMS norm, Q and K with a learned scale after it
    (arXiv:2010.04245, arXiv:2302.05442): none, Q and K, or all three.
    ``diagonal`` False: no token attends to itself unless it sees nothing else.
    ``window``: a query sees keys less than `window` positions away, itself included
    (arXiv:2004.05150, section 3.1). ``sinks``: and always the first `sinks` keys
    (arXiv:2309.17453, section 3.2). ``softcap``: q·k becomes softcap·tanh(q·k / softcap), before
    any bias (arXiv:2408.00118, section 2).
    """

    normed: tuple[Role, ...] = ()
    correction: Correction | None = None
    diagonal: bool = True
    window: int | None = None
    sinks: int = 0
    softcap: int | None = None

    def __post_init__(self) -> None:
        """Refuse combinations without a meaning."""
        if self.normed not in ((), ("q", "k"), ROLES):
            raise ValueError(f"Normed are Q and K, all three roles or none, not {self.normed}.")
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"A window of {self.window} shows nothing; use 1 (each position itself) or more, "
                "or leave it out to see everything."
            )
        if self.sinks and self.window is None:
            raise ValueError(
                "Without a window every key is visible, so sink tokens change nothing; write for "
                f"example '+window128+sinks{self.sinks}'."
            )


# The fields that a plan holds as derivations, mask and biases; any other is read from its scores.
IN_PLAN = frozenset({"normed", "correction", "diagonal", "window", "sinks"})


@dataclass(frozen=True)
class Suffix:
    """The fields of `Scores` that a suffix sets; with `number`, the field that its number sets."""

    sets: dict[str, Any]
    number: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that it sets."""
        return (*self.sets, *((self.number,) if self.number else ()))


# In the order in which suffixes are written.
SUFFIXES: dict[str, Suffix] = {
    "+qknorm": Suffix({"normed": ("q", "k")}),
    "+qkvnorm": Suffix({"normed": ROLES}),
    "+2d": Suffix({"correction": Separable()}),
    "++": Suffix({"correction": Relative()}),
    "-diag": Suffix({"diagonal": False}),
    "+window": Suffix({}, number="window"),
    "+sinks": Suffix({}, number="sinks"),
    "+softcap": Suffix({}, number="softcap"),
}
_PATTERN = re.compile(
    "|".join(
        re.escape(text) + (r"[1-9][0-9]*" if suffix.number else "")
        for text, suffix in SUFFIXES.items()
    )
)
_PLAIN = {field.name: field.default for field in fields(Scores)}


class SuffixError(ValueError):
    """The part after a valid equation is no suffix, or conflicts with an earlier one."""


def write_scores(scores: Scores) -> str:
    """The suffixes, in their order."""
    written = ""
    for text, suffix in SUFFIXES.items():
        if suffix.number is None:
            chosen = all(getattr(scores, name) == value for name, value in suffix.sets.items())
            written += text if chosen else ""
        elif (number := getattr(scores, suffix.number)) != _PLAIN[suffix.number]:
            written += f"{text}{number}"
    return written


def parse_scores(text: str, suffixes: str) -> Scores:
    """The scores that `suffixes`, the end of `text`, describe; SuffixError if they do not."""
    chosen: dict[str, Any] = {}
    rest = suffixes
    while rest:
        match = _PATTERN.match(rest)
        if match is None:
            near = get_close_matches(rest, SUFFIXES, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SuffixError(
                f"'{text}': '{rest}' is none of the suffixes {', '.join(map(_example, SUFFIXES))}, "
                f"which come last, as in 'q=k,v+2d' or 'q,k=v/4+qknorm-diag'.{hint}"
            )
        name = match[0].rstrip("0123456789") if match[0] not in SUFFIXES else match[0]
        suffix = SUFFIXES[name]
        if chosen.keys() & set(suffix.names):
            raise SuffixError(f"'{text}': '{match[0]}' conflicts with an earlier suffix.")
        chosen |= suffix.sets
        if suffix.number:
            chosen[suffix.number] = int(match[0].removeprefix(name))
        rest = rest[match.end() :]
    try:
        return replace(Scores(), **chosen)
    except ValueError as error:
        raise SuffixError(f"'{text}': {error}") from None


def _example(text: str) -> str:
    return f"{text}N" if SUFFIXES[text].number else text
