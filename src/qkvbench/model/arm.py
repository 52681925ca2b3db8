"""Arms of a study as values: variants at attention sites, at their own size or at another's.

Of a model with several sites, ``q,k=v@cross`` is canonical at all others, and
``q,k=v@cross+self|q=k,v@encoder`` is canonical at none. Of equal size, ``q,k,v~q,k=v`` has as many
parameters as the model with ``q,k=v`` everywhere, ``q,k,v~q,k=v:macs`` as many MACs. An arm that
loses parameters loses capacity as well; the one of equal size shows which of the two was missed.
``q,k,v~again`` is the same arm with other initial values: two arms that are known to be alike.
``q,k,v~rms~parallel`` has other blocks around the same attention (`changes.py`).
Everywhere several variants may be given to the layers in turn: ``q,k,v;q,k=K(-1),v=V(-1)`` is the
cross-layer attention of arXiv:2405.12981, in which every second layer makes K and V.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from qkvbench.model.changes import CHANGES, ordered
from qkvbench.model.cycle import Cycle, parse_cycle, write_cycle
from qkvbench.model.spec import (
    AGAIN,
    AND,
    AT,
    LIKE,
    MACS,
    PLACED,
    SizeMatch,
    placed_text,
    sized_text,
)
from qkvbench.variant import Variant, parse

_ALLOWED = (
    f"behind '{LIKE}' stands an equation whose size is matched, 'again', or a change of blocks: "
    f"{', '.join(CHANGES)}"
)


@dataclass(frozen=True)
class Arm:
    """Variants, each with its attention sites (none: all), and the size that the model is given.

    Each is a cycle: most often of one variant for all layers. Sites that are not named have
    canonical attention. ``again``: with other initial values; ``changes``: of all blocks.
    """

    variants: tuple[tuple[Cycle, tuple[str, ...]], ...]
    size_match: SizeMatch | None = None
    again: bool = False
    changes: tuple[str, ...] = ()


def parse_arm(text: str, variant: Callable[[str], Variant] = parse) -> Arm:
    """The arm that is written, its variants read by `variant`; ValueError if there is none."""
    again = text.endswith(AGAIN)
    own, changes, size = _marks(text)
    parts = [part.partition(AT) for part in own.split(PLACED)]
    variants = tuple(
        (parse_cycle(names, variant), tuple(sites.split(AND)) if at else ())
        for names, at, sites in parts
    )
    named = [site for _, sites in variants for site in sites]
    if len(set(named)) < len(named) or (len(variants) > 1 and not all(at for _, at in variants)):
        raise ValueError(
            f"In '{own}' each variant needs sites of its own, as in 'q,k=v@self|q=k,v@cross'."
        )
    # One variant at several sites, however it is written.
    merged: dict[Cycle, tuple[str, ...]] = {}
    for cycle, sites in variants:
        merged[cycle] = (*merged.get(cycle, ()), *sites)
    match = _size_match(size, variant) if size else None
    return Arm(tuple(merged.items()), match, again, ordered(changes))


def write_arm(arm: Arm) -> str:
    """The arm's one text."""
    variants = placed_text({write_cycle(cycle): sites for cycle, sites in arm.variants})
    changed = "".join(f"{LIKE}{name}" for name in arm.changes)
    return sized_text(variants + changed, arm.size_match) + (AGAIN if arm.again else "")


def arm_text(variant: str, label: str) -> str:
    """The arm of a record: its variant, with the marks of its model's label."""
    return variant + label[len(parse_label(label)[0]) :]


# A store asks for the arm of each record many times.
@lru_cache(maxsize=1024)
def parse_label(label: str) -> tuple[str, SizeMatch | None]:
    """The name and the size match of a model whose `Model.label` this is."""
    name, _, size = _marks(label)
    return name, _size_match(size, parse) if size else None


def _marks(text: str) -> tuple[str, tuple[str, ...], str]:
    """The text before all marks, the changes of blocks, and the size match; without A/A mark."""
    own, *marks = text.removesuffix(AGAIN).split(LIKE)
    changes = tuple(mark for mark in marks if mark in CHANGES)
    sizes = [mark for mark in marks if mark not in CHANGES]
    if not all(marks):
        raise ValueError(f"'{text}' has nothing behind '{LIKE}'; {_ALLOWED}.")
    if len(sizes) > 1:
        raise ValueError(f"'{text}' has two sizes to match; {_ALLOWED}.")
    return own, changes, sizes[0] if sizes else ""


def _size_match(text: str, variant: Callable[[str], Variant]) -> SizeMatch:
    try:
        first, *others = parse_cycle(text.removesuffix(MACS), variant)
    except ValueError as error:
        raise ValueError(
            f"'{text}' behind '{LIKE}' is neither a change of blocks nor the size of an equation; "
            f"{_ALLOWED}."
        ) from error
    by = "macs" if text.endswith(MACS) else "parameters"
    return SizeMatch((first, *others) if others else first, by)
