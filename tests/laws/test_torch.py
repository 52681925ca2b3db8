"""The PyTorch backend against the reference, and its two ways of running a plan."""

from itertools import product

import numpy as np
import pytest
import torch

from laws.arms import (
    EVEN,
    PLANNED,
    POSITIONS,
    SIZE,
    SUFFIXED,
    TIME,
    decoder,
    drawn,
    encoder,
    every_catalogued,
    every_position,
    every_told,
    every_variant,
    stream,
    suffixed,
)
from laws.networks import drawn_network
from qkvbench import reference
from qkvbench.backends.torch import Attention, build, load, named_weights, read, save, start
from qkvbench.backends.torch.attention import softmax
from qkvbench.backends.torch.cache import paged_tensor
from qkvbench.model import (
    Alibi,
    Learned,
    NoPosition,
    Rotary,
    Sinusoidal,
)
from qkvbench.variant import parse, resolve, without_value_rotation, write

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-11
BATCH = 3


def _layer(variant, position=NoPosition(), *, causal=True, size=SIZE):
    layer = Attention(variant, size.d_model, size.heads, position=position, causal=causal).double()
    with torch.no_grad():
        for name, value in drawn(layer.plan).items():
            layer.split()[name].copy_(torch.from_numpy(value))
    return layer


def _slopes(layer):
    """The gradients under the names of the weights."""
    twin = _layer(layer.plan.variant, size=layer.plan.geometry)
    with torch.no_grad():
        for own, parameter in zip(twin.parameters(), layer.parameters(), strict=True):
            own.copy_(parameter.grad)
    return {name: value.detach() for name, value in twin.split().items()}


def _tokens(seed=0, time=TIME):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 13, size=(BATCH, time)))


# Learned and sinusoidal positions are the embedding's; attention never sees them.
@pytest.mark.parametrize("held", [softmax.HELD, 50], ids=["whole", "by rows"])
@pytest.mark.parametrize("causal", [True, False])
@every_variant
def test_the_layer_is_the_reference(variant, causal, held, monkeypatch):
    monkeypatch.setattr(softmax, "HELD", held)
    inside = [one for one in POSITIONS if not isinstance(one, Learned | Sinusoidal)]
    for position, suffix in product(inside, SUFFIXED):
        layer, x = _layer(suffixed(variant, suffix), position, causal=causal), stream()
        expected = reference.forward(
            layer.plan, drawn(layer.plan), x, causal=causal, position=position
        )
        found = layer(torch.from_numpy(x)[None])[0]
        error = np.abs(found.detach().numpy() - expected).max()
        assert error < EXACT, (position, suffix)


