"""The model of an arm: variants at their attention sites, and a feed-forward of matched cost."""

from dataclasses import replace

from qkvbench.cost.operations import macs
from qkvbench.cost.parameters import parameters
from qkvbench.model import (
    Arm,
    Model,
    SizeMatch,
    shortest_cycle,
    sized_text,
    write_arm,
    write_cycle,
)


def with_arm(base: Model, arm: Arm, *, tokens: int, second_tokens: int = 0) -> Model:
    """The model of an arm.

    If the arm is matched to a size, parameters, or MACs of one forward of so many tokens, are as
    near to it as a whole width comes. ValueError if the model lacks a site, no width is left, there
    is no feed-forward, or a site has fewer layers than variants that are given in turn.
    """
    model = base
    for cycle, sites in arm.variants:
        if unknown := [site for site in sites if site not in base.places]:
            raise ValueError(
                f"{write_arm(arm)} names the attention site '{unknown[0]}'; "
                f"{base.name} has {', '.join(base.places)}."
            )
        model = model.with_variant(cycle, sites or None)
        for site in sites or base.places:
            placed = shortest_cycle(each.variant for each in model.places[site] if each)
            if len(cycle) > len(placed):
                raise ValueError(
                    f"{write_cycle(cycle)} is {write_cycle(placed)} in the "
                    f"{len(model.places[site])} layers of {base.name}; write that."
                )
    model = replace(model, changes=arm.changes)
    if arm.again:
        model = replace(model, init=replace(model.init, again=True))
    if arm.size_match is None:
        return model
    return _matched(model, base, arm.size_match, tokens, second_tokens)


def unmarked(model: Model) -> Model:
    """The model without changes, size match, the width that follows from it, and the A/A mark.

    Models of one study are equal in this, whatever their arms are.
    """
    init = replace(model.init, again=False)
    return replace(_as_wide(model, 0), size_match=None, init=init, changes=())


# The cost of a hidden unit is a share of the cost of so many, which no rounding touches.
MANY = 2**10


def _matched(model: Model, base: Model, match: SizeMatch, tokens: int, second_tokens: int) -> Model:
    def cost(of: Model) -> int:
        if match.by == "parameters":
            return parameters(of).total
        return macs(of, tokens, second_tokens)

    label = sized_text(base.name, match)
    target = cost(base.with_variant(match.like))
    # Cost is linear in the width, but that half of an odd one is rounded.
    two, wide = (cost(_as_wide(model, width)) for width in (2, 2 + MANY))
    if wide == two:
        raise ValueError(f"{base.name} has no feed-forward whose width could match {label}.")
    slope = (wide - two) / MANY
    width = 1 + round((target - (two - slope)) / slope)
    if width < 1:
        raise ValueError(f"No feed-forward width of {base.name} is narrow enough for {label}.")
    return replace(_as_wide(model, width), size_match=match)


def _as_wide(model: Model, width: int) -> Model:
    return model.with_blocks(
        lambda block: replace(
            block, feed_forward=block.feed_forward and replace(block.feed_forward, width=width)
        )
    )
