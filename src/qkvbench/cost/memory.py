"""An upper bound on the bytes that a training step holds, computed from the plans.

Weights, gradients and AdamW's two moments are exact. Activations are bounded: every tensor that an
operation may save for its backward pass counts once, whether or not the framework shares it. The
bound is linear in the tokens: attention saves its inputs, its output and one number per row.
"""

from dataclasses import astuple, dataclass, replace
from math import prod

from qkvbench.cost.parameters import parameters
from qkvbench.experiment import Experiment, Precision
from qkvbench.model import Block, Encoder, LayerPlans, Model, lent_roles
from qkvbench.model.parts import DynamicTanh, NoNorm, SwiGLU
from qkvbench.variant import CHUNK, Plan

FULL_BYTES = 4
COMPUTE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
# From this many classes on, the loss keeps its gradients instead of all logits.
CLASSES_BY_ROWS = 1024


@dataclass(frozen=True)
class StepMemory:
    """Bytes held in training, by part.

    ``gradients`` appear while ``activations`` are freed, so the peak of a step lies between the sum
    without them and the sum with them, and the workspace of single operations.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))


def step_memory(experiment: Experiment, tokens: int, second_tokens: int = 0) -> StepMemory:
    """The bound for a step on sequences of `tokens`, and of `second_tokens` of a second input."""
    model, training = experiment.model, experiment.training
    items = -(-training.batch // training.micro_batches)
    learned = FULL_BYTES * parameters(model).total
    compute = COMPUTE_BYTES[experiment.precision]
    width, dropout = model.geometry.d_model, training.dropout > 0
    activations = 0 if compute == FULL_BYTES else compute * parameters(model).total
    for number, (tower, layers) in enumerate(zip(model.towers, model.layers, strict=True)):
        positions = items * (second_tokens if number else model.positions(tokens))
        length = second_tokens if number else model.positions(tokens)
        for block, plans, lent in zip(tower.blocks, layers, lent_roles(layers), strict=True):
            values = _block_values(width, block, plans, dropout=dropout)
            values += sum(_linear_values(plan, length) for plan in plans if plan)
            kept = FULL_BYTES * width if experiment.checkpointing else values * compute
            if experiment.checkpointing and plans.attention:
                # K and V are inputs of the layers that read them.
                plan = plans.attention
                widths = {"k": plan.score_width, "v": plan.width("v")}
                kept += sum(FULL_BYTES * plan.heads(role) * widths[role] for role in lent.whole)
            # In half precision the sums that norms read are kept in full.
            wide = 0 if isinstance(block.norm, NoNorm) else 2 * width
            activations += positions * (kept + FULL_BYTES * (wide + 12))
        # Input, final norm and head.
        activations += positions * FULL_BYTES * (4 * width + 2)
    activations += FULL_BYTES * _head_values(model, items * model.positions(tokens))
    return StepMemory(learned, learned, 2 * learned, activations)


def _block_values(d_model: int, block: Block, plans: LayerPlans, *, dropout: bool) -> int:
    """Numbers that one block saves for each position."""
    # Of each part its input, what it adds and which of it dropout keeps; and of a second norm.
    stream = 1 + dropout
    match block.norm:
        case NoNorm():
            pass
        case DynamicTanh():
            stream += 2 + 3 * (block.norm_place != "input")
        case _:
            stream += 1 + 2 * (block.norm_place != "input")
    values = 0
    for plan in plans:
        if plan:
            values += d_model * stream + _attention_values(plan)
    match block.feed_forward:
        case None:
            return values
        case SwiGLU(width):
            # gate, its sigmoid, up and their product.
            hidden = 4 * width
        case feed_forward:
            hidden = feed_forward.macs(d_model) // d_model
    # A parallel feed-forward reads what attention reads.
    shared = block.residual == "parallel" and plans.attention is not None
    return values + d_model * (stream - shared) + hidden


def _attention_values(plan: Plan) -> int:
    """Roots, each step of each derivation, and the attention output before and after its ops."""
    heads, width, score_width = plan.geometry.heads, plan.width("v"), plan.score_width
    roots = sum(root.heads * root.width for root in plan.roots if not root.is_below)
    steps = sum(
        prod(plan.shape(replace(made, ops=made.ops[:end])))
        for made in plan.all_derivations
        for end in range(1, len(made.ops) + 1)
    )
    # A kernel may need Q, K and V of one width.
    wide = max(width, score_width)
    inputs = (heads + plan.heads("k")) * wide + plan.heads("v") * wide
    output = (
        2 + len(plan.output_ops + plan.before_output) + 4 * plan.exclusive + 2 * bool(plan.gate)
    )
    return roots + steps + output * heads * wide + 2 * inputs


def _linear_values(plan: Plan, tokens: int) -> int:
    """Numbers that linear attention saves for each position, beside Q, K, V and the output."""
    if plan.state is None:
        return 0
    heads, groups, state = plan.geometry.heads, plan.heads("k"), plan.state
    chunk = min(CHUNK, tokens)
    # In fp32: exponents, features, and both in the order of chunks; products inside a chunk before
    # and after the mask; and the sums at the end of each chunk, which may be filled up.
    rows = 8 * (heads + groups) * (state.rows + state.width)
    inside = 6 * (heads + groups) * chunk
    sums = 4 * groups * state.rows * state.width // chunk
    return 2 * (rows + inside + sums)


def _head_values(model: Model, positions: int) -> int:
    """Numbers that logits and loss save: all logits if they are few, or else the gradients."""
    match model.architecture:
        case Encoder(classes=classes):
            return 2 * classes * positions
        case architecture:
            classes = getattr(architecture, "vocabulary", 0)
            if classes < CLASSES_BY_ROWS:
                return 2 * classes * positions
            # Of the hidden rows, and of the head's matrix.
            return (2 * positions + classes) * model.geometry.d_model
