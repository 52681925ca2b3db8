"""Learners of both backends beside each other: same steps, same files, neither needs the other."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from laws.backends import gradients_of
from laws.cases import (
    ITEMS,
    LENGTHS,
    SOURCE,
    SOURCE_LENGTHS,
    TIME,
    TOKENS,
    architectures,
    covering,
    decoder,
    encoder,
    one_of_each,
    translator,
)
from qkvbench.backends import find
from qkvbench.backends import jax as backend
from qkvbench.backends import torch as torch_backend
from qkvbench.backends.jax.attention.layer import _without_own_value
from qkvbench.backends.jax.bench.workloads import Decoding
from qkvbench.backends.jax.models.weights import part as part_of
from qkvbench.backends.jax.training.precision import compute_weights
from qkvbench.backends.torch import Learner as TorchLearner
from qkvbench.backends.torch.attention import ops
from qkvbench.backends.torch.training.precision import autocast
from qkvbench.cli import main
from qkvbench.data.batch import IGNORE_INDEX, Batch, Search, Sequences
from qkvbench.experiment import Experiment, Training
from qkvbench.model import (
    Decoder,
    Encoder,
    Init,
    Learned,
    NoPosition,
    Rotary,
    Sinusoidal,
    Vectors,
    transformer,
)
from qkvbench.sweep.local import Workers
from qkvbench.task_ref import TaskRef
from qkvbench.variant import parse

# fp32 rounding of sums over tens of numbers of size one.
NEAR = 1e-5


def experiment(model=None, **changed):
    training = {"steps": 1, "batch": ITEMS, "learning_rate": 1e-3, "warmup": 0}
    execution = {key: changed.pop(key) for key in list(changed) if key in EXECUTION}
    model = model or decoder("q,k=v", Rotary())
    return Experiment(model, TaskRef("law"), 1, Training(**training | changed), seed=0, **execution)


EXECUTION = ("precision", "checkpointing")


def batch(seed=0, scored=0.6):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, 13, (2, ITEMS, TIME))
    targets[rng.random(targets.shape) > scored] = IGNORE_INDEX
    return Batch(inputs, targets)


def data_for(model, given):
    """A batch of what a model reads, with a class that is right at some of its places."""
    inputs, lengths, *second = (*given, None)[: max(2, len(given))]
    second = Sequences(second[0], second[1]) if second and second[0] is not None else None
    if model.contrastive:
        own = np.arange(ITEMS)
        return Batch(inputs.astype(np.float32), np.stack([own, own], axis=1), lengths, second)
    if isinstance(model.architecture, Encoder) and model.architecture.predicts != "each position":
        return Batch(inputs, np.zeros((ITEMS, 1), np.int64), lengths, second)
    targets = batch().targets
    if isinstance(model.architecture, Encoder):
        # It has fewer classes than a decoder has tokens.
        targets = np.where(targets == IGNORE_INDEX, IGNORE_INDEX, targets % TIME)
    return Batch(inputs, targets, lengths, second)


def slopes(learner, data):
    """Loss, norm and gradient of a JAX learner, operation by operation."""
    weights, parts, shares, rng, steps, scale = learner.gradient_arguments(data)
    arrays = jax.tree.map(jnp.asarray, (parts, shares, scale))
    key = jax.random.fold_in(rng, steps) if learner.experiment.training.dropout else None
    return learner.step.gradients(weights, arrays[0], arrays[1], key, arrays[2])


def _architectures_and_cases():
    """Every architecture with another variant; one of them quick, as a step takes seconds."""
    names = list(architectures("q,k,v", Rotary()))
    cells = one_of_each(covering("distinct", "position", "suffix"), names)
    return [
        pytest.param(name, case, marks=pytest.mark.slow if number else (), id=f"{name} {case}")
        for number, (case, name) in enumerate(cells)
    ]


@pytest.mark.parametrize(("name", "case"), _architectures_and_cases())
def test_loss_and_gradients_of_a_step_in_fp32_are_torch_s(name, case):
    model, inputs = architectures(case.full, case.position, case.plan().geometry)[name]
    data = data_for(model, inputs)
    theirs, own = (each(experiment(model, clip=1e9)) for each in (TorchLearner, backend.Learner))
    expected_loss, expected_norm = theirs.gradients(data)
    loss, norm, found = slopes(own, data)
    assert float(loss) == pytest.approx(expected_loss, rel=NEAR, abs=NEAR)
    assert float(norm) == pytest.approx(expected_norm, rel=NEAR)
    for weight, expected in gradients_of(theirs.network).items():
        error = np.abs(found[weight] - expected).max()
        assert error < NEAR * max(1, expected_norm), weight


@pytest.mark.parametrize(
    "variant", ["q,k=v", pytest.param("q,k=R(q),v", marks=pytest.mark.nightly)]
)
def test_beams_find_the_texts_that_torch_finds(variant):
    model = translator(variant, Rotary())
    data = data_for(model, (TOKENS, None, SOURCE, np.array(SOURCE_LENGTHS)))
    search = Search(begin=12, end=3, longest=4, beams=2)
    theirs, own = (each(experiment(model)) for each in (TorchLearner, backend.Learner))
    expected, found = theirs.write(data, search), own.write(data, search)
    assert [text.tolist() for text in found] == [text.tolist() for text in expected]


def test_what_a_layer_makes_of_a_batch_is_what_torch_shows():
    model = encoder("q,k=R(q),v+qkvnorm", "each position", "mean", position=Rotary())
    data = data_for(model, (TOKENS, np.array(LENGTHS)))
    theirs, own = (each(experiment(model)) for each in (TorchLearner, backend.Learner))
    for expected, found in zip(theirs.inspect(data), own.inspect(data), strict=True):
        assert found.name == expected.name
        assert np.array_equal(found.mask, expected.mask)
        for part in ("scores", "attention_weights"):
            where = np.broadcast_to(expected.mask[:, None], getattr(found, part).shape)
            error = np.abs(getattr(found, part) - getattr(expected, part))[where].max()
            assert error < NEAR, part
        for part in ("weights", "projections"):
            for role, array in getattr(expected, part).items():
                assert np.abs(getattr(found, part)[role] - array).max() < NEAR, (part, role)


# Each rounding moves a number by at most half of 2^-bits of itself; a gradient of these two layers
# is about twenty roundings away from fp32's, in either direction: five times one rounding.
FAR = {"bf16": 5 * 2.0**-8, "fp16": 5 * 2.0**-11}


@pytest.mark.parametrize(
    ("variant", "precision"),
    [
        pytest.param(*each, marks=pytest.mark.nightly if number else ())
        for number, each in enumerate(product(["q,k=R(q),v+qknorm", "q,k,v"], FAR))
    ],
)
def test_gradients_in_half_precision_stay_near_those_of_fp32(variant, precision):
    model, data = decoder(variant, Rotary()), batch()
    expected_loss, _, expected = slopes(backend.Learner(experiment(model, clip=1e9)), data)
    half = backend.Learner(experiment(model, clip=1e9, precision=precision))
    loss, _, found = slopes(half, data)
    assert float(loss) == pytest.approx(float(expected_loss), rel=FAR[precision])
    assert {each.dtype for each in found.values()} == {np.dtype("float32")}
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, found, expected))
    assert difference < FAR[precision] * optax.tree.norm(expected)
    # And it is not fp32 under another name.
    assert difference > 2.0**-14 * optax.tree.norm(expected)


def test_a_backend_tells_the_same_types_as_torch():
    assert backend.types() == torch_backend.types()


@pytest.mark.slow
def test_an_overflow_halves_the_scale_and_the_step_is_that_of_a_scale_that_fitted():
    def from_scale(scale):
        learner = backend.Learner(experiment(precision="fp16", dropout=0.3))
        learner.scale = scale
        loss, norm = learner.gradients(batch())
        return loss, norm, learner.gradient, learner.scale

    loss, norm, found, reached = from_scale(2.0**30)
    assert 1 < reached < 2.0**29
    # The same bits: the dropout of the attempts that failed was drawn again.
    expected_loss, expected_norm, expected, kept = from_scale(reached)
    assert (loss, norm, reached) == (expected_loss, expected_norm, kept)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.nightly
def test_parts_and_activations_made_again_give_the_gradient_of_the_whole():
    data = batch()
    loss, norm, expected = slopes(backend.Learner(experiment(clip=1e9)), data)
    for changed in ({"micro_batches": 2}, {"checkpointing": True}):
        found = slopes(backend.Learner(experiment(clip=1e9, **changed)), data)
        assert float(found[0]) == pytest.approx(float(loss), rel=NEAR)
        for name in expected:
            assert jnp.abs(found[2][name] - expected[name]).max() < NEAR * max(1, norm), name


def test_parts_of_a_batch_are_alike_so_that_few_shapes_are_compiled_for():
    rng = np.random.default_rng(0)
    learner = backend.Learner(experiment(micro_batches=3))
    shapes = set()
    for _ in range(60):
        inputs = rng.integers(0, 9, size=(64, 16))
        places = np.arange(16) < rng.integers(1, 17, size=(64, 1))
        given = Batch(inputs, np.where(places, inputs, IGNORE_INDEX))
        _, parts, *_ = learner.gradient_arguments(given)
        shapes.add(tuple(np.shape(part.places) for part in parts))
        assert sum(int(part.valid.sum()) for part in parts) == places.sum()
    assert all(len(set(each)) == 1 for each in shapes)
    assert len(shapes) <= 8


def test_a_checkpoint_of_one_backend_goes_on_in_the_other(tmp_path):
    """Three steps in one, three in the other, and the loss is that of six in one."""
    both = (TorchLearner, backend.Learner)

    def trained(learner, steps):
        for step in steps:
            loss, _ = learner.gradients(batch(step))
            learner.update(1e-3)
        return loss

    for first, second in (both, both[::-1]):
        begun, going = first(experiment()), second(experiment())
        trained(begun, range(3))
        begun.save(tmp_path / "weights.safetensors")
        assert set(going.load_matching(tmp_path / "weights.safetensors")) == set(begun.weights())
        same = first(experiment())
        same.load_matching(tmp_path / "weights.safetensors")
        # Both begin the moments of their optimizers anew, so they are compared with each other.
        losses = [trained(learner, range(3, 6)) for learner in (going, same)]
        assert losses[0] == pytest.approx(losses[1], rel=NEAR)
        for name, expected in same.weights().items():
            error = np.abs(plain(going.weights()[name]) - plain(expected)).max()
            assert error < 10 * NEAR, name
    with pytest.raises(ValueError, match="must match the model"):
        backend.Learner(experiment(decoder("q,k,v"))).load_matching(
            tmp_path / "weights.safetensors"
        )


def plain(weight):
    return weight.detach().numpy() if isinstance(weight, torch.Tensor) else weight


# Trains, predicts, looks into layers and writes where torch cannot be imported.
ALONE = """
import sys
sys.modules["torch"] = None
import numpy as np
from qkvbench.backends import find
from qkvbench.data.batch import Batch, Search, Sequences
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Decoder, Init, Learned, Rotary, Tokens, transformer, with_source
from qkvbench.task_ref import TaskRef
from qkvbench.variant import parse

