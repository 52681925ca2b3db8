"""The JAX backend against the reference and against PyTorch: same weights, same numbers.

Most of it runs operation by operation: a program compiled for each arm would take minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    some_catalogued,
    stream,
    suffixed,
)
from laws.networks import drawn_network
from qkvbench import cost, reference
from qkvbench.backends import find
from qkvbench.backends import jax as backend
from qkvbench.backends import torch as torch_backend
from qkvbench.backends.jax.attention import softmax
from qkvbench.backends.jax.attention.layer import attention
from qkvbench.backends.torch import Learner as TorchLearner
from qkvbench.backends.torch import named_weights
from qkvbench.cli import main
from qkvbench.data.batch import IGNORE_INDEX, Batch, Search, Sequences
from qkvbench.experiment import Experiment, Training
from qkvbench.model import (
    Encoder,
    Learned,
    Rotary,
    Sinusoidal,
    Tokens,
    Vectors,
    with_source,
    with_tower,
)
from qkvbench.sweep.local import Workers
from qkvbench.variant import parse

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


def check_layer(variant, in_turn, seen):
    """The layer against the reference: causal or not, and through a window of so many places."""
    inside = [one for one in POSITIONS if not isinstance(one, Learned | Sinusoidal)]
    for number, position in enumerate(inside):
        suffix = in_turn[number % len(in_turn)]
        for causal, window in seen:
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


@some_catalogued
def test_the_layer_is_the_reference(variant, in_fp64):
    first = CATALOGUED.index(variant) % len(SUFFIXED)
    in_turn = SUFFIXED[first:] + SUFFIXED[:first]
    check_layer(variant, in_turn, [(True, None), (False, 3), (True, 3)])


@pytest.mark.nightly
@some_catalogued
def test_the_layer_is_the_reference_with_every_suffix(variant, in_fp64):
    for suffix in SUFFIXED:
        check_layer(variant, [suffix], [(True, None), (False, None)])


@pytest.mark.parametrize("variant", ["q,k,v", "q,k=v/1"])
def test_scores_that_are_made_by_rows_are_the_same(variant, in_fp64, monkeypatch):
    # Two rows at a time, and one that is left over.
    monkeypatch.setattr(softmax, "CHUNK_LOGITS", 2 * 4 * TIME)
    check_layer(parse(variant), ["", "+2d", "++-diag"], [(True, None)])


@pytest.mark.parametrize(
    "positions", [2, pytest.param(len(POSITIONS), marks=pytest.mark.nightly)], ids=["some", "all"]
)
@some_catalogued
def test_every_stack_says_what_torch_says(variant, positions, in_fp64):
    first = positions * CATALOGUED.index(variant)
    for number in range(first, first + positions):
        position = POSITIONS[number % len(POSITIONS)]
        suffix = SUFFIXED[(3 * number + first // len(POSITIONS)) % len(SUFFIXED)]
        for model, given in stacks(suffixed(variant, suffix), position):
            theirs = drawn_network(model)
            weights, own = of_torch(theirs), backend.build(model)
            assert {name: each.shape for name, each in weights.items()} == own.shapes()
            expected = logits(theirs, tensors(given)).detach().numpy()
            found = logits(own, weights, given)
            error = jnp.abs(finite(found) - finite(expected)).max()
            assert error < EXACT, (position, suffix, model.architecture)


@pytest.mark.parametrize(
    "every", [5, pytest.param(1, marks=pytest.mark.nightly)], ids=["some", "all"]
)
@some_catalogued
def test_gradients_are_torch_s(variant, every, in_fp64):
    position, suffix = chosen(variant, POSITIONS), chosen(variant, SUFFIXED, 3)
    for number, (model, given) in enumerate(stacks(suffixed(variant, suffix), position)):
        if number % every != CATALOGUED.index(variant) % every:
            continue
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
            assert error < EXACT, (name, position, suffix, model.architecture)


def slopes_of(network):
    """The gradients of a torch network, under the names of the weights."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.grad)
    return {name: tensor.detach().numpy() for name, tensor in named_weights(network).items()}


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


@pytest.mark.parametrize(
    "every", [7, pytest.param(1, marks=pytest.mark.nightly)], ids=["some", "all"]
)
@some_catalogued
def test_loss_and_gradients_of_a_step_in_fp32_are_torch_s(variant, every):
    position, suffix = chosen(variant, POSITIONS, 5), chosen(variant, SUFFIXED, 7)
    for number, (model, given) in enumerate(stacks(suffixed(variant, suffix), position)):
        if number % every != CATALOGUED.index(variant) % every:
            continue
        data = data_for(model, given)
        theirs, own = (
            each(experiment(model, clip=1e9)) for each in (TorchLearner, backend.Learner)
        )
        expected_loss, expected_norm = theirs.gradients(data)
        loss, norm, found = slopes(own, data)
        assert float(loss) == pytest.approx(expected_loss, rel=NEAR, abs=NEAR)
        assert float(norm) == pytest.approx(expected_norm, rel=NEAR)
        for name, expected in slopes_of(theirs.network).items():
            error = np.abs(found[name] - expected).max()
            assert error < NEAR * max(1, expected_norm), (
                name,
                position,
                suffix,
                model.architecture,
            )


