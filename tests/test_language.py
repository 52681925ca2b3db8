"""Texts to model: services and plays stay whole, and what padding makes of a perplexity."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from qkvbench import tasks
from qkvbench.claims.kit.reported import loss_on_text
from qkvbench.data import documentation, plays
from qkvbench.data.batch import Predictions
from qkvbench.data.cache import DataRefusedError
from qkvbench.data.tokenizer import BytePairs, Bytes, fit
from qkvbench.tasks.kinds.padded import end_token, padding

READING = Path(__file__).parent.parent / "docs" / "reading-the-numbers.md"
LONG = "A sentence on which both services dwell, so that one of them has copied from the other."


def _parts(stream: np.ndarray) -> list[str]:
    return bytes(stream).decode().split("\0")[:-1]


def test_no_paragraph_of_the_documentation_is_twice_and_none_has_marks_of_html():
    streams = documentation.documentation()
    found: list[str] = []
    for stream in (streams.train, streams.validation, streams.test):
        text = bytes(stream).decode()
        assert not re.search(r"</?(p|code|li|ul|a|i|b|note|important|dd|dt)( [^<>]*)?>", text)
        assert len(text) > 10**6
        found += documentation.keys(part for part in re.split("[\n\0]", text) if part)
    assert len(set(found)) == len(found) > 200_000


@pytest.mark.slow
def test_no_service_of_the_documentation_is_in_two_splits():
    found = documentation.services()
    divided = documentation.split_services(found)
    names = [name for split in divided.values() for name in split]
    assert sorted(names) == sorted(found)
    assert len(names) > 400
    streams = documentation.documentation()
    for split, services in divided.items():
        inside = {"\n".join(each) for documents in services.values() for each in documents}
        assert set(_parts(getattr(streams, split))) == inside
        assert len(services) > 10


def test_services_that_copy_from_each_other_are_one_family_and_a_common_phrase_makes_none():
    found = {
        "one": [(LONG, "Of the first.")],
        "two": [(LONG.upper() + " 2",)],
        "three": [("The error code.", LONG.replace("services", "rivers"))],
        "four": [("The error code.",)],
    }
    assert documentation.families(found) == {
        "one": "one",
        "two": "one",
        "three": "three",
        "four": "four",
    }


def test_what_training_says_is_left_out_of_the_other_splits():
    # Enough services that each split has some, all of which say the same beside their own.
    found = {f"service {n}": [("The error code.", f"Of {chr(97 + n)}.")] for n in range(26)}
    found |= {f"more {n}": [(f"Only here: {chr(97 + n) * 3}.",)] for n in range(26)}
    divided = documentation.split_services(found)
    common = [
        split
        for split, services in divided.items()
        for documents in services.values()
        for document in documents
        if "The error code." in document
    ]
    assert common == ["train"]
    assert divided["test"]


def test_html_becomes_paragraphs_on_lines():
    text = "<p>A <code>b</code>&lt;c&gt; <a href='x'>d</a>.</p>\n<ul> <li> <p>e\n f</p></li></ul>"
    assert documentation.paragraphs(f"{text}<!-- g -->") == ("A b<c> d.", "e f")


def test_a_play_is_in_one_split_and_whole_where_it_is_trained_on():
    found = plays.texts()
    assert {split: len(each) for split, each in found.items()} == {
        "test": 4,
        "validation": 4,
        "train": 30,
    }
    names = [name for each in found.values() for name in each]
    assert len(set(names)) == len(names)
    streams = plays.plays()
    assert _parts(streams.train) == list(found["train"].values())
    for split in ("validation", "test"):
        for read, whole in zip(_parts(getattr(streams, split)), found[split].values(), strict=True):
            assert whole.startswith(read)
            assert plays.HELD_OUT[split][1] <= len(read.encode()) < plays.HELD_OUT[split][1] + 200


def test_every_play_fills_more_than_32_thousand_tokens_even_at_three_bytes_a_token():
    assert min(len(text) for each in plays.texts().values() for text in each.values()) > 86_000


def test_markdown_becomes_plain_lines():
    text = "## ACT I\n\n_Enter \\[a\\] GHOST_\n\n\n**HAMLET**  \nAngels & ministers!  \n"
    assert plays.plain(text) == "ACT I\n\nEnter [a] GHOST\n\nHAMLET\nAngels & ministers!\n"


def test_documents_are_cut_or_end_and_go_on_with_ends():
    data = tasks.find("lm-reviews-padded@64").load()
    for split in (data.validation, data.test):
        batch = split.batch(np.arange(len(split)))
        np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        text = batch.inputs != 0
        # A document begins with text, and behind its end there is none.
        assert text[:, 0].all()
        assert not (text[:, 1:] & ~text[:, :-1]).any()
        assert text.all(axis=1).any()
        assert not text.all(axis=1).all()


def test_padding_is_what_follows_a_document_s_end():
    targets = np.array([[5, 6, 0, 0, 0], [5, 6, 7, 8, 9], [5, 6, 7, 8, 0], [0, 0, 0, 0, 0]])
    assert padding(targets, end=0).astype(int).tolist() == [
        [0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1],
    ]


def _scored(text_nats: float, padding_nats: float) -> dict[str, float]:
    """The scores of eight targets, of which two are padding."""
    targets = np.array([[5, 6, 7, 8], [5, 0, 0, 0]])
    loss = np.where(padding(targets, 0), padding_nats, text_nats)
    none = np.zeros_like(targets)
    return tasks.find("lm-reviews-padded").score(Predictions(loss, none, targets, none))


def test_the_padded_perplexity_is_the_one_that_comes_out_by_hand():
    found = _scored(math.log(16), padding_nats=math.log(1.5))
    assert found["padding"] == 2 / 8
    assert found["perplexity"] == pytest.approx(16)
    assert found["bits_per_byte"] == pytest.approx(4)
    # Six factors of 16 and two of 1.5 under the eighth root.
    assert found["padded_perplexity"] == pytest.approx((16**6 * 1.5**2) ** (1 / 8))


def test_free_padding_dilutes_a_difference_as_the_text_says():
    base, worse = (_scored(math.log(perplexity), 0.0) for perplexity in (20.0, 20.8))
    share = base["padding"]
    seen = worse["padded_perplexity"] / base["padded_perplexity"]
    assert seen == pytest.approx(1.04 ** (1 - share))
    # The ledger of claims computes the inverse.
    assert loss_on_text(100 * (seen - 1), share) == pytest.approx(4)


def test_the_example_in_the_text_is_reckoned_right():
    text = READING.read_text()
    shown = re.search(r"With (\d+)% padding, a true loss of ([\d.]+)% becomes ([\d.]+)%", text)
    share, true, diluted = (float(part) / 100 for part in shown.groups())
    assert round((1 + true) ** (1 - share) - 1, 3) == diluted


@pytest.mark.parametrize("name", ["lm-docs", "lm-plays", "lm-reviews-padded", "long-plays"])
def test_texts_are_read_with_other_tokenizers(name):
    task = tasks.find(f"{name}#bpe-300")
    assert task.metric == tasks.find(name).metric
    assert task.model.architecture.vocabulary == 300


def test_byte_pairs_end_a_document_with_their_own_separator():
    tokenizer = BytePairs(300)
    assert end_token(tokenizer) == fit(tokenizer, [LONG, LONG[::-1]]).separator
    assert end_token(Bytes()) == 0


def test_lengths_are_refused_in_words():
    for name, said in (
        ("sort@64", "one length"),
        ("long-plays@", "no length"),
        ("long-plays@2k", "as in long-plays@2048"),
        ("long-plays@16384", "from 16 to 8192"),
        ("long-text@99999", "from 16 to"),
        ("lm-reviews-padded@8", "from 16 to"),
    ):
        with pytest.raises(DataRefusedError, match=said):
            tasks.find(name)
    with pytest.raises(KeyError):
        tasks.find("no-such-task@512")


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_a_score_is_of_the_same_text_at_any_length_and_a_step_reads_as_much_where_it_can(length):
    usual, task = tasks.find("long-plays"), tasks.find(f"long-plays@{length}")
    assert task.tokens == length
    assert task.training.batch * length == max(length, usual.training.batch * usual.tokens)
    streams = plays.plays()
    data = task.load()
    for split, stream in ((data.validation, streams.validation), (data.test, streams.test)):
        batch = split.batch(np.arange(len(split)))
        size = batch.inputs.size
        assert size in (32 * 1024, 128 * 1024)
        np.testing.assert_array_equal(batch.targets.ravel(), stream[1 : size + 1])


def test_pixels_are_the_image_s_pixels_in_order():
    pictures, rows = tasks.find("mnist-5k").load(), tasks.find("long-pixels").load()
    numbers = np.arange(40)
    found = rows.test.batch(numbers)
    np.testing.assert_array_equal(found.targets, pictures.test.batch(numbers).targets)
    assert found.inputs.shape == (40, 784, 1)
    grey = np.rint((found.inputs[:, :, 0] + 1) * 127.5).astype(int)
    np.testing.assert_array_equal(grey, pictures.test.pixels[numbers].reshape(40, 784))


def test_a_long_text_is_its_first_bytes():
    task = tasks.find("long-text@256")
    batch = task.load().test.batch(np.arange(50))
    assert batch.inputs.shape == (50, 256)
    for row, length in zip(batch.inputs, batch.lengths, strict=True):
        assert bytes(row[:length].astype(np.uint8)).decode(errors="ignore").strip()
        assert not row[length:].any()
