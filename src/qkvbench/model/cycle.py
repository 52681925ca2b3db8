"""Variants that the layers of a model have in turn, and how they are written in texts and files."""

from collections.abc import Callable, Iterable
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from qkvbench.variant import Variant, parse, write

# Variants that are given to the layers in turn, from the first layer on, and again from the first.
Cycle = tuple[Variant, ...]
# How a cycle is written: ``q,k,v;q,k=K(-1),v=V(-1)``.
IN_TURN = ";"


def parse_cycle(text: str, variant: Callable[[str], Variant] = parse) -> Cycle:
    """The variants of a text, one for all layers or several in turn; ValueError if one is none."""
    found = [variant(each) for each in text.split(IN_TURN)]
    # Of a cycle that is repeated the shortest one is a part: "a;b;a" alone is no "a;b".
    return shortest_cycle([*found, *found])


def write_cycle(variants: Variant | Cycle) -> str:
    """The text of a variant, or of several that are given to the layers in turn."""
    return IN_TURN.join(map(write, (variants,) if isinstance(variants, Variant) else variants))


def shortest_cycle(layers: Iterable[Variant]) -> Cycle:
    """The fewest variants that, given in turn, are those of these layers."""
    found = tuple(layers)
    periods = (
        period
        for period in range(1, len(found))
        if all(one == other for one, other in zip(found, found[period:], strict=False))
    )
    return found[: next(periods, len(found))]


def _as_variant(value: object) -> object:
    return parse(value) if isinstance(value, str) else value


def _as_variants(value: object) -> object:
    """A variant, or a tuple of several, from their text."""
    if not isinstance(value, str):
        return value
    first, *others = parse_cycle(value)
    return (first, *others) if others else first


# In a file a variant is its equation.
VariantText = Annotated[
    Variant, BeforeValidator(_as_variant), PlainSerializer(write, return_type=str)
]
CycleText = Annotated[
    Variant | Cycle, BeforeValidator(_as_variants), PlainSerializer(write_cycle, return_type=str)
]
