"""Bytes that a training step holds, computed from the plans: what is learned, and what is kept.

What is kept between the forward and the backward pass is linear in the tokens: attention keeps its
inputs, its result and one number per row, no scores.
"""

from dataclasses import astuple, dataclass

from qkvbench.cost.parameters import parameters
from qkvbench.experiment import Experiment, Precision
from qkvbench.model import (
    Block,
    Decoder,
    Encoder,
    EncoderDecoder,
    Model,
    Rotary,
    RotaryWithInverse,
    TwoTowers,
    Vectors,
    rotary_dim,
)
from qkvbench.variant import ApplyRope, ApplyRotation, Path, Plan, UpProject

# Of weights, of what is summed, normed or fed to a softmax, and of a class's or a place's number.
FULL, INDEX = 4, 8
PRODUCTS: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
# From this vocabulary on, the loss keeps its gradients instead of all logits.
MANY = 1024


@dataclass(frozen=True)
class StepMemory:
    """Bytes held at the end of a forward pass in training, by part.

    ``gradients`` are made while ``activations`` are given back, so the peak of a step lies between
    the sum without them and the sum with them, and what single operations need for themselves.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))


@dataclass(frozen=True)
class _Kept:
    """Sizes of what is kept: sequences and tokens computed at a time, bytes of a product."""

    model: Model
    items: int
    tokens: int
    product: int
    dropout: bool

    @property
    def places(self) -> int:
        """Positions of all sequences together."""
        return self.items * self.tokens

    @property
    def stream(self) -> int:
        """The stream once, in fp32."""
        return self.places * self.model.geometry.d_model * FULL

    @property
    def normed(self) -> int:
        """What a norm keeps: its input, and for each place a mean and a deviation."""
        return self.stream + 2 * self.places * FULL

    def copied(self, numbers: int) -> int:
        """A matrix in the type of its products, where that is not its own."""
        return 0 if self.product == FULL else numbers * self.product


def step_memory(experiment: Experiment, tokens: int, scored: int | None = None) -> StepMemory:
    """What a step on sequences of `tokens` holds; of each sequence `scored` places, None: all.

    Exact on a CPU for more than one sequence at a time. In bf16 and fp16 the copies count that
    autocast makes for products: of each matrix, and of the stream for each role cut from it.

    Not looked into are norms of Q and K, a value that is turned, and what is added to scores. For
    the last two it is off in each layer by at most three tensors like Q, and three of scores, of
    which only some rows are held at a time, however long the sequence. ValueError for a model that
    reads two inputs, which is not looked into at all.
    """
    model, training = experiment.model, experiment.training
    if model.second is not None:
        raise ValueError(
            f"The memory of a step is not computed for {model.architecture.kind} models."
        )
    kept = _Kept(
        model,
        items=-(-training.batch // training.micro_batches),
        tokens=model.positions(tokens),
        product=PRODUCTS[experiment.precision],
        dropout=training.dropout > 0,
    )
    learned = FULL * parameters(model).total
    if experiment.checkpointing:
        blocks = kept.stream * len(model.blocks)
    else:
        pairs = zip(model.blocks, model.plans, strict=True)
        blocks = sum(_block(kept, block, plan) for block, plan in pairs)
    return StepMemory(
        weights=learned,
        gradients=learned,
        optimizer=2 * learned,
        activations=_input(kept) + blocks + _head(kept, tokens if scored is None else scored),
    )


def _input(kept: _Kept) -> int:
    """The numbers that are looked up, or the vectors that are mapped by a matrix."""
    inputs = kept.model.inputs
    places = kept.items * (kept.tokens - kept.model.positions(0))
    if not isinstance(inputs, Vectors):
        return places * INDEX
    return places * inputs.features * kept.product


def _block(kept: _Kept, block: Block, plan: Plan | None) -> int:
    """What one block keeps: at each of its parts a norm, a dropout, and what the part needs."""
    dropped = kept.places * kept.model.geometry.d_model * kept.product * kept.dropout
    total = 0
    if plan:
        total += kept.normed + _attention(kept, plan) + dropped
    if block.feed_forward:
        # The input of both matrices, and of the GELU between them.
        numbers = kept.model.geometry.d_model + 2 * block.feed_forward.width
        total += kept.normed + kept.places * numbers * kept.product + dropped
        total += kept.copied(2 * kept.model.geometry.d_model * block.feed_forward.width)
    return total


def _attention(kept: _Kept, plan: Plan) -> int:
    """The normed stream, Q, K and V, what was seen, and what made them from roots."""
    size = plan.geometry
    width = size.heads * size.head_dim
    projected = sum(plan.matrix_rows.values())
    lifted = sum(count * rank for count, rank in plan.lifted.values())
    paths = plan.derivations
    rotated = _rotated(plan)
    cut = [path for path in paths.values() if path.root == "x" and not _rotates(path)]
    half = kept.product != FULL

    # Numbers for each place: tensors of their own, and roots in their matrix's one product.
    own = {path for path in paths.values() if path.ops}
    copied = {path for path in rotated if not path.ops[:-1] or isinstance(path.ops[-2], UpProject)}
    own |= {Path(path.root, path.ops[:-1]) for path in rotated - copied}
    if half:
        # The stream is in fp32: for each role that is cut from it, autocast makes a copy.
        own -= set(cut)
    numbers = sum(plan.heads_at(path) for path in own) * size.head_dim
    numbers += len(cut) * width if half else 0
    if plan.projected or not half:
        numbers += size.d_model
    if plan.lifted or any(not path.ops and path.root != "x" for path in paths.values()):
        numbers += projected
    # What a learned rotation is applied to, in the order of the product.
    numbers += sum(map(plan.heads_at, copied)) * size.head_dim
    # What attention saw, for its own backward pass, and merged, for the output projection's: one
    # tensor where the memory of Q has the heads of a place side by side.
    numbers += 2 * width if paths["q"].ops else width

    # Cosines and sines of all positions: one table in fp32, and in half precision a copy of it for
    # each tensor that is turned in that type.
    turned = {path for path in paths.values() if ApplyRope() in path.ops}
    in_full = bool(turned) if not half else not turned.isdisjoint(cut)
    angles = FULL * in_full + (len(turned - set(cut)) * kept.product if half else 0)
    match kept.model.position:
        case Rotary() | RotaryWithInverse() as position:
            angles *= rotary_dim(position, size.head_dim)
        case _:
            pass

    # The matrix of a rotation is laid out once for each sequence.
    matrices = sum(plan.heads_at(path) for path in rotated) * size.head_dim**2 * kept.items
    return (
        (kept.places * numbers + matrices) * kept.product
        + kept.copied((projected + width) * size.d_model + lifted * size.head_dim)
        + kept.places * size.heads * FULL
        + kept.tokens * angles
        + _made_rotations(plan)
    )


def _rotated(plan: Plan) -> set[Path]:
    """Each place on a way from a root where a learned rotation is applied."""
    return {
        Path(path.root, path.ops[:end])
        for path in plan.derivations.values()
        for end, op in enumerate(path.ops, start=1)
        if isinstance(op, ApplyRotation)
    }


def _rotates(path: Path) -> bool:
    return any(isinstance(op, ApplyRotation) for op in path.ops)


def _made_rotations(plan: Plan) -> int:
    """What Cayley's map keeps for each rotation: three matrices, pivots, places of the numbers."""
    size = plan.geometry.head_dim
    heads = sum(plan.rotated.values())
    numbers = heads * (3 * size * size + size) * FULL
    return numbers + len(plan.rotated) * size * (size - 1) * INDEX


