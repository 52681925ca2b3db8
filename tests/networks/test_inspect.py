"""What is shown of a layer is what the layer computes, for every variant."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from laws.cases import (
    ALONE,
    EVEN,
    alibi,
    decoder,
    encoder,
    every_distinct_even,
    every_output,
    every_position,
    every_variant,
    suffixed,
)
from qkvbench.analysis import LAYER_MEASURES, WEIGHT_MEASURES, measure_layer
from qkvbench.backends.torch import build, named_weights
from qkvbench.backends.torch.attention.layer import Attention
from qkvbench.backends.torch.models.inspect import inspect_layers
from qkvbench.model import (
    Alibi,
    NoPosition,
    Rotary,
    RotaryWithInverse,
)
from qkvbench.variant import ApplyRope, Zeros, parse, sized

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-11
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(13, size=(3, 8)))
# An even number of heads that three latents can share.
SIX = sized(36, 6)
COSINES = ["kv_cosine", "kv_weight_cosine"]


def network_of(model, seed=0):
    """The network with weights so large that nothing is nearly linear, and offsets that count."""
    network = build(model).double()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for tensor in named_weights(network).values():
            tensor.copy_(torch.from_numpy(rng.normal(size=tuple(tensor.shape)) / 2))
    return network


def shown(network, lengths=None):
    """The layers as they are shown, and the input and output that each really had."""
    seen = []
    for part in network.modules():
        if isinstance(part, Attention):
            part.register_forward_hook(
                lambda part, inputs, output: seen.append((part, inputs[0], output))
            )
    with torch.no_grad():
        network.hidden(TOKENS, lengths)
        real = list(seen)
        return list(zip(inspect_layers(network, TOKENS, lengths), real, strict=True))


def holds(network, lengths=None):
    """Shares times V, through the output projection, are what the layer put out."""
    for layer, (part, _, output) in shown(network, lengths):
        items, time, _ = output.shape
        read = layer.mask.any(-1)
        values = np.zeros((items, time, *layer.projections["v"].shape[1:]))
        values[read] = layer.projections["v"]
        values = values.repeat(EVEN.heads // values.shape[2], axis=2).swapaxes(1, 2)
        merged = torch.from_numpy(
            (layer.attention_weights @ values).swapaxes(1, 2).reshape(items, time, -1)
        )
        assert part.o(merged).detach().numpy()[read] == pytest.approx(
            output.numpy()[read], abs=EXACT
        )


@every_distinct_even
def test_the_shares_and_values_shown_are_those_that_make_the_output(variant):
    holds(network_of(decoder(variant, Rotary())))


@pytest.mark.parametrize("suffix", ALONE)
def test_they_are_with_everything_that_is_said_of_the_scores(suffix):
    variant = suffixed(parse("q,k=v"), suffix)
    # What comes behind the weighted sum is not shown.
    scores = replace(
        variant.scores, exclusive=False, gate=None, output_norm=False, output_rank=None
    )
    variant = replace(variant, scores=scores)
    holds(network_of(decoder(variant, alibi(variant))))


@every_position
def test_they_are_at_every_position_scheme_that_leaves_values_as_they_are(position):
    if isinstance(position, RotaryWithInverse):
        # What is attended over turned values is turned back: shares alone do not make the output.
        position = Rotary(share=position.share)
    holds(network_of(decoder("q,k,v/2", position)))


@every_output
def test_they_are_where_only_some_positions_are_read(predicts, pooling):
    model = encoder("q,k=v", predicts, pooling, position=Alibi())
    holds(network_of(model), torch.tensor([8, 3, 1]))


@every_variant
def test_the_weights_shown_make_the_rows_from_the_stream(variant):
    network = network_of(decoder(variant, Rotary(), size=SIX))
    with torch.no_grad():
        for name, tensor in named_weights(network).items():
            if ".attention." in name and name.endswith(".bias"):
                tensor.zero_()
    for layer, (_, stream, _) in shown(network):
        for role, matrix in layer.weights.items():
            rows = np.einsum("bti,hdi->bthd", stream.numpy(), matrix).reshape(-1, *matrix.shape[:2])
            assert layer.projections[role] == pytest.approx(rows, abs=EXACT)


@every_variant
def test_every_measure_of_every_variant_is_a_number_where_it_applies(variant):
    for layer, (part, _, _) in shown(network_of(decoder(variant, Rotary(), size=SIX))):
        found = measure_layer(layer)
        assert found.keys() == {*WEIGHT_MEASURES, *LAYER_MEASURES}
        # A causal layer's shares cannot be symmetric, and where the stream itself is cut into
        # heads, no two of its coordinates have a product that CKA could compare.
        streams = "x" in {part.plan.derivations[role].root for role in ("k", "v")}
        empty = {name for name, value in found.items() if math.isnan(value)}
        expected = {"attention_symmetry", *(["kv_weight_cka"] if streams else [])}
        if variant.k == Zeros():
            # No matrix makes them, and no direction is theirs.
            of_them = ("qk_", "kv_", "q_", "k_", "score_symmetry")
            expected |= {name for name in found if name.startswith(of_them)}
        # K or V is made from the stream of another layer.
        lent = {role for role in ("k", "v") if part.plan.layers_below(role)}
        expected |= {name for name, each in WEIGHT_MEASURES.items() if lent & {*each.roles}}
        assert empty == expected


@every_variant
def test_roles_that_share_a_tensor_are_exactly_alike_and_no_others_are(variant):
    network = network_of(decoder(variant, Rotary(), size=SIX))
    for layer, (part, _, _) in shown(network):
        made = {
            role: [op for op in path.ops if not isinstance(op, ApplyRope)]
            for role, path in part.plan.derivations.items()
        }
        tied = (
            part.plan.derivations["k"].root == part.plan.derivations["v"].root
            and made["k"] == made["v"]
        )
        found = measure_layer(layer)
        assert [found[name] == 1 for name in COSINES] == [tied] * len(COSINES)
        if tied:
            # Norms in fp64, whose last bit depends on the processor and its threads.
            assert found["kv_cka"] == pytest.approx(1, abs=1e-12)
            if part.plan.derivations["k"].root != "x":
                assert found["kv_weight_cka"] == pytest.approx(1, abs=1e-12)
            assert found["kv_residual"] == pytest.approx(0, abs=1e-12)
            assert found["kv_overlap"] == pytest.approx(1)


def test_a_rotated_value_is_its_key_up_to_a_rotation():
    for layer, _ in shown(network_of(decoder("q,k,v=R(k)"))):
        found = measure_layer(layer)
        assert found["kv_weight_residual"] == pytest.approx(0, abs=1e-12)
        assert found["kv_weight_cka"] == pytest.approx(1)
        assert found["kv_residual"] == pytest.approx(0, abs=1e-12)
        assert found["kv_cosine"] < 0.9


def test_one_matrix_for_queries_and_keys_makes_symmetric_scores_without_positions():
    for layer, _ in shown(network_of(decoder("q=k,v", NoPosition()))):
        found = measure_layer(layer)
        assert found["qk_weight_symmetry"] == pytest.approx(1)
        assert found["score_symmetry"] == pytest.approx(1)
    for layer, _ in shown(network_of(decoder("q,k,v", NoPosition()))):
        assert abs(measure_layer(layer)["qk_weight_symmetry"]) < 0.5


def test_what_is_not_read_changes_no_measure():
    network, lengths = (
        network_of(encoder("q,k,v", "the whole", "mean", position=Alibi())),
        torch.tensor([8, 3, 5]),
    )
    other = TOKENS.clone()
    other[1, 3:], other[2, 5:] = 1, 2
    with torch.no_grad():
        first, second = (
            [measure_layer(layer) for layer in inspect_layers(network, tokens, lengths)]
            for tokens in (TOKENS, other)
        )
    assert first == second
    assert all(math.isfinite(value) for layer in first for value in layer.values())
