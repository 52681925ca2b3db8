"""A layer of every backend is the reference, and its gradients are the reference's slopes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import qkvbench
from laws.backends import TORCH, every_backend_and, every_backend_and_case
from laws.cases import (
    ITEMS,
    LENGTHS,
    MASKS,
    SIZE,
    SUFFIX_AXES,
    TIME,
    alibi,
    drawn,
    plan_of,
    reads_both_ways,
    rotary,
    streams,
)
from qkvbench import reference
from qkvbench.backends.torch import Attention
from qkvbench.model import Alibi, Learned, Rotary, Sinusoidal
from qkvbench.variant import Mask, parse

# fp64 rounding of sums over tens of numbers of size ten.
EXACT = 1e-11
# A central difference with this step is good to about eight digits.
STEP, SLOPE = 1e-6, 1e-5
# Scores that exist at a time: two rows of all heads and sequences.
TWO_ROWS = 2 * ITEMS * SIZE.heads * TIME

by_rows = pytest.mark.parametrize("few_rows", [False, True], ids=["whole", "by rows"])
LAYER = ("variant", "position", "suffix", "mask")


def _setup(case):
    plan = case.plan()
    return plan, drawn(plan.parameters), streams()[:1]


@every_backend_and_case(*LAYER, share=2)
def test_a_layer_is_the_reference(backend, case):
    plan, weights, x = _setup(case)
    found = backend.attend(plan, weights, x)
    expected = [reference.forward(plan, weights, each) for each in x]
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


WINDOWS = [
    (f"{window}{sinks}", mask)
    for window, sinks, mask in product(SUFFIX_AXES["window"][1:], SUFFIX_AXES["sinks"], MASKS)
]
WINDOWS += [
    (f"{window}{tokens}", "full")
    for window, tokens in product(SUFFIX_AXES["window"][1:], SUFFIX_AXES["global_tokens"][1:])
]


@every_backend_and(WINDOWS)
def test_a_layer_with_nothing_but_a_window_is_the_reference(backend, case):
    suffix, mask = case
    for time in (3, 4, TIME):
        plan = plan_of(f"q,k=v{suffix}", Rotary(), causal=mask == "causal")
        weights, x = drawn(plan.parameters), streams(time)[:1]
        found = backend.attend(plan, weights, x)[0]
        expected = reference.forward(plan, weights, x[0])
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


@every_backend_and_case("suffix", "mask", nightly=50, jax_cases=1)
def test_a_layer_computed_a_few_rows_at_a_time_is_the_reference(backend, case, monkeypatch):
    backend.by_rows(monkeypatch, TWO_ROWS)
    tied, rotated = f"q,k=v/1{case.suffix}", f"q,k=R(q),v{case.suffix}"
    for text, position in ((tied, rotary(tied)), (rotated, alibi(rotated))):
        plan = plan_of(text, position, causal=case.mask == "causal")
        weights, x = drawn(plan.parameters), streams()
        found = backend.attend(plan, weights, x)[1]
        expected = reference.forward(plan, weights, x[1])
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


# In a causal layer padding is behind the last token, where no query sees it.
@by_rows
@every_backend_and_case("suffix", nightly=50, jax_cases=1)
def test_padding_after_the_length_of_a_sequence_changes_nothing(
    backend, case, few_rows, monkeypatch
):
    if few_rows:
        backend.by_rows(monkeypatch, TWO_ROWS)
    text = f"q,k=v{case.suffix}"
    plan = plan_of(text, rotary(text), causal=not reads_both_ways(parse(text)))
    weights, x = drawn(plan.parameters), streams()
    found = backend.attend(plan, weights, x, np.array(LENGTHS))
    for row, (item, length) in enumerate(zip(x, LENGTHS, strict=True)):
        expected = reference.forward(plan, weights, item[:length])
        np.testing.assert_allclose(found[row, :length], expected, rtol=0, atol=EXACT)
    assert np.isfinite(found).all()


@every_backend_and_case("distinct", "position", "suffix", "mask", jax_cases=1)
def test_gradients_are_the_central_differences_of_the_reference(backend, case):
    plan, weights, x = _setup(case)
    _assert_slopes(backend, plan, weights, x)


@every_backend_and_case("suffix", "mask", nightly=50, jax_cases=0)
def test_gradients_by_rows_are_those_central_differences(backend, case, monkeypatch):
    backend.by_rows(monkeypatch, TWO_ROWS // ITEMS)
    text = f"q,k=v/1{case.suffix}"
    plan = plan_of(text, alibi(text), causal=case.mask == "causal")
    _assert_slopes(backend, plan, drawn(plan.parameters), streams()[:1])


def _assert_slopes(backend, plan, weights, x):
    """Along one random direction of all weights: an error in any gradient shows."""
    rng = np.random.default_rng(5)
    into = rng.normal(size=x.shape)
    along = {name: rng.normal(size=value.shape) for name, value in weights.items()}

    def total(step):
        moved = {name: value + step * along[name] for name, value in weights.items()}
        return float((reference.forward(plan, moved, x[0]) * into[0]).sum())

    expected = (total(STEP) - total(-STEP)) / (2 * STEP)
    gradients = backend.gradients(plan, weights, x, into)
    found = sum(float((gradients[name] * along[name]).sum()) for name in weights)
    assert found == pytest.approx(expected, rel=SLOPE, abs=SLOPE * np.abs(into).sum())


@every_backend_and(["q=k=v", "q=k,v", "q,k=v", "q=v,k"])
def test_a_tied_matrix_receives_the_sum_of_the_gradients_of_its_roles(backend, case):
    tied, whole = plan_of(case), plan_of("q,k,v")
    weights, x = drawn(tied.parameters), streams()
    roots = {role: tied.derivations[role].root for role in "qkv"}
    untied = weights | {
        f"{role}.{part}": weights[f"{root}.{part}"]
        for role, root in roots.items()
        for part in ("weight", "bias")
    }
    found = backend.gradients(tied, weights, x, np.ones_like(x))
    parts = backend.gradients(whole, untied, x, np.ones_like(x))
    for root in set(roots.values()):
        for part in ("weight", "bias"):
            summed = sum(parts[f"{role}.{part}"] for role in roots if roots[role] == root)
            np.testing.assert_allclose(found[f"{root}.{part}"], summed, rtol=1e-9, atol=1e-9)


@every_backend_and(["q,k=v+window3", "q,k,v+qknorm++-diag+window3"], jax_cases=0)
def test_a_token_outside_the_window_changes_nothing_unless_it_is_a_sink(backend, case):
    x = streams()
    changed = x.copy()
    changed[:, 0] += 1

    def change(text):
        plan = plan_of(text, Rotary())
        weights = drawn(plan.parameters)
        before, after = (backend.attend(plan, weights, each) for each in (x, changed))
        return np.abs(after - before).max(axis=-1)

    assert (change(case)[:, 3:] == 0).all()
    assert (change(case)[:, :3] > 0).any()
    assert (change(f"{case}+sinks1")[:, 1:] > EXACT).all()


def _blocks_seen(size, every):
    return lambda i, j: (abs(i // size - j // size) < 2) | (j // size % every == 0)


SPARSE = {
    "q,k,v+window2+global1": lambda i, j: (abs(i - j) < 2) | (i < 1) | (j < 1),
    "q,k=v/1++-diag+window2+global3": lambda i, j: (abs(i - j) < 2) | (i < 3) | (j < 3),
    "q,k,v+blocks1x3": _blocks_seen(1, 3),
    "q,k=v/1++-diag+blocks2x3": _blocks_seen(2, 3),
}


@every_backend_and([*SPARSE])
@pytest.mark.parametrize("few_rows", [False, True], ids=["whole", "by rows"])
def test_a_window_with_global_tokens_and_blocks_are_full_attention_with_a_mask(
    backend, case, few_rows, monkeypatch
):
    if few_rows:
        backend.by_rows(monkeypatch, TWO_ROWS)
    plan = plan_of(case, Rotary(), causal=False)
    rows, columns = np.mgrid[:TIME, :TIME]
    seen = SPARSE[case](rows, columns)
    seen &= plan.mask.diagonal | (rows != columns)
    # The same layer with a full mask, and all that is hidden taken out of its softmax.
    whole = replace(plan, mask=Mask(diagonal=plan.mask.diagonal))
    weights, x = drawn(plan.parameters), streams()
    lengths = np.array(LENGTHS)
    found = backend.attend(plan, weights, x, lengths)
    hidden = reference.attention.bias

    for row, (item, length) in enumerate(zip(x, LENGTHS, strict=True)):
        if length == 1:
            continue

        def bias(*given, length=length):
            return np.where(seen[:length, :length], hidden(*given), -np.inf)

        with monkeypatch.context() as patched:
            patched.setattr(reference.attention, "bias", bias)
            expected = reference.forward(whole, weights, item[:length])
        np.testing.assert_allclose(found[row, :length], expected, rtol=0, atol=EXACT)


def test_attention_by_rows_saves_nothing_of_the_square_of_the_length(monkeypatch):
    TORCH.by_rows(monkeypatch, 4 * 16 * 64)
    time, largest = 256, []
    for variant in ("q,k,v++", "q,k,v+window9"):
        layer = Attention(variant, 24, 4, position=Alibi(), causal=True)
        x = torch.zeros(1, time, 24, requires_grad=True)

        def saved(tensor):
            largest.append(tensor.untyped_storage().nbytes() // 4)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            layer(x).sum().backward()
    # The fused projection of the stream is the largest; scores would be 4·256·256.
    assert max(largest) == 3 * time * 24 < 4 * time * time


@pytest.mark.parametrize(
    "text", ["q,k,v+window9", "q,k=v+window9+sinks2", "q,k,v+chunk16", "q,k=v+blocks5x4"]
)
def test_a_window_saves_no_scores_of_any_head(text):
    # It saves a mask that all heads share, and would save 4·256·256 scores.
    time, heads, largest = 256, 4, []
    layer = Attention(text, 24, heads, position=Rotary(), causal=True)

    def saved(tensor):
        largest.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        layer(torch.zeros(1, time, 24, requires_grad=True)).sum().backward()
    assert max(largest) <= time * time < heads * time * time


def test_a_layer_refuses_positions_that_are_added_to_the_input():
    for position in (Learned(11), Sinusoidal()):
        with pytest.raises(ValueError, match="added to a model's input"):
            Attention("q,k,v", 24, 4, position=position)


def test_a_plan_that_cannot_be_is_refused_when_the_layer_is_made():
    with pytest.raises(ValueError, match="both need as many heads"):
        Attention(parse("q=k,v/2"), d_model=24, heads=4)


@pytest.mark.parametrize("text", ["q=L(7),k=L(5),v=L(5)+latentnorm+ropehead4", "q,k=R(q),v=L(5)"])
def test_every_weight_of_a_new_layer_gets_a_gradient(text):
    layer = Attention(text, 24, 4, position=Rotary(), causal=True)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_the_library_s_door_is_a_drop_in_layer_and_a_model():
    layer = qkvbench.torch.Attention("q,k=v", d_model=24, heads=4)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    layer(x).sum().backward()
    assert layer(x).shape == x.shape
    assert all(parameter.grad is not None for parameter in layer.parameters())
    model = qkvbench.torch.decoder("q,k=v/1", vocabulary=13, layers=2, d_model=24, heads=4)
    assert model(torch.zeros(3, 7, dtype=torch.long)).shape == (3, 7, 13)
    assert model.blocks[0].attention.plan.variant == parse("q,k=v/1")
