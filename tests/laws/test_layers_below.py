"""K and V of a layer below: read there, cached there, learned there, and paid for once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from laws.backends import JAX, TORCH, every_backend_and
from laws.cases import (
    DISTINCT,
    EVEN,
    ITEMS,
    SIZE,
    TIME,
    TOKENS,
    Case,
    decoder,
    drawn,
    encoder,
    plan_of,
    streams,
    towers,
    translator,
)
from native_kernel import needs_library
from qkvbench import cost, reference
from qkvbench.backends.torch import Attention, Growing, build, start
from qkvbench.backends.torch.attention import layer
from qkvbench.backends.torch.models.block import recompute
from qkvbench.backends.torch.models.inspect import inspect_layers
from qkvbench.cost.matched import with_arm
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.model import (
    Alibi,
    Gates,
    NoPosition,
    Rotary,
    RotaryWithInverse,
    alibi_of,
    model_parameters,
    parse_arm,
    parse_target,
    rope_of,
    write_arm,
)
from qkvbench.task_ref import TaskRef
from qkvbench.variant import Constant, LayerBelow, Variant, parse, resolve, sized, write

# fp64 rounding of sums over tens of numbers of size ten.
EXACT = 1e-11
# A central difference with this step is good to about eight digits.
STEP, SLOPE = 1e-6, 1e-5

BELOW = "q,k=K(-1),v=V(-1)"
# V of the layer below to a K of its own, and K of the layer below to a V of its own.
VALUE, KEY = "q,k,v=V(-1)", "q,k=K(-1),v"
TWO = "q,k=K(-1),v=V(first)"
# V of the first layer mixed into V.
FIRST = "q,k,v+firstvalue"
PAIR = f"q,k,v;{BELOW}"
SCHEMES = [NoPosition(), Rotary(share=1 / 3), RotaryWithInverse(), Alibi()]
# Each way to cache and read, each with another reader and position scheme.
READERS = [
    *(BELOW, f"{BELOW}+qknorm", f"q=x,{BELOW[2:]}++", f"{BELOW}+softcap2"),
    *(VALUE, f"{KEY}+qkvnorm", f"q=L(7),{KEY[2:]}"),
]
LENT = [
    ((write(lent), READERS[number % 7]), SCHEMES[number % 3 if number % 5 else 3])
    for number, lent in enumerate(DISTINCT)
    if not lent.reads_below
]
LENT += [
    (("q,k=L(5),v+qkvnorm", BELOW), Rotary()),
    (("q=k,v+qknorm", READERS[1]), Rotary()),
    (("q,k=v/1", "q,k=L(5),v=V(-1)+ropehead2"), Rotary()),
    (("q,k=v+ropehead2", f"{KEY}+ropehead2"), Rotary()),
    (("q,k=R(q),v=R(k)", "q=k,v=V(-1)"), RotaryWithInverse()),
    (("q,k,v", "q,k=v", TWO), Rotary()),
    (("q,k=R(q),v=R(q)", "q,k=L(5),v=L(5)", TWO), SCHEMES[1]),
    (("q,k=v", VALUE, BELOW), SCHEMES[1]),
    (("q,k=v", KEY, "q,k=v", "q,k=K(-2),v=V(-1)"), Alibi()),
    (("q,k,v", f"{BELOW}-own"), Rotary()),
    (("q,k=R(q),v=R(k)", f"{VALUE}-own"), RotaryWithInverse()),
    (("q,k=v", FIRST, "q,k=v+firstvalue"), Rotary()),
    (("q,k=L(5),v=L(5)", "q,k=L(5),v=L(5)+firstvalue", BELOW), SCHEMES[1]),
    (("q,k=v=x", "q=k,v=R(k)+qkvnorm+firstvalue-own"), RotaryWithInverse()),
    (("q,k,v/1", f"{KEY}+firstvalue"), Alibi()),
    (("q=k=0,v", "q=k=0,v+firstvalue", f"{BELOW}-own"), NoPosition()),
]


def _plans(texts, position=SCHEMES[1], *, causal=True, size=SIZE):
    """The plans of layers of which some read those below."""
    rope, alibi = rope_of(position, size.head_dim), alibi_of(position)
    below = []
    for text in texts:
        below.append(resolve(parse(text), size, causal=causal, rope=rope, alibi=alibi, below=below))
    return below


def _drawn(plans):
    """The last layer with its weights, its input and the layers that it reads."""
    layers = []
    for number, plan in enumerate(plans):
        below = {each.root: layers[number - each.layers] for each in plan.lenders}
        weights, x = drawn(plan.parameters, number), streams(seed=number)[0]
        layers.append(reference.Layer(plan, weights, x, below))
    return layers[-1]


@pytest.mark.parametrize(("texts", "position"), LENT, ids=str)
def test_decoding_over_the_rows_of_a_layer_below_is_attention_over_its_keys_and_values(
    texts, position
):
    plan, weights, x, below = _drawn(_plans(texts, position))
    steps = reference.decode(plan, weights, x, below)
    whole = reference.forward(plan, weights, x, below=below)
    np.testing.assert_allclose(steps, whole, atol=EXACT)


@every_backend_and(LENT)
def test_a_layer_that_reads_layers_below_is_the_reference(backend, case):
    plan, weights, x, below = _drawn(_plans(*case, causal=False))
    found = backend.attend_to_layers_below(plan, weights, x[None], below)
    expected = reference.forward(plan, weights, x, below=below)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=EXACT)


# Every second and every third layer, one for all, two by two, and one layer in between.
ARMS = [
    f"q,k=v;{FIRST};{TWO}-own",
    PAIR,
    f"q,k=v/1+qkvnorm;{BELOW}+qknorm;q,k=K(-2),v=V(-2)",
    f"q,k=L(5),v=L(5);{BELOW}",
    "q=x,k=K(-2),v=V(-2)",
    f"q,k=v+window3+sinks1;{BELOW}+window3+sinks1",
    BELOW,
    "q,k,v;q,k=v;q,k=K(-1),v=V(-2)",
    f"q,k=v;q=x,k,v;{TWO}",
    "q,k,v=V(first)",
    f"q,k=v/1+qkvnorm;{KEY}+qkvnorm;{VALUE}+qkvnorm",
    "q,k=R(q),v=R(k);q=k,v=V(-1)",
    f"q,k=L(5),v=L(5);q=L(7),{VALUE[2:]};{KEY}",
    f"{FIRST};{BELOW}-own",
    "q,k=v/1+qkvnorm+window3+firstvalue",
    f"q,k=v;{FIRST};{KEY}+firstvalue",
]


def _stack(text, layers=5, position=SCHEMES[1], size=EVEN):
    return with_arm(decoder("q,k,v", position, size, layers), parse_arm(text), tokens=TIME)


@every_backend_and(ARMS)
def test_a_prefill_and_steps_of_a_stack_are_one_forward_pass(backend, case):
    model = _stack(case, layers=5 if backend is TORCH else 3)
    weights = drawn(model_parameters(model).values())
    found = backend.decode(Case(storage="growing"), model, weights, TOKENS)
    whole = backend.logits(model, weights, (TOKENS,)).reshape(ITEMS, TIME, -1)
    np.testing.assert_allclose(found, whole[:, 3:], rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("text", "rows"), [(text, ("int8", "int4")[number % 2]) for number, text in enumerate(ARMS)]
)
@torch.no_grad()
def test_beams_that_continue_others_are_independent_runs(text, rows):
    network = TORCH.network(_stack(text))
    cache = network.new_cache(1, 12, Growing(3), rows)
    network.prefill(torch.from_numpy(TOKENS[:1, :4]), cache)
    cache.reorder(torch.tensor([0, 0, 0]))
    found = [network.step(torch.tensor([each, 5, each + 1]), cache) for each in range(3)][-1]
    again = network.new_cache(1, 12, rows=rows)
    network.prefill(torch.from_numpy(TOKENS[:1, :4]), again)
    expected = [network.step(torch.tensor([each + 1]), again) for each in range(3)][-1]
    torch.testing.assert_close(found[2:], expected, rtol=0, atol=EXACT)


@needs_library
@pytest.mark.parametrize("text", [each for each in ARMS if "L(" not in each])
def test_the_native_kernel_reads_rows_of_a_layer_below_as_torch_does(text, monkeypatch):
    model = _stack(text, position=Rotary(), size=sized(64, 4))
    network = build(model)
    start(network, model, seed=0)
    found, kernels = _steps(network)
    assert all(kernels)
    monkeypatch.setattr(layer, "decode_kernel", lambda *_: None)
    expected, kernels = _steps(network)
    assert not any(kernels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def _steps(network):
    """The logits after each token, and the kernel of each layer."""
    cache = network.new_cache(ITEMS, TIME)
    logits = [network.step(each, cache) for each in torch.from_numpy(TOKENS).unbind(1)]
    return torch.stack(logits), [each.decode_kernel for each in cache.layers]


@every_backend_and([f"q,k=R(q),v+qknorm;{BELOW}+qknorm"], jax_cases=0)
def test_gradients_reach_the_layer_whose_keys_and_values_are_read(backend, case):
    model = _stack(case, layers=2, position=Rotary())
    weights = drawn(model_parameters(model).values())
    rng = np.random.default_rng(5)
    along = {name: rng.normal(size=value.shape) for name, value in weights.items()}

    def total(step):
        moved = {name: value + step * along[name] for name, value in weights.items()}
        return float((TORCH.logits(model, moved, (TOKENS,)) ** 2).sum())

    gradients = backend.logit_gradients(model, weights, (TOKENS,))
    found = sum(float((gradients[name] * along[name]).sum()) for name in weights)
    assert found == pytest.approx((total(STEP) - total(-STEP)) / (2 * STEP), rel=SLOPE)
    # Through the layer above alone: that of the lender gives its output no weight.
    weights["blocks.0.attention.o.weight"] = 0 * weights["blocks.0.attention.o.weight"]
    gradients = backend.logit_gradients(model, weights, (TOKENS,))
    for name in ("k.rotation", "k.scale", "v.weight"):
        assert np.abs(gradients[f"blocks.0.attention.{name}"]).max() > EXACT, name


def test_with_every_second_layer_a_cache_is_exactly_half():
    whole, half = (_stack(text, layers=4) for text in ("q,k,v", PAIR))
    for storage in (None, Growing(2)):
        chosen = {"storage": storage} if storage else {}
        caches = [build(model).new_cache(ITEMS, TIME, **chosen) for model in (whole, half)]
        for cache in caches:
            cache.fill_randomly(TIME, seed=0)
        assert caches[0].bytes == 2 * caches[1].bytes
        assert caches[0].account().total == 2 * caches[1].account().total
    assert cost.cache_bytes_per_token(whole) == 2 * cost.cache_bytes_per_token(half)
    assert cost.cache_tensors(whole) == 2 * cost.cache_tensors(half) == 8
    matrices = 2 * 2 * (EVEN.d_model + 1) * EVEN.d_model
    assert cost.parameters(whole).total - cost.parameters(half).total == matrices
    products = 2 * 2 * TIME * EVEN.d_model**2
    assert cost.macs(whole, TIME) - cost.macs(half, TIME) == products


def test_a_chain_ends_at_the_layer_that_makes_the_keys_and_values():
    for text, distances in ((BELOW, [0, 1, 2, 3, 4]), ("q,k=K(-2),v=V(-2)", [0, 0, 2, 2, 4])):
        first, *plans = _stack(text).plans
        for role in ("k", "v"):
            assert [plan.layers_below(role) for plan in (first, *plans)] == distances
            assert all(plan.owner(role) in (plan, first) for plan in plans)


def test_keys_and_values_have_chains_of_their_own():
    plans = _stack(f"q,k,v;q,k=v;{TWO};{VALUE};{BELOW}").plans
    assert [plan.layers_below("k") for plan in plans] == [0, 0, 1, 0, 1]
    assert [plan.layers_below("v") for plan in plans] == [0, 0, 2, 3, 4]
    assert [len(plan.cached) for plan in plans] == [2, 1, 0, 1, 0]


def test_the_bottoms_values_and_the_middles_keys_leave_half_of_a_cache():
    """FusedKV-Lite, arXiv:2512.03870: the upper half of the layers reads and caches nothing."""
    whole, half = (_stack(text, layers=4) for text in ("q,k,v", f"q,k,v;q,k,v;{TWO};{TWO}"))
    assert [plan.layers_below("k") for plan in half.plans] == [0, 0, 1, 2]
    assert [plan.layers_below("v") for plan in half.plans] == [0, 0, 2, 3]
    caches = [build(model).new_cache(ITEMS, TIME) for model in (whole, half)]
    assert caches[0].bytes == 2 * caches[1].bytes
    assert cost.cache_bytes_per_token(whole) == 2 * cost.cache_bytes_per_token(half)


@pytest.mark.parametrize("text", ARMS)
def test_what_layers_below_keep_is_kept_once_and_counted(text):
    model = _stack(text)
    cache = TORCH.network(model).new_cache(ITEMS, TIME)
    exact = cost.CACHE_FORMATS["fp64"]
    assert cache.bytes == cost.cache_bytes(model, TIME, ITEMS, exact)
    assert len(cache.tensors()) == cost.cache_tensors(model)


def test_a_layer_that_reads_values_alone_may_have_positions_of_its_own():
    lender = plan_of("q,k,v", Rotary())
    plan = resolve(parse(f"{VALUE}+nope"), SIZE, causal=True, rope=lender.rope, below=[lender])
    assert (plan.rope, plan.layers_below("v")) == (None, 1)
    inverse = plan_of("q,k,v", RotaryWithInverse())
    with pytest.raises(ValueError, match="the same RoPE on V"):
        resolve(parse(f"{VALUE}+nope"), SIZE, causal=True, rope=inverse.rope, below=[inverse])


def test_encoders_and_towers_read_layers_below_too():
    for model in (encoder(BELOW), towers(BELOW), translator(BELOW)):
        for layers in model.layers:
            assert [each.attention.layers_below("k") for each in layers] == [0, 1]
    for model in (encoder(FIRST), towers(FIRST), translator(FIRST)):
        for layers in model.layers:
            assert [len(each.attention.lenders) for each in layers] == [0, 1]


@pytest.mark.parametrize(
    ("lent", "reader", "said"),
    [
        ("q,k,v/1", f"{BELOW}/3", "which has 1 key/value heads: leave out the '/3'"),
        ("q,k,v+window3", BELOW, "the same window, chunk, blocks, sinks and diagonal"),
        ("q,k,v", f"{BELOW}-diag", "both need one mask"),
        ("q,k,v", f"{VALUE}-diag", "reads V of the layer 1 below, q,k,v: both need one mask"),
        ("q,k,v", f"{VALUE}+valuedim2", r"the same '\+valuedim'"),
        ("q,k,v", f"{KEY}+ropehead2", "heads of K have 6 numbers and not 8"),
        ("q,k,v+keydim4", f"{KEY}+keydim2+ropehead2", r"the same '\+ropehead'"),
        ("q,k,v/1", "q=k,v=V(-1)", "Give the layer that it reads 3 key/value heads"),
    ],
)
def test_a_layer_below_that_does_not_fit_is_refused(lent, reader, said):
    with pytest.raises(ValueError, match=said):
        _plans([lent, reader])


def test_keys_and_values_of_layers_with_other_heads_are_refused():
    with pytest.raises(ValueError, match="give both layers as many"):
        _plans(["q,k,v/1", "q,k,v", TWO])


def test_other_positions_no_attention_and_a_source_are_refused():
    lender = plan_of("q,k,v", Rotary())
    with pytest.raises(ValueError, match="the same rotary positions"):
        resolve(parse(BELOW), SIZE, causal=True, below=[lender])
    with pytest.raises(ValueError, match="heads of K have 2 numbers and not 6"):
        resolve(parse(BELOW), SIZE, causal=True, below=[plan_of("q,k,v", size=sized(6, 3))])
    with pytest.raises(ValueError, match="the layer 1 below, which has no attention"):
        resolve(parse(BELOW), SIZE, below=[None])
    with pytest.raises(ValueError, match=r"V\(-1\)@self"):
        _ = with_arm(translator(), parse_arm(BELOW), tokens=TIME).layers


@pytest.mark.parametrize(
    "text",
    ["q=k=K(-1),v=V(-1)", "q,k=V(-1),v=K(-1)", "q,k=v=K(-1)", "q,k=K(-0),v=V(-0)",
     "q,k=K(1),v=V(1)", "q=Q(-1),k,v", "q,k=K(-1),v=R(k)", "q=k=0,v=V(-1)", "q,k,v=V(last)"],
)  # fmt: skip
def test_what_cannot_be_read_from_a_layer_below_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="write for example"):
        parse(text)


def test_a_layer_below_is_written_in_one_way():
    assert write(parse(" v(−2)=v, q , K(-2) = k / 2 -diag")) == "q,k=K(-2),v=V(-2)/2-diag"
    assert parse(BELOW) == Variant(parse("q,k,v").q, LayerBelow(1), LayerBelow(1))
    assert write(parse("V(FIRST)=v, q, k=K( first )/2")) == "q,k=K(first),v=V(first)/2"
    for text in (VALUE, KEY, TWO, "q=k,v=V(-3)", "q=v,k=K(-1)"):
        assert write(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "model"),
    [
        (PAIR, decoder(layers=4)),
        (f"{PAIR}~q,k,v", decoder(layers=4)),
        (f"q,k,v~{PAIR}:macs", decoder(layers=3)),
        (f"q,k=v@cross|{PAIR}@self", translator()),
        (f"{PAIR}@image+text", towers()),
        ("q,k=v;q,k,v;q,k,v", decoder(layers=5)),
    ],
)
def test_variants_in_turn_are_one_text_of_an_arm_a_model_and_a_file(text, model):
    arm = with_arm(model, parse_arm(text), tokens=TIME, second_tokens=5)
    wanted = Experiment(arm, TaskRef("law"), 1, Training(1, 4, 1e-3, 0), seed=0)
    assert from_json(to_json(wanted)) == wanted
    expected = PAIR if text.endswith("@image+text") else text
    assert wanted.arm == expected
    assert write_arm(parse_arm(text)) == text


def test_a_cycle_is_the_shortest_that_is_repeated():
    assert write_arm(parse_arm("q,k,v;q,k=v;q,k,v;q,k=v")) == "q,k,v;q,k=v"
    assert write_arm(parse_arm("q,k,v;q,k=v;q,k,v")) == "q,k,v;q,k=v;q,k,v"
    assert write_arm(parse_arm("v,k,q;q,k,v")) == "q,k,v"


@pytest.mark.parametrize("text", ["q,k,v;q,k=v;q,k,v", "q,k,v;q,k=v;q=k,v"])
def test_more_variants_than_layers_are_refused(text):
    with pytest.raises(ValueError, match="is q,k,v;q,k=v in the 2 layers of law; write that"):
        with_arm(decoder(), parse_arm(text), tokens=TIME)


def test_a_layer_without_layers_below_makes_its_own_keys_and_values():
    assert replace(plan_of(BELOW), variant=parse("q,k,v")) == plan_of("q,k,v")
    for text in (BELOW, VALUE, KEY):
        with pytest.raises(ValueError, match="A layer alone has none below"):
            Attention(text, 24, 4)


def _by_hand(x, weights, first):
    """Causal attention of one head over (1 - λ)·V + λ·V_1, and its V: arXiv:2410.17897."""
    q, k, v = (x @ weights[f"{role}.weight"].T + weights[f"{role}.bias"] for role in "qkv")
    if first is not None:
        share = weights["v.mix"]
        v = (1 - share) * v + share * first
    scores = np.where(np.tri(len(x)) > 0, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
    exp = np.exp(scores)
    return exp / exp.sum(-1, keepdims=True) @ v @ weights["o.weight"].T + weights["o.bias"], v


def test_the_first_layers_values_are_mixed_in_as_the_paper_says():
    plans = _plans([FIRST] * 3, NoPosition(), size=sized(6, 1))
    below, first = [], None
    for number, plan in enumerate(plans):
        weights, x = drawn(plan.parameters, number), streams(d_model=6, seed=number)[0]
        layers = {each.root: below[number - each.layers] for each in plan.lenders}
        below.append(reference.Layer(plan, weights, x, layers))
        expected, value = _by_hand(x, weights, first)
        first = value if first is None else first
        found = reference.forward(plan, weights, x, below=layers)
        np.testing.assert_allclose(found, expected, atol=EXACT)


def test_a_half_of_the_first_layers_values_is_the_beginning_and_the_first_layer_mixes_nothing():
    first, *others = _stack(FIRST).layers[0]
    assert replace(first.attention, variant=parse("q,k,v"), scores=parse("q,k,v").scores) == (
        _stack("q,k,v").layers[0][0].attention
    )
    for number, (plan, _) in enumerate(others, start=1):
        (share,) = [each for each in plan.parameters if each.name == "v.mix"]
        assert (share.shape, share.init, share.decay) == ((1,), Constant(0.5), False)
        assert [each.layers for each in plan.lenders] == [number]
    model = _stack(FIRST)
    network = build(model)
    start(network, model, seed=0)
    assert network.layers()[1].attention.named_weights()["v.mix"].item() == 0.5


def test_values_mixed_with_the_first_layers_take_no_more_of_a_cache():
    plain, mixed = (_stack(text) for text in ("q,k,v", FIRST))
    caches = [build(model).new_cache(ITEMS, TIME) for model in (plain, mixed)]
    assert caches[0].bytes == caches[1].bytes
    assert cost.cache_bytes_per_token(plain) == cost.cache_bytes_per_token(mixed)
    assert cost.macs(plain, TIME) == cost.macs(mixed, TIME)
    assert cost.parameters(mixed).total - cost.parameters(plain).total == 4
    # A tie of K and V ends where V is mixed.
    tied = _stack("q,k=v+firstvalue")
    assert [len(plan.cached) for plan in tied.plans] == [1, 2, 2, 2, 2]


@every_backend_and([FIRST, f"q,k,v;{VALUE}-own"], jax_cases=0)
def test_gradients_reach_values_that_are_mixed_or_taken_away(backend, case):
    model = _stack(case, layers=3, position=Rotary())
    weights = drawn(model_parameters(model).values())
    rng = np.random.default_rng(5)
    along = {name: rng.normal(size=value.shape) for name, value in weights.items()}

    def total(step):
        moved = {name: value + step * along[name] for name, value in weights.items()}
        return float((TORCH.logits(model, moved, (TOKENS,)) ** 2).sum())

    gradients = backend.logit_gradients(model, weights, (TOKENS,))
    found = sum(float((gradients[name] * along[name]).sum()) for name in weights)
    assert found == pytest.approx((total(STEP) - total(-STEP)) / (2 * STEP), rel=SLOPE)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["q,k,v/1", FIRST], "1 key/value heads and not 3: give both layers as many"),
        (["q,k,v+valuedim2", FIRST], r"the same '\+valuedim'"),
    ],
)
def test_first_values_that_do_not_fit_are_refused(texts, said):
    with pytest.raises(ValueError, match=said):
        _plans(texts)


def test_first_values_are_refused_where_they_mean_nothing():
    with pytest.raises(ValueError, match="that has no attention"):
        resolve(parse(FIRST), SIZE, below=[None])
    with pytest.raises(ValueError, match=r"\+firstvalue@self"):
        _ = with_arm(translator(), parse_arm(FIRST), tokens=TIME).layers
    with pytest.raises(ValueError, match="write it for the layer below"):
        parse(f"{BELOW}+firstvalue")
    with pytest.raises(ValueError, match="only for layers of a model"):
        Attention(FIRST, 24, 4)
    with pytest.raises(ValueError, match="leave it out of the options"):
        Gates((parse("q,k,v"), parse(FIRST)), parse_target("cache=50%"))


def _mixed(last=f"{BELOW}+qknorm"):
    model = _stack(f"q,k=R(q),v+qkvnorm;{last}", layers=3, position=Rotary())
    return model, drawn(model_parameters(model).values())


def test_a_layer_shows_the_keys_and_values_that_it_reads_and_no_matrix_of_them():
    network = TORCH.network(*_mixed())
    lender, reader, _ = inspect_layers(network, torch.from_numpy(TOKENS))
    assert [*lender.weights] == ["q", "k", "v"]
    assert [*reader.weights] == ["q"]
    for role in ("k", "v"):
        np.testing.assert_array_equal(reader.projections[role], lender.projections[role])
    for one, other in zip(JAX.inspected(*_mixed(), TOKENS), (lender, reader), strict=False):
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=EXACT)


def test_a_layer_shows_values_that_it_reads_or_mixes_beside_its_own_keys():
    mixed = _mixed(f"{VALUE}+qknorm;{FIRST}")
    layers = inspect_layers(TORCH.network(*mixed), torch.from_numpy(TOKENS))
    assert [[*each.weights] for each in layers] == [["q", "k", "v"], ["q", "k"], ["q", "k"]]
    np.testing.assert_array_equal(layers[1].projections["v"], layers[0].projections["v"])
    assert np.abs(layers[1].projections["k"] - layers[0].projections["k"]).max() > EXACT
    for one, other in zip(JAX.inspected(*mixed, TOKENS), layers, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=EXACT)
        np.testing.assert_allclose(one.projections["v"], other.projections["v"], atol=EXACT)


@pytest.mark.parametrize("reader", [f"{BELOW}+qknorm", f"{VALUE}+qknorm", KEY, FIRST])
def test_a_block_that_is_recomputed_has_the_gradients_of_one_that_is_not(reader):
    network = TORCH.network(*_mixed(reader))
    expected, found = (_gradients(network, change) for change in (lambda _: None, recompute))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def _gradients(network, change):
    change(network)
    network.zero_grad()
    network(torch.from_numpy(TOKENS)).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]
