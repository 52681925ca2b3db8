"""Laws of tasks: what is fixed, what is disjoint, what can be answered, what chance scores."""

import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from qkvbench import tasks
from qkvbench.data import reviews
from qkvbench.data.batch import UNSCORED, Batch, Outcome, Split
from qkvbench.model import Decoder, Encoder
from qkvbench.tasks import Data
from qkvbench.tasks._splits import Windows
from qkvbench.tasks.recall import KEYS

every_task = pytest.mark.parametrize("name", tasks.names())
AT_ONCE = 8192


@pytest.fixture(name="loaded", scope="module")
def _loaded() -> dict[str, Data]:
    return {name: tasks.find(name).load() for name in tasks.names()}


def _splits(data: Data) -> list[Split]:
    return [data.train, data.validation, data.test]


def _batches(split: Split) -> Iterator[Batch]:
    for first in range(0, len(split), AT_ONCE):
        yield split.batch(np.arange(first, min(first + AT_ONCE, len(split))))


def _whole(split: Split) -> Batch:
    return split.batch(np.arange(len(split)))


def _classes(name: str) -> int:
    match tasks.find(name).model.stack:
        case Decoder(vocabulary=classes) | Encoder(classes=classes):
            return classes


@every_task
def test_loading_twice_gives_the_same_bits(name, loaded):
    again = tasks.find(name).load()
    assert again.identity == loaded[name].identity
    for one, two in zip(_splits(again), _splits(loaded[name]), strict=True):
        assert len(one) == len(two)
        some = np.arange(0, len(one), 7)
        np.testing.assert_array_equal(one.batch(some).inputs, two.batch(some).inputs)
        np.testing.assert_array_equal(one.batch(some).targets, two.batch(some).targets)


@every_task
def test_no_item_is_in_two_splits(name, loaded):
    train, validation, test = (
        {row.tobytes() for batch in _batches(split) for row in batch.inputs}
        for split in _splits(loaded[name])
    )
    assert train.isdisjoint(validation)
    assert train.isdisjoint(test)
    assert validation.isdisjoint(test)


@every_task
def test_no_item_is_twice_in_a_split(name, loaded):
    for split in _splits(loaded[name]):
        rows = [row.tobytes() for batch in _batches(split) for row in batch.inputs]
        # Windows of prose may repeat; there it is documents that are different, by their own test.
        if not isinstance(split, Windows):
            assert len(set(rows)) == len(rows) == len(split)


@every_task
def test_a_random_predictor_scores_at_the_stated_chance(name, loaded):
    task, targets = tasks.find(name), _whole(loaded[name].test).targets
    scored = targets != UNSCORED
    allowed = np.unique(targets[scored])
    guesses = np.random.default_rng(0).choice(allowed, targets.shape)
    # The loss of one who finds all classes equally likely; the loss decides no accuracy.
    even = np.full(targets.shape, math.log(_classes(name)))
    found = task.score(Outcome(even, guesses, targets))[task.metric.name]
    match task.metric.better:
        case "higher":
            # Each scored place is a throw of a coin: four deviations of their mean.
            tolerance = 4 * math.sqrt(task.metric.chance * (1 - task.metric.chance) / scored.sum())
        case "lower":
            # The loss is the same at all places, so only rounding is left.
            tolerance = 1e-9
    assert abs(found - task.metric.chance) < tolerance


@every_task
def test_a_perfect_predictor_gets_the_best_score(name, loaded):
    task, targets = tasks.find(name), _whole(loaded[name].test).targets
    found = task.score(Outcome(np.zeros(targets.shape), targets, targets))[task.metric.name]
    assert found == {"higher": 1.0, "lower": 0.0}[task.metric.better]


@every_task
def test_inputs_and_targets_fit_the_model(name, loaded):
    stack = tasks.find(name).model.stack
    for batch in map(_whole, _splits(loaded[name])[1:]):
        scored = batch.targets[batch.targets != UNSCORED]
        assert scored.min() >= 0
        assert scored.max() < _classes(name)
        assert np.isfinite(batch.inputs).all()
        assert batch.inputs.shape[1] == tasks.find(name).tokens
        places = 1 if isinstance(stack, Encoder) and stack.predicts == "the whole" else None
        assert batch.targets.shape[1] == (places or batch.inputs.shape[1])


@every_task
def test_each_task_has_at_least_four_heads_so_that_head_sharing_shows(name):
    assert tasks.find(name).model.geometry.heads >= 4


@every_task
def test_a_name_is_short_and_what_it_is_about_is_one_sentence(name):
    task = tasks.find(name)
    assert task.about.endswith(".")
    assert len(task.about) < 100
    assert task.metric.name in task.score(
        Outcome(np.ones((1, 1)), np.ones((1, 1), int), np.ones((1, 1), int))
    )


def test_each_digit_has_a_like_share_of_the_test_split(loaded):
    counts = np.bincount(_whole(loaded["digits"].test).targets.ravel())
    assert counts.max() - counts.min() <= 1


def test_sort_wants_the_sorted_input_and_no_answer_is_in_two_splits(loaded):
    answers = [_whole(split) for split in _splits(loaded["sort"])]
    for batch in answers:
        np.testing.assert_array_equal(batch.targets, np.sort(batch.inputs, axis=1))
    rows = [row.tobytes() for batch in answers for row in batch.targets]
    assert len(set(rows)) == len(rows)


def test_recall_asks_only_for_what_it_has_shown(loaded):
    batch = _whole(loaded["recall"].validation)
    for tokens, targets in zip(batch.inputs, batch.targets, strict=True):
        asked = np.flatnonzero(targets != UNSCORED)
        shown = dict(zip(tokens[: asked[0] : 2], tokens[1 : asked[0] : 2], strict=True))
        assert len(shown) == len(asked) == asked[0] / 2
        assert [shown[tokens[place]] for place in asked] == list(targets[asked])
        assert all(key < KEYS <= value for key, value in shown.items())


def test_reviews_share_no_document_between_splits_and_hold_no_other_zero():
    streams = reviews()
    parts = [bytes(part).split(b"\0") for part in (streams.train, streams.validation, streams.test)]
    documents = [document for part in parts for document in part[:-1]]
    assert all(documents)
    assert len(set(documents)) == len(documents)


def test_windows_predict_each_byte_of_their_stream_once(loaded):
    batch = _whole(loaded["lm-reviews"].test)
    stream = reviews().test[: batch.inputs.size + 1]
    np.testing.assert_array_equal(batch.inputs.ravel(), stream[:-1])
    np.testing.assert_array_equal(batch.targets.ravel(), stream[1:])
    assert (batch.targets != UNSCORED).all()


def test_the_list_of_tasks_needs_no_framework_and_no_data():
    script = (
        "import sys; from qkvbench import tasks; "
        "[tasks.find(name) for name in tasks.names()]; "
        "heavy = {'torch', 'jax', 'sklearn', 'scipy', 'tokenizers', 'PIL'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, env={"QKVBENCH_CACHE": "/proc/no"}
    )
    assert done.returncode == 0
