"""Blocks as their changes say, against a block in NumPy: whole, step by step, and from a file."""

import numpy as np
import pytest
import torch
from scipy.special import erf

from laws.backends import BACKENDS, JAX, PROMPT, TORCH
from laws.cases import (
    TOGETHER,
    TOKENS,
    Case,
    architectures,
    at_their_time,
    changed,
    decoder,
    drawn,
)
from qkvbench.backends.torch import build, start
from qkvbench.backends.torch.models.inspect import inspect_layers
from qkvbench.cost.matched import unmarked, with_arm
from qkvbench.cost.operations import macs
from qkvbench.cost.parameters import parameters
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.model import (
    CHANGES,
    Rotary,
    model_parameters,
    parse_arm,
    parse_label,
    write_arm,
)
from qkvbench.reference import attention as reference
from qkvbench.task_ref import TaskRef
from qkvbench.variant import parse
from qkvbench.variant.catalogue import CATALOGUE

# fp64 rounding of sums over tens of numbers, relative to the largest.
EXACT = 1e-10
ALONE = tuple((name,) for name in CHANGES)


def test_a_layer_without_any_parameter_is_inspected_in_its_place():
    model = changed(decoder("q=k=v=x"), ("no-output-projection",))
    weights = drawn(model_parameters(model).values())
    ours = inspect_layers(TORCH.network(model, weights), torch.from_numpy(TOKENS))
    theirs = JAX.inspected(model, weights, TOKENS)
    for found in (ours, theirs):
        assert [layer.name for layer in found] == ["blocks.0.attention", "blocks.1.attention"]


def norm(kind, weights, prefix, x):
    """By the formula of each source."""
    own = {name: weights.get(f"{prefix}.{name}", 1.0) for name in ("weight", "alpha")}
    shift = weights.get(f"{prefix}.bias", 0.0)
    match kind:
        case "rms" | "rms-no-scale":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * own["weight"]
        case "dynamic-tanh":
            return np.tanh(own["alpha"] * x) * own["weight"] + shift
        case "no-norm":
            return x
        case _:
            centred = x - x.mean(-1, keepdims=True)
            variance = (centred**2).mean(-1, keepdims=True)
            return centred / np.sqrt(variance + 1e-5) * own["weight"] + shift


def feed_forward(changes, weights, prefix, x):
    def linear(name, rows):
        bias = weights.get(f"{prefix}.{name}.bias", 0.0)
        return rows @ weights[f"{prefix}.{name}.weight"].T + bias

    if "swiglu" in changes:
        gate = linear("gate", x)
        return linear("down", gate / (1 + np.exp(-gate)) * linear("up", x))
    if "bilinear" in changes:
        return linear("down", linear("gate", x) * linear("up", x))
    hidden = linear("up", x)
    if "relu2" in changes:
        return linear("down", np.maximum(hidden, 0) ** 2)
    return linear("down", hidden * (1 + erf(hidden / np.sqrt(2))) / 2)


