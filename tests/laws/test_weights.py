"""The weights of a model: one list for every backend, file, cost and optimizer."""

import numpy as np
import pytest
import torch

from laws.backends import BACKENDS, JAX, TORCH, every_backend
from laws.cases import (
    EVEN,
    ITEMS,
    SCHEMES,
    TIME,
    TOKENS,
    VOCABULARY,
    architectures,
    at_their_time,
    can_be,
    covering,
    decoder,
    drawn,
    encoder,
    every_case,
    every_catalogued,
    every_distinct,
    every_output,
    every_position,
    one_of_each,
    parametrized,
    plan_of,
    reads_both_ways,
    towers,
    translator,
)
from qkvbench import cost, reference
from qkvbench.backends.torch import build, load
from qkvbench.backends.torch.models.weights import parameters_of
from qkvbench.model import Rotary, Sinusoidal, Vectors, model_parameters
from qkvbench.variant import parse

# fp64 rounding of sums over tens of numbers of size ten.
EXACT = 1e-11
CASES = covering("distinct", "position", "suffix")

every_distinct_case = parametrized(CASES)


def _models(case):
    """A model of each architecture, output and input."""
    geometry = case.plan().geometry
    found = [model for model, _ in architectures(case.full, case.position, geometry).values()]
    found.append(decoder(case.full, case.position, geometry, tied=True))
    if not reads_both_ways(case.full):
        return found
    return [*found, encoder(case.full, inputs=Vectors(3), position=case.position, size=geometry)]


@every_case("distinct", "position", "suffix", nightly=0, share=3)
def test_names_and_shapes_of_weights_are_those_of_the_model_in_every_backend(case):
    # Each case with two of the models, so that each model meets many cases.
    number, models = CASES.index(case), _models(case)
    for model in (models[number % len(models)], models[(number + 4) % len(models)]):
        expected = {name: each.shape for name, each in model_parameters(model).items()}
        assert TORCH.shapes(model) == expected
        assert cost.parameters(model).total == sum(map(np.prod, expected.values()))
        if number % 8 == 0:
            assert JAX.shapes(model) == expected


@every_catalogued
@every_backend
def test_arms_share_the_initial_values_of_what_they_share(backend, variant):
    baseline, arm = (backend.initial(decoder(each), 3) for each in ("q,k,v", variant))
    # With fewer heads a matrix has another shape, and is not shared.
    shared = [name for name in arm if name in baseline and arm[name].shape == baseline[name].shape]
    assert {"embedding.table", "blocks.1.feed_forward.up.weight"} <= set(shared)
    for name in shared:
        np.testing.assert_array_equal(arm[name], baseline[name], err_msg=name)
    other_seed = backend.initial(decoder(variant), 4)
    assert not np.array_equal(arm["embedding.table"], other_seed["embedding.table"])


@every_catalogued
def test_backends_share_initial_values(variant):
    model = translator(variant)
    found, expected = (backend.initial(model, 3) for backend in BACKENDS)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@every_backend
def test_any_matrix_begins_as_the_rotation_in_its_place(backend):
    rotated, free = (decoder(each) for each in ("q,k=R(q),v=R(k)", "q,k=M(q),v=M(k)"))
    begins = backend.initial(rotated, 3)
    found = backend.initial(free, 3)
    for name, matrices in found.items():
        if not name.endswith(".map"):
            np.testing.assert_array_equal(matrices, begins[name], err_msg=name)
            continue
        expected = reference.rotation(begins[name.replace(".map", ".rotation")], EVEN.head_dim)
        # fp32 rounding.
        np.testing.assert_allclose(matrices, expected, atol=1e-6, err_msg=name)
    assert sum(name.endswith(".map") for name in found) == 4


@every_catalogued
@every_backend
def test_saved_weights_are_the_same_when_they_are_read(backend, variant, tmp_path):
    model = translator(variant)
    weights = drawn(model_parameters(model).values())
    found = backend.saved(model, weights, tmp_path / "weights.safetensors")
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        # JAX holds fp32 unless it is asked for more.
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@every_catalogued
def test_tied_roles_share_storage_before_and_after_saving(variant, tmp_path):
    model = decoder(variant)
    weights = drawn(model_parameters(model).values())
    saved = TORCH.saved(model, weights, tmp_path / "weights.safetensors")
    for values in (weights, saved):
        layer = TORCH.network(model, values).blocks[0].attention
        made = layer.project(torch.ones(1, 2, EVEN.d_model, dtype=torch.float64))
        maps, plan = layer.head_maps(), layer.plan
        # Without positions, tied roles are the very same memory.
        places = {role: layer.make(plan.derivations[role], made, maps).data_ptr() for role in "qkv"}
        for first, second in [("q", "k"), ("k", "v"), ("q", "v")]:
            tied = plan.derivations[first] == plan.derivations[second]
            assert (places[first] == places[second]) == tied


def test_loading_other_weights_is_refused_by_name():
    other = drawn(model_parameters(decoder("q,k=v")).values())
    with pytest.raises(ValueError, match=r"v\.weight"):
        TORCH.network(decoder("q,k,v"), other)
    other = drawn(model_parameters(decoder("q,k=v/2")).values())
    with pytest.raises(ValueError, match=r"k\.weight is \(24, 24\) in the model and \(12, 24\)"):
        load(build(decoder("q,k=v")), {name: torch.from_numpy(v) for name, v in other.items()})


