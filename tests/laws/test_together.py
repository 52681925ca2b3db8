"""Runs trained in one program are the runs trained alone."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from laws.arms import decoder
from qkvbench.backends.jax import Group, Learner
from qkvbench.data.batch import Batch
from qkvbench.experiment import Experiment, Training
from qkvbench.task_ref import TaskRef

BASE = Experiment(
    model=decoder("q,k=v"),
    task=TaskRef("law"),
    task_version=1,
    training=Training(steps=10, batch=4, learning_rate=3e-3, warmup=2, dropout=0.1),
    seed=0,
    backend="jax",
)
# Sums in another order, in fp32, over ten steps of a loss of size one.
CLOSE = 1e-5


def _batch(seed, step):
    tokens = np.random.default_rng((seed, step)).integers(0, 13, size=(4, 8))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def _trained(learner, experiment, steps=10):
    """Each step's loss and norm, and the losses on a batch that all see."""
    told = []
    for step in range(steps):
        told.append(learner.gradients(_batch(experiment.seed, step)))
        learner.update(experiment.training.learning_rate)
    return np.array(told), learner.predict(_batch(99, 0)).loss


def _together(work, experiments):
    """What each member's work returns, each in a thread of its own."""
    group, found = Group(experiments), {}

    def member(number, experiment):
        try:
            found[number] = work(group.learner(experiment), experiment)
        finally:
            group.leave(experiment)

    threads = [threading.Thread(target=member, args=each) for each in enumerate(experiments)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(experiments))]


def test_ten_steps_together_are_ten_steps_alone():
    # Of one member the learning rate differs, too; dropout is drawn by each seed.
    fast = replace(BASE, seed=2, training=replace(BASE.training, learning_rate=1e-2))
    experiments = [BASE, replace(BASE, seed=1), fast]
    for alone, joined in zip(
        [_trained(Learner(each), each) for each in experiments],
        _together(_trained, experiments),
        strict=True,
    ):
        for one, other in zip(alone, joined, strict=True):
            np.testing.assert_allclose(other, one, atol=CLOSE, rtol=CLOSE)


def test_who_leaves_early_keeps_nobody_waiting_and_changes_nobody():
    experiments = [BASE, replace(BASE, seed=1), replace(BASE, seed=2)]

    def work(learner, experiment):
        return _trained(learner, experiment, steps=3 + 4 * experiment.seed)

    for alone, joined in zip(
        [work(Learner(each), each) for each in experiments],
        _together(work, experiments),
        strict=True,
    ):
        np.testing.assert_allclose(joined[0], alone[0], atol=CLOSE, rtol=CLOSE)


def test_a_member_goes_on_from_its_state_beside_one_that_begins():
    experiments = [BASE, replace(BASE, seed=1)]
    before = Learner(BASE)
    _trained(before, BASE, steps=2)
    state = before.state()

    def work(learner, experiment):
        if experiment is BASE:
            learner.restore(state)
        return _trained(learner, experiment, steps=3)

    after = Learner(BASE)
    after.restore(state)
    np.testing.assert_allclose(
        _together(work, experiments)[0][0], _trained(after, BASE, steps=3)[0], atol=CLOSE
    )


def test_a_failure_of_one_call_is_told_to_all_who_called():
    # A batch of vectors, where the model reads tokens.
    wrong = Batch(np.zeros((2, 3, 5), np.float32), np.zeros((2, 3), np.int64))

    def work(learner, _experiment):
        try:
            learner.predict(wrong)
        except Exception as error:
            return type(error)
        return None

    first, second = _together(work, [BASE, replace(BASE, seed=1)])
    assert first is second
    assert first is not None


def test_what_differs_in_more_than_numbers_is_no_group():
    with pytest.raises(ValueError, match="seeds and learning rates"):
        Group([BASE, replace(BASE, model=decoder("q,k,v"))])