def logits(model, changes, weights, tokens):
    """A decoder in NumPy: embedding, blocks, norm and head; RoPE is in the plans."""
    kind = next((name for name in changes if CHANGES[name].field == "norm"), None)
    before = not {"post-norm", "output-norm"} & {*changes}
    behind = {"output-norm", "both-norms"} & {*changes}
    x = weights["embedding.table"][tokens]

    def normed(layer, part, rows):
        return norm(kind, weights, f"blocks.{layer}.{part}", rows) if before else rows

    def added(layer, part, rows, made):
        if behind:
            made = norm(kind, weights, f"blocks.{layer}.{part}_output_norm", made)
        total = made if "no-skip" in changes else rows + made
        if "post-norm" in changes:
            total = norm(kind, weights, f"blocks.{layer}.{part}_norm", total)
        return total

    for layer, plan in enumerate(model.plans):
        own = {
            name.removeprefix(f"blocks.{layer}.attention."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{layer}.attention.")
        }
        rows = normed(layer, "attention_norm", x)
        attended = np.stack([reference.forward(plan, own, each) for each in rows])
        x = added(layer, "attention", x, attended)
        if "no-ff" in changes:
            continue
        if "parallel" not in changes:
            rows = normed(layer, "feed_forward_norm", x)
        owner = 0 if "shared-ff" in changes else layer
        made = feed_forward(changes, weights, f"blocks.{owner}.feed_forward", rows)
        x = added(layer, "feed_forward", x, made)
    head = "embedding.table" if "tied-embeddings" in changes else "output.weight"
    return norm(kind, weights, "norm", x) @ weights[head].T


def cases(jax_cases):
    """Torch has all, JAX a few at once: it compiles each."""
    return at_their_time(
        ((backend, changes), "slow" if backend is JAX and changes not in jax_cases else "quick")
        for backend in BACKENDS
        for changes in (*TOGETHER, *(ALONE if backend is TORCH else ()))
    )


each_change = pytest.mark.parametrize(
    ("backend", "changes"),
    cases(TOGETHER[2:3]),
    ids=lambda each: each.name if hasattr(each, "name") else "~".join(each),
)


@each_change
def test_a_decoder_with_changed_blocks_is_the_one_in_numpy(backend, changes):
    model = changed(decoder("q,k=v", Rotary()), changes)
    weights = drawn(model_parameters(model).values())
    expected = logits(model, changes, weights, TOKENS)
    found = backend.logits(model, weights, (TOKENS,)).reshape(expected.shape)
    assert np.abs(found - expected).max() < EXACT * np.abs(expected).max()


@each_change
def test_it_decodes_what_it_computes_whole_and_has_the_listed_weights(backend, changes):
    model = changed(decoder("q,k=v", Rotary()), changes)
    learned = model_parameters(model)
    assert backend.shapes(model) == {name: each.shape for name, each in learned.items()}
    weights = drawn(learned.values())
    whole = logits(model, changes, weights, TOKENS)[:, PROMPT - 1 :]
    steps = backend.decode(Case(parse("q,k=v")), model, weights, TOKENS)
    assert np.abs(steps - whole).max() < EXACT * np.abs(whole).max()


@pytest.mark.parametrize("changes", ALONE, ids="~".join)
def test_a_network_in_half_precision_is_nearly_the_one_in_full(changes):
    """As it is timed: its weights in bf16, without autocast."""
    model = changed(decoder("q,k=v", Rotary()), changes)
    network = build(model)
    start(network, model, seed=0)
    tokens = torch.from_numpy(TOKENS)
    with torch.no_grad():
        full = network(tokens)
        half = network.bfloat16()(tokens)
    assert half.dtype == torch.bfloat16
    assert (half - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("changes", TOGETHER, ids="~".join)
def test_every_architecture_can_have_changed_blocks(changes, tmp_path):
    for name, (plain, inputs) in architectures("q,k=v", Rotary()).items():
        if "parallel" in changes and name == "encoder-decoder":
            with pytest.raises(ValueError, match="no cross-attention"):
                changed(plain, changes)
            continue
        if "tied-embeddings" in changes and not plain.decodes:
            with pytest.raises(ValueError, match="predicts no token"):
                changed(plain, changes)
            continue
        model = changed(plain, changes)
        weights = drawn(model_parameters(model).values())
        assert np.isfinite(TORCH.logits(model, weights, inputs)).any()
        saved = TORCH.saved(model, weights, tmp_path / "weights.safetensors")
        assert saved.keys() == weights.keys()


def test_an_arm_names_its_changes_in_one_order():
    arm = parse_arm("q,k=v~swiglu~rms~q,k,v~again")
    assert write_arm(arm) == "q,k=v~rms~swiglu~q,k,v~again"
    assert parse_label("lm~rms~swiglu~again") == ("lm", None)
    base = decoder("q,k,v", Rotary())
    model = with_arm(base, arm, tokens=8)
    assert model.marked(model.variant) == write_arm(arm)
    assert unmarked(model) == unmarked(base).with_variant(parse("q,k=v"))
    # Three matrices, as many parameters.
    own, wanted = parameters(model).total, parameters(base).total
    assert abs(own - wanted) <= 3 * 2 * base.geometry.d_model
    for text, said in {
        "q,k,v~rms~no-norm": "~rms and ~no-norm change the same part",
        "q,k,v~foo": "'foo' behind '~' is neither a change of blocks",
        "q,k,v~": "nothing behind '~'",
        "q,k,v~q,k=v~q=k,v": "two sizes to match",
        "q,k,v~parallel~post-norm": "Parallel parts",
        "q,k,v~no-ff~shared-ff": "none to share",
    }.items():
        with pytest.raises(ValueError, match=said):
            with_arm(base, parse_arm(text), tokens=8)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda each: each.name)
def test_attention_without_any_weight_computes_in_the_dtype_of_its_input(backend):
    model = changed(decoder("q=k=v=x", Rotary()), ("no-output-projection", "no-biases"))
    assert not model.plans[0].parameters
    weights = drawn(model_parameters(model).values())
    expected = logits(model, model.changes, weights, TOKENS)
    found = backend.logits(model, weights, (TOKENS,)).reshape(expected.shape)
    assert np.abs(found - expected).max() < EXACT * np.abs(expected).max()


def test_heads_that_are_no_stream_need_an_output_projection():
    model = changed(decoder("q,k,v+valuedim4", Rotary()), ("no-output-projection",))
    with pytest.raises(ValueError, match="they have 16 numbers, not 24"):
        model_parameters(model)


def test_changes_are_part_of_an_experiment_and_no_other_loses_its_identity():
    plain = decoder("q,k,v", Rotary())
    training = Training(steps=2, batch=2, learning_rate=1e-3, warmup=0)
    experiments = {
        name: Experiment(changed(plain, (name,)), TaskRef("law"), 1, training, seed=0)
        for name in CHANGES
    }
    assert len({each.id for each in experiments.values()}) == len(CHANGES)
    for name, each in experiments.items():
        again = from_json(to_json(each))
        assert again == each
        assert again.id == each.id
        assert again.arm == f"q,k,v~{name}"
    # Written before blocks could change.
    assert Experiment(plain, TaskRef("law"), 1, training, seed=0).id == "8388abbdf0d508a3"


def test_costs_follow_the_changes():
    plain = decoder("q,k,v", Rotary())
    # Of two layers.
    two, hidden = 2 * plain.geometry.d_model, plain.blocks[0].feed_forward.width
    half = hidden - hidden // 2
    per_token = {
        "swiglu": two * hidden,
        "bilinear": two * hidden,
        "half-ff": -2 * two * half,
        "no-ff": -2 * two * hidden,
        "relu2": 0,
        "parallel": 0,
        "rms": 0,
        "shared-ff": 0,
        "no-biases": 0,
        "tied-embeddings": 0,
        "no-output-projection": -2 * plain.geometry.d_model**2,
    }
    for name, more in per_token.items():
        assert macs(changed(plain, (name,)), 5) - macs(plain, 5) == 5 * more, name
    width, vocabulary = plain.geometry.d_model, plain.architecture.vocabulary
    learned = {
        # One of two.
        "shared-ff": 2 * width * hidden + hidden + width,
        # Of Q, K, V and output, and of the feed-forward, in two layers.
        "no-biases": 2 * (4 * width + hidden + width),
        "no-output-projection": 2 * (width * width + width),
        "tied-embeddings": width * vocabulary,
    }
    for name, fewer in learned.items():
        assert parameters(plain).total - parameters(changed(plain, (name,))).total == fewer, name


def test_no_change_is_called_like_a_variant():
    assert not {*CHANGES, "again"} & {*CATALOGUE}
    for name in CHANGES:
        with pytest.raises(ValueError, match="is not q, k, v"):
            parse(name)
