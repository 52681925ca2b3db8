"""Arms of a study as values: variants at attention sites, at their own size or at another's.

Of a model with several sites, ``q,k=v@cross`` is canonical at all others, and
``q,k=v@cross+self|q=k,v@encoder`` is canonical at none. Of equal size, ``q,k,v~q,k=v`` has as many
parameters as the model with ``q,k=v`` everywhere, ``q,k,v~q,k=v:macs`` as many MACs. An arm that
loses parameters loses capacity as well; the one of equal size shows which of the two was missed.
``q,k,v~again`` is the same arm with other initial values: two arms that are known to be alike.
Everywhere several variants may be given to the layers in turn: ``q,k,v;q,k=K(-1),v=V(-1)`` is the
cross-layer attention of arXiv:2405.12981, in which every second layer makes K and V.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

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


@dataclass(frozen=True)
class Arm:
    """Variants, each with its attention sites (none: all), and the size that the model is given.

    Each is a cycle: most often of one variant for all layers. Sites that are not named have
    canonical attention. ``again``: with other initial values.
    """

    variants: tuple[tuple[Cycle, tuple[str, ...]], ...]
    size_match: SizeMatch | None = None
    again: bool = False


def parse_arm(text: str, variant: Callable[[str], Variant] = parse) -> Arm:
    """The arm that is written, its variants read by `variant`; ValueError if there is none."""
    again = text.endswith(AGAIN)
    own, like, size = text.removesuffix(AGAIN).partition(LIKE)
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
    return Arm(variants, _size_match(size, variant) if like else None, again)


def write_arm(arm: Arm) -> str:
    """The arm's one text."""
    variants = placed_text({write_cycle(cycle): sites for cycle, sites in arm.variants})
    return sized_text(variants, arm.size_match) + (AGAIN if arm.again else "")


def arm_text(variant: str, label: str) -> str:
    """The arm of a record: its variant, with the marks of its model's label."""
    return variant + label[len(parse_label(label)[0]) :]


# A store asks for the arm of each record many times.
@lru_cache(maxsize=1024)
def parse_label(label: str) -> tuple[str, SizeMatch | None]:
    """The name and the size match of a model whose `Model.label` this is."""
    name, like, size = label.removesuffix(AGAIN).partition(LIKE)
    return name, _size_match(size, parse) if like else None


def _size_match(text: str, variant: Callable[[str], Variant]) -> SizeMatch:
    first, *others = parse_cycle(text.removesuffix(MACS), variant)
    by = "macs" if text.endswith(MACS) else "parameters"
    return SizeMatch((first, *others) if others else first, by)
