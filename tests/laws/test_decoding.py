"""Decoding token by token over a cache is one forward pass; its bytes are those computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from laws.backends import (
    PROMPT,
    TORCH,
    TORCH_STORAGES,
    every_backend_and,
    every_backend_and_case,
)
from laws.cases import (
    EVEN,
    ITEMS,
    PADDING,
    SCHEMES,
    SIZE,
    TIME,
    TOKENS,
    VOCABULARY,
    Case,
    covering,
    decoder,
    drawn,
    every_case,
    every_catalogued,
    parametrized,
    plan_of,
    rotary,
    streams,
)
from qkvbench import cost, reference
from qkvbench.backends.torch import build, start
from qkvbench.backends.torch.cache import paged_tensor
from qkvbench.cost import CACHE_FORMATS
from qkvbench.model import Learned, NoPosition, Rotary, model_parameters
from qkvbench.variant import parse

# fp64 rounding of sums over tens of numbers of size ten.
EXACT = 1e-11
# Largest relative error of a row: half a unit of the last of 24, 8 and 11 bits, half of 1/127 and
# half of 1/7.
ROUNDING = {
    "fp64": 0.0,
    "fp32": 2**-24,
    "bf16": 2**-8,
    "fp16": 2**-11,
    "int8": 0.5 / 127,
    "int4": 0.5 / 7,
}
# Logits are at most so many times as far off as a row, because scores are sums of several products.
# Measured: 5 times. More would let 4-bit rows be wrong altogether.
GROWTH = 8


def _padded(tokens, padding):
    """Each row moved to the right behind tokens that mean nothing; its end is cut off."""
    found = np.full_like(tokens, 7)
    for row, count in enumerate(padding):
        found[row, count:] = tokens[row, : tokens.shape[1] - count]
    return found


def _tolerance(backend, case, expected):
    # JAX caches rows in the dtype of the products.
    rounding = ROUNDING[case.rows] if backend is TORCH else 0
    return max(EXACT, GROWTH * rounding * np.abs(expected).max())


@every_backend_and_case(
    "variant", "position", "suffix", "rows", "padding", "storage", share=4, jax_cases=1
)
def test_a_prefill_and_steps_are_one_forward_pass(backend, case):
    plan = case.plan()
    if plan.before_output or plan.exclusive or plan.score_width > SIZE.head_dim:
        # The bound is one of scores over a head's width that no norm enlarges afterwards. One does
        # after a part along V that was all there was: the other keys were the same token. Without
        # the bound rounded rows are held by test_cache, to the last digit.
        case = replace(case, rows="fp64")
    model = case.decoder()
    weights = drawn(model_parameters(model).values())
    padding = PADDING if case.padding else (0,) * ITEMS
    found = backend.decode(case, model, weights, _padded(TOKENS, padding))
    whole = backend.logits(model, weights, (TOKENS,)).reshape(ITEMS, TIME, -1)
    for row, count in enumerate(padding):
        expected = whole[row, PROMPT - 1 - count : TIME - count]
        error = np.abs(found[row] - expected).max()
        assert error < _tolerance(backend, case, expected)


SEVERAL_LATENTS = [
    "q,k=L(2x5),v=L(2x5)+latentnorm+ropehead6",
    "q,k=L(2x5),v=LV(2x4)+latentnorm",
    "q=L(2x7),k=L(5),v=LV(4)+ropehead2",
    "q,k=L(2x5),v=M(k)/2",
]


@every_backend_and(SEVERAL_LATENTS)
def test_latents_for_groups_of_heads_decode_as_one_pass_and_cache_what_is_computed(backend, case):
    drawn_case = Case(parse(case), Rotary())
    model = drawn_case.decoder(EVEN)
    weights = drawn(model_parameters(model).values())
    found = backend.decode(drawn_case, model, weights, TOKENS)
    whole = backend.logits(model, weights, (TOKENS,)).reshape(ITEMS, TIME, -1)
    np.testing.assert_allclose(found, whole[:, PROMPT - 1 :], rtol=0, atol=EXACT)
    (x,), plan = streams(d_model=EVEN.d_model)[:1], model.plans[0]
    layer = drawn(plan.parameters)
    expected = reference.forward(plan, layer, x)
    np.testing.assert_allclose(backend.attend(plan, layer, x[None])[0], expected, atol=EXACT)
    np.testing.assert_allclose(reference.decode(plan, layer, x), expected, atol=EXACT)
    per_token = cost.cache_bytes_per_token(model, CACHE_FORMATS["fp32"])
    live = backend.cache(replace(drawn_case, rows="fp32"), model, 2 * TIME)
    assert live == ITEMS * 2 * TIME * per_token


@every_backend_and_case("distinct", "suffix", "rows", "storage", nightly=0, jax_cases=1)
def test_computed_cache_bytes_are_those_of_the_live_cache(backend, case):
    model = decoder(case.full, rotary(case.full), case.plan().geometry)
    tokens, mask = 2 * TIME, case.plan().mask
    found = backend.cache(case, model, tokens)
    per_token = cost.cache_bytes_per_token(model, CACHE_FORMATS["fp32"])
    if backend is not TORCH:
        # A ring of rows in the dtype of the weights.
        rows = tokens if mask.local is None else min(tokens, mask.local + mask.sinks)
        assert found == ITEMS * (rows * per_token + cost.state_bytes(model))
        return
    format, page = CACHE_FORMATS[case.rows], getattr(TORCH_STORAGES[case.storage], "page", None)
    computed = cost.cache_bytes(model, tokens, ITEMS, format, page)
    if mask.local is None or page is None:
        assert found == computed
    elif case.storage == "growing":
        # Which pages a window fills depends on where it lies.
        assert found <= computed


@every_case("distinct", "rows", "storage", "padding", nightly=0, share=5)
@torch.no_grad()
def test_sequences_that_continue_others_are_independent_runs(case):
    network = TORCH.network(decoder(case.variant, Rotary(), case.plan().geometry, case.layers))
    cache = network.new_cache(ITEMS, 12, TORCH_STORAGES[case.storage], case.rows)
    network.prefill(torch.from_numpy(TOKENS[:, :4]), cache, _padding(case))
    cut = PADDING if case.padding else (0,) * ITEMS
    texts = [row[count:4].tolist() for row, count in zip(TOKENS, cut, strict=True)]
    rng = np.random.default_rng(1)
    for count in (2, 6, 5, 8):
        parents, new = rng.integers(0, len(texts), count), rng.integers(0, VOCABULARY, count)
        cache.reorder(torch.from_numpy(parents))
        texts = [[*texts[own], int(token)] for own, token in zip(parents, new, strict=True)]
        found = network.step(torch.from_numpy(new), cache)
    for row, text in enumerate(texts):
        assert (found[row] - _logits_after(text, network, case.rows)).abs().max() < EXACT


@every_case("distinct", "suffix", "storage", "padding", nightly=0)
@torch.no_grad()
def test_tokens_that_were_rolled_back_were_never_read(case):
    network = TORCH.network(
        decoder(case.full, rotary(case.full), case.plan().geometry, case.layers)
    )
    # Pages that a window frees are lost, so little can be rolled back.
    lossy = case.plan().mask.local is not None and case.storage != "whole"
    tokens, tries = torch.from_numpy(TOKENS), 1 if lossy else 4
    once, again = (network.new_cache(ITEMS, 2 * TIME, TORCH_STORAGES[case.storage]) for _ in "ab")
    for cache in (once, again):
        network.prefill(tokens[:, :5], cache, _padding(case))
    memories = once.memories()
    for place in range(tries):
        network.step(tokens[:, place], once)
    if lossy and once.tables[network.model.plans[0].mask].first_live_column:
        return
    once.rollback(tries, memories)
    assert once.longest == again.longest == 5
    # Beams that share a page write after the rolled-back tokens, too.
    for cache in (once, again):
        cache.reorder(torch.tensor([2, 2, 0]))
    for place in (5, 6):
        found, expected = (network.step(tokens[:, place], cache) for cache in (once, again))
        assert (found - expected).abs().max() < EXACT


def _padding(case):
    return torch.tensor(PADDING) if case.padding else None


def _logits_after(text, network, rows):
    """The logits after a text that is decoded alone, token by token, over rows of this format."""
    cache = network.new_cache(1, len(text), rows=rows)
    logits = network.prefill(torch.tensor([text[:1]]), cache)
    for token in text[1:]:
        logits = network.step(torch.tensor([token]), cache)
    return logits[0]


@every_catalogued
@torch.no_grad()
def test_cached_rows_are_read_as_keys_tile_by_tile(variant, monkeypatch):
    network = TORCH.network(decoder(variant, Rotary(), layers=1))
    tokens = torch.from_numpy(TOKENS)
    monkeypatch.setattr(paged_tensor, "TILE", 2)
    cache = network.new_cache(ITEMS, TIME)
    steps = [network.step(tokens[:, place], cache) for place in range(TIME)]
    torch.testing.assert_close(torch.stack(steps, dim=1), network(tokens), rtol=0, atol=EXACT)


@every_backend_and(SCHEMES)
def test_a_later_token_changes_nothing_earlier(backend, case):
    model = decoder("q,k=v/1", case, layers=1)
    weights = drawn(model_parameters(model).values())
    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    before, after = (
        backend.logits(model, weights, (each,)).reshape(ITEMS, TIME, -1)
        for each in (TOKENS, changed)
    )
    np.testing.assert_array_equal(after[:, :-1], before[:, :-1])
    assert not np.array_equal(after[:, -1], before[:, -1])


@every_backend_and(SCHEMES, jax_cases=len(SCHEMES))
def test_every_scheme_but_none_tells_in_which_order_tokens_came(backend, case):
    # In one layer the last token sees a set of tokens, unless positions are in it.
    model = decoder("q,k=v/1", case, layers=1)
    weights = drawn(model_parameters(model).values())
    tokens = np.tile(np.arange(TIME) % VOCABULARY, (ITEMS, 1))
    swapped = tokens[:, [1, 0, *range(2, TIME)]]
    last, other = (
        backend.logits(model, weights, (each,)).reshape(ITEMS, TIME, -1)[:, -1]
        for each in (tokens, swapped)
    )
    # A difference that training could use, far above rounding.
    assert (np.abs(last - other).max() > 1e-3) == (case != NoPosition())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@parametrized(covering("distinct", "position", "suffix")[::4])
@torch.no_grad()
def test_products_in_half_precision_stay_near_fp32(case, dtype):
    # bf16 keeps eight bits and fp16 eleven, and errors add up in the block.
    bound = 0.1 if dtype == torch.bfloat16 else 0.0125
    model = case.decoder()
    network = build(model)
    start(network, model, seed=0)
    whole = network(torch.from_numpy(TOKENS))
    with torch.autocast("cpu", dtype):
        found = network(torch.from_numpy(TOKENS))
    assert (found.float() - whole).abs().max() / whole.abs().max() < bound


def test_a_cache_refuses_more_tokens_than_it_holds():
    network = build(decoder("q,k=v"))
    cache = network.new_cache(ITEMS, 2)
    network.prefill(torch.from_numpy(TOKENS[:, :2]), cache)
    with pytest.raises(ValueError, match="holds 2 tokens"):
        network.step(torch.from_numpy(TOKENS[:, 0]), cache)


def test_a_prompt_goes_into_an_empty_cache_only():
    network = build(decoder())
    cache = network.new_cache(ITEMS, 2 * TIME)
    network.prefill(torch.from_numpy(TOKENS), cache)
    with pytest.raises(ValueError, match="empty cache"):
        network.prefill(torch.from_numpy(TOKENS), cache)


def test_a_model_with_learned_positions_makes_no_longer_cache():
    with pytest.raises(ValueError, match="at most 11 tokens"):
        build(decoder("q,k,v", Learned(11))).new_cache(ITEMS, 12)


def test_a_model_that_decoded_in_inference_mode_can_still_be_trained():
    network = build(decoder("q,k=v", Rotary()))
    start(network, decoder("q,k=v", Rotary()), seed=0)
    tokens = torch.from_numpy(TOKENS)
    with torch.inference_mode():
        cache = network.new_cache(ITEMS, TIME)
        network.prefill(tokens[:, :-1], cache)
        network.step(tokens[:, -1], cache)
    network(tokens).sum().backward()
    assert network.blocks[0].attention.projection.weight.grad.abs().max() > 0


def test_a_network_has_no_mask_and_no_buffer():
    network = build(decoder("q,k,v+window3", Rotary()))
    network(torch.from_numpy(TOKENS))
    assert list(network.buffers()) == []


def test_cached_keys_and_values_of_one_root_are_one_tensor():
    for text, tensors in (("q,k,v", 2), ("q,k=v", 1), ("q,k=L(5),v=L(5)", 1)):
        assert len(plan_of(parse(text), Rotary()).cached) == tensors
        assert cost.cache_tensors(decoder(text, Rotary(), layers=1)) == tensors