def test_sinusoids_are_the_formula_of_their_source():
    model = decoder("q,k,v", Sinusoidal(), size=SIZE)
    network, tokens = drawn_network(model), _tokens()
    plain = drawn_network(decoder("q,k,v", size=SIZE))
    added = network.embedding(tokens) - plain.embedding(tokens)
    for place, coordinate in product(range(TIME), range(SIZE.d_model)):
        angle = place / 10_000 ** (coordinate // 2 * 2 / SIZE.d_model)
        expected = np.cos(angle) if coordinate % 2 else np.sin(angle)
        assert added[0, place, coordinate].item() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("held", [softmax.HELD, 50], ids=["whole", "by rows"])
@pytest.mark.parametrize("suffix", SUFFIXED)
@every_catalogued
def test_gradients_are_the_central_differences_of_the_reference(variant, suffix, held, monkeypatch):
    monkeypatch.setattr(softmax, "HELD", held)
    variant = suffixed(variant, suffix)
    layer = _layer(variant, Rotary(), size=EVEN)
    weights, x = drawn(layer.plan), stream(d_model=EVEN.d_model)
    rng = np.random.default_rng(5)
    into = rng.normal(size=x.shape)
    loss = (layer(torch.from_numpy(x)[None])[0] * torch.from_numpy(into)).sum()
    loss.backward()
    slopes = _slopes(layer)

    def value(step, along):
        moved = {name: weights[name] + step * along[name] for name in weights}
        y = reference.forward(layer.plan, moved, x, causal=True, position=Rotary())
        return float((y * into).sum())

    for name in weights:
        along = {other: np.zeros_like(each) for other, each in weights.items()}
        along[name] = rng.normal(size=weights[name].shape)
        step = 1e-6
        expected = (value(step, along) - value(-step, along)) / (2 * step)
        found = float((slopes[name].numpy() * along[name]).sum())
        # The difference quotient itself is good to about eight digits.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), name


def _chosen_suffixes(variant):
    """Two suffixes for each variant, so that all occur with all positions in affordable time."""
    place = PLANNED.index(variant)
    return {SUFFIXED[place % len(SUFFIXED)], SUFFIXED[(5 * place + 3) % len(SUFFIXED)]}


@every_position
@every_variant
def test_decoding_step_by_step_is_one_forward_pass(variant, position):
    for suffix in _chosen_suffixes(variant):
        network = drawn_network(decoder(suffixed(variant, suffix), position, size=SIZE))
        tokens = _tokens()
        whole = network(tokens)
        cache = network.new_cache(BATCH, TIME)
        steps = [network.step(tokens[:, time], cache) for time in range(TIME)]
        error = (torch.stack(steps, dim=1) - whole).abs().max()
        assert error < EXACT, suffix


@every_position
@every_variant
def test_a_prefill_and_steps_with_left_padding_are_one_forward_pass_without(variant, position):
    suffix = min(_chosen_suffixes(variant), key=len)
    network = drawn_network(decoder(suffixed(variant, suffix), position, size=SIZE))
    tokens, padding = _tokens(), torch.tensor([0, 3, 1])
    padded = torch.full((BATCH, TIME), 7)
    for row, count in enumerate(padding.tolist()):
        padded[row, count:] = tokens[row, : TIME - count]
    alone = [
        network(tokens[row : row + 1, : TIME - count])[0]
        for row, count in enumerate(padding.tolist())
    ]
    whole = network(padded, padding)
    for row, count in enumerate(padding.tolist()):
        torch.testing.assert_close(whole[row, count:], alone[row], rtol=0, atol=EXACT)

    cache = network.new_cache(BATCH, TIME)
    first = network.prefill(padded[:, :-2], cache, padding)
    logits = [first, network.step(padded[:, -2], cache), network.step(padded[:, -1], cache)]
    for back, found in enumerate(reversed(logits), start=1):
        expected = torch.stack([rows[-back] for rows in alone])
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("suffix", ["", "+qknorm", "+qkvnorm++"])
@every_catalogued
def test_a_shared_root_is_read_as_key_tile_by_tile(variant, suffix, monkeypatch):
    network = drawn_network(decoder(suffixed(variant, suffix), Rotary()))
    tokens = _tokens()
    monkeypatch.setattr(paged_tensor, "TILE", 2)
    cache = network.new_cache(BATCH, TIME)
    steps = [network.step(tokens[:, time], cache) for time in range(TIME)]
    torch.testing.assert_close(torch.stack(steps, dim=1), network(tokens), rtol=0, atol=EXACT)


@pytest.mark.parametrize("suffix", SUFFIXED)
@every_catalogued
def test_a_later_token_changes_nothing_earlier(variant, suffix):
    network = drawn_network(decoder(suffixed(variant, suffix), Rotary()))
    tokens = _tokens()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 13
    before, after = network(tokens), network(changed)
    torch.testing.assert_close(after[:, :-1], before[:, :-1], rtol=0, atol=0)
    assert not torch.equal(after[:, -1], before[:, -1])


@every_told
@pytest.mark.parametrize("suffix", SUFFIXED)
@pytest.mark.parametrize("equation", ["q,k,v", "q=k=v", "q,k=v/1"])
def test_an_encoder_reads_only_the_positions_that_are_there(equation, suffix, predicts, pooling):
    for position in POSITIONS:
        model = encoder(equation + suffix, predicts, pooling, position=position)
        network = drawn_network(model)
        tokens, lengths = _tokens(), torch.tensor([TIME, 3, 1])
        found = network(tokens, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = network(tokens[row : row + 1, :length])[0]
            error = (found[row, : len(alone), : alone.shape[1]] - alone).abs().max()
            assert error < EXACT, (position, length)
            if predicts == "which position":
                assert torch.isneginf(found[row, 0, length:]).all()


@pytest.mark.parametrize("equation", ["q,k,v", "q=k=v", "q,k=v/1"])
def test_without_positions_the_named_place_moves_with_what_lies_there(equation):
    network = drawn_network(encoder(equation, "which position", "mean"))
    tokens, order = _tokens(), torch.randperm(TIME, generator=torch.manual_seed(0))
    error = (network(tokens[:, order]) - network(tokens)[:, :, order]).abs().max()
    assert error < EXACT
    assert network(tokens).std() > 100 * EXACT


@pytest.mark.parametrize("equation", ["q,k,v", "q=k=v", "q,k=v/1"])
def test_a_class_token_reads_every_position_and_no_mean_of_them(equation):
    network = drawn_network(encoder(equation, "the whole", "class token", position=Learned(TIME)))
    tokens = _tokens()
    before = network(tokens)
    for place in range(TIME):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 13
        assert not torch.equal(network(changed), before)
    # What it was at the start decides as well: it is a position of its own.
    with torch.no_grad():
        network.embedding.class_token += 1
    assert not torch.equal(network(tokens), before)


def test_attention_that_is_made_by_rows_keeps_nothing_of_the_square_of_the_length(monkeypatch):
    monkeypatch.setattr(softmax, "HELD", 4 * 16 * 64)
    layer = Attention("q,k,v++", 24, 4, position=Alibi(), causal=True)
    largest = []

    def saved(tensor):
        largest.append(tensor.untyped_storage().nbytes() // 4)
        return tensor

    time = 256
    x = torch.zeros(1, time, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda kept: kept):
        layer(x).sum().backward()
    # The fused projection of the stream is the largest; scores would be 4·256·256.
    assert max(largest) == 3 * time * 24 < 4 * time * time


@every_variant
def test_only_the_roots_of_the_plan_have_weights(variant):
    layer = _layer(variant)
    plan = resolve(variant, SIZE)
    matrices = {name.removesuffix(".weight") for name in layer.split() if name.endswith(".weight")}
    assert matrices == {"o", *(name for name in plan.matrices)}
    assert {name for name in layer.split() if name.endswith("rotation")} == {
        f"{role}.rotation" for role in plan.rotated
    }


@every_catalogued
def test_tied_roles_are_one_tensor_before_and_after_saving(variant, tmp_path):
    network = drawn_network(decoder(variant))
    save(network, tmp_path / "weights.safetensors")
    again = drawn_network(decoder(variant), seed=1)
    load(again, read(tmp_path / "weights.safetensors"))
    for name, tensor in named_weights(again).items():
        assert torch.equal(tensor, named_weights(network)[name]), name
    for module in (network, again):
        layer = module.blocks[0].attention
        made = layer.project(torch.ones(1, 2, EVEN.d_model, dtype=torch.float64))
        maps = layer.maps()
        plan = layer.plan
        # Without positions, tied roles are the very same memory.
        places = {role: layer.make(plan.derivations[role], made, maps).data_ptr() for role in "qkv"}
        for first, second in [("q", "k"), ("k", "v"), ("q", "v")]:
            tied = plan.derivations[first] == plan.derivations[second]
            assert (places[first] == places[second]) == tied


def test_loading_other_weights_is_refused_by_name(tmp_path):
    save(drawn_network(decoder("q,k=v")), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"v\.weight"):
        load(drawn_network(decoder("q,k,v")), read(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(
    ("tied", "root", "roles"),
    [("q=k,v", "q", "qk"), ("q,k=v", "k", "kv"), ("q=v,k", "q", "qv"), ("q=k=v", "q", "qkv")],
)
def test_a_tied_matrix_receives_the_sum_of_the_gradients_of_its_roles(tied, root, roles):
    layer, whole = _layer(tied), _layer("q,k,v")
    with torch.no_grad():
        for role in "qkv":
            source = root if role in roles else role
            for part in ("weight", "bias"):
                whole.split()[f"{role}.{part}"].copy_(layer.split()[f"{source}.{part}"])
        for part in ("weight", "bias"):
            whole.split()[f"o.{part}"].copy_(layer.split()[f"o.{part}"])
    x = torch.from_numpy(stream())[None]
    for each in (layer, whole):
        each(x).square().sum().backward()
    for part in ("weight", "bias"):
        summed = sum(_slopes(whole)[f"{role}.{part}"] for role in roles)
        torch.testing.assert_close(_slopes(layer)[f"{root}.{part}"], summed, rtol=1e-9, atol=1e-9)


@every_catalogued
def test_arms_share_the_initial_values_of_what_they_share(variant):
    baseline = named_weights(drawn_network(decoder("q,k,v"), seed=3))
    arm = named_weights(drawn_network(decoder(variant), seed=3))
    other_seed = named_weights(drawn_network(decoder(variant), seed=4))
    # With fewer heads a matrix has another shape, and is not shared.
    shared = [name for name in arm if name in baseline and arm[name].shape == baseline[name].shape]
    assert {"embedding.table", "blocks.1.feed_forward.up.weight"} <= set(shared)
    for name in shared:
        assert torch.equal(arm[name], baseline[name]), name
    assert not torch.equal(arm["embedding.table"], other_seed["embedding.table"])


@every_catalogued
def test_a_rotation_on_the_value_folds_into_the_output_projection(variant):
    layer = _layer(variant, size=EVEN)
    plain = _layer(without_value_rotation(variant), size=EVEN)
    group = EVEN.heads // layer.plan.heads("v")
    extra = [
        op for op in layer.plan.derivations["v"].ops if op not in plain.plan.derivations["v"].ops
    ]
    with torch.no_grad():
        columns = layer.o.weight.view(EVEN.d_model, EVEN.heads, EVEN.head_dim)
        for op in reversed(extra):
            turn = layer.maps()[op.role].repeat_interleave(group, 0)
            columns = torch.einsum("ohe,hed->ohd", columns, turn)
        for name, value in plain.split().items():
            value.copy_(layer.split()[name])
        plain.o.weight.copy_(columns.reshape(EVEN.d_model, -1))
    x = torch.from_numpy(stream(d_model=EVEN.d_model))[None]
    torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@every_position
@every_catalogued
def test_products_of_half_the_size_stay_near_fp32(variant, position, kind):
    # bf16 keeps eight bits and fp16 eleven, and errors add up over two layers.
    bound = 0.1 if kind == torch.bfloat16 else 0.0125
    tokens = _tokens()
    for suffix in ("", "+qknorm++-diag", "+qkvnorm+2d"):
        model = decoder(suffixed(variant, suffix), position)
        network = build(model)
        start(network, model, seed=0)
        whole = network(tokens)
        with torch.autocast("cpu", kind):
            found = network(tokens)
        error = (found.float() - whole).abs().max() / whole.abs().max()
        assert error < bound, suffix


@every_catalogued
def test_the_cache_is_refused_more_than_it_holds(variant):
    network = drawn_network(decoder(variant))
    cache = network.new_cache(BATCH, 2)
    network.prefill(_tokens(time=2), cache)
    with pytest.raises(ValueError, match="holds 2 tokens"):
        network.step(_tokens()[:, 0], cache)


def test_a_prompt_goes_into_an_empty_cache_only():
    network = drawn_network(decoder("q,k,v"))
    cache = network.new_cache(BATCH, 2 * TIME)
    network.prefill(_tokens(), cache)
    with pytest.raises(ValueError, match="empty cache"):
        network.prefill(_tokens(), cache)


def test_a_model_with_learned_positions_makes_no_longer_cache():
    with pytest.raises(ValueError, match="at most 11 tokens"):
        drawn_network(decoder("q,k,v", Learned(11))).new_cache(BATCH, 12)
    for position in (Learned(11), Sinusoidal()):
        with pytest.raises(ValueError, match="added to a model's input"):
            Attention("q,k,v", 24, 4, position=position)


@pytest.mark.parametrize("share", [0, 0.5, 1.5, 1 / 4])
def test_a_share_of_a_head_that_makes_no_pairs_is_refused(share):
    with pytest.raises(ValueError, match="turn pairs of coordinates"):
        decoder("q,k,v", Rotary(share=share), size=SIZE)


def test_the_library_s_door_is_a_drop_in_layer_and_a_model():
    import qkvbench

    layer = qkvbench.torch.Attention("q,k=v", d_model=24, heads=4)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    layer(x).sum().backward()
    assert layer(x).shape == x.shape
    assert all(parameter.grad is not None for parameter in layer.parameters())
    model = qkvbench.torch.decoder("q,k=v/1", vocabulary=13, layers=2, d_model=24, heads=4)
    assert model(_tokens()).shape == (BATCH, TIME, 13)
    assert write(model.blocks[0].attention.plan.variant) == "q,k=v/1"


def test_a_model_that_decoded_in_inference_mode_can_still_be_trained():
    network = drawn_network(decoder("q,k=v", Rotary()))
    tokens = _tokens()
    with torch.inference_mode():
        cache = network.new_cache(BATCH, TIME)
        network.prefill(tokens[:, :-1], cache)
        network.step(tokens[:, -1], cache)
    network(tokens).sum().backward()
    assert network.blocks[0].attention.projection.weight.grad.abs().max() > 0


def test_the_layer_keeps_no_mask_and_no_buffer():
    network = build(decoder("q,k,v", Rotary()))
    network(_tokens())
    assert list(network.buffers()) == []


def test_a_plan_that_cannot_be_is_refused_where_the_layer_is_made():
    with pytest.raises(ValueError, match="both need as many heads"):
        Attention(parse("q=k,v/2"), d_model=24, heads=4)
