"""Laws of tasks: what is fixed, what is disjoint, what can be answered, what chance scores."""

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkvbench import tasks
from qkvbench.data import reviews
from qkvbench.data.batch import IGNORE_INDEX, Batch, ImageSplit, Predictions, Split
from qkvbench.model import Decoder, Encoder, EncoderDecoder, TwoTowers, Vectors
from qkvbench.task_ref import HeadSizes, TaskRef, parse_task
from qkvbench.tasks import Data, mqar, selective_copying
from qkvbench.tasks.kinds.splits import Windows
from qkvbench.tasks.recall import KEYS

# Tasks of the Hub have tests of their own, on small files (test_hub_tasks.py).
every_task = pytest.mark.parametrize(
    "name",
    [
        # A hundred thousand expressions are drawn in four minutes.
        pytest.param(name, marks=pytest.mark.nightly) if name == "lra-listops" else name
        for name in tasks.names()
        if tasks.find(name).tier != "hub"
    ],
)
AT_ONCE = 8192


@cache
def _data(name: str) -> Data:
    return tasks.find(name).load()


@pytest.fixture
def data(name: str) -> Data:
    """The data of the task of this test, loaded once."""
    return _data(name)


@cache
def _rows_of(name: str) -> list[list[bytes]]:
    """A hash of all that is read of each item, of each split: sets of images are large."""
    return [
        [row for batch in _batches(split) for row in _rows(batch)] for split in _splits(_data(name))
    ]


def _splits(data: Data) -> list[Split]:
    return [data.train, data.validation, data.test]


def _batches(split: Split) -> Iterator[Batch]:
    for first in range(0, len(split), AT_ONCE):
        yield split.batch(np.arange(first, min(first + AT_ONCE, len(split))))


def _whole(split: Split) -> Batch:
    return split.batch(np.arange(len(split)))


def _classes(name: str, test: Split) -> int:
    match tasks.find(name).model.architecture:
        case Decoder(vocabulary=classes) | EncoderDecoder(vocabulary=classes):
            return classes
        case Encoder(classes=classes):
            return classes
        case TwoTowers():
            return len(test)


def _is_written(task) -> bool:
    """Whether the task is judged by texts that a model writes."""
    outcome = Predictions(np.ones((1, 1)), *(np.ones((1, 1), int) for _ in range(3)))
    return task.generation is not None and task.metric.name not in task.score(outcome)


def _random_texts(task, targets) -> list[str]:
    """Texts as long as they should be, of any of the tokens that stand in them."""
    scored = targets != IGNORE_INDEX
    allowed = np.setdiff1d(targets[scored], task.generation.search.end)
    rng = np.random.default_rng(0)
    return task.generation.decode([rng.choice(allowed, each - 1) for each in scored.sum(axis=1)])


def _read(batch: Batch) -> list[np.ndarray]:
    """Copies of the inputs of a batch, of which there are one or two."""
    second = [] if batch.second is None else [batch.second.inputs]
    return [each.copy() for each in (batch.inputs, *second)]


def _rows(batch: Batch) -> list[bytes]:
    """All that is read of each item, as a hash of it."""
    rows = [sha256(row).digest() for row in batch.inputs]
    if batch.second is not None:
        second = (sha256(row).digest() for row in batch.second.inputs)
        rows = [own + beside for own, beside in zip(rows, second, strict=True)]
    return rows


@every_task
def test_loading_twice_gives_the_same_bits(name, data):
    again = tasks.find(name).load()
    assert again.identity == data.identity
    for one, two in zip(_splits(again), _splits(data), strict=True):
        assert len(one) == len(two)
        some = np.arange(0, len(one), 7)
        np.testing.assert_array_equal(one.batch(some).inputs, two.batch(some).inputs)
        np.testing.assert_array_equal(one.batch(some).targets, two.batch(some).targets)


@every_task
def test_no_item_is_in_two_splits(name):
    train, validation, test = map(set, _rows_of(name))
    assert train.isdisjoint(validation)
    assert train.isdisjoint(test)
    assert validation.isdisjoint(test)


@every_task
def test_no_item_is_twice_in_a_split(name, data):
    for split, rows in zip(_splits(data), _rows_of(name), strict=True):
        # Windows of prose may repeat; there it is documents that are different, by their own test.
        if not isinstance(split, Windows):
            assert len(set(rows)) == len(rows) == len(split)


