"""Multiply-accumulates of one forward pass, computed from the plans and nothing else."""

from qkvbench.model import Decoder, Encoder, EncoderDecoder, Model, TwoTowers, Vectors
from qkvbench.variant import ROLES, ApplyRotation, Input, Path, Plan, Role, UpProject


def macs(model: Model, tokens: int, second_tokens: int = 0) -> int:
    """Multiply-accumulates of all matrix products in one forward of one sequence of `tokens`.

    Of a second input, where the model has one, there are `second_tokens`.
    Scores and weighted sums count as full tokens × tokens products, also where a mask leaves half
    of them out; with a window, as many columns as the widest row sees. The matrices of learned
    rotations are made once per set of weights, not counted; neither are norms, and what a position
    or a correction adds to the scores.
    """
    total = 0
    for number, (tower, read) in enumerate(
        zip(model.towers, (tokens, second_tokens), strict=False)
    ):
        own = read if number else model.positions(read)
        for block, (plan, crossed) in zip(tower.blocks, model.plans_of(tower), strict=True):
            if plan and block.attention:
                causal = not number and _decodes(model)
                total += attention_macs(plan, own, seen=block.attention.seen(own, causal=causal))
            total += attention_macs(crossed, own, second_tokens) if crossed else 0
            width = block.feed_forward.width if block.feed_forward else 0
            total += 2 * own * model.geometry.d_model * width
        features = tower.inputs.features if isinstance(tower.inputs, Vectors) else 0
        total += read * features * model.geometry.d_model
    return total + _head(model, tokens)


def flops(model: Model, tokens: int, second_tokens: int = 0) -> int:
    """Floating-point operations of the matrix products: two for each multiply-accumulate."""
    return 2 * macs(model, tokens, second_tokens)


def study_flops(model: Model, tokens: int) -> int:
    """What the profiler of arXiv:2606.04032 counts: `flops`, the softmax and the norms.

    One operation for each score and for each normed number; a comparison figure only.
    """
    size = model.geometry
    layers = len(model.blocks)
    seen = model.positions(tokens)
    softmax = layers * size.heads * seen * seen
    norms = (2 * layers + 1) * seen * size.d_model
    return flops(model, tokens) + softmax + norms


def attention_macs(
    plan: Plan, tokens: int, source_tokens: int = 0, *, seen: int | None = None
) -> int:
    """Multiply-accumulates of one attention layer, output projection included, biases not.

    Where it attends to a source, that has `source_tokens`; a matrix that both share counts for
    each. Each token has a score with `seen` others; None is all there are.
    """
    size = plan.geometry
    width = size.heads * size.head_dim
    read: dict[Input, int] = {"stream": tokens, "source": source_tokens}
    roots = {root.name: root for root in plan.roots}
    projections = sum(
        read[root.reads] * root.heads * root.width * size.d_model for root in plan.projected
    )
    maps = 0
    for way, role in _maps(plan).items():
        root = roots[way.root]
        mapped = root.width if isinstance(way.ops[-1], UpProject) else size.head_dim
        maps += read[root.reads] * plan.heads(role) * size.head_dim * mapped
    if seen is None:
        seen = source_tokens if plan.is_cross else tokens
    return projections + maps + tokens * width * (2 * seen + size.d_model)


def _decodes(model: Model) -> bool:
    return isinstance(model.architecture, Decoder | EncoderDecoder)


def _maps(plan: Plan) -> dict[Path, Role]:
    """Each distinct way from a root that ends in a rotation or an up-projection, with a role."""
    ways: dict[Path, Role] = {}
    for role in ROLES:
        path = plan.derivations[role]
        for end, op in enumerate(path.ops, start=1):
            if isinstance(op, ApplyRotation | UpProject):
                ways[Path(path.root, path.ops[:end])] = role
    return ways


def _head(model: Model, tokens: int) -> int:
    """The matrix products after the last block; of two towers without those of different items."""
    d_model = model.geometry.d_model
    match model.architecture:
        case Decoder(vocabulary=classes) | EncoderDecoder(vocabulary=classes):
            return tokens * d_model * classes
        case Encoder(predicts=predicts, classes=classes):
            rows = {
                "each position": tokens * classes,
                "the whole": classes,
                "which position": tokens,
            }
            return rows[predicts] * d_model
        case TwoTowers(width=width):
            return 2 * d_model * width