backend = find("jax")
backend.prepare(1)
own = transformer("law", Decoder(13), layers=1, d_model=8, heads=2, position=Rotary(),
                  init=Init(embedding_std=0.5, position_std=0.5), feed_forward=9)
model = with_source(own, Tokens(11), Learned(5))
tokens, source = np.arange(14).reshape(2, 7) % 13, np.arange(10).reshape(2, 5)
batch = Batch(tokens, tokens, second=Sequences(source))
learner = backend.Learner(Experiment(model, TaskRef("law"), 1, Training(2, 2, 1e-2, 0), seed=0))
learner.warm_up(batch)
compiled_s = learner.compile_s
losses = []
for _ in range(5):
    losses.append(learner.gradients(batch)[0])
    learner.update(1e-2)
assert losses[-1] < losses[0]
assert learner.compile_s == compiled_s > 0
learner.predict(batch), learner.inspect(batch), learner.write(batch, Search(1, 2, 3, 2))
assert backend.fork_safe() is False and backend.threads() == (1, 1)
print("done")
"""


@pytest.mark.slow
def test_no_torch_is_needed(tmp_path):
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE],
        env=os.environ | {"QKVBENCH_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (found.stdout, found.stderr, found.returncode) == ("done\n", "", 0)


# Three steps of two items each; on several devices each has its own.
SPREAD = """
import json, jax, numpy as np
from test_learners import experiment, batch
from qkvbench.backends import find
from qkvbench.backends import jax as backend
from qkvbench.data.batch import IGNORE_INDEX, Batch

