"""Linear attention is its formula, and its memory is one of fixed size."""

from itertools import pairwise

import jax
import numpy as np
import pytest
import torch

from laws.backends import JAX, SMALL_CHUNK, TORCH, TORCH_STORAGES, every_backend_and
from laws.cases import (
    EVEN,
    ITEMS,
    TIME,
    TOKENS,
    VOCABULARY,
    decoder,
    drawn,
    encoder,
    plan_of,
    streams,
)
from qkvbench import cost, reference
from qkvbench.backends.jax.attention import linear_attention as jax_linear
from qkvbench.backends.torch import Growing, build
from qkvbench.backends.torch.attention import linear_attention
from qkvbench.cost import CACHE_FORMATS
from qkvbench.model import Alibi, NoPosition, Rotary, model_parameters, with_source
from qkvbench.model.random_features import random_features
from qkvbench.reference import linear
from qkvbench.variant import CHUNK, Favor, parse, resolve, sized

# fp64 rounding of sums over tens of numbers of size ten.
EXACT = 1e-11
# One of each kind, with heads that share keys or are tied.
KINDS = ["q,k=v/2+gateddelta", "q,k,v+elu", "q,k=v/1+favor11", "q,k,v+gateddelta+gate"]

every_kind = pytest.mark.parametrize("text", KINDS)


def _plan(text, time=TIME, *, causal=True):
    plan = plan_of(text, Rotary(), causal=causal, size=EVEN)
    return plan, drawn(plan.parameters), streams(time, EVEN.d_model)


def _roles(plan, weights, x):
    roots = reference.project(plan, weights, x)
    places = np.arange(len(x))
    roles = (reference.make(plan.derivations[role], plan, weights, roots, places) for role in "qkv")
    return (*roles, roots)


@every_backend_and(KINDS, jax_cases=2)
def test_chunks_in_parallel_are_the_recurrence_step_by_step(backend, case, monkeypatch):
    backend.by_rows(monkeypatch, 2**20)
    # JAX compiles its operations for each length.
    for time in (4 * SMALL_CHUNK - 1,) if backend is JAX else (1, SMALL_CHUNK, 4 * SMALL_CHUNK - 1):
        plan, weights, x = _plan(case, time)
        expected = reference.decode(plan, weights, x[0])
        np.testing.assert_allclose(
            backend.attend(plan, weights, x[:1])[0], expected, rtol=0, atol=EXACT
        )


@every_kind
def test_a_chunk_of_the_size_in_use_is_that_recurrence_too(text):
    plan, weights, x = _plan(text, 2 * CHUNK + 5)
    expected = reference.decode(plan, weights, x[0])
    found = TORCH.attend(plan, weights, x[:1])[0]
    # Sums of a hundred numbers.
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * EXACT)


def test_elu_attention_is_its_formula():
    for causal in (True, False):
        plan, weights, x = _plan("q,k,v+elu", causal=causal)
        q, k, v, _ = _roles(plan, weights, x[0])
        elu = torch.nn.functional.elu
        f_q, f_k = (elu(torch.from_numpy(each)).numpy() + 1 for each in (q, k))
        expected = np.zeros_like(q)
        for row in range(TIME):
            last = row + 1 if causal else TIME
            for head in range(EVEN.heads):
                shares = f_k[:last, head] @ f_q[row, head]
                expected[row, head] = shares @ v[:last, head] / shares.sum()
        found = linear.attend(plan, q, k, v, None, None)
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


def test_the_delta_rule_recalls_the_last_value_of_a_key_and_a_sum_does_not():
    size = sized(8, 1)
    keys, values = np.eye(8)[[0, 1, 2, 0]], np.random.default_rng(0).normal(size=(4, 8))
    # Nothing is forgotten, and everything is written.
    decay, strength = np.full((4, 1), -60.0), np.full((4, 1), 60.0)
    q, k, v = (each[:, None] for each in (keys[[0, 0, 1, 0]], keys, values))
    found = {
        text: linear.attend(plan_of(f"q,k,v+{text}", size=size), q, k, v, decay, strength)[:, 0]
        for text in ("gateddelta", "elu")
    }
    # Vectors of length 1 stay so up to the number beside their squares.
    close = 3 * linear.EPS
    np.testing.assert_allclose(found["gateddelta"], values[[0, 0, 1, 3]], atol=close)
    assert np.abs(found["elu"][3] - values[3]).max() > 0.1


