"""How many numbers a model learns, computed from its plans and nothing else."""

from dataclasses import astuple, dataclass

from qkvbench.model import Block, Decoder, Encoder, Learned, Model, Tokens, Vectors
from qkvbench.variant import FEATURES, Plan


@dataclass(frozen=True)
class Parameters:
    """Learned numbers by part; biases included, a tied output matrix counted once."""

    attention: int
    feed_forward: int
    embedding: int
    norm: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))


def parameters(model: Model) -> Parameters:
    """The learned numbers of `model`, by part."""
    return Parameters(
        attention=sum(attention_parameters(plan) for plan in model.plans if plan),
        feed_forward=sum(_feed_forward(model, block) for block in model.blocks),
        embedding=_embedding(model),
        norm=_norms(model),
        head=_head(model),
    )


def attention_parameters(plan: Plan) -> int:
    """The learned numbers of one attention layer, output projection and biases included."""
    size = plan.geometry
    width = size.heads * size.head_dim
    projected = sum(root.heads for root in plan.projected) * size.head_dim
    # A rotation of n dimensions is a skew-symmetric matrix, so n(n-1)/2 numbers.
    rotation = size.head_dim * (size.head_dim - 1) // 2
    return (
        projected * (size.d_model + 1)
        + sum(plan.rotated.values()) * rotation
        + len(plan.scaled) * size.head_dim
        + (1 + FEATURES if plan.scores.correction else 0)
        + (width + 1) * size.d_model
    )


def _feed_forward(model: Model, block: Block) -> int:
    if block.feed_forward is None:
        return 0
    d_model, width = model.geometry.d_model, block.feed_forward.width
    return (d_model + 1) * width + (width + 1) * d_model


def _embedding(model: Model) -> int:
    d_model = model.geometry.d_model
    positions = model.position.length * d_model if isinstance(model.position, Learned) else 0
    match model.inputs:
        case Tokens(rows):
            return rows * d_model + positions
        case Vectors(features):
            return (features + 1) * d_model + positions


def _norms(model: Model) -> int:
    """A scale and an offset per coordinate: one norm before each part, one before the head."""
    parts = sum(
        (block.attention is not None) + (block.feed_forward is not None) for block in model.blocks
    )
    return (parts + 1) * 2 * model.geometry.d_model


def _head(model: Model) -> int:
    d_model = model.geometry.d_model
    match model.stack:
        case Decoder(tied=True):
            return 0
        case Decoder(vocabulary=classes):
            return d_model * classes
        case Encoder(classes=classes):
            return (d_model + 1) * classes