learner = backend.Learner(experiment(dropout=0.3))
losses = []
for step in range(3):
    data = batch(step)
    data = Batch(np.tile(data.inputs, (2, 1)), np.tile(data.targets, (2, 1)))
    losses.append(learner.gradients(data))
    learner.update(1e-3)
losses.append((float(learner.predict(data).loss.sum()), jax.device_count()))
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_two_devices_give_the_result_of_one():
    def said(devices):
        flags = f"--xla_force_host_platform_device_count={devices}"
        folder = str(Path(__file__).parent)
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": folder}
        found = subprocess.run(
            [sys.executable, "-c", SPREAD], env=environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    (*found, (loss, one)), (*expected, (expected_loss, two)) = said(1), said(2)
    assert (one, two) == (1, 2)
    assert np.array(found) == pytest.approx(np.array(expected), rel=NEAR)
    assert loss == pytest.approx(expected_loss, rel=NEAR)


def test_a_process_that_has_used_jax_is_not_forked():
    assert not backend.fork_safe()
    assert Workers("jax").context.get_start_method() == "spawn"
    # Not for torch either, once both are here.
    assert Workers("torch", forked_from="here").context.get_start_method() == "forkserver"


def test_a_package_that_is_not_here_is_one_sentence_with_what_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError, match=r"needs optax; './qkv setup jax' installs it"):
        find("jax")
    status = main(["run", "--variants", "q,k,v", "--tasks", "sort", "--backend", "jax"])
    assert status == 2
    assert "./qkv setup jax" in capsys.readouterr().err


