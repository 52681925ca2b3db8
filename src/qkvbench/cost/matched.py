"""Arms of equal size: a variant whose feed-forward is narrowed or widened to another's cost.

Written ``q,k,v~q,k=v`` (as many parameters as with ``q,k=v``) or ``q,k,v~q,k=v:macs``. An arm that
loses parameters loses capacity as well; the one of equal size tells which of the two was missed.
"""

from dataclasses import dataclass, replace
from typing import Literal

from qkvbench.cost.operations import macs
from qkvbench.cost.parameters import parameters
from qkvbench.model import FeedForward, Model
from qkvbench.variant import Variant, parse, write

LIKE = "~"
MACS = ":macs"

By = Literal["parameters", "macs"]


@dataclass(frozen=True)
class Arm:
    """A variant, at the study's own size or at the size at which another variant is."""

    variant: Variant
    like: Variant | None = None
    by: By = "parameters"


def parse_arm(text: str) -> Arm:
    """The arm that is written; ValueError where a variant is none."""
    variant, like, size = text.partition(LIKE)
    if not like:
        return Arm(parse(variant))
    by: By = "macs" if size.endswith(MACS) else "parameters"
    return Arm(parse(variant), parse(size.removesuffix(MACS)), by)


def write_arm(arm: Arm) -> str:
    """The arm's one text."""
    if arm.like is None:
        return write(arm.variant)
    return f"{write(arm.variant)}{LIKE}{_size(arm, arm.like)}"


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


def with_arm(base: Model, arm: Arm, *, tokens: int) -> Model:
    """The model of an arm; one of another's size has that in its name, so that records tell it.

    Its parameters, or MACs of one forward of `tokens`, are as near as a whole width comes.
    ValueError where no width is left, or the model has no feed-forward to change.
    """
    model = base.with_variant(arm.variant)
    if arm.like is None:
        return model
    name = f"{base.name}{LIKE}{_size(arm, arm.like)}"
    target = _cost(base.with_variant(arm.like), arm.by, tokens)
    thin, next_ = (_cost(_as_wide(model, width), arm.by, tokens) for width in (1, 2))
    if next_ == thin:
        raise ValueError(f"{base.name} has no feed-forward whose width could match {name}.")
    # Cost is linear in the width.
    width = 1 + round((target - thin) / (next_ - thin))
    if width < 1:
        raise ValueError(f"No feed-forward width of {base.name} is narrow enough for {name}.")
    return replace(_as_wide(model, width), name=name)


def _size(arm: Arm, like: Variant) -> str:
    return write(like) + (MACS if arm.by == "macs" else "")


def _cost(model: Model, by: By, tokens: int) -> int:
    return parameters(model).total if by == "parameters" else macs(model, tokens)


def _as_wide(model: Model, width: int) -> Model:
    blocks = tuple(
        replace(block, feed_forward=block.feed_forward and FeedForward(width))
        for block in model.blocks
    )
    return replace(model, blocks=blocks)
