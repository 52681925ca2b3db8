"""Multiply-accumulates of one forward pass, computed from the plans and nothing else."""

from dataclasses import replace
from math import prod

from qkvbench.model import Model
from qkvbench.variant import (
    CHUNK,
    ApplyMap,
    Derivation,
    Elu,
    Favor,
    GatedDelta,
    Input,
    Linear,
    Plan,
    UpProject,
)


def macs(model: Model, tokens: int, second_tokens: int = 0) -> int:
    """Multiply-accumulates of all matrix products in one forward of one sequence of `tokens`.

    A second input, if the model has one, has `second_tokens`.
    Scores and weighted sums count as full tokens × tokens products, even if a mask hides half of
    them; with a window, as many columns as the widest row sees. The matrices of learned rotations
    are made once per set of weights and not counted; neither are norms, and what a position or a
    bias adds to the scores.
    """
    d_model = model.geometry.d_model
    total = model.architecture.head_macs(d_model, tokens)
    inputs = zip(model.towers, model.layers, (tokens, second_tokens), strict=False)
    for number, (tower, layers, read) in enumerate(inputs):
        own = read if number else model.positions(read)
        total += read * tower.inputs.macs(d_model)
        for block, plans in zip(tower.blocks, layers, strict=True):
            total += attention_macs(plans.attention, own) if plans.attention else 0
            total += attention_macs(plans.cross, own, second_tokens) if plans.cross else 0
            total += own * block.feed_forward.macs(d_model) if block.feed_forward else 0
    return total


def flops(model: Model, tokens: int, second_tokens: int = 0) -> int:
    """Floating-point operations of the matrix products: two for each multiply-accumulate."""
    return 2 * macs(model, tokens, second_tokens)


def study_flops(model: Model, tokens: int) -> int:
    """The count of the profiler of arXiv:2606.04032: `flops`, the softmax and the norms.

    One operation for each score and for each normed number; a comparison figure only.
    """
    size = model.geometry
    layers = len(model.blocks)
    positions = model.positions(tokens)
    softmax = layers * size.heads * positions * positions
    norms = (2 * layers + 1) * positions * size.d_model
    return flops(model, tokens) + softmax + norms


def attention_macs(plan: Plan, tokens: int, source_tokens: int = 0) -> int:
    """Multiply-accumulates of one attention layer, output projection included, biases not.

    In cross-attention the source has `source_tokens`; a matrix that both inputs share counts for
    each. Each token has a score with as many keys as its mask shows at most, and a global one with
    all.
    """
    size = plan.geometry
    read: dict[Input, int] = {"stream": tokens, "source": source_tokens, "layer below": tokens}
    projections = sum(read[root.reads] * root.rows * size.d_model for root in plan.roots)
    maps = 0
    for made in _maps(plan):
        heads, width = plan.shape(made)
        _, inputs = plan.shape(replace(made, ops=made.ops[:-1]))
        maps += read[plan.root(made.root).reads] * heads * width * inputs
    products = product_macs(plan, tokens, source_tokens)
    output = plan.output_width * size.d_model if plan.output_projection else 0
    output += sum(prod(each.shape) for part, each in plan.maps.items() if part == "o")
    return projections + maps + products + tokens * output


def product_macs(plan: Plan, tokens: int, source_tokens: int = 0) -> int:
    """Those of queries with keys and of weights with values, or of a linear attention in place."""
    if plan.linear:
        return _linear_macs(plan, plan.linear, tokens)
    scores = tokens * source_tokens if plan.is_cross else plan.mask.scores(tokens)
    return plan.geometry.heads * scores * (plan.score_width + plan.width("v"))


def _linear_macs(plan: Plan, linear: Linear, tokens: int) -> int:
    """Multiply-accumulates of linear attention over a whole text, without projections.

    In a causal pass a token meets those of its chunk and the sum of all before it, and the text is
    filled up to whole chunks; in the other the sum of all. Solving a triangular system counts as a
    product with a full matrix.
    """
    heads, groups = plan.geometry.heads, plan.heads("k")
    key, value = plan.score_width, plan.width("v")
    chunk = min(CHUNK, tokens)
    whole = -(-tokens // chunk) * chunk
    match linear:
        case GatedDelta():
            own = chunk * (key + value)
            # Of keys with keys, solved for V and K, with the memory twice; and of queries.
            of_keys = groups * (chunk * key + own + 2 * key * value)
            return whole * (of_keys + heads * (own + key * value))
        case Elu() | Favor():
            state = plan.state
            assert state
            features, width = state.rows, state.width
            drawn = features * key if isinstance(linear, Favor) else 0
            made = tokens * (heads + groups) * drawn
            if not plan.mask.causal:
                return made + tokens * (heads + groups) * features * width
            inside = chunk * (features + width)
            each = (heads + groups) * features * width + heads * inside
            return made + whole * each


def _maps(plan: Plan) -> set[Derivation]:
    """Each distinct derivation that ends in a learned map of heads."""
    return {
        Derivation(derivation.root, derivation.ops[:end])
        for derivation in plan.all_derivations
        for end, op in enumerate(derivation.ops, start=1)
        if isinstance(op, ApplyMap | UpProject)
    }
