"""The least time of a step on a device: by the bytes that it must move, and by its arithmetic.

Computed from plans, so a tied root is one row of the cache and not one for each role or head. What
is left out only makes a step slower: kernels that wait, activations that leave the chip, norms,
softmax and sampling. So no program that passes every token through every layer is faster than the
bound, which is a law of the tests. (In a prefill a program may leave out all tokens but the last in
layers whose rows no later token reads, as arXiv:2405.05254 does: none here does.)

With a calibration, the same parts are added up at the rates that programs of this bench reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qkvbench.cost.cache import (
    CACHE_FORMATS,
    STATE_BYTES,
    CacheDtype,
    cached_bytes,
    state_bytes,
)
from qkvbench.cost.operations import macs, product_macs
from qkvbench.cost.parameters import parameters
from qkvbench.hardware import Arithmetic, Calibration, Device, Read
from qkvbench.model import Model
from qkvbench.variant import ROPE_KEY, ApplyMap, CachedTensor, Mask, Plan, State, UpProject

Phase = Literal["decode", "prefill", "training step"]

# What AdamW moves for each weight: read in both passes, its gradient written and read, two moments
# and the weight itself read once more and written.
TRAINING_WORDS = 9
TRAINING_BYTES = 4
# The backward pass has two products for each one of the forward pass.
TRAINING_PASSES = 3


@dataclass(frozen=True)
class Conditions:
    """How a model is run: `tokens` cached or read for each of `batch` sequences, and the types.

    ``weights`` and ``cache`` are how numbers are stored, ``precision`` is that of the arithmetic.
    """

    tokens: int
    batch: int = 1
    precision: Arithmetic = "bf16"
    weights: CacheDtype = "bf16"
    cache: CacheDtype = "bf16"


@dataclass(frozen=True)
class Part:
    """A part of a step: the operations of its products, and the bytes that it must move."""

    flops: float
    moved_bytes: float


@dataclass(frozen=True)
class Work:
    """The least that a step needs: products with weights, and attention over keys and values.

    ``tokens`` are those that the step makes or reads, of all sequences. ``read_again`` are bytes of
    ``attention`` that another layer has read before. ``features`` are what its plans ask of a
    kernel over cached rows.
    """

    phase: Phase
    weights: Part
    attention: Part
    layers: int
    tokens: int
    read_again: float = 0.0
    features: frozenset[str] = frozenset()

    @property
    def flops(self) -> float:
        """Operations of all products, two for each multiply-accumulate."""
        return self.weights.flops + self.attention.flops

    @property
    def moved_bytes(self) -> float:
        """Bytes that must be read or written."""
        return self.weights.moved_bytes + self.attention.moved_bytes


@dataclass(frozen=True)
class Bound:
    """The least time of a step, and what it waits for."""

    seconds: float
    by: Literal["memory", "arithmetic"]


def work(model: Model, phase: Phase, conditions: Conditions) -> Work:
    """The least that one step of `phase` needs.

    A decode step makes one token of each sequence after `tokens` in the cache. A prefill reads
    `tokens` of each and scores the last one. ValueError for a model with two inputs, or one that
    does not decode.
    """
    if len(model.towers) > 1:
        raise ValueError(f"{model.name} reads two inputs; costs by device are of models with one.")
    if phase == "decode" and not model.decodes:
        raise ValueError(f"{model.name} does not decode.")
    batch, tokens = conditions.batch, conditions.tokens
    plans = [plan for plan in model.plans if plan]
    stored = _weight_bytes(model, conditions.weights)
    again = 0
    match phase:
        case "decode":
            weights = Part(2 * batch * _token_macs(model), stored)
            products = sum(_decode_macs(plan, tokens) for plan in plans)
            rows = sum(_read_bytes(plan, tokens, conditions.cache) for plan in plans)
            attention = Part(2 * batch * products, batch * rows)
            again = batch * (rows - _distinct_bytes(model, tokens, conditions.cache))
            made = batch
        case "prefill":
            read = model.positions(tokens)
            scored = model.architecture.head_macs(model.geometry.d_model, read)
            last = model.architecture.head_macs(model.geometry.d_model, 1)
            products = sum(_pass_macs(plan, read) for plan in plans)
            others = macs(model, tokens) - scored - sum(product_macs(plan, read) for plan in plans)
            weights = Part(2 * batch * (others + last), stored)
            attention = Part(2 * batch * products, batch * _kept_bytes(model, conditions))
            made = batch * tokens
        case "training step":
            read = model.positions(tokens)
            products = sum(_pass_macs(plan, read) for plan in plans)
            others = macs(model, tokens) - sum(product_macs(plan, read) for plan in plans)
            moved = TRAINING_WORDS * TRAINING_BYTES * parameters(model).total
            weights = Part(TRAINING_PASSES * 2 * batch * others, moved)
            attention = Part(TRAINING_PASSES * 2 * batch * products, 0)
            made = batch * tokens
    features = frozenset(name for plan in plans for name in plan.features)
    return Work(phase, weights, attention, len(model.blocks), made, again, features)


def bound(work: Work, device: Device, precision: Arithmetic) -> Bound:
    """The least time of a step on a device; ValueError if it has no such arithmetic.

    Memory bounds a step by what does not fit beside the arithmetic, where the rest may still lie
    from the step before, or from a layer that has read it.
    """
    rate = device.flops_per_s.get(precision)
    if rate is None:
        raise ValueError(
            f"{device.name} has no rate for {precision}; it has {', '.join(device.flops_per_s)}."
        )
    chip = device.on_chip_bytes.value if device.on_chip_bytes else 0
    outside = max(0.0, work.moved_bytes - work.read_again - chip)
    memory_s = outside / device.bandwidth_bytes_per_s.value
    arithmetic_s = work.flops / rate.value
    if memory_s > arithmetic_s:
        return Bound(memory_s, "memory")
    return Bound(arithmetic_s, "arithmetic")


def prediction_s(work: Work, conditions: Conditions, calibration: Calibration) -> float:
    """The expected time of a step at the rates that were measured on a machine.

    Each part waits for its bytes or its arithmetic; parts follow each other. ValueError if nothing
    was measured for these types.
    """
    try:
        read_s = work.weights.moved_bytes / _read_rate(
            calibration.reads[conditions.weights], work.weights.moved_bytes
        )
        few = work.phase == "decode" and work.tokens <= calibration.step_sequences
        rates = calibration.step_product_flops_per_s if few else calibration.product_flops_per_s
        products = rates[conditions.precision]
        if work.phase == "decode":
            attention_s = _rows_s(work, calibration, conditions.cache)
        else:
            attended = calibration.attention_flops_per_s[conditions.precision]
            attention_s = work.attention.flops / attended
    except KeyError as missing:
        raise ValueError(f"The calibration has no rate for {missing.args[0]}.") from None
    weights_s = max(work.weights.flops / products, read_s)
    return calibration.step_s + work.layers * calibration.layer_s + weights_s + attention_s


def _rows_s(work: Work, calibration: Calibration, cache: CacheDtype) -> float:
    """The expected time of a decode step over its cached rows, in one part of a kernel or none."""
    if not work.features <= set(calibration.kernel_features):
        return work.attention.flops / calibration.unfused_flops_per_s[cache]
    return max(
        work.attention.moved_bytes / calibration.cache_bytes_per_s[cache],
        work.attention.flops / calibration.row_flops_per_s[cache],
    )


def held_bytes(model: Model, conditions: Conditions) -> float:
    """Bytes of weights, and of the cache of all sequences, while they are decoded."""
    stored = CACHE_FORMATS[conditions.weights].row_bytes(parameters(model).total)
    return stored + conditions.batch * (_kept_bytes(model, conditions) + state_bytes(model))


def _kept_bytes(model: Model, conditions: Conditions) -> float:
    """Bytes of the rows that the cache of one sequence keeps."""
    tokens = conditions.tokens
    return sum(row * min(tokens, most or tokens) for row, most in _rows(model, conditions))


def longest_context(model: Model, conditions: Conditions, memory_bytes: float) -> int | None:
    """The most tokens of each sequence that fit beside the weights, and that the model reads.

    None if any number does.
    """
    stored = CACHE_FORMATS[conditions.weights].row_bytes(parameters(model).total)
    left = (memory_bytes - stored) / conditions.batch - state_bytes(model)
    rows = _rows(model, conditions)
    # Rows of a layer are kept up to what its mask needs; from one such length to the next their
    # bytes grow by the same for each token.
    kept = 0
    for end in [*sorted({most for _, most in rows if most is not None}), None]:
        growing = sum(row for row, most in rows if most is None or most > kept)
        start = sum(row * (kept if most is None else min(kept, most)) for row, most in rows)
        if growing == 0:
            return model.longest if start <= left else 0
        fits = kept + int((left - start) // growing)
        if end is None or fits < end:
            return max(0, min(fits, model.longest or fits))
        kept = end
    raise AssertionError("the last length has no end")


def _rows(model: Model, conditions: Conditions) -> list[tuple[int, int | None]]:
    """Bytes of a cached token in each layer, and the most tokens that its mask keeps, if any."""
    if not model.decodes:
        return []
    return [
        (
            cached_bytes(plan, CACHE_FORMATS[conditions.cache]),
            None if plan.mask.local is None else plan.mask.local + plan.mask.sinks,
        )
        for plan in model.plans
        if plan
    ]


def _weight_bytes(model: Model, dtype: CacheDtype) -> int:
    """Bytes of the weights that a pass reads: of an embedding only the rows of its tokens."""
    found = parameters(model)
    head = model.architecture.head_macs(model.geometry.d_model, 1)
    return CACHE_FORMATS[dtype].row_bytes(found.attention + found.feed_forward + found.norm + head)


def _token_macs(model: Model) -> int:
    """Products of one token with weights."""
    return macs(model, 1) - sum(product_macs(plan, 1) for plan in model.plans if plan)


def _pass_macs(plan: Plan, tokens: int) -> int:
    """Products that no kernel can leave out: of scores that the mask shows, or with a state."""
    heads = plan.geometry.heads
    if state := plan.state:
        by_state = tokens * _state_macs(plan, state)
        return min(by_state, heads * seen_keys(plan.mask, tokens) * (state.rows + state.width))
    return seen_keys(plan.mask, tokens) * heads * (plan.score_width + plan.width("v"))


def _state_macs(plan: Plan, state: State) -> int:
    """Products of one token with a state, which each head of K adds to and each of Q reads."""
    return (plan.geometry.heads + plan.heads("k")) * state.rows * state.width


def seen_keys(mask: Mask, tokens: int) -> int:
    """How many keys all queries see together, at least."""
    hidden = 0 if mask.diagonal else tokens
    if mask.chunk is not None:
        whole, rest = divmod(tokens, mask.chunk)
        pairs = whole * mask.chunk * (mask.chunk + 1) + rest * (rest + 1)
        return pairs // 2 - hidden
    if mask.blocks is not None:
        later = sum(rows * (rows - 1) // 2 for rows, _ in mask.keys_by_block(tokens))
        pairs = sum(rows * keys for rows, keys in mask.keys_by_block(tokens))
        return pairs - (later if mask.causal else 0) - hidden
    if mask.causal:
        keys = mask.max_keys(tokens)
        return tokens * keys - keys * (keys - 1) // 2 - hidden
    if mask.window is None or mask.window >= tokens:
        return tokens * tokens - hidden
    # On each side; sinks that lie farther away are left out.
    near = mask.window - 1
    return tokens * (2 * near + 1) - near * (near + 1) - hidden


def _decode_macs(plan: Plan, tokens: int) -> int:
    """Products of one new token with cached rows, and what is made from each row on read."""
    if state := plan.state:
        return _state_macs(plan, state)
    keys = plan.mask.last_keys(tokens + 1)
    latent_key = any(isinstance(op, UpProject) for op in plan.absorbed_by_query)
    latent_value = any(isinstance(op, UpProject) for op in plan.absorbed_by_output)
    key = plan.cached_key.width if latent_key else plan.width("q")
    key += plan.rope_head.width if plan.rope_head else 0
    value = plan.cached_value.width if latent_value else plan.width("v")
    made, width = 0, plan.cached_key.width
    for op in plan.key_ops_on_read:
        match op:
            case UpProject():
                made, width = made + op.heads * op.width * width, op.width
            case ApplyMap():
                made += plan.cached_key.heads * width * width
            case _:
                pass
    return keys * (plan.geometry.heads * (key + value) + made)


def _read_bytes(plan: Plan, tokens: int, dtype: CacheDtype) -> int:
    """Bytes that one new token reads in a layer, each row once; a state is written back, too."""
    if state := plan.state:
        return 2 * STATE_BYTES * state.numbers
    form = CACHE_FORMATS[dtype]
    row = sum(each.heads * form.row_bytes(each.width) for each in _read_tensors(plan).values())
    return plan.mask.last_keys(tokens + 1) * row


def _distinct_bytes(model: Model, tokens: int, dtype: CacheDtype) -> int:
    """Bytes that one new token reads in all layers, rows of several layers once."""
    form = CACHE_FORMATS[dtype]
    rows: dict[tuple[int, str], int] = {}
    states = 0
    for number, plan in enumerate(model.plans):
        if plan is None:
            continue
        if plan.state:
            states += _read_bytes(plan, tokens, dtype)
            continue
        seen = plan.mask.last_keys(tokens + 1)
        for (layers, name), each in _read_tensors(plan).items():
            row = number - layers, name
            rows[row] = max(rows.get(row, 0), seen * each.heads * form.row_bytes(each.width))
    return states + sum(rows.values())


def _read_tensors(plan: Plan) -> dict[tuple[int, str], CachedTensor]:
    """The cached tensors that a layer reads, by how many layers below they are and their name."""
    key = plan.layers_below("k"), plan.cached_key
    value = plan.layers_below("v"), plan.cached_value
    rope = [(key[0], each) for each in plan.owner("k").cached if each.name == ROPE_KEY]
    return {(layers, each.name): each for layers, each in (key, value, *rope)}


def _read_rate(reads: Sequence[Read], moved_bytes: float) -> float:
    """The rate at which this many bytes of weights are read: of the nearest size that was measured.

    Of a size between two it is the slower one's, which is the next larger.
    """
    larger = [each for each in reads if each.working_set_bytes >= moved_bytes]
    if larger:
        return min(larger, key=lambda each: each.working_set_bytes).bytes_per_s
    return max(reads, key=lambda each: each.working_set_bytes).bytes_per_s
