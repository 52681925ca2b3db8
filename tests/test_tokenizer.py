"""Tokens lose nothing, learn from training text alone, and are scored in the same unit as bytes."""

import math
import subprocess
import sys
from hashlib import sha256
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkvbench import tasks
from qkvbench.data import DataRefusedError
from qkvbench.data.batch import Predictions
from qkvbench.data.documents import pack
from qkvbench.data.streams import SPLITS, byte_streams, tokenize
from qkvbench.data.tokenizer import BytePairs, Bytes, fit, parse_tokenizer, restore
from qkvbench.task_ref import TaskRef, parse_task
from qkvbench.tasks.kinds.language import Source, language_model

WORDS = ["the ", "cat ", "sat ", "on ", "a ", "mat, ", "über ", "東京 ", "🙂 ", "\n\t"]
TEXTS = ["".join(words) for words in product(WORDS, repeat=3)]
TOKENIZERS = [Bytes(), BytePairs(257), BytePairs(290)]
either = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda each: each.name)
# Each letter that there is but halves of a pair, and so each byte that UTF-8 has.
EVERY_LETTER = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 17)]))


@pytest.fixture(name="streams")
def _streams(tmp_path, monkeypatch):
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    return _packed(TEXTS * 2)


def _packed(texts):
    parts = pack((f"{n} {t}".encode() for n, t in enumerate(texts)), SHARES)
    arrays = {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}
    mark = "".join(sha256(part).hexdigest() for part in parts.values())
    return byte_streams(arrays, sha256(mark.encode()).hexdigest())


SHARES = {"test": 0.2, "validation": 0.2, "train": 0.6}
LEARNED = {tokenizer: fit(tokenizer, TEXTS) for tokenizer in TOKENIZERS}


@either
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_tokens_stand_for_the_bytes_of_the_text(tokenizer, text):
    learned = LEARNED[tokenizer]
    (tokens,) = learned.encode([text])
    assert learned.token_bytes[tokens].sum() == len(text.encode())
    if tokenizer == Bytes():
        assert tokens.tobytes() == text.encode()
    assert learned.decode(tokens) == text


@either
def test_every_letter_comes_back(tokenizer):
    learned = LEARNED[tokenizer]
    (tokens,) = learned.encode([EVERY_LETTER])
    assert learned.decode(tokens) == EVERY_LETTER
    assert tokens.max() < tokenizer.vocabulary


@either
def test_the_separator_is_a_token_that_no_text_has_and_counts_as_a_byte(tokenizer):
    learned = LEARNED[tokenizer]
    (tokens,) = learned.encode(["".join(TEXTS).replace("\0", "")])
    assert learned.separator not in tokens
    assert learned.token_bytes[learned.separator] == 1
    assert len(learned.token_bytes) == tokenizer.vocabulary


def test_the_same_texts_give_the_same_tokenizer_in_another_process():
    script = (
        "import sys; from hashlib import sha256; from qkvbench.data.tokenizer import *; "
        "texts = sys.stdin.buffer.read().decode().split('\\0'); "
        "print(sha256(fit(BytePairs(290), texts).written.encode()).hexdigest())"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        input="\0".join(TEXTS).encode(),
        capture_output=True,
        check=True,
    ).stdout.decode()
    here = fit(BytePairs(290), TEXTS).written
    assert said.strip() == sha256(here.encode()).hexdigest()


@either
def test_a_tokenizer_is_restored_from_what_it_has_written(tokenizer):
    learned = LEARNED[tokenizer]
    again = restore(tokenizer, learned.written)
    (tokens,), (same,) = learned.encode(["über a mat, 東京"]), again.encode(["über a mat, 東京"])
    np.testing.assert_array_equal(tokens, same)
    np.testing.assert_array_equal(learned.token_bytes, again.token_bytes)
    # Half a letter is no text, and a separator none at all.
    assert again.decode(tokens[:0]) == ""
    (letter,) = again.encode(["ü"])
    if len(letter) == 2:
        assert again.decode(letter[:1]) == "\ufffd"
    if tokenizer != Bytes():
        assert again.decode(np.array([again.separator])) == ""