@pytest.mark.parametrize("position", [NoPosition(), Rotary(), Sinusoidal(), Learned(12)])
def test_the_stream_of_vectors_is_in_fp32_whatever_the_positions(position):
    """A product in half precision, to which nothing is added, would leave it so in all blocks."""
    model = transformer(
        "vectors",
        Encoder(Vectors(6), 10, "the whole"),
        layers=1,
        d_model=32,
        heads=4,
        position=position,
        init=Init(embedding_std=0.5, position_std=0.5),
    )
    inputs = np.random.default_rng(0).standard_normal((2, 12, 6), dtype=np.float32)
    network = torch_backend.build(model)
    torch_backend.start(network, model, 0)
    with autocast("bf16", torch.device("cpu")), torch.no_grad():
        assert network.embedding(torch.from_numpy(inputs)).dtype == torch.float32
        assert network.bfloat16().embedding(torch.from_numpy(inputs)).dtype == torch.bfloat16
    ours = backend.build(model)
    weights = backend.start(ours.parameters, model, 0)
    half = compute_weights(weights, ours.parameters, "bf16")
    assert ours.own.embedding(part_of(half, "embedding"), inputs).dtype == np.float32


@pytest.mark.parametrize("size", [1.0, 2e-4, 1e-4, 0.0])
def test_the_part_along_the_own_value_is_found_in_fp16(size):
    """The square of a small number is zero there."""
    draws = np.random.default_rng(0)
    value, context = (
        draws.standard_normal((2, 1, 2, 3, 16)) * np.array([size, 1.0])[:, None, None, None, None]
    )
    along = (context * value).sum(-1, keepdims=True)
    expected = context - along / np.maximum((value**2).sum(-1, keepdims=True), 1e-24) * value
    own = ops.without_own_value(torch.tensor(context).half(), torch.tensor(value).half())
    theirs = _without_own_value(jnp.asarray(context, "float16"), jnp.asarray(value, "float16"))
    for found in (own.float().numpy(), np.asarray(theirs, np.float32)):
        assert np.abs(found - expected).max() < 0.01


def test_a_step_that_is_timed_leaves_a_state_as_it_was():
    model = transformer(
        "linear",
        Decoder(16),
        layers=1,
        d_model=16,
        heads=2,
        position=Rotary(),
        init=Init(embedding_std=0.5, position_std=0.5),
    ).with_variant(parse("q,k,v+elu"))
    workload = Decoding(model, "fp32", context=32, batch=1)
    before = np.array(workload.cache.layers[0].rows["memory"])
    assert before.min() >= 0
    for _ in range(3):
        workload.step()
    np.testing.assert_array_equal(workload.cache.layers[0].rows["memory"], before)
    assert int(workload.cache.count) == 32