def test_a_strength_of_nothing_and_a_decay_of_everything_leave_the_memory_as_they_say():
    plan, weights, x = _plan("q,k,v+gateddelta")
    q, k, v, _ = _roles(plan, weights, x[0])
    never, always = np.full((TIME, EVEN.heads), -60.0), np.full((TIME, EVEN.heads), 1e6)
    assert np.abs(linear.attend(plan, q, k, v, never, never)).max() < 1e-20
    # With all of it forgotten each token reads what it writes itself.
    found = linear.attend(plan, q, k, v, always, np.full_like(always, 60.0))
    q, k = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (q, k))
    expected = (q * k).sum(-1, keepdims=True) * v
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_random_features_become_the_softmax_like_one_over_the_root_of_their_number():
    size, counts, draws = sized(16, 2), (32, 128, 512, 2048), range(1, 13)
    rng = np.random.default_rng(3)
    # The variance grows with the exponential of the squares of queries and keys.
    q, k, v = (0.4 * rng.normal(size=(24, 2, 8)) for _ in "qkv")
    plain = plan_of("q,k,v", size=size)
    rows = np.arange(24)
    expected = reference.attend(plain, {}, q, k, v, reference.bias(plain, {}, rows, rows))

    def error(features):
        plans = (plan_of(f"q,k,v+favor{features}x{draw}", size=size) for draw in draws)
        found = [linear.attend(plan, q, k, v, None, None) for plan in plans]
        return np.sqrt(np.mean([(each - expected) ** 2 for each in found]))

    errors = [error(features) for features in counts]
    # Each has four times the features of the one before, and so half of its error.
    for few, many in pairwise(errors):
        assert 1.6 < few / many < 2.5
    assert errors[-1] < 0.03 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("size", [1, 6, 12])
def test_random_features_of_long_queries_leave_outputs_and_gradients(size):
    """In fp32 a product of two features of such a length was 0, and the gradient no number."""
    plan = plan_of("q,k,v+favor16", NoPosition(), size=sized(16, 2))
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(9, 2, 8)) for _ in range(3))
    # Keys of one length, which no sum forgets.
    q, k = size * q, 6 * k / np.linalg.norm(k, axis=-1, keepdims=True)
    expected = linear.attend(plan, q, k, v, None, None)
    rows = [np.float32(np.swapaxes(each, 0, 1)[None]) for each in (q, k, v)]
    inputs = [torch.from_numpy(each).requires_grad_() for each in rows]
    found = linear_attention.LinearAttention(plan)(*inputs, {})
    found.sum().backward()

    def total(*roles):
        return jax_linear.LinearAttention(plan)(*roles, {})[0].sum()

    of_jax = jax_linear.LinearAttention(plan)(*rows, {})[0]
    for each in (found.detach().numpy(), np.asarray(of_jax)):
        np.testing.assert_allclose(np.swapaxes(each[0], 0, 1), expected, rtol=1e-3, atol=1e-4)
    for own, other in zip(inputs, jax.grad(total, (0, 1, 2))(*rows), strict=True):
        assert torch.isfinite(own.grad).all()
        np.testing.assert_allclose(own.grad.numpy(), other, rtol=1e-2, atol=1e-4)


def test_random_features_are_orthogonal_in_blocks_and_the_same_each_time():
    drawn_rows = random_features(Favor(20), 3, 8)
    assert drawn_rows.shape == (3, 20, 8)
    for block in (drawn_rows[:, :8], drawn_rows[:, 8:16]):
        products = block @ np.swapaxes(block, 1, 2)
        off = products * (1 - np.eye(8))
        assert np.abs(off).max() < EXACT < np.abs(products).max()
    random_features.cache_clear()
    np.testing.assert_array_equal(random_features(Favor(20), 3, 8), drawn_rows)
    assert np.abs(random_features(Favor(20, 2), 3, 8) - drawn_rows).max() > 0.1
    # Heads of one layer have other features.
    assert np.abs(drawn_rows[0] - drawn_rows[1]).max() > 0.1


@every_kind
def test_a_later_token_changes_nothing_earlier_within_a_chunk_and_beyond(text, monkeypatch):
    TORCH.by_rows(monkeypatch, 2**20)
    plan, weights, x = _plan(text, 4 * SMALL_CHUNK)
    for changed in (4, 2 * SMALL_CHUNK):
        other = x.copy()
        other[:, changed] += 1
        before, after = (TORCH.attend(plan, weights, each) for each in (x, other))
        np.testing.assert_allclose(after[:, :changed], before[:, :changed], rtol=0, atol=EXACT)
        assert (np.abs(after - before)[:, changed:].max(-1) > EXACT).all()


@every_kind
@torch.no_grad()
def test_the_cache_has_as_many_bytes_after_any_number_of_tokens(text):
    model = decoder(text, Rotary())
    network = build(model)
    for storage in TORCH_STORAGES.values():
        for capacity in (2, 500):
            cache = network.new_cache(ITEMS, capacity, storage)
            network.prefill(torch.from_numpy(TOKENS[:, :1]), cache)
            network.step(torch.from_numpy(TOKENS[:, 1]), cache)
            account = cache.account()
            assert cache.bytes == account.rows == ITEMS * cost.state_bytes(model)
    assert cost.cache_bytes_per_token(model) == 0
    for format in CACHE_FORMATS.values():
        assert cost.cache_bytes(model, 10**6, 1, format) == cost.state_bytes(model) > 0