@some_catalogued
def test_decoding_step_by_step_is_one_forward_pass(variant, in_fp64):
    """With left padding, and through a window, whose rows lie in a ring."""
    position, suffix = chosen(variant, POSITIONS, 3), chosen(variant, SUFFIXED, 5)
    for window, padding in [(None, None), (3, [0, 3, 1])]:
        model = decoder(suffixed(variant, suffix), position).with_window(window)
        network, weights = backend.build(model), of_torch(drawn_network(model))
        padded = np.full((ITEMS, TIME), 7, np.int32)
        for row, count in enumerate(padding or [0] * ITEMS):
            padded[row, count:] = TOKENS[row, : TIME - count]
        cache = network.new_cache(weights, ITEMS, TIME)
        counts = None if padding is None else jnp.asarray(padding, jnp.int32)
        found, cache = network.prefill(weights, jnp.asarray(padded[:, :4]), cache, counts)
        steps = [found]
        for time in range(4, TIME):
            found, cache = network.step(weights, jnp.asarray(padded[:, time]), cache)
            steps.append(found)
        whole = network.head(weights, network.hidden(weights, jnp.asarray(TOKENS)))
        for row, count in enumerate(padding or [0] * ITEMS):
            expected = whole[row, 3 - count : TIME - count]
            error = jnp.abs(jnp.stack([each[row] for each in steps]) - expected).max()
            assert error < EXACT, (position, suffix, window)
        if window is None:
            kept = model.with_variant(suffixed(variant, suffix))
            assert cache.bytes == ITEMS * TIME * cost.cache_bytes_per_token(kept, value_bytes=8)


@pytest.mark.parametrize("variant", ["q,k=v", "q,k=R(q),v"])
def test_beams_find_the_texts_that_torch_finds(variant):
    model = translator(variant, Rotary())
    data = data_for(model, (TOKENS, None, SOURCE, SOURCE_LENGTHS))
    search = Search(begin=12, end=3, longest=4, beams=2)
    theirs, own = (each(experiment(model)) for each in (TorchLearner, backend.Learner))
    expected, found = theirs.write(data, search), own.write(data, search)
    assert [text.tolist() for text in found] == [text.tolist() for text in expected]


def test_what_a_layer_makes_of_a_batch_is_what_torch_shows():
    model = encoder("q,k=R(q),v+qkvnorm", "each position", "mean", position=Rotary())
    data = data_for(model, (TOKENS, LENGTHS))
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


@pytest.mark.parametrize("precision", FAR)
@pytest.mark.parametrize("variant", ["q,k,v", "q,k=R(q),v+qknorm"])
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


@pytest.mark.slow
def test_parts_and_activations_made_again_give_the_gradient_of_the_whole():
    data = batch()
    loss, norm, expected = slopes(backend.Learner(experiment(clip=1e9)), data)
    for changed in ({"micro_batches": 2}, {"checkpointing": True}):
        found = slopes(backend.Learner(experiment(clip=1e9, **changed)), data)
        assert float(found[0]) == pytest.approx(float(loss), rel=NEAR)
        for name in expected:
            assert jnp.abs(found[2][name] - expected[name]).max() < NEAR * max(1, norm), name


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
    with pytest.raises(ValueError, match="must agree with the model"):
        backend.Learner(experiment(decoder("q,k,v"))).load_matching(
            tmp_path / "weights.safetensors"
        )


def plain(weight):
    return weight.detach().numpy() if isinstance(weight, torch.Tensor) else weight


def test_a_learner_goes_on_from_its_state_as_if_it_had_never_stopped():
    def two_steps(learner):
        for step in (1, 2):
            learner.gradients(batch(step))
            learner.update(1e-3)
        return learner.state()

    learner = backend.Learner(experiment(dropout=0.3))
    learner.gradients(batch(0))
    learner.update(1e-3)
    state = {name: array.copy() for name, array in learner.state().items()}
    expected = two_steps(learner)
    again = backend.Learner(experiment(dropout=0.3))
    again.restore(state)
    found = two_steps(again)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert not np.array_equal(state["dropout/steps"], expected["dropout/steps"])


# Trains, predicts, looks into layers and writes where torch cannot be imported.
ALONE = """
import sys
sys.modules["torch"] = None
import numpy as np
from qkvbench.backends import find
from qkvbench.data.batch import Batch, Search, Sequences
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Decoder, Learned, Rotary, Start, Tokens, transformer, with_source

backend = find("jax")
backend.prepare(1)
own = transformer("law", Decoder(13), layers=1, d_model=8, heads=2, position=Rotary(),
                  start=Start(table=0.5, position=0.5), feed_forward=9)
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
assert backend.forks() is False and backend.threads() == (1, 1)
print("done")
"""


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
from laws.test_jax import experiment, batch
from qkvbench.backends import find
from qkvbench.backends import jax as backend
from qkvbench.data.batch import Batch
from qkvbench.task_ref import TaskRef

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


def test_two_devices_give_the_result_of_one():
    def said(devices):
        flags = f"--xla_force_host_platform_device_count={devices}"
        folder = str(Path(__file__).parents[1])
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
