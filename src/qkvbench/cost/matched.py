"""Arms of a study: a variant everywhere or at some places, at its own size or at another's.

At places it is written as a model writes it: ``q,k=v@cross`` is canonical elsewhere,
``q,k=v@cross+self|q=k,v@encoder`` is canonical nowhere. Of equal size, ``q,k,v~q,k=v`` (as many
parameters as with ``q,k=v``) or ``q,k,v~q,k=v:macs``: the feed-forward is narrowed or widened. An
arm that loses parameters loses capacity as well; the one of equal size tells which was missed.
"""

from dataclasses import dataclass, replace
from typing import Literal

from qkvbench.cost.operations import macs
from qkvbench.cost.parameters import parameters
from qkvbench.model import AND, AT, PLACED, FeedForward, Model, placed_text
from qkvbench.variant import Variant, parse, write

LIKE = "~"
MACS = ":macs"

By = Literal["parameters", "macs"]


@dataclass(frozen=True)
class Arm:
    """Variants, each with its places (none: all); canonical at places that are not named.

    At the study's own size, or at the size at which the variant `like` is everywhere.
    """

    placed: tuple[tuple[Variant, tuple[str, ...]], ...]
    like: Variant | None = None
    by: By = "parameters"


def parse_arm(text: str) -> Arm:
    """The arm that is written; ValueError where a variant is none."""
    variants, like, size = text.partition(LIKE)
    parts = [part.partition(AT) for part in variants.split(PLACED)]
    placed = tuple(
        (parse(variant), tuple(places.split(AND)) if at else ()) for variant, at, places in parts
    )
    named = [place for _, places in placed for place in places]
    if len(set(named)) < len(named) or (len(placed) > 1 and not all(at for _, at in placed)):
        raise ValueError(
            f"In '{variants}' each variant needs places of its own, as in 'q,k=v@self|q=k,v@cross'."
        )
    if not like:
        return Arm(placed)
    by: By = "macs" if size.endswith(MACS) else "parameters"
    return Arm(placed, parse(size.removesuffix(MACS)), by)


def write_arm(arm: Arm) -> str:
    """The arm's one text."""
    variants = placed_text({write(variant): places for variant, places in arm.placed})
    return variants if arm.like is None else f"{variants}{LIKE}{_size(arm, arm.like)}"


def arm_text(variant: str, model: str) -> str:
    """The arm that a record tells of, from its variant and its model's name."""
    _, like, size = model.partition(LIKE)
    return f"{variant}{like}{size}"


def own_name(model: str) -> str:
    """The name of the model that an arm varies."""
    return model.partition(LIKE)[0]


def unsized(model: Model) -> Model:
    """The model without what makes it an arm of another's size: its name's end and its width."""
    return replace(_as_wide(model, 0), name=own_name(model.name))


def with_arm(base: Model, arm: Arm, *, tokens: int, second_tokens: int = 0) -> Model:
    """The model of an arm; one of another's size has that in its name, so that records tell it.

    Its parameters, or MACs of one forward of so many tokens, are as near as a whole width comes.
    ValueError where the model lacks a place, no width is left, or there is no feed-forward.
    """
    model = base
    for variant, places in arm.placed:
        if unknown := [place for place in places if place not in base.places]:
            raise ValueError(
                f"{write_arm(arm)} names the place '{unknown[0]}'; "
                f"{base.name} has {', '.join(base.places)}."
            )
        model = model.with_variant(variant, places or None)
    if arm.like is None:
        return model
    name = f"{base.name}{LIKE}{_size(arm, arm.like)}"
    target = _cost(base.with_variant(arm.like), arm.by, tokens, second_tokens)
    thin, next_ = (_cost(_as_wide(model, width), arm.by, tokens, second_tokens) for width in (1, 2))
    if next_ == thin:
        raise ValueError(f"{base.name} has no feed-forward whose width could match {name}.")
    # Cost is linear in the width.
    width = 1 + round((target - thin) / (next_ - thin))
    if width < 1:
        raise ValueError(f"No feed-forward width of {base.name} is narrow enough for {name}.")
    return replace(_as_wide(model, width), name=name)


def _size(arm: Arm, like: Variant) -> str:
    return write(like) + (MACS if arm.by == "macs" else "")


def _cost(model: Model, by: By, tokens: int, second_tokens: int) -> int:
    return parameters(model).total if by == "parameters" else macs(model, tokens, second_tokens)


def _as_wide(model: Model, width: int) -> Model:
    return model.with_blocks(
        lambda block: replace(block, feed_forward=block.feed_forward and FeedForward(width))
    )