def _cells(models):
    """Each architecture with some cases.

    One of each is quick for the first `models` and slow for the others; the rest are nightly.
    """
    names = list(architectures("q,k,v", SCHEMES[0]))
    cells = [(case, name) for case in CASES for name in names if can_be(case, name)]
    first = one_of_each(CASES, names)
    times = {cell: "quick" if cell in first[:models] else "slow" for cell in first}
    return pytest.mark.parametrize(
        ("case", "name"),
        at_their_time((cell, times.get(cell, "nightly")) for cell in cells),
        ids=str,
    )


def _given(case, name):
    model, inputs = architectures(case.full, case.position, case.plan().geometry)[name]
    return model, drawn(model_parameters(model).values()), inputs


@_cells(1)
def test_jax_computes_the_logits_of_torch_from_the_same_weights(case, name):
    model, weights, inputs = _given(case, name)
    found, expected = (backend.logits(model, weights, inputs) for backend in BACKENDS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


@_cells(1)
def test_jax_computes_the_gradients_of_torch_from_the_same_weights(case, name):
    given = _given(case, name)
    found, expected = (backend.logit_gradients(*given) for backend in BACKENDS)
    size = max(np.abs(value).max() for value in expected.values())
    for weight, value in expected.items():
        np.testing.assert_allclose(
            found[weight], value, rtol=0, atol=EXACT * max(1, size), err_msg=weight
        )


@every_output
@every_position
def test_an_encoder_reads_only_the_positions_within_the_length(predicts, pooling, position):
    lengths = torch.tensor([TIME, 3, 1])
    tokens = torch.from_numpy(TOKENS)
    for suffix in ("", "+2d-diag", "+qknorm+window3+sinks1"):
        network = TORCH.network(encoder(f"q,k=v/1{suffix}", predicts, pooling, position=position))
        found = network(tokens, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = network(tokens[row : row + 1, :length])[0]
            error = (found[row, : len(alone), : alone.shape[1]] - alone).abs().max()
            assert error < EXACT, (suffix, length)
            if predicts == "which position":
                assert torch.isneginf(found[row, 0, length:]).all()
        found.where(found > -torch.inf, torch.zeros(())).sum().backward()
        assert all(each.grad.isfinite().all() for each in network.parameters())


@pytest.mark.parametrize("equation", ["q,k,v", "q=k=v", "q,k=v/1"])
def test_without_positions_the_named_place_moves_with_the_token_at_it(equation):
    network = TORCH.network(encoder(equation, "which position"))
    tokens = torch.from_numpy(TOKENS)
    order = torch.randperm(TIME, generator=torch.manual_seed(0))
    error = (network(tokens[:, order]) - network(tokens)[:, :, order]).abs().max()
    assert error < EXACT
    assert network(tokens).std() > 100 * EXACT


@pytest.mark.parametrize("equation", ["q,k,v", "q=k=v", "q,k=v/1"])
def test_a_class_token_reads_every_position_and_its_own_vector(equation):
    network = TORCH.network(encoder(equation, "the whole", "class token", position=Sinusoidal()))
    tokens = torch.from_numpy(TOKENS)
    before = network(tokens)
    for place in range(TIME):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCABULARY
        assert not torch.equal(network(changed), before)
    with torch.no_grad():
        network.embedding.class_token += 1
    assert not torch.equal(network(tokens), before)


def test_sinusoids_are_the_formula_of_their_source():
    model = decoder(position=Sinusoidal())
    tokens = torch.from_numpy(TOKENS)
    network, plain = TORCH.network(model), TORCH.network(decoder())
    added = (network.embedding(tokens) - plain.embedding(tokens)).detach().numpy()
    places, coordinates = np.mgrid[:TIME, : EVEN.d_model]
    angle = places / 10_000 ** (coordinates // 2 * 2 / EVEN.d_model)
    expected = np.where(coordinates % 2, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(added, np.broadcast_to(expected, added.shape), atol=EXACT)
    assert len(added) == ITEMS


@pytest.mark.parametrize("share", [0, 0.5, 1.5, 1 / 4])
def test_a_share_of_a_head_that_makes_no_pairs_is_refused(share):
    with pytest.raises(ValueError, match="rotate pairs of coordinates"):
        decoder("q,k,v", Rotary(share=share / 2 if share == 0.5 else share))


@every_distinct
def test_weight_decay_applies_to_matrices_only_and_fused_weights_have_one_rule(variant):
    for model in (decoder(variant, size=plan_of(variant).geometry), towers(), translator()):
        parameters = model_parameters(model)
        for name, each in parameters.items():
            is_matrix = len(each.shape) == 2 and not name.endswith(("rotation", "class_token"))
            assert not each.decay or len(each.shape) > 1, name
            assert each.decay or not is_matrix, name
        network = build(model)
        found = parameters_of(network, model)
        assert found.keys() == {name for name, _ in network.named_parameters()}
        for name, tensor in network.named_parameters():
            fused = name.rpartition("projection")[1]
            assert fused or tensor.shape == found[name].shape, name


def test_a_variant_of_a_layer_changes_no_name_outside_its_attention():
    for text in ("q,k=v", "q=k=v=x", "q,k=L(5),v=R(k)+qknorm"):
        own, other = (
            {name for name in model_parameters(decoder(each)) if ".attention." not in name}
            for each in (parse(text), "q,k,v")
        )
        assert own == other