def test_what_stands_in_validation_and_test_teaches_nothing(streams, tmp_path):
    # As frequent there as a merge could wish.
    secret = np.frombuffer(b"zqxj zqxj zqxj\0" * 500, np.uint8)
    told = byte_streams(
        {"train": streams.train, "validation": secret, "test": secret}, identity="f" * 64
    )
    for each in (streams, told):
        tokenize(each, BytePairs(290))
    one, two = (tmp_path / "cache").glob("*/tokenizer.json")
    assert one.read_text() == two.read_text()
    assert "zq" not in one.read_text()


@either
def test_streams_of_tokens_are_the_documents_in_their_order(streams, tokenizer, tmp_path):
    found = tokenize(streams, tokenizer)
    for split in SPLITS:
        stream = getattr(found, split)
        assert found.token_bytes[stream].sum() == len(getattr(streams, split))
    again = tokenize(streams, tokenizer)
    assert again.identity == found.identity
    if tokenizer != Bytes():
        assert isinstance(found.train, np.memmap)
        assert found.train.dtype == np.uint16
        kept = next((tmp_path / "cache").glob(f"{tokenizer.name}*/test.npy"))
        good = kept.read_bytes()
        kept.write_bytes(good[:-3] + b"???")
        assert tokenize(streams, tokenizer).identity == found.identity
        assert kept.read_bytes() == good


@either
def test_bits_a_byte_mean_the_same_with_every_tokenizer(streams, tokenizer):
    source = Source("About.", "own", 1, "model", lambda: streams)
    task = language_model(source, tokenizer)
    targets = task.load().test.batch(np.arange(4)).targets
    token_bytes = tokenize(streams, tokenizer).token_bytes
    # One who finds all bytes equally likely pays eight bits for each byte of a token.
    loss = token_bytes[targets] * math.log(256)
    found = task.score(Predictions(loss, targets, targets, 0 * targets))
    assert found["bits_per_byte"] == pytest.approx(8, abs=1e-12)
    assert found["perplexity"] == pytest.approx(256)
    assert task.metric.chance == 8


def test_all_tokenizers_are_scored_on_the_same_text(streams):
    covered = {}
    for tokenizer in TOKENIZERS:
        test = (
            language_model(Source("About.", "own", 1, "m", lambda: streams), tokenizer).load().test
        )
        targets = test.batch(np.arange(len(test))).targets
        covered[tokenizer] = tokenize(streams, tokenizer).token_bytes[targets].sum()
    # What is left over at the end is less than a window, whose tokens are a few bytes each.
    assert max(covered.values()) - min(covered.values()) < 128 * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bpe", "bytes and bpe-N"),
        ("gpt2", "bytes and bpe-N"),
        ("bpe-1k", "bytes and bpe-N"),
        ("bpe-256", "bpe-257"),
        ("bpe-65537", "bpe-65536"),
        ("bpe-9999999999999", "bpe-65536"),
        ("", "bytes and bpe-N"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(text, said):
    with pytest.raises(DataRefusedError, match=said):
        parse_tokenizer(text)


def test_too_little_text_for_a_vocabulary_is_refused_with_the_largest_that_it_gives():
    with pytest.raises(DataRefusedError, match="Write bpe-") as error:
        fit(BytePairs(5000), TEXTS)
    largest = int(str(error.value).split("bpe-")[1].split()[0])
    assert len(fit(BytePairs(largest), TEXTS).token_bytes) == largest


def test_a_task_without_text_takes_no_tokenizer():
    with pytest.raises(DataRefusedError, match="no text"):
        tasks.find("sort#bytes")


def test_what_follows_a_number_sign_and_is_no_tokenizer_belongs_to_the_path():
    assert parse_task("./C#/notes.txt") == TaskRef("./C#/notes.txt")
    assert parse_task("./notes #2.txt#bpe-300") == TaskRef("./notes #2.txt", tokenizer="bpe-300")
