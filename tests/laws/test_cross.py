"""Models of two inputs: cross-attention, sources, towers, and a variant at chosen places."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from laws.backends import PROMPT, TORCH, arrays_of, every_backend_and, every_backend_and_case
from laws.cases import (
    EVEN,
    ITEMS,
    SIZE,
    SOURCE,
    SOURCE_LENGTHS,
    SOURCE_TIME,
    SOURCE_VOCABULARY,
    TIME,
    TOKENS,
    VECTORS,
    drawn,
    every_case,
    every_catalogued,
    every_crossing,
    rotary,
    streams,
    towers,
    translator,
)
from qkvbench import cost, reference
from qkvbench.backends.torch import Learner, build
from qkvbench.backends.torch.models.two_tower import MAX_LOGIT_SCALE
from qkvbench.cost import CACHE_FORMATS
from qkvbench.cost.matched import with_arm
from qkvbench.data.batch import Batch, Sequences
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.model import (
    Decoder,
    Init,
    Learned,
    Model,
    Rotary,
    as_in,
    model_parameters,
    parse_arm,
    transformer,
    write_arm,
)
from qkvbench.task_ref import TaskRef
from qkvbench.variant import resolve, resolve_cross

# fp64 rounding of sums over tens of numbers of size ten.
EXACT = 1e-11
LENGTHS = np.array(SOURCE_LENGTHS)
SECOND = (torch.from_numpy(SOURCE), torch.from_numpy(LENGTHS))
READ = torch.from_numpy(TOKENS)


def _crossed(case):
    plan = resolve_cross(case.full, SIZE)
    return plan, drawn(plan.parameters), streams(), streams(SOURCE_TIME, seed=2)


@every_backend_and_case("variant", "suffix", "cross", nightly=100, jax_cases=2)
def test_cross_attention_is_the_reference(backend, case):
    plan, weights, x, source = _crossed(case)
    found = backend.attend(plan, weights, x, LENGTHS, source)
    # The second item, whose source is padded.
    expected = reference.forward(plan, weights, x[1], source[1, : LENGTHS[1]])
    np.testing.assert_allclose(found[1], expected, rtol=0, atol=EXACT)


@every_backend_and_case("distinct", "suffix", "cross", nightly=100, jax_cases=1)
def test_a_cached_source_is_attended_to_as_the_source_itself(backend, case):
    plan, weights, x, source = _crossed(case)
    expected = backend.attend(plan, weights, x, LENGTHS, source)
    # Several adjacent sequences have one source, which is cached once.
    for copies in (1, 2):
        found = backend.attend_to_cached_source(
            plan, weights, x.repeat(copies, axis=0), LENGTHS, source
        )
        np.testing.assert_allclose(found, expected.repeat(copies, axis=0), rtol=0, atol=EXACT)


@every_case("distinct", "suffix", "cross", nightly=0, share=2)
def test_gradients_of_cross_attention_are_central_differences_of_the_reference(case):
    plan, weights, x, source = _crossed(case)
    rng = np.random.default_rng(5)
    into, step = rng.normal(size=x[0].shape), 1e-6
    along = {name: rng.normal(size=value.shape) for name, value in weights.items()}

    def total(by):
        moved = {name: value + by * along[name] for name, value in weights.items()}
        return float((reference.forward(plan, moved, x[0], source[0]) * into).sum())

    gradients = TORCH.gradients(plan, weights, x[:1], into[None], source[:1])
    found = sum(float((gradients[name] * along[name]).sum()) for name in weights)
    # A central difference is good to about eight digits.
    expected = (total(step) - total(-step)) / (2 * step)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5 * np.abs(into).sum())


@every_crossing
def test_a_tie_in_cross_attention_shares_the_matrix_and_its_cost_counts_each_product(variant):
    across, own = resolve_cross(variant, SIZE), resolve(variant, SIZE)
    assert across.matrix_rows == own.matrix_rows
    assert across.parameters == own.parameters
    # With inputs of one length, two inputs cost at least as much as one.
    more = cost.attention_macs(across, 5, 5) - cost.attention_macs(own, 5)
    shared = own.derivations["q"].root in {own.derivations[role].root for role in "kv"}
    tied = shared and own.derivations["q"].root in own.matrix_rows
    # Learned rotations of a shared root may be applied to each input, too.
    assert more > 0 if tied else more >= 0


@every_case("distinct", "suffix", "cross", nightly=0, share=2)
def test_computed_cache_bytes_of_an_encoder_decoder_are_those_of_the_live_cache(case):
    model = translator(case.full, rotary(case.full), case.plan().geometry)
    network = build(model)
    cache = network.new_cache(ITEMS, TIME)
    network.read_source(*SECOND, cache)
    cache.fill_randomly(TIME, seed=0)
    format = CACHE_FORMATS["fp32"]
    own = TIME * cost.cache_bytes_per_token(model, format)
    source = SOURCE_TIME * cost.source_bytes_per_token(model, format)
    assert cache.bytes == ITEMS * (own + source)


def test_two_towers_have_no_cache():
    assert cost.cache_bytes_per_token(towers()) is None
    assert cost.source_bytes_per_token(towers()) == 0


@every_catalogued
def test_computed_flops_of_two_inputs_are_the_counted_matrix_products(variant):
    for model, forward in (
        (translator(variant), lambda net: net.forward(READ[:1], None, SECOND[0][:1])),
        (towers(variant), lambda net: net.hidden(torch.zeros(1, TIME, 7), None, SECOND[0][:1])),
    ):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward(build(model))
        computed = cost.flops(model, TIME, SOURCE_TIME)
        assert counter.get_total_flops() == computed == 2 * cost.macs(model, TIME, SOURCE_TIME) > 0


@every_backend_and_case("distinct", "suffix", "cross", nightly=100, share=2, jax_cases=0)
def test_decoding_over_a_cached_source_is_one_forward_pass(backend, case):
    model = translator(case.full, case.position, case.plan().geometry)
    weights = drawn(model_parameters(model).values())
    found = backend.decode_with_source(model, weights, TOKENS, (SOURCE, LENGTHS))
    whole = backend.logits(model, weights, (TOKENS, None, SOURCE, LENGTHS))
    expected = whole.reshape(ITEMS, TIME, -1)[:, PROMPT - 1 :]
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


@every_backend_and(["q=k,v+2d", "q,k=v/1", "q,k=L(5),v=R(k)"], jax_cases=0)
def test_positions_after_the_length_of_a_source_change_nothing(backend, case):
    model = translator(case)
    weights, other = drawn(model_parameters(model).values()), SOURCE.copy()
    for item, length in enumerate(LENGTHS):
        other[item, length:] = (other[item, length:] + 1) % SOURCE_VOCABULARY
    assert not np.array_equal(other, SOURCE)
    before, after = (
        backend.logits(model, weights, (TOKENS, None, each, LENGTHS)) for each in (SOURCE, other)
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=EXACT)


def test_every_position_of_a_source_changes_the_logits_of_its_item_only():
    network = TORCH.network(translator())
    before = network(READ, None, *SECOND)
    for place in range(int(LENGTHS[0])):
        other = SECOND[0].clone()
        other[0, place] = (other[0, place] + 1) % SOURCE_VOCABULARY
        after = network(READ, None, other, SECOND[1])
        assert (after[0] - before[0]).abs().amax(-1).min() > 1e-6
        torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=EXACT)


def test_a_decoder_with_a_source_refuses_to_go_without():
    with pytest.raises(ValueError, match="none was given"):
        TORCH.network(translator())(READ)


def test_vectors_of_two_towers_are_compared_by_their_angle_and_in_both_directions():
    model = towers()
    weights = dict(TORCH.initial(model, seed=0))
    network = TORCH.network(model, {name: each.astype(float) for name, each in weights.items()})
    pictures = torch.from_numpy(VECTORS)
    logits = network(pictures, None, *SECOND)
    first, second = network.hidden(pictures, None, *SECOND).unbind(dim=1)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(ITEMS).double())
    # The logit scale begins as 1/0.07: arXiv:2103.00020, section 2.5.
    torch.testing.assert_close(logits[0::2], first @ second.mT / 0.07, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits[1::2], second @ first.mT / 0.07, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        network.logit_scale.fill_(50.0)
    sharpest = network(pictures, None, *SECOND)
    torch.testing.assert_close(sharpest, logits * 0.07 * MAX_LOGIT_SCALE, rtol=1e-6, atol=1e-6)


def _experiment(model: Model, **training: int) -> Experiment:
    return Experiment(model, TaskRef("none"), 1, Training(1, ITEMS, 1e-3, 0, **training), seed=0)


def test_the_loss_of_two_towers_is_the_mean_of_both_directions():
    pictures, own = VECTORS.astype(np.float32), np.arange(ITEMS)
    batch = Batch(pictures, np.stack([own, own], axis=1), second=Sequences(SOURCE, LENGTHS))
    learner = Learner(_experiment(towers()))
    loss, norm = learner.gradients(batch)
    predicted = learner.predict(batch)
    logits = learner.network(torch.from_numpy(pictures), None, *SECOND).detach()[0::2]
    both = [torch.log_softmax(each, -1).diagonal().neg().mean() for each in (logits, logits.mT)]
    assert loss == pytest.approx(float(sum(both)) / 2, rel=1e-5)
    assert predicted.loss.mean() == pytest.approx(loss, rel=1e-5)
    assert norm > 0
    order = logits.argsort(-1, descending=True).tolist()
    assert predicted.ranks[:, 0].tolist() == [row.index(item) for item, row in enumerate(order)]


def test_a_batch_of_two_towers_is_never_computed_in_parts():
    with pytest.raises(ValueError, match="leave out micro-batches and devices"):
        _experiment(towers(), micro_batches=2)


def test_parts_of_a_batch_take_their_sources_with_them():
    batch = Batch(TOKENS, TOKENS, second=Sequences(SOURCE, LENGTHS))
    whole, parted = (
        Learner(_experiment(translator(), micro_batches=parts)).gradients(batch) for parts in (1, 3)
    )
    assert parted == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("q,k=v", {"encoder", "self", "cross"}),
        ("q,k=v@cross", {"cross"}),
        ("q,k=v@cross+self", {"self", "cross"}),
        ("q,k=v@encoder", {"encoder"}),
        ("q=k,v@encoder|q,k=v@self", {"self", "encoder"}),
    ],
)
def test_a_variant_can_be_chosen_for_places(text, changed):
    base = translator()
    model = with_arm(base, parse_arm(text), tokens=TIME, second_tokens=SOURCE_TIME)
    assert {place for place in base.places if model.places[place] != base.places[place]} == changed
    assert model.variant == write_arm(parse_arm(text)) == text
    assert from_json(to_json(_experiment(model))) == _experiment(model)
    # Arms share the initial values of what they share.
    own, canonical = (TORCH.initial(each, seed=0) for each in (model, base))
    shared = own.keys() & canonical.keys()
    assert shared
    assert all(np.array_equal(own[name], canonical[name]) for name in shared)


def test_each_tower_has_a_place_of_its_own():
    for place, other in (("image", "text"), ("text", "image")):
        model = with_arm(towers(), parse_arm(f"q=k=v@{place}"), tokens=TIME)
        assert model.places[place] != towers().places[place]
        assert model.places[other] == towers().places[other]
        assert model.variant == f"q=k=v@{place}"


def test_a_place_that_a_model_lacks_is_refused_by_name():
    with pytest.raises(ValueError, match="names the attention site 'cross'; law has image, text"):
        with_arm(towers(), parse_arm("q,k=v@cross"), tokens=TIME)
    for text in ("q,k=v|q=k,v@cross", "q,k=v@self|q=k,v@self"):
        with pytest.raises(ValueError, match="needs sites of its own"):
            parse_arm(text)


def test_the_order_in_which_places_are_named_means_nothing():
    for one, two in (
        ("q,k=v@self+cross", "q,k=v@cross+self"),
        ("q,k=v@self|q=k,v@encoder", "q=k,v@encoder|q,k=v@self"),
        ("q,k=v@self|q,k=v@cross", "q,k=v@cross+self"),
        ("q,k=v@self|v=k,q@cross|q=k,v@encoder", "q,k=v@cross+self|q=k,v@encoder"),
    ):
        assert write_arm(parse_arm(one)) == write_arm(parse_arm(two)) == two


def test_an_arm_of_another_s_size_is_sized_in_both_towers():
    arm = parse_arm("q,k,v~q=k=v:macs")
    model = with_arm(towers(), arm, tokens=TIME, second_tokens=SOURCE_TIME)
    found, wanted = (cost.macs(each, TIME, SOURCE_TIME) for each in (model, towers("q=k=v")))
    # A whole unit of width costs its two products at each position of both inputs, in each layer.
    assert abs(found - wanted) <= 2 * EVEN.d_model * (TIME + SOURCE_TIME) * 2 / 2


def test_another_geometry_reaches_both_inputs_and_the_layers_between_them():
    shape = transformer(
        "shape",
        Decoder(256),
        layers=3,
        d_model=SIZE.d_model,
        heads=SIZE.heads,
        position=Rotary(),
        init=Init(embedding_std=0.1, position_std=0.1),
    )
    for own in (translator(), towers()):
        model = as_in(shape, own)
        assert [len(tower.blocks) for tower in model.towers] == [3, 3]
        assert model.places.keys() == own.places.keys()
        assert all(len(layers) == 3 for layers in model.places.values())
        assert [tower.inputs for tower in model.towers] == [one.inputs for one in own.towers]
        assert cost.parameters(model).total == sum(map(np.size, arrays_of(build(model)).values()))


def test_positions_are_chosen_for_each_input():
    for own in (translator(), towers()):
        model = own.with_positions(Learned(TIME), Learned(SOURCE_TIME))
        assert [tower.position for tower in model.towers] == [Learned(TIME), Learned(SOURCE_TIME)]


def test_cross_attention_has_no_mask_no_bias_and_no_rope():
    plan = resolve_cross(translator("q,k=v+2d-diag+window3").blocks[0].cross.variant, EVEN)
    assert plan.biases == ()
    assert plan.rope is None
    assert plan.mask == replace(plan.mask, causal=False, window=None, sinks=0, diagonal=True)