@every_task
def test_a_random_predictor_scores_at_the_stated_chance(name, data):
    task, targets = tasks.find(name), _whole(data.test).targets
    if _is_written(task):
        # Right by chance is no text; what smoothing leaves is less than a tenth of a point.
        texts = _random_texts(task, targets)
        found = task.generation.score(texts, task.generation.references()).metrics[task.metric.name]
        assert abs(found - task.metric.chance) < 0.1
        return
    scored = targets != IGNORE_INDEX
    allowed = np.unique(targets[scored])
    # The loss of one who finds all classes equally likely; the loss decides no accuracy.
    even = np.full(targets.shape, math.log(_classes(name, data.test)))
    found = []
    for seed in range(32):
        rng = np.random.default_rng(seed)
        guesses = rng.choice(allowed, targets.shape)
        # Under such guesses the right class is at any rank.
        ranks = rng.integers(len(allowed), size=targets.shape)
        said = task.score(Predictions(even, guesses, targets, ranks))
        found.append(said[task.metric.name])
    # Four deviations of their mean, as it varies; where a loss decides, only rounding is left.
    tolerance = 4 * np.std(found, ddof=1) / math.sqrt(len(found)) + 1e-9
    assert abs(np.mean(found) - task.metric.chance) < tolerance
    # Chance is told from a task's best score, too.
    assert tolerance < 0.02


@every_task
def test_a_perfect_predictor_gets_the_best_score(name, data):
    task, targets = tasks.find(name), _whole(data.test).targets
    if _is_written(task):
        references = task.generation.references()
        found = task.generation.score(references, references).metrics[task.metric.name]
        # In points of a hundred, through a logarithm.
        assert found == pytest.approx(100, abs=1e-9)
        return
    right = Predictions(np.zeros(targets.shape), targets, targets, np.zeros_like(targets))
    found = task.score(right)[task.metric.name]
    assert found == {"higher": 1.0, "lower": 0.0}[task.metric.better]


@every_task
def test_inputs_and_targets_fit_the_model(name, data):
    stack = tasks.find(name).model.architecture
    for split in _splits(data)[1:]:
        batch = _whole(split)
        scored = batch.targets[batch.targets != IGNORE_INDEX]
        assert scored.min() >= 0
        assert scored.max() < _classes(name, split)
        assert np.isfinite(batch.inputs).all()
        assert batch.inputs.shape[1] == tasks.find(name).tokens
        match stack:
            case Encoder(predicts="the whole" | "which position"):
                places = 1
            case TwoTowers():
                # Which text belongs to a picture, and which picture to a text.
                places = 2
            case _:
                places = batch.inputs.shape[1]
        assert batch.targets.shape[1] == places


@every_task
def test_vectors_have_the_features_that_the_model_reads_or_the_network_before_it(name, data):
    task = tasks.find(name)
    data = data
    if not isinstance(task.model.inputs, Vectors):
        assert task.feature_extractor is None
        return
    if task.feature_extractor is None:
        shape = data.test.batch(np.arange(1)).inputs.shape[1:]
        assert shape == (task.tokens, task.model.inputs.features)
        return
    through = task.feature_extractor.model
    for split in _splits(data):
        assert isinstance(split, ImageSplit)
        numbers = tasks.find(task.feature_extractor.task).tokens * through.inputs.features
        assert split.images().shape[1] == numbers
        # What the network makes of them is as wide as its stream.
        narrow = np.zeros((len(split.images()), through.geometry.d_model), np.float32)
        again = split.with_features(narrow)
        assert again.batch(np.arange(3)).inputs.shape[2] == task.model.inputs.features
        np.testing.assert_array_equal(
            again.batch(np.arange(3)).targets, split.batch(np.arange(3)).targets
        )


