"""The JAX backend against the reference and against PyTorch: same weights, same numbers.

Most of it runs operation by operation: a program compiled for each arm would take minutes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from laws.arms import (
    CATALOGUED,
    EVEN,
    POSITIONS,
    SUFFIXED,
    TIME,
    TOLD,
    decoder,
    drawn,
    encoder,
    every_catalogued,
    stream,
    suffixed,
)
from laws.networks import drawn_network
from qkvbench import reference
from qkvbench.backends import jax as backend
from qkvbench.backends.jax import scores
from qkvbench.backends.jax.attention import attention
from qkvbench.backends.torch import named_weights
from qkvbench.model import Learned, Rotary, Sinusoidal, Tokens, Vectors, with_source, with_tower

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-10
# And fp32's.
NEAR = 1e-5
ITEMS, SOURCE_TIME = 3, 5
LENGTHS = np.array([TIME, 3, 1], np.int32)
SOURCE_LENGTHS = np.array([5, 2, 4], np.int32)


@pytest.fixture
def in_fp64():
    """JAX computes in fp64 where it is asked to."""
    with jax.enable_x64():
        yield


def whole_numbers(below, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, below, size=shape).astype(np.int32)


TOKENS = whole_numbers(13, ITEMS, TIME)
SOURCE = whole_numbers(11, ITEMS, SOURCE_TIME)
VECTORS = np.random.default_rng(2).normal(size=(ITEMS, TIME, 7))


def chosen(variant, values, step=1):
    """Some of the values for each variant, so that all occur with some variant."""
    return values[step * CATALOGUED.index(variant) % len(values)]


def of_torch(network, kind=np.float64):
    """A torch network's weights."""
    return {
        name: jnp.asarray(tensor.detach().numpy().astype(kind))
        for name, tensor in named_weights(network).items()
    }


def translator(variant, position):
    return with_source(decoder(variant, position), Tokens(11), Learned(SOURCE_TIME))


def towers(variant, position):
    own = encoder(variant, "the whole", "mean", inputs=Vectors(7), position=position)
    return with_tower(own, Tokens(11), Rotary(), 10)


def stacks(variant, position):
    """Every stack with this variant, and what it reads."""
    yield decoder(variant, position), (TOKENS,)
    for predicts, pooling in TOLD:
        yield encoder(variant, predicts, pooling, position=position), (TOKENS, LENGTHS)
    both = (SOURCE, SOURCE_LENGTHS)
    yield translator(variant, position), (TOKENS, None, *both)
    yield towers(variant, position), (VECTORS, LENGTHS, *both)


def logits(network, *weights_and_given):
    """What a network of either backend says, where items are read."""
    *weights, given = weights_and_given
    given = given if isinstance(network, torch.nn.Module) else arrays(given)
    hidden = network.hidden(*weights, *given)
    return network.head(*weights, hidden.reshape(-1, hidden.shape[-1]))


def tensors(given):
    return tuple(None if each is None else torch.from_numpy(each) for each in given)


def arrays(given):
    return tuple(None if each is None else jnp.asarray(each) for each in given)


def finite(array):
    """Numbers only: what is never named has a score of -inf in both."""
    return jnp.where(jnp.isneginf(array), -1e3, array)


@every_catalogued
def test_the_layer_is_the_reference(variant, in_fp64, monkeypatch):
    inside = [one for one in POSITIONS if not isinstance(one, Learned | Sinusoidal)]
    for number, position in enumerate(inside):
        suffix = chosen(variant, SUFFIXED[number:] + SUFFIXED[:number])
        for causal, window, held in [(True, None, 2**22), (False, 3, 50), (True, 3, 2**22)]:
            # Where few scores are held, they are made by rows, of which some are left over.
            monkeypatch.setattr(scores, "HELD", held)
            layer = attention(
                suffixed(variant, suffix), EVEN, position, causal=causal, window=window
            )
            x, weights = stream(d_model=EVEN.d_model), drawn(layer.plan)
            given = {name: jnp.asarray(value) for name, value in weights.items()}
            expected = reference.forward(
                layer.plan, weights, x, causal=causal, position=position, window=window
            )
            assert {name: each.shape for name, each in weights.items()} == layer.shapes()
            error = np.abs(layer(given, jnp.asarray(x)[None])[0] - expected).max()
            assert error < EXACT, (position, suffix, causal, window)


@every_catalogued
def test_every_stack_says_what_torch_says(variant, in_fp64):
    for number, position in enumerate(POSITIONS):
        suffix = chosen(variant, SUFFIXED[number:] + SUFFIXED[:number])
        for model, given in stacks(suffixed(variant, suffix), position):
            theirs = drawn_network(model)
            weights, own = of_torch(theirs), backend.build(model)
            assert {name: each.shape for name, each in weights.items()} == own.shapes()
            expected = logits(theirs, tensors(given)).detach().numpy()
            found = logits(own, weights, given)
            error = jnp.abs(finite(found) - finite(expected)).max()
            assert error < EXACT, (position, suffix, model.stack)


@every_catalogued
def test_gradients_are_torch_s(variant, in_fp64):
    position, suffix = chosen(variant, POSITIONS), chosen(variant, SUFFIXED, 3)
    for model, given in stacks(suffixed(variant, suffix), position):
        theirs, own = drawn_network(model), backend.build(model)
        found = jax.grad(
            lambda weights, own=own, given=given: jnp.square(
                finite(logits(own, weights, given)) / 1e2
            ).sum()
        )(of_torch(theirs))
        said = logits(theirs, tensors(given)) / 1e2
        said.where(said > -torch.inf, torch.zeros(())).square().sum().backward()
        for name, expected in slopes_of(theirs).items():
            error = np.abs(found[name] - expected).max()
            assert error < EXACT, (name, position, suffix, model.stack)


def slopes_of(network):
    """The gradients of a torch network, under the names of the weights."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.grad)
    return {name: tensor.detach().numpy() for name, tensor in named_weights(network).items()}
