"""Feed-forwards and norms: each is its formula in both backends, and records tell them apart."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from qkvbench.backends.jax.models import parts as jax_parts
from qkvbench.backends.torch.models import parts as torch_parts
from qkvbench.model import PRESETS, Model, model_parameters
from qkvbench.model.parts import FeedForward, LayerNorm, ReLU2, RMSNorm, SwiGLU

D_MODEL, WIDTH = 6, 10
# fp32 rounding of sums over ten numbers, relative to their size.
CLOSE = 1e-5


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _gelu(x):
    return x * np.vectorize(lambda each: (1 + torch.erf(torch.tensor(each / 2**0.5))).item() / 2)(x)


def _two(activation):
    def formula(w, x):
        hidden = activation(x @ w["up.weight"].T + w["up.bias"])
        return hidden @ w["down.weight"].T + w["down.bias"]

    return formula


def _swiglu(w, x):
    gate = x @ w["gate.weight"].T
    return (gate * _sigmoid(gate) * (x @ w["up.weight"].T)) @ w["down.weight"].T


def _layer_norm(w, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w["weight"] + w["bias"]


def _rms_norm(w, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w["weight"]


FEED_FORWARDS = {
    FeedForward(WIDTH): _two(_gelu),
    ReLU2(WIDTH, "relu2"): _two(lambda x: np.maximum(x, 0) ** 2),
    SwiGLU(WIDTH, "swiglu"): _swiglu,
}
NORMS = {LayerNorm(): _layer_norm, RMSNorm("rms"): _rms_norm}


def _weights(spec):
    rng = np.random.default_rng(0)
    return {
        each.name: rng.normal(size=each.shape).astype(np.float32)
        for each in spec.parameters(D_MODEL)
    }


@pytest.mark.parametrize("spec", [*FEED_FORWARDS, *NORMS], ids=lambda one: type(one).__name__)
def test_a_part_is_its_formula_in_both_backends(spec):
    weights = _weights(spec)
    x = np.random.default_rng(1).normal(size=(3, 5, D_MODEL)).astype(np.float32)
    expected = (FEED_FORWARDS | NORMS)[spec](weights, x)
    is_norm = spec in NORMS
    module = (torch_parts.norm if is_norm else torch_parts.feed_forward)(spec, D_MODEL)
    assert dict(module.named_parameters()).keys() == weights.keys()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    found = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=CLOSE, atol=CLOSE)
    run = jax_parts.normalize if is_norm else jax_parts.feed_forward
    arrays = {name: jnp.asarray(value) for name, value in weights.items()}
    np.testing.assert_allclose(run(spec, arrays, jnp.asarray(x)), expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("feed_forward", FEED_FORWARDS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("norm", NORMS, ids=lambda one: type(one).__name__)
def test_a_model_with_other_parts_comes_back_from_its_record_and_counts_its_weights(
    feed_forward, norm
):
    model = PRESETS["small-decoder"]()
    model = model.with_blocks(lambda block: replace(block, feed_forward=feed_forward, norm=norm))
    adapter = TypeAdapter(Model)
    assert adapter.validate_python(adapter.dump_python(model, mode="json")) == model
    shapes = {name: each.shape for name, each in model_parameters(model).items()}
    from qkvbench.backends.torch import build, named_weights

    network = named_weights(build(model))
    assert {name: tuple(tensor.shape) for name, tensor in network.items()} == shapes
