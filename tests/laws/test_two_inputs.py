"""Models of two inputs: attention across, sources, towers, and a variant at chosen places."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from laws.arms import EVEN, SIZE, SUFFIXED, TIME, drawn, every_catalogued, every_variant, suffixed
from laws.networks import drawn_network
from qkvbench import cost, reference
from qkvbench.backends.torch import Attention, build, load, named_weights, read, save
from qkvbench.backends.torch.models.two_tower import MAX_LOGIT_SCALE
from qkvbench.backends.torch.training.learner import Learner
from qkvbench.cost.matched import with_arm
from qkvbench.data.batch import Batch, Sequences
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.model import (
    Decoder,
    Encoder,
    Init,
    Learned,
    NoPosition,
    Rotary,
    RotaryWithInverse,
    Tokens,
    Vectors,
    as_in,
    parse_arm,
    transformer,
    with_source,
    with_tower,
    write_arm,
)
from qkvbench.task_ref import TaskRef
from qkvbench.variant import crossed, parse, resolve

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-11
SOURCE_TIME = 5
ITEMS = 3
LENGTHS = torch.tensor([5, 2, 4])


def _across(variant, size=SIZE):
    layer = Attention(variant, size.d_model, size.heads, is_cross=True).double()
    with torch.no_grad():
        for name, value in drawn(layer.plan).items():
            layer.split()[name].copy_(torch.from_numpy(value))
    return layer


def _rows(time, seed, d_model=SIZE.d_model):
    return np.random.default_rng(seed).normal(size=(ITEMS, time, d_model))


def _translator(variant="q,k,v", position=Rotary(), layers=2):
    model = transformer(
        "law",
        Decoder(13),
        layers=layers,
        d_model=EVEN.d_model,
        heads=EVEN.heads,
        position=position,
        init=Init(embedding_std=0.5, position_std=0.5),
        feed_forward=29,
    )
    model = with_source(model, Tokens(11), Learned(SOURCE_TIME))
    return model.with_variant(parse(variant) if isinstance(variant, str) else variant)


def _towers(variant="q,k,v"):
    model = transformer(
        "law",
        Encoder(Vectors(7), 1, "the whole"),
        layers=2,
        d_model=EVEN.d_model,
        heads=EVEN.heads,
        position=Learned(TIME),
        init=Init(embedding_std=0.5, position_std=0.5),
        feed_forward=29,
    )
    model = with_tower(model, Tokens(11), Rotary(), 10)
    return model.with_variant(parse(variant) if isinstance(variant, str) else variant)


def _whole_numbers(below, *shape):
    return torch.from_numpy(np.random.default_rng(3).integers(below, size=shape))


TOKENS = _whole_numbers(13, ITEMS, TIME)
SOURCE = _whole_numbers(11, ITEMS, SOURCE_TIME)


@every_variant
def test_attention_across_is_the_reference(variant):
    for suffix in SUFFIXED:
        layer = _across(suffixed(variant, suffix))
        x, source = _rows(TIME, 1), _rows(SOURCE_TIME, 2)
        found = layer(torch.from_numpy(x), None, LENGTHS, torch.from_numpy(source))
        for item, length in enumerate(LENGTHS):
            expected = reference.cross(
                layer.plan, drawn(layer.plan), x[item], source[item, :length]
            )
            assert np.abs(found[item].detach().numpy() - expected).max() < EXACT, suffix


@every_variant
def test_a_kept_source_is_attended_to_as_the_source_itself(variant):
    for suffix in SUFFIXED:
        layer = _across(suffixed(variant, suffix))
        x, source = torch.from_numpy(_rows(TIME, 1)), torch.from_numpy(_rows(SOURCE_TIME, 2))
        kept = layer.keep(source, LENGTHS)
        expected = layer(x, None, LENGTHS, source)
        torch.testing.assert_close(
            layer.attend_to_cached_source(x, kept), expected, rtol=0, atol=EXACT
        )
        # Several sequences beside each other have one source, which lies there once.
        twice = layer.attend_to_cached_source(x.repeat_interleave(2, dim=0), kept)
        torch.testing.assert_close(twice, expected.repeat_interleave(2, dim=0), rtol=0, atol=EXACT)


@every_variant
def test_a_tie_across_shares_the_matrix_and_its_cost_counts_each_product(variant):
    across, own = crossed(variant, SIZE), resolve(variant, SIZE)
    assert across.matrices == own.matrices
    assert cost.attention_parameters(across) == sum(one.size for one in drawn(across).values())
    # With inputs of one length, what is made of both costs at least what is made of one.
    assert cost.attention_macs(across, 5, 5) >= cost.attention_macs(own, 5)
    if across.paths["q"].root in across.matrices:
        tied = {f"{across.paths['q'].root} of the source"} & {one.name for one in across.roots}
        more = cost.attention_macs(across, 5, 5) - cost.attention_macs(own, 5)
        # Learned rotations of a shared root may be carried out for each input, too.
        assert (more > 0) >= bool(tied)


@every_catalogued
def test_computed_sizes_of_an_encoder_decoder_are_those_of_the_live_one(variant):
    for suffix in SUFFIXED:
        model = _translator(suffixed(variant, suffix))
        network = build(model)
        counted = sum(tensor.numel() for tensor in network.parameters())
        assert cost.parameters(model).total == counted
        cache = network.new_cache(ITEMS, TIME)
        network.read_source(SOURCE, LENGTHS, cache)
        own = TIME * cost.cache_bytes_per_token(model, value_bytes=4)
        source = SOURCE_TIME * cost.source_bytes_per_token(model, value_bytes=4)
        assert cache.bytes == ITEMS * (own + source)


@every_catalogued
def test_computed_sizes_of_two_towers_are_those_of_the_live_ones(variant):
    for suffix in SUFFIXED:
        model = _towers(suffixed(variant, suffix))
        assert cost.parameters(model).total == sum(t.numel() for t in build(model).parameters())
        assert cost.cache_bytes_per_token(model) is None
        assert cost.source_bytes_per_token(model) == 0


@every_catalogued
def test_computed_flops_of_two_inputs_are_the_counted_matrix_products(variant):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        build(_translator(variant)).forward(TOKENS[:1], None, SOURCE[:1])
    found = cost.flops(_translator(variant), TIME, SOURCE_TIME)
    assert (
        counter.get_total_flops() == found == 2 * cost.macs(_translator(variant), TIME, SOURCE_TIME)
    )
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        build(_towers(variant)).hidden(torch.zeros(1, TIME, 7), None, SOURCE[:1])
    assert counter.get_total_flops() == cost.flops(_towers(variant), TIME, SOURCE_TIME)


@pytest.mark.parametrize("position", [NoPosition(), Rotary(), RotaryWithInverse()], ids=str)
@every_catalogued
def test_writing_token_by_token_is_writing_at_once(variant, position):
    for suffix in SUFFIXED:
        network = drawn_network(_translator(suffixed(variant, suffix), position))
        whole = network(TOKENS, None, SOURCE, LENGTHS)
        cache = network.new_cache(ITEMS, TIME)
        network.read_source(SOURCE, LENGTHS, cache)
        found = [network.prefill(TOKENS[:, :2], cache)]
        found += [network.step(TOKENS[:, place], cache) for place in range(2, TIME)]
        error = (torch.stack(found, dim=1) - whole[:, 1:]).abs().max()
        assert error < EXACT, suffix


def test_what_follows_the_length_of_a_source_changes_nothing():
    network = drawn_network(_translator("q=k,v+2d"))
    other = SOURCE.clone()
    for item, length in enumerate(LENGTHS):
        other[item, length:] = (other[item, length:] + 1) % 11
    assert not torch.equal(other, SOURCE)
    torch.testing.assert_close(
        network(TOKENS, None, other, LENGTHS),
        network(TOKENS, None, SOURCE, LENGTHS),
        rtol=0,
        atol=EXACT,
    )


def test_every_place_of_a_source_that_is_read_changes_what_is_written():
    network = drawn_network(_translator())
    before = network(TOKENS, None, SOURCE, LENGTHS)
    for place in range(int(LENGTHS[0])):
        other = SOURCE.clone()
        other[0, place] = (other[0, place] + 1) % 11
        after = network(TOKENS, None, other, LENGTHS)
        assert (after[0] - before[0]).abs().amax(-1).min() > 1e-6
        torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=EXACT)


def test_a_decoder_with_a_source_refuses_to_go_without():
    network = drawn_network(_translator())
    with pytest.raises(ValueError, match="none was given"):
        network(TOKENS)


def test_vectors_of_two_towers_are_compared_by_their_angle_and_in_both_directions():
    network = drawn_network(_towers())
    pictures = torch.from_numpy(_rows(TIME, 5, 7))
    logits = network(pictures, None, SOURCE, LENGTHS)
    first, second = network.hidden(pictures, None, SOURCE, LENGTHS).unbind(dim=1)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(ITEMS).double())
    # The initial logit scale: arXiv:2103.00020, section 2.5.
    torch.testing.assert_close(logits[0::2], first @ second.mT / 0.07, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits[1::2], second @ first.mT / 0.07, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        network.logit_scale.fill_(50.0)
    sharpest = network(pictures, None, SOURCE, LENGTHS)
    torch.testing.assert_close(sharpest, logits * 0.07 * MAX_LOGIT_SCALE, rtol=1e-6, atol=1e-6)


def test_the_loss_of_two_towers_is_the_mean_of_both_directions():
    pictures = _rows(TIME, 5, 7).astype(np.float32)
    own = np.arange(ITEMS)
    batch = Batch(
        pictures,
        np.stack([own, own], axis=1),
        second=Sequences(SOURCE.numpy(), LENGTHS.numpy()),
    )
    learner = Learner(
        Experiment(_towers(), TaskRef("none"), 1, Training(1, ITEMS, 1e-3, 0), seed=0)
    )
    loss, norm = learner.gradients(batch)
    said = learner.predict(batch)
    logits = learner.network(torch.from_numpy(pictures), None, SOURCE, LENGTHS).detach()[0::2]
    both = [torch.log_softmax(each, -1).diagonal().neg().mean() for each in (logits, logits.mT)]
    assert loss == pytest.approx(float(sum(both)) / 2, rel=1e-5)
    assert said.loss.mean() == pytest.approx(loss, rel=1e-5)
    assert norm > 0
    order = logits.argsort(-1, descending=True).tolist()
    assert said.ranks[:, 0].tolist() == [row.index(item) for item, row in enumerate(order)]


def test_a_batch_of_two_towers_is_never_computed_in_parts():
    with pytest.raises(ValueError, match="leave out micro-batches and devices"):
        Experiment(_towers(), TaskRef("none"), 1, Training(1, 4, 1e-3, 0, micro_batches=2), seed=0)


def test_parts_of_a_batch_take_their_sources_with_them():
    batch = Batch(TOKENS.numpy(), TOKENS.numpy(), second=Sequences(SOURCE.numpy(), LENGTHS.numpy()))
    training = Training(1, ITEMS, 1e-3, 0)
    whole, parted = (
        Learner(
            Experiment(
                _translator(), TaskRef("none"), 1, replace(training, micro_batches=parts), seed=0
            )
        ).gradients(batch)
        for parts in (1, 3)
    )
    assert parted == pytest.approx(whole, rel=1e-5)


def test_a_saved_encoder_decoder_is_the_same_when_read(tmp_path):
    network = drawn_network(_translator("q,k=R(q),v=R(q)"))
    save(network, tmp_path / "weights.safetensors")
    again = build(_translator("q,k=R(q),v=R(q)")).double()
    load(again, read(tmp_path / "weights.safetensors"))
    assert torch.equal(again(TOKENS, None, SOURCE, LENGTHS), network(TOKENS, None, SOURCE, LENGTHS))


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
    base = _translator()
    model = with_arm(base, parse_arm(text), tokens=TIME, second_tokens=SOURCE_TIME)
    assert {place for place in base.places if model.places[place] != base.places[place]} == changed
    assert model.variant == write_arm(parse_arm(text)) == text
    experiment = Experiment(model, TaskRef("none"), 1, Training(1, 4, 1e-3, 0), seed=0)
    assert from_json(to_json(experiment)) == experiment
    # Arms share the initial values of what they share.
    own, canonical = (named_weights(drawn_network(each)) for each in (model, base))
    alike = own.keys() & canonical.keys()
    assert alike
    assert all(torch.equal(own[name], canonical[name]) for name in alike)


def test_each_tower_has_a_place_of_its_own():
    for place, other in (("image", "text"), ("text", "image")):
        model = with_arm(_towers(), parse_arm(f"q=k=v@{place}"), tokens=TIME)
        assert model.places[place] != _towers().places[place]
        assert model.places[other] == _towers().places[other]
        assert model.variant == f"q=k=v@{place}"


def test_a_place_that_a_model_lacks_is_refused_by_name():
    with pytest.raises(ValueError, match="names the place 'cross'; law has image, text"):
        with_arm(_towers(), parse_arm("q,k=v@cross"), tokens=TIME)
    for text in ("q,k=v|q=k,v@cross", "q,k=v@self|q=k,v@self"):
        with pytest.raises(ValueError, match="needs sites of its own"):
            parse_arm(text)


def test_the_order_in_which_places_are_named_means_nothing():
    for one, two in (
        ("q,k=v@self+cross", "q,k=v@cross+self"),
        ("q,k=v@self|q=k,v@encoder", "q=k,v@encoder|q,k=v@self"),
    ):
        assert write_arm(parse_arm(one)) == write_arm(parse_arm(two)) == two


def test_an_arm_of_another_s_size_is_sized_in_both_towers():
    arm = parse_arm("q,k,v~q=k=v:macs")
    model = with_arm(_towers(), arm, tokens=TIME, second_tokens=SOURCE_TIME)
    like = _towers("q=k=v")
    found, wanted = (cost.macs(each, TIME, SOURCE_TIME) for each in (model, like))
    # A whole unit of width costs its two products at each position of both inputs, in each layer.
    assert abs(found - wanted) <= 2 * EVEN.d_model * (TIME + SOURCE_TIME) * 2 / 2


def test_another_geometry_reaches_both_inputs_and_what_is_between_them():
    shape = transformer(
        "shape",
        Decoder(256),
        layers=3,
        d_model=SIZE.d_model,
        heads=SIZE.heads,
        position=Rotary(),
        init=Init(embedding_std=0.1, position_std=0.1),
    )
    for own in (_translator(), _towers()):
        model = as_in(shape, own)
        assert [len(tower.blocks) for tower in model.towers] == [3, 3]
        assert model.places.keys() == own.places.keys()
        assert all(len(layers) == 3 for layers in model.places.values())
        assert [tower.inputs for tower in model.towers] == [one.inputs for one in own.towers]
        assert cost.parameters(model).total == sum(t.numel() for t in build(model).parameters())


def test_positions_are_chosen_for_each_input():
    for own in (_translator(), _towers()):
        model = own.with_positions(Learned(TIME), Learned(SOURCE_TIME))
        assert [tower.position for tower in model.towers] == [Learned(TIME), Learned(SOURCE_TIME)]
