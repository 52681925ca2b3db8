"""How many numbers a model learns, computed from its plans and nothing else."""

from dataclasses import astuple, dataclass

from qkvbench.model import (
    Block,
    Decoder,
    Encoder,
    EncoderDecoder,
    Learned,
    Model,
    Tokens,
    Tower,
    TwoTowers,
    Vectors,
)
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
        attention=sum(
            attention_parameters(plan)
            for tower in model.towers
            for plans in model.plans_of(tower)
            for plan in plans
            if plan
        ),
        feed_forward=sum(
            _feed_forward(model, block) for tower in model.towers for block in tower.blocks
        ),
        # A class token is one more vector that is learned.
        embedding=sum(_embedding(model, tower) for tower in model.towers)
        + model.positions(0) * model.geometry.d_model,
        norm=sum(_norms(model, tower) for tower in model.towers),
        head=_head(model),
    )


def attention_parameters(plan: Plan) -> int:
    """The learned numbers of one attention layer, output projection and biases included."""
    size = plan.geometry
    width = size.heads * size.head_dim
    projected = sum(plan.matrix_rows.values())
    lifted = sum(heads * rank for heads, rank in plan.lifted.values())
    # A rotation of n dimensions is a skew-symmetric matrix, so n(n-1)/2 numbers.
    rotation = size.head_dim * (size.head_dim - 1) // 2
    return (
        projected * (size.d_model + 1)
        + lifted * size.head_dim
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


def _embedding(model: Model, tower: Tower) -> int:
    d_model = model.geometry.d_model
    positions = tower.position.length * d_model if isinstance(tower.position, Learned) else 0
    match tower.inputs:
        case Tokens(rows):
            return rows * d_model + positions
        case Vectors(features):
            return (features + 1) * d_model + positions


def _norms(model: Model, tower: Tower) -> int:
    """A scale and an offset per coordinate: one norm before each part, one after the last."""
    parts = sum(
        part is not None
        for block in tower.blocks
        for part in (block.attention, block.cross, block.feed_forward)
    )
    return (parts + 1) * 2 * model.geometry.d_model


def _head(model: Model) -> int:
    d_model = model.geometry.d_model
    match model.architecture:
        case Decoder(tied=True) | EncoderDecoder(tied=True):
            return 0
        case Decoder(vocabulary=classes) | EncoderDecoder(vocabulary=classes):
            return d_model * classes
        case Encoder(predicts="which position"):
            return d_model
        case Encoder(classes=classes):
            return (d_model + 1) * classes
        case TwoTowers(width=width):
            # A matrix for each tower, and the logit scale.
            return 2 * d_model * width + 1