@every_task
def test_what_is_redrawn_keeps_its_answer_and_its_shape_and_follows_its_draws(name, data):
    task = tasks.find(name)
    if task.augment is None:
        return
    batch = data.train.batch(np.arange(32))
    before = _read(batch)
    first, second, other = (task.augment(batch, np.random.default_rng(n)) for n in (0, 0, 1))
    for one, two in zip(_read(first), _read(second), strict=True):
        np.testing.assert_array_equal(one, two)
    # What is redrawn is one of the inputs, or both.
    assert any(not np.array_equal(*both) for both in zip(_read(first), _read(other), strict=True))
    assert any(not np.array_equal(*both) for both in zip(_read(first), before, strict=True))
    for same, new, old in zip(_read(batch), _read(first), before, strict=True):
        np.testing.assert_array_equal(same, old)
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    assert first.targets.shape == batch.targets.shape


@every_task
def test_each_task_has_at_least_four_heads_so_that_head_sharing_shows(name):
    assert tasks.find(name).model.geometry.heads >= 4


@every_task
def test_a_name_is_short_and_what_it_is_about_is_one_sentence(name):
    task = tasks.find(name)
    assert task.about.endswith(".")
    assert len(task.about) < 100
    ones = np.ones((1, 1), int)
    told = {*task.score(Predictions(np.ones((1, 1)), ones, ones, ones))}
    if task.generation is not None:
        scored = task.generation.score(["A text."], ["A text."])
        # Each score of texts says how it was made.
        assert scored.metrics.keys() == scored.signatures.keys()
        assert told.isdisjoint(scored.metrics)
        told |= scored.metrics.keys()
    assert task.metric.name in told


@every_task
def test_what_is_to_be_written_is_what_the_targets_say(name, data):
    task, test = tasks.find(name), data.test
    if task.generation is None:
        return
    search, batch = task.generation.search, _whole(test)
    texts = [row[row != IGNORE_INDEX] for row in batch.targets]
    assert all(row[-1] == search.end and search.end not in row[:-1] for row in texts)
    assert all(len(row) <= search.longest for row in texts)
    assert (batch.inputs[:, 0] == search.begin).all()
    assert task.generation.decode([row[:-1] for row in texts]) == task.generation.references()
    assert len(task.generation.sources()) == len(test)


def test_each_digit_has_a_like_share_of_the_test_split():
    counts = np.bincount(_whole(_data("digits").test).targets.ravel())
    assert counts.max() - counts.min() <= 1


def test_sort_wants_the_sorted_input_and_no_answer_is_in_two_splits():
    answers = [_whole(split) for split in _splits(_data("sort"))]
    for batch in answers:
        np.testing.assert_array_equal(batch.targets, np.sort(batch.inputs, axis=1))
    rows = [row.tobytes() for batch in answers for row in batch.targets]
    assert len(set(rows)) == len(rows)