def test_ties_of_key_and_value_save_no_state_and_shared_heads_do():
    whole, tied, shared = (
        cost.state_bytes(decoder(f"{text}+elu")) for text in ("q,k,v", "q,k=v", "q,k,v/1")
    )
    assert whole == tied == EVEN.heads * shared
    # 2 layers, 4 heads of 6 × (6 + 1) numbers of 4 bytes.
    assert whole == 2 * 4 * 6 * 7 * 4


@every_kind
@torch.no_grad()
def test_sequences_that_continue_others_take_their_memories_along(text):
    network = TORCH.network(decoder(text, Rotary()))
    cache = network.new_cache(ITEMS, 12, Growing(2))
    padding = torch.tensor([0, 2, 1])
    network.prefill(torch.from_numpy(TOKENS[:, :4]), cache, padding)
    texts = [row[cut:4].tolist() for row, cut in zip(TOKENS, padding.tolist(), strict=True)]
    rng = np.random.default_rng(1)
    for count in (2, 5, 4):
        parents, new = rng.integers(0, len(texts), count), rng.integers(0, VOCABULARY, count)
        cache.reorder(torch.from_numpy(parents))
        texts = [[*texts[own], int(token)] for own, token in zip(parents, new, strict=True)]
        found = network.step(torch.from_numpy(new), cache)
    for row, tokens in zip(found, texts, strict=True):
        assert (network(torch.tensor([tokens]))[0, -1] - row).abs().max() < EXACT
    cache.clear()
    network.prefill(torch.tensor([[1], [2], [3], [4]]), cache)
    again = network.step(torch.tensor([1, 2, 3, 4]), cache)
    assert (network(torch.tensor([[2, 2]]))[0, -1] - again[1]).abs().max() < EXACT


@torch.no_grad()
def test_no_token_is_taken_out_of_a_memory():
    network = TORCH.network(decoder("q,k,v+elu"))
    cache = network.new_cache(ITEMS, TIME)
    network.prefill(torch.from_numpy(TOKENS[:, :5]), cache)
    with pytest.raises(ValueError, match="none is taken away again"):
        cache.rollback(1)


def test_nothing_of_the_square_of_the_length_is_saved():
    time, largest = 8 * CHUNK, []
    for text in KINDS:
        plan = plan_of(text, Rotary(), size=EVEN)
        layer = TORCH.layer(plan, drawn(plan.parameters)).float()
        x = torch.zeros(1, time, EVEN.d_model, requires_grad=True)

        def saved(tensor):
            largest.append(tensor.untyped_storage().nbytes() // 4)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            layer(x).sum().backward()
    assert max(largest) <= EVEN.heads * time * CHUNK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_over_a_long_text_are_in_fp32(dtype):
    network = build(decoder("q,k,v+elu", NoPosition())).to(dtype)
    assert network.new_cache(1, 4).layers[0].state.memory.dtype == torch.float32


def test_keys_whose_features_vanish_make_no_number_that_is_none():
    plan = plan_of("q,k,v+favor11", size=EVEN)
    attention = linear_attention.LinearAttention(plan)
    rows = torch.full((1, EVEN.heads, 3, EVEN.head_dim), 1e3)
    assert attention(rows, rows, rows, {}).isfinite().all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: encoder("q,k,v+gateddelta").plans, r"in an encoder write '\+elu'"),
        (lambda: decoder("q,k,v+elu", Alibi()).plans, "no scores, to which ALiBi"),
        (
            lambda: (
                with_source(decoder(), encoder().inputs, NoPosition())
                .with_variant(parse("q,k,v+elu"))
                .layers
            ),
            r"write|Write it for those attention sites, such as q,k,v\+elu@self",
        ),
        (
            lambda: decoder().with_variant((parse("q,k,v+elu"), parse("q,k=K(-1),v=V(-1)"))).plans,
            r"q,k,v\+elu keeps neither K nor V",
        ),
    ],
)
def test_where_it_means_nothing_it_is_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


def test_the_delta_rule_has_parameters_for_its_gates_and_the_others_none():
    whole = resolve(parse("q,k,v"), EVEN, causal=True)
    for text, more in (("elu", 0), ("favor64", 0), ("gateddelta", 2 * 4 * (24 + 1))):
        plan = resolve(parse(f"q,k,v+{text}"), EVEN, causal=True)
        assert cost.attention_parameters(plan) - cost.attention_parameters(whole) == more
    assert {"decay.weight", "strength.bias"} <= {
        each.name.split("attention.")[-1]
        for each in model_parameters(decoder("q,k=v+gateddelta")).values()
    }
