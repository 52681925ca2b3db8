"""K alone in the cache: V is made from it by given weights, where their key matrix allows it."""

import pytest
import torch

from laws.arms import EVEN, TIME, decoder, every_position
from laws.networks import drawn_network
from qkvbench import cost
from qkvbench.backends.torch import Growing, named_weights
from qkvbench.backends.torch.attention.layer import LOST
from qkvbench.cost import CACHE_FORMATS
from qkvbench.model import Rotary
from qkvbench.variant import keys_only

BATCH = 3
TOKENS = torch.arange(BATCH * TIME).reshape(BATCH, TIME) % 13


def _network(variant, position):
    """Its biases are not zero: they have to be undone, too."""
    network = drawn_network(decoder(variant, position))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in named_weights(network).items():
            if name.endswith(".bias"):
                tensor += torch.randn(tensor.shape, generator=rng).double()
    return network


def _condition(network):
    layers = [block.attention for block in network.blocks]
    keys = [layer.split()[f"{layer.plan.derivations['k'].root}.weight"] for layer in layers]
    return max(torch.linalg.cond(each).item() for each in keys)


@torch.no_grad()
def _written(network, cache):
    found = [network.prefill(TOKENS[:, :2], cache)]
    found += [network.step(TOKENS[:, time], cache) for time in range(2, TIME)]
    return torch.stack(found, dim=1)


@every_position
@pytest.mark.parametrize("variant", ["q,k,v", "q=k,v", "q=v,k", "q,k,v+qknorm-diag", "q,k,v++"])
@torch.no_grad()
def test_decoding_from_keys_alone_is_one_forward_pass(variant, position):
    network = _network(variant, position)
    if "v" in position.turned:
        with pytest.raises(ValueError, match=r"layers 0, 1: its V is normed, turned or rotated"):
            network.new_cache(BATCH, TIME, keep="keys")
        return
    cache = network.new_cache(BATCH, TIME, Growing(3), keep="keys")
    # The error of solving with W_k, in fp64, for each of its rows and columns.
    bound = 100 * EVEN.d_model * _condition(network) * 2**-53
    assert (_written(network, cache) - network(TOKENS)[:, 1:]).abs().max() < min(bound, 1e-6)


@torch.no_grad()
def test_half_is_kept_and_it_is_what_is_computed():
    network = _network("q,k,v", Rotary())
    whole, half = (network.new_cache(BATCH, TIME, keep=keep) for keep in ("roots", "keys"))
    kind = CACHE_FORMATS["fp64"]
    assert 2 * half.bytes == whole.bytes
    plans = [keys_only(plan) for plan in network.model.plans]
    values = sum(map(cost.cached_values, plans))
    assert half.bytes == BATCH * TIME * values * kind.value_bytes


@torch.no_grad()
def test_weights_whose_keys_cannot_be_undone_are_refused_by_layer():
    network = _network("q,k,v", Rotary())
    named_weights(network)["blocks.1.attention.k.weight"][0] = 0
    with pytest.raises(ValueError, match=r"layer 1: the condition number of its key matrix is"):
        network.new_cache(BATCH, TIME, keep="keys")
    # The same weights may be good for exact rows and not for coarse ones.
    network = _network("q,k,v", Rotary())
    assert _condition(network) * 0.5 / 127 > LOST
    with pytest.raises(ValueError, match=r"int8 rows bear 2\.54"):
        network.new_cache(BATCH, TIME, rows="int8", keep="keys")


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("q,k=v", "keeps one tensor already"),
        ("q,k,v=x", "by no matrix of its own"),
        ("q,k=L(8),v", "by no matrix of its own"),
        ("q,k,v/2", "12 × 24, not square"),
        ("q,k,v+qkvnorm", "V is normed"),
    ],
)
def test_layers_without_such_a_map_are_refused(variant, reason):
    network = _network(variant, Rotary())
    with pytest.raises(ValueError, match=reason):
        network.new_cache(BATCH, TIME, keep="keys")
