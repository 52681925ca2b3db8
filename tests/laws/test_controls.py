"""The controls: attention that cannot choose, and no attention at all."""

import numpy as np
import pytest

from laws.backends import TORCH, every_backend
from laws.cases import (
    CATALOGUED,
    ITEMS,
    SIZE,
    TIME,
    TOKENS,
    architectures,
    decoder,
    drawn,
    plan_of,
    streams,
)
from qkvbench import cost
from qkvbench.backends import torch as torch_backend
from qkvbench.model import Rotary, model_parameters
from qkvbench.variant import NO_ATTENTION, UNIFORM, parse, write

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-11


@every_backend
def test_uniform_attention_is_the_mean_of_what_is_visible(backend):
    plan = plan_of("q=k=0,v", causal=True, size=SIZE)
    weights, x = drawn(plan.parameters), streams()
    assert {name.split(".")[0] for name in weights} == {"v", "o"}
    values = x @ weights["v.weight"].T + weights["v.bias"]
    means = values.cumsum(axis=1) / np.arange(1, TIME + 1)[:, None]
    expected = means @ weights["o.weight"].T + weights["o.bias"]
    assert np.abs(backend.attend(plan, weights, x) - expected).max() < EXACT


@every_backend
def test_without_attention_no_token_sees_another(backend):
    model = decoder("none", Rotary())
    weights = drawn(model_parameters(model).values())
    assert not any("attention" in name for name in weights)
    assert not any("attention" in name for name in backend.shapes(model))
    other = TOKENS.copy()
    other[:, 2] += 1
    found, changed = (
        backend.logits(model, weights, (tokens,)).reshape(ITEMS, TIME, -1)
        for tokens in (TOKENS, other % 13)
    )
    moved = np.abs(found - changed).max(axis=(0, 2)) > 0
    assert moved.tolist() == [place == 2 for place in range(TIME)]


@pytest.mark.parametrize("text", ["none", "q=k=0,v"])
@pytest.mark.parametrize("name", architectures("q,k,v", Rotary()))
def test_every_architecture_has_both_controls(name, text):
    model, inputs = architectures("q,k,v", Rotary())[name]
    model = model.with_variant(parse(text))
    assert model.variant == text
    assert set(TORCH.shapes(model)) == set(model_parameters(model))
    weights = drawn(model_parameters(model).values())
    assert np.isfinite(TORCH.logits(model, weights, inputs)).any()
    # The site of attention is still there: another variant may take its place.
    assert model.with_variant(CATALOGUED[0]).variant == "q,k,v"


@pytest.mark.parametrize("text", ["none", "q=k=0,v"])
def test_the_controls_decode(text):
    model = decoder(text, Rotary())
    network = TORCH.network(model)
    found = torch_backend.generate(network, [[1, 2, 3]], tokens=4)
    assert len(found[0]) == 4
    per_token = cost.cache_bytes_per_token(model)
    assert per_token == (0 if text == "none" else cost.cache_bytes_per_token(decoder("q,k=v")))


def test_a_control_has_one_text_and_no_second_meaning():
    assert [write(each) for each in (NO_ATTENTION, UNIFORM)] == ["none", "q=k=0,v"]
    assert parse("q=k=v=0") == NO_ATTENTION
    assert parse("k=0=q, v") == UNIFORM
    for text, said in {
        "q=0,k,v": "all zero",
        "q,k=0,v": "all zero",
        "q,k,v=0": "all zero",
        "q=k=0,v=R(q)": "write 'none'",
        "q=k=v=0+window4": "no scores",
        "none/1": "'none' is not",
        "q=x=0,k,v": "both the stream",
    }.items():
        with pytest.raises(ValueError, match=said):
            parse(text)
    with pytest.raises(ValueError, match="no attention layer"):
        plan_of(NO_ATTENTION)
