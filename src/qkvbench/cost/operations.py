"""Multiply-accumulates of one forward pass, computed from the plans and nothing else."""

from qkvbench.model import Decoder, Encoder, Model, Vectors
from qkvbench.variant import ROLES, Op, Plan, Role, Rotate


def macs(model: Model, tokens: int) -> int:
    """Multiply-accumulates of all matrix products in one forward of one sequence of `tokens`.

    Scores and weighted sums count as full tokens × tokens products, also where a mask leaves half
    of them out. The matrices of learned rotations are made once per set of weights, not counted;
    neither are norms, and what a position or a correction adds to the scores.
    """
    d_model = model.geometry.d_model
    attention = sum(attention_macs(plan, tokens) for plan in model.plans if plan)
    widths = sum(block.feed_forward.width for block in model.blocks if block.feed_forward)
    return attention + 2 * tokens * d_model * widths + _ends(model, tokens)


def flops(model: Model, tokens: int) -> int:
    """Floating-point operations of the matrix products: two for each multiply-accumulate."""
    return 2 * macs(model, tokens)


def study_flops(model: Model, tokens: int) -> int:
    """What the profiler of arXiv:2606.04032 counts: `flops`, the softmax and the norms.

    One operation for each score and for each normed number; a comparison figure only.
    """
    size = model.geometry
    layers = len(model.blocks)
    softmax = layers * size.heads * tokens * tokens
    norms = (2 * layers + 1) * tokens * size.d_model
    return flops(model, tokens) + softmax + norms


def attention_macs(plan: Plan, tokens: int) -> int:
    """Multiply-accumulates of one attention layer, output projection included, biases not."""
    size = plan.geometry
    width = size.heads * size.head_dim
    projections = sum(root.heads for root in plan.projected) * size.head_dim * size.d_model
    rotations = sum(plan.heads(role) for role in _rotations(plan)) * size.head_dim**2
    products = 2 * tokens * width
    return tokens * (projections + rotations + products + width * size.d_model)


def _rotations(plan: Plan) -> list[Role]:
    """A role for each rotation that is carried out: one for each distinct way from a root."""
    ways: dict[tuple[str, tuple[Op, ...]], Role] = {}
    for role in ROLES:
        path = plan.paths[role]
        for end, op in enumerate(path.ops, start=1):
            if isinstance(op, Rotate):
                ways[path.root, path.ops[:end]] = role
    return list(ways.values())


def _ends(model: Model, tokens: int) -> int:
    """The matrix products before the first block and after the last; a table look-up is none."""
    d_model = model.geometry.d_model
    match model.stack:
        case Decoder(vocabulary=classes):
            return tokens * d_model * classes
        case Encoder() as encoder:
            features = encoder.inputs.features if isinstance(encoder.inputs, Vectors) else 0
            predictions = tokens if encoder.predicts == "each position" else 1
            return tokens * features * d_model + predictions * d_model * encoder.classes
