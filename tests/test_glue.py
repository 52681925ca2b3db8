"""Tasks of texts: whose splits share nothing, whose words are one, and what masks do."""

import math
from typing import get_args

import numpy as np
import pytest

from qkvbench import tasks
from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions
from qkvbench.data.labelled_reviews import Collection
from qkvbench.data.tokenizer import BytePairs, Bytes
from qkvbench.data.topics import topics
from qkvbench.recipes import Study
from qkvbench.tasks import balanced_accuracy
from qkvbench.tasks.kinds.masked import TARGET_SHARE, TEXTS, augment
from qkvbench.tasks.kinds.reviews import (
    BYTE_PAIRS,
    SAMPLE_TEXTS,
    all_reviews,
    review_tokenizer,
    split_reviews,
)
from qkvbench.tasks.kinds.topics import split_topics

TEXT_TASKS = ["sentiment", "sentiment-documents", "topics-8", "topics-20", "masked-reviews"]


def _outcome(predicted, targets):
    predicted, targets = np.array(predicted)[:, None], np.array(targets)[:, None]
    ranks = (predicted != targets).astype(np.int64)
    return Predictions(np.ones(targets.shape, np.float32), predicted, targets, ranks)


def _whole(split):
    return split.batch(np.arange(len(split)))


def test_no_text_of_a_scored_split_of_sentiment_is_read_in_pre_training():
    read = {*all_reviews("train")}
    assert set(all_reviews("train")[: max(TEXTS["train"], SAMPLE_TEXTS)]) <= read
    for collection in get_args(Collection):
        splits = split_reviews(collection)
        for name in ("validation", "test"):
            assert read.isdisjoint(splits[name].texts)
        assert read >= set(splits["train"].texts)


def test_no_piece_of_a_scored_split_is_read_in_pre_training():
    data = tasks.find("masked-reviews").load()
    train = {row.tobytes() for row in np.asarray(_whole(data.train).inputs)}
    for split in (data.validation, data.test):
        batch = _whole(split)
        whole = np.where(batch.targets == IGNORE_INDEX, batch.inputs, batch.targets)
        # Where a token was hidden it stands again; each piece is as it was read.
        assert BYTE_PAIRS.separator not in np.unique(
            whole[np.arange(whole.shape[1]) < batch.lengths[:, None]]
        )
        assert train.isdisjoint(row.tobytes() for row in whole)


def test_what_is_read_by_pre_training_is_read_by_the_tasks_in_the_same_words():
    models = [tasks.find(name).model for name in TEXT_TASKS]
    assert {model.inputs for model in models} == {models[0].inputs}
    assert len({(model.geometry, model.blocks, model.position) for model in models}) == 1
    text = split_reviews("rotten_tomatoes")["test"].texts[0]
    tokens = next(review_tokenizer(BYTE_PAIRS).encode([text]))
    first = tasks.find("sentiment").load().test.batch(np.arange(1))
    assert list(first.inputs[0][: first.lengths[0]]) == list(tokens[:64])


@pytest.mark.parametrize("start", ["masked-reviews", "masked-reviews#bpe-1024"])
def test_every_task_of_texts_can_begin_with_what_was_learned_of_reviews(start):
    seeds = dict.fromkeys(TEXT_TASKS[:4], 1)
    runs = Study("test", ("q,k,v",), seeds, init_from=start, smoke=True).experiments()
    # One pre-training for all four.
    assert len({run.init_from for run in runs}) == 1


@pytest.mark.parametrize("collection", ["reuters-r8", "20newsgroups"])
def test_topics_share_no_text_between_splits_and_tests_are_the_collection_s_own(collection):
    splits = split_topics(collection)
    texts = [text for split in splits.values() for text in split.texts]
    assert len(set(texts)) == len(texts)
    assert set(splits["test"].texts) == set(topics(collection)["test"])
    classes = {*splits["test"].labels}
    assert all({*split.labels} == classes for split in splits.values())


@pytest.mark.parametrize(("name", "classes"), [("topics-8", 8), ("topics-20", 20)])
def test_who_always_names_the_most_frequent_topic_scores_as_who_guesses(name, classes):
    task = tasks.find(name)
    targets = _whole(task.load().test).targets.ravel()
    counts = np.bincount(targets)
    assert len(counts) == classes
    said = task.score(_outcome(np.full_like(targets, counts.argmax()), targets))
    assert said["balanced_accuracy"] == pytest.approx(1 / classes)
    # One point, the margin within which scores count as equal.
    assert said[task.metric.name] == pytest.approx(task.metric.chance, abs=0.01)


def test_balanced_accuracy_is_the_mean_share_found_of_each_class_that_there_is():
    said = balanced_accuracy(_outcome([0, 0, 0, 0, 3, 1], [0, 0, 0, 1, 3, 3]))
    assert said["balanced_accuracy"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert said["accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("tokenizer", [Bytes(), BytePairs(300)], ids=str)
def test_masks_hide_exchange_and_leave_tokens_in_the_shares_of_the_source(tokenizer):
    rng = np.random.default_rng(0)
    separator = tokenizer.separator
    text = rng.choice(np.delete(np.arange(tokenizer.vocabulary), separator), (600, 50))
    lengths = rng.integers(1, 51, 600)
    read = np.arange(50) < lengths[:, None]
    tokens = np.where(read, text, separator)
    given = Batch(tokens, np.where(read, tokens, IGNORE_INDEX), lengths)
    batch = augment(tokenizer, given, np.random.default_rng(1))

    asked = batch.targets != IGNORE_INDEX
    assert not (asked & ~read).any()
    np.testing.assert_array_equal(batch.targets[asked], tokens[asked])
    np.testing.assert_array_equal(batch.inputs[~asked], tokens[~asked])
    counts = asked.sum(axis=1)
    np.testing.assert_array_equal(counts, np.maximum(1, np.rint(TARGET_SHARE * lengths)))

    hidden = batch.inputs[asked] == separator
    same = batch.inputs[asked] == tokens[asked]
    for share, wanted in ((hidden, 0.8), (same, 0.1), (~hidden & ~same, 0.1)):
        # Four deviations; one in 300 of the exchanged tokens is the right one again.
        allowed = 4 * math.sqrt(wanted * (1 - wanted) / counts.sum()) + 1 / 2000
        assert abs(share.mean() - wanted) < allowed


def test_masks_are_other_ones_each_time_in_training_and_the_same_ones_in_tests():
    task = tasks.find("masked-reviews")
    given = task.load().train.batch(np.arange(64))
    one, two = (task.augment(given, np.random.default_rng(seed)) for seed in (0, 1))
    both = ((one.targets != IGNORE_INDEX) & (two.targets != IGNORE_INDEX)).sum()
    # By chance the square of a share, not the share.
    assert both < 0.3 * (one.targets != IGNORE_INDEX).sum()
    first, again = (_whole(task.load().test) for _ in range(2))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(first.targets, again.targets)
    assert (first.targets != IGNORE_INDEX).any(axis=1).all()
