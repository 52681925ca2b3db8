"""A window: each position sees those near it, in every variant and by every way of computing."""

from itertools import product

import numpy as np
import pytest
import torch

from laws.arms import (
    EVEN,
    SIZE,
    TIME,
    decoder,
    drawn,
    encoder,
    every_catalogued,
    stream,
    suffixed,
)
from qkvbench import cost, reference
from qkvbench.backends.torch import Attention, Growing, Reserved, build, start
from qkvbench.backends.torch.attention import softmax
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.model import Alibi, NoPosition, Rotary, RotaryWithInverse, Tokens, with_source
from qkvbench.model import Attention as AttentionSpec
from qkvbench.task_ref import TaskRef
from qkvbench.variant import parse

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-11
SUFFIXES = ["", "+qknorm", "++", "+2d-diag", "-diag"]
WINDOWS = [1, 3, TIME + 2]


def _layer(variant, window, position=NoPosition(), *, causal=True, size=EVEN):
    layer = Attention(
        variant, size.d_model, size.heads, position=position, causal=causal, window=window
    ).double()
    with torch.no_grad():
        for name, value in drawn(layer.plan).items():
            layer.split()[name].copy_(torch.from_numpy(value))
    return layer


def _network(model):
    network = build(model).double()
    start(network, model, seed=0)
    return network


def _few_rows(monkeypatch):
    monkeypatch.setattr(softmax, "MASKED", 2)
    monkeypatch.setattr(softmax, "HELD", 50)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("causal", [True, False])
@every_catalogued
def test_a_layer_with_a_window_is_the_reference(variant, causal, by_rows, monkeypatch):
    if by_rows:
        _few_rows(monkeypatch)
    x = stream(d_model=EVEN.d_model)
    for position, window, suffix in product([Rotary(), Alibi()], WINDOWS, SUFFIXES):
        layer = _layer(suffixed(variant, suffix), window, position, causal=causal)
        expected = reference.forward(
            layer.plan, drawn(layer.plan), x, causal=causal, position=position, window=window
        )
        found = layer(torch.from_numpy(x)[None])[0].detach().numpy()
        assert np.abs(found - expected).max() < EXACT, (position, window, suffix)


@every_catalogued
def test_the_reference_sees_the_same_token_by_token(variant):
    for position, window, suffix in product([Rotary(), RotaryWithInverse()], WINDOWS, SUFFIXES):
        plan = _layer(suffixed(variant, suffix), window, position).plan
        weights, x = drawn(plan), stream(d_model=EVEN.d_model)
        whole = reference.forward(plan, weights, x, causal=True, position=position, window=window)
        steps = reference.decode(plan, weights, x, position=position, window=window)
        assert np.abs(whole - steps).max() < EXACT


@every_catalogued
@torch.no_grad()
def test_decoding_through_a_window_is_one_forward_pass(variant):
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 13, size=(3, 9)))
    for position, window, suffix in product([Rotary(), Alibi()], [1, 3], ["", "+qkvnorm++-diag"]):
        model = decoder(suffixed(variant, suffix), position).with_window(window)
        network = _network(model)
        whole = network(tokens)
        for storage in (Reserved(), Growing(2)):
            cache = network.new_cache(3, 9, storage)
            found = [network.prefill(tokens[:, :4], cache)]
            found += [network.step(tokens[:, time], cache) for time in range(4, 9)]
            assert (torch.stack(found, dim=1) - whole[:, 3:]).abs().max() < EXACT


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("window", [1, 3])
def test_what_is_outside_the_window_changes_nothing(window, suffix):
    layer = _layer(parse(f"q,k=v{suffix}"), window, Rotary())
    x = torch.from_numpy(stream(d_model=EVEN.d_model))[None]
    changed = x.clone()
    changed[:, 0] += 1
    before, after = layer(x), layer(changed)
    torch.testing.assert_close(after[:, window:], before[:, window:], rtol=0, atol=0)
    assert not torch.equal(after[:, :window], before[:, :window])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_through_a_window_do_not_hang_on_how_many_rows_go_at_once(
    causal, suffix, monkeypatch
):
    x = torch.from_numpy(stream(d_model=EVEN.d_model))[None]
    layers = [_layer(parse(f"q,k=v{suffix}"), 3, Rotary(), causal=causal) for _ in range(2)]
    layers[0](x).square().sum().backward()
    _few_rows(monkeypatch)
    layers[1](x).square().sum().backward()
    for whole, parted in zip(*(layer.parameters() for layer in layers), strict=True):
        torch.testing.assert_close(parted.grad, whole.grad, rtol=1e-9, atol=1e-9)


def test_padding_behind_the_window_of_an_encoder_stays_out():
    for suffix in SUFFIXES:
        network = _network(encoder(f"q,k=v{suffix}", "the whole", "mean").with_window(2))
        tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 13, size=(3, TIME)))
        lengths = torch.tensor([TIME, 3, 1])
        found = network(tokens, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = network(tokens[row : row + 1, :length])[0]
            torch.testing.assert_close(found[row], alone, rtol=0, atol=EXACT)
        found.sum().backward()
        assert all(weight.grad.isfinite().all() for weight in network.parameters())


def test_a_window_costs_the_scores_that_it_shows():
    for model, seen in [
        (decoder("q,k=v"), {1: 1, 3: 3, 8: 7}),
        (encoder("q,k=v", "the whole", "mean"), {1: 1, 3: 5, 8: 7}),
    ]:
        for window, columns in seen.items():
            width, layers = EVEN.heads * EVEN.head_dim, len(model.blocks)
            less = layers * TIME * width * 2 * (TIME - columns)
            whole, windowed = cost.macs(model, TIME), cost.macs(model.with_window(window), TIME)
            assert whole - windowed == less


def test_a_window_is_part_of_the_model_and_of_its_identity_only_where_there_is_one():
    base = Experiment(decoder("q,k=v"), TaskRef("none"), 1, Training(1, 4, 1e-3, 0), seed=0)
    assert "window" not in to_json(base)
    windowed = Experiment(
        base.model.with_window(5), TaskRef("none"), 1, Training(1, 4, 1e-3, 0), seed=0
    )
    assert from_json(to_json(windowed)) == windowed != base
    # A variant is chosen for layers that keep their windows.
    arm = windowed.model.with_variant(parse("q=k,v"))
    assert [block.attention.window for block in arm.blocks] == [5, 5]


def test_a_window_through_which_nothing_is_seen_and_one_between_two_sequences_are_refused():
    with pytest.raises(ValueError, match="window of 0 shows nothing"):
        AttentionSpec(parse("q,k,v"), window=0)
    across = with_source(decoder("q,k,v"), Tokens(11), NoPosition())
    cross = AttentionSpec(parse("q,k,v"), window=3)
    with pytest.raises(ValueError, match="attention across has no window"):
        across.with_blocks(lambda block: type(block)(block.attention, None, cross=cross))
    with pytest.raises(ValueError, match="no window and no causality"):
        Attention("q,k,v", SIZE.d_model, SIZE.heads, is_cross=True, window=3)
