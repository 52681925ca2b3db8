"""What a learner tells of itself is enough to go on with the same bits."""

from itertools import product

import numpy as np
import pytest

from laws.cases import decoder, every_distinct_even, some_catalogued
from networks.test_training import batch
from qkvbench import backends
from qkvbench.experiment import PRECISIONS, Experiment, Training
from qkvbench.model import Rotary
from qkvbench.task_ref import TaskRef

every_backend = pytest.mark.parametrize("backend", backends.names())


def experiment(variant, backend, precision="fp32", **changed):
    training = Training(steps=6, batch=5, learning_rate=1e-2, warmup=0, dropout=0.2, **changed)
    model = decoder(variant, Rotary())
    return Experiment(
        model, TaskRef("law"), 1, training, seed=0, backend=backend, precision=precision
    )


def made(wanted):
    backend = backends.find(wanted.backend)
    backend.prepare(wanted.threads)
    return backend.Learner(wanted)


def steps(learner, numbers):
    """The loss and the norm of each of these steps."""
    found = []
    for number in numbers:
        found.append(learner.gradients(batch(number)))
        learner.update(1e-2 / (1 + number))
    return found


def copied(learner):
    return {name: np.array(each) for name, each in learner.state().items()}


def goes_on(wanted):
    """That a fresh learner, given the state of another, takes the same steps to the same state."""
    alone = made(wanted)
    steps(alone, range(3))
    kept = copied(alone)
    expected, there = steps(alone, range(3, 6)), copied(alone)
    other = made(wanted)
    steps(other, range(7, 9))
    other.restore(kept)
    assert steps(other, range(3, 6)) == expected
    arrived = copied(other)
    assert arrived.keys() == there.keys()
    for name, each in there.items():
        assert arrived[name].tobytes() == each.tobytes(), name


@every_distinct_even
def test_a_learner_that_is_restored_goes_on_with_the_same_bits(variant):
    goes_on(experiment(variant, "torch"))


@some_catalogued
def test_so_does_one_whose_steps_are_compiled(variant):
    goes_on(experiment(variant, "jax"))


@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        # A program of JAX takes seconds to compile.
        pytest.param(*each, marks=pytest.mark.slow if each[1] == "jax" else ())
        for each in product(PRECISIONS, backends.names())
    ],
)
def test_it_does_in_every_precision_and_in_parts(precision, backend):
    goes_on(experiment("q,k=R(q),v=R(q)", backend, precision, micro_batches=2))


@every_backend
def test_the_names_and_sizes_of_a_state_are_the_same_at_every_step(backend):
    learner = made(experiment("q,k=v", backend, "fp16"))
    before = {name: (each.dtype, each.shape) for name, each in learner.state().items()}
    steps(learner, range(2))
    assert {name: (each.dtype, each.shape) for name, each in learner.state().items()} == before
    assert all(dtype.kind in "fiub" for dtype, _ in before.values())


@every_backend
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(backend):
    learner = made(experiment("q,k=v", backend))
    steps(learner, range(2))
    kept = copied(learner)
    steps(learner, range(2, 3))
    here = copied(learner)
    name = next(name for name, each in kept.items() if each.size > 1)
    wrong = [
        {key: each for key, each in kept.items() if key != name},
        kept | {"more": np.zeros(3)},
        kept | {name: np.zeros(3, kept[name].dtype)},
        kept | {name: kept[name].astype(np.complex64)},
    ]
    for state in wrong:
        with pytest.raises(ValueError, match="more" if "more" in state else name):
            learner.restore(state)
        after = copied(learner)
        assert all(after[key].tobytes() == each.tobytes() for key, each in here.items())