def test_recall_asks_only_for_what_it_has_shown():
    batch = _whole(_data("recall").validation)
    for tokens, targets in zip(batch.inputs, batch.targets, strict=True):
        asked = np.flatnonzero(targets != IGNORE_INDEX)
        shown = dict(zip(tokens[: asked[0] : 2], tokens[1 : asked[0] : 2], strict=True))
        assert len(shown) == len(asked) == asked[0] / 2
        assert [shown[tokens[place]] for place in asked] == list(targets[asked])
        assert all(key < KEYS <= value for key, value in shown.items())


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("reverse", lambda digits: digits[::-1]),
        ("swap", lambda digits: [*digits[len(digits) // 2 :], *digits[: len(digits) // 2]]),
        ("copy", lambda digits: digits),
        ("subtract", lambda digits: [9 - digit for digit in digits]),
    ],
)
def test_digits_are_rewritten_as_the_task_says(name, answer, data):
    batch = _whole(data.validation)
    for digits, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert targets == list(answer(digits))


def test_mqar_overwrites_no_pair_and_asks_for_each_once():
    batch = _whole(_data("mqar").train)
    numbers = set()
    for tokens, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        asked = [place for place, target in enumerate(targets) if target != IGNORE_INDEX]
        numbers.add(len(asked))
        context, rest = tokens[: 2 * len(asked)], tokens[2 * len(asked) :]
        shown = dict(zip(context[::2], context[1::2], strict=True))
        assert len(shown) == len(asked)
        assert all(key < mqar.KEYS <= value for key, value in shown.items())
        assert [shown[tokens[place]] for place in asked] == [targets[place] for place in asked]
        # Behind the pairs each key stands once, as a question, and nothing that could be a value.
        assert sorted(token for token in rest if token in shown) == sorted(shown)
        assert max(rest) < mqar.KEYS
    assert numbers == set(mqar.PAIRS)


def test_mqar_asks_by_the_published_power_law():
    rng = np.random.default_rng(0)
    first = mqar.draw_by_power_law(rng, positions=14, wanted=2, count=20_000)[:, 0]
    law = np.arange(1, 15) ** (0.01 - 1)
    law /= law.sum()
    shares = np.bincount(first, minlength=14) / len(first)
    # Four deviations of a share.
    np.testing.assert_array_less(np.abs(shares - law), 4 * np.sqrt(law * (1 - law) / len(first)))


def test_mqar_tells_each_number_of_pairs_apart():
    targets = _whole(_data("mqar").test).targets
    few = (targets != IGNORE_INDEX).sum(axis=1, keepdims=True) == min(mqar.PAIRS)
    predicted = np.where(few, targets, 0)
    zeros = np.zeros(targets.shape)
    scores = tasks.find("mqar").score(Predictions(zeros, predicted, targets, zeros.astype(int)))
    assert [scores[f"accuracy_{pairs}"] for pairs in mqar.PAIRS] == [1.0, 0.0, 0.0]


def test_selective_copying_wants_the_symbols_in_order_and_shows_no_answer():
    batch = _whole(_data("selective-copying").validation)
    for tokens, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        wanted = [target for target in targets if target != IGNORE_INDEX]
        assert [token for token in tokens if token < selective_copying.SYMBOLS] == wanted
        asked = [
            token for token, target in zip(tokens, targets, strict=True) if target != IGNORE_INDEX
        ]
        assert set(asked) == {selective_copying.MARK}


def test_induction_wants_what_followed_when_the_symbol_was_last_seen():
    batch = _whole(_data("induction").validation)
    for tokens, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        for place, (token, target) in enumerate(zip(tokens, targets, strict=True)):
            before = [earlier for earlier in range(place) if tokens[earlier] == token]
            assert target == (tokens[before[-1] + 1] if before else IGNORE_INDEX)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("recall", TaskRef("recall")),
        ("recall@1x64", TaskRef("recall", heads=HeadSizes(1, 64))),
        ("recall@rotary/0.5@2x8", TaskRef("recall", None, None, "rotary/0.5", HeadSizes(2, 8))),
        ("long-plays@8192#bpe-300@none", TaskRef("long-plays", 8192, "bpe-300", "none")),
        ("./a b@512", TaskRef("./a b@512")),
        ("x.csv#bpe-300", TaskRef("x.csv", tokenizer="bpe-300")),
        ("recall@1x64@rotary", TaskRef("recall@1x64", position="rotary")),
    ],
)
def test_the_text_of_a_task_and_its_value_are_one_to_one(text, ref):
    assert parse_task(text) == ref
    assert str(ref) == text


@given(st.text(alphabet="ab/.#@0123x-", max_size=12).map("lm-reviews{}".format))
def test_every_text_is_that_of_a_task(text):
    assert str(parse_task(text)) == text


def test_heads_behind_a_name_change_those_of_the_model_and_nothing_else():
    plain, marked = tasks.find("lm-reviews#bpe-300"), tasks.find("lm-reviews#bpe-300@3x8")
    geometry = marked.model.geometry
    assert (geometry.heads, geometry.kv_heads, geometry.head_dim) == (3, 3, 8)
    same = replace(marked.model, geometry=plain.model.geometry)
    assert same == plain.model
    assert marked.training == plain.training


def test_reviews_share_no_document_between_splits_and_hold_no_other_zero():
    streams = reviews()
    parts = [bytes(part).split(b"\0") for part in (streams.train, streams.validation, streams.test)]
    documents = [document for part in parts for document in part[:-1]]
    assert all(documents)
    assert len(set(documents)) == len(documents)


def test_windows_predict_each_byte_of_their_stream_once():
    batch = _whole(_data("lm-reviews").test)
    stream = reviews().test[: batch.inputs.size + 1]
    np.testing.assert_array_equal(batch.inputs.ravel(), stream[:-1])
    np.testing.assert_array_equal(batch.targets.ravel(), stream[1:])
    assert (batch.targets != IGNORE_INDEX).all()


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