def _head(kept: _Kept, scored: int) -> int:
    """The last norm, the stream at the scored places, and the logits' softmax or gradients."""
    d_model = kept.model.geometry.d_model
    total = kept.normed
    match kept.model.architecture:
        case Encoder(pooling="class token", classes=classes):
            places = kept.items
            # The stream is kept as a whole, of which the norm reads one place in each sequence.
            total = kept.stream + 2 * places * FULL
        case Encoder(predicts="which position", classes=classes):
            # One matrix row makes the scores, of which the softmax is kept.
            total += kept.places * d_model * kept.product + kept.copied(d_model)
            return total + kept.places * FULL + kept.items * INDEX + FULL
        case Encoder(predicts="the whole", classes=classes):
            places = kept.items
        case Decoder(vocabulary=classes) | Encoder(classes=classes):
            places = kept.items * scored
            if scored < kept.tokens:
                total += places * INDEX
        case EncoderDecoder() | TwoTowers():
            raise AssertionError("refused above")
    total += places * d_model * kept.product
    if isinstance(kept.model.architecture, Decoder) and classes >= MANY:
        # Its rows, the size of each, and the matrix: what the loss makes is its own gradient.
        return total + places * FULL + classes * d_model * FULL
    total += kept.copied(classes * d_model)
    return total + places * (classes * FULL + INDEX) + FULL
