"""Own data by path: each kind becomes a task, and what cannot become one is refused in words."""

import json
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import own_data
from qkvbench import tasks
from qkvbench.cli import main
from qkvbench.data import DataRefusedError, DataUnavailableError, own
from qkvbench.data.batch import Predictions
from qkvbench.experiment import Experiment
from qkvbench.recipes import Study
from qkvbench.task_ref import TaskRef
from qkvbench.tasks.kinds.splits import ENDS, Windows
from qkvbench.train.run import run

ROOT = Path(__file__).parent.parent
every_kind = pytest.mark.parametrize("name", own_data.KINDS)


@pytest.fixture(name="here", autouse=True)
def _here(tmp_path, monkeypatch):
    """An empty folder to work in, with a cache of its own."""
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def _made(name):
    own_data.KINDS[name](Path(name))
    return tasks.find(f"./{name}")


def _whole(split):
    return split.batch(np.arange(len(split)))


@every_kind
def test_the_splits_share_nothing_and_fit_the_model(name):
    task = _made(name)
    data = task.load()
    splits = [_whole(split) for split in (data.train, data.validation, data.test)]
    rows = [{row.tobytes() for row in batch.inputs} for batch in splits]
    assert len(set.union(*rows)) == sum(map(len, rows))
    assert all(batch.inputs.shape[1] == task.tokens for batch in splits)
    assert data.identity == task.load().identity
    if not isinstance(data.test, Windows):
        classes = task.model.architecture.classes
        assert all(set(batch.targets.ravel()) == set(range(classes)) for batch in splits)
        assert sum(map(len, rows)) * ENDS["test"] // 100 <= len(data.test)


@every_kind
def test_chance_is_what_one_scores_who_knows_nothing(name):
    task = _made(name)
    targets = _whole(task.load().test).targets
    guesses = np.full_like(targets, np.bincount(targets.ravel()).argmax())
    # The loss of one who finds all bytes equally likely; it decides no accuracy.
    loss = np.full(targets.shape, np.log(256))
    found = task.score(Predictions(loss, guesses, targets, (guesses != targets).astype(int)))[
        task.metric.name
    ]
    assert found == pytest.approx(task.metric.chance)


@every_kind
def test_other_content_is_another_version_and_other_runs(name):
    before = _made(name)
    one = _experiments(name)
    assert [run.id for run in _experiments(name)] == [run.id for run in one]
    place = Path(name)
    file = next(place.glob("*/0.png")) if place.is_dir() else place
    content = bytearray(file.read_bytes())
    if place.is_dir():
        Image.new("RGB", (8, 8), "teal").save(file)
    else:
        # The last digit or letter of a word becomes another.
        spot = max(content.rfind(b"o"), content.rfind(b"1"))
        content[spot] = ord("7")
        file.write_bytes(content)
    after = tasks.find(f"./{name}")
    assert after.version != before.version
    assert {run.id for run in _experiments(name)}.isdisjoint({run.id for run in one})
    assert after.load().identity != before.load().identity


def _experiments(name):
    return Study("study", ["q,k,v"], {f"./{name}": 2}).experiments()


def test_the_version_is_the_content_s_and_not_the_file_s(here):
    own_data.text(here / "one.txt")
    shutil.copy(here / "one.txt", here / "two.txt")
    assert tasks.find("one.txt").version == tasks.find("./two.txt").version
    assert tasks.find("one.txt").version < 2**53


def test_a_run_of_data_that_changed_since_it_was_planned_fails_in_words(here):
    own_data.text(here / "my.txt")
    planned = tasks.find("my.txt")
    experiment = Experiment(
        planned.model,
        TaskRef("my.txt"),
        planned.version,
        replace(planned.training, steps=1),
        seed=0,
    )
    own_data.text(here / "my.txt")
    record = run(experiment)
    assert record.status == "failed"
    assert "has changed since the study began" in record.reason


def test_a_small_text_is_not_read_over_more_than_eight_times(here):
    own_data.text(here / "x.txt")
    task = tasks.find("x.txt")
    training = task.training
    assert 50 < training.steps < 500
    assert training.steps * training.batch <= 8 * len(task.load().train)
    assert training.warmup < training.steps


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("\n \n".join(f"par {n}\nof two lines" for n in range(150)), 150),
        ("\r\n\r\n".join(f"par {n}" for n in range(150)), 150),
        ("\n".join(f"line {n}" for n in range(150)), 150),
        ("\ufeff" + " ".join(f"word{n:05}" for n in range(20_000)), 200),
        ("".join(chr(0x4E00 + n % 5000) for n in range(66_600)), 200),
    ],
    ids=["paragraphs", "of Windows", "lines", "one line", "writing without blanks"],
)
def test_a_text_falls_into_paragraphs_lines_or_pieces(content, documents):
    found = own.text_documents("x.txt", content.encode())
    assert documents <= len(found) <= documents * 1.05
    joined = "".join(part.decode() for part in found)
    assert "".join(joined.split()) == "".join(content.removeprefix("\ufeff").split())


def test_texts_are_padded_behind_and_say_how_long_they_are(here):
    own_data.labelled_text(here / "x.csv")
    for name, read in (("x.csv", lambda text: len(text.encode())), ("x.csv#bpe-300", None)):
        batch = _whole(tasks.find(name).load().test)
        assert batch.lengths.min() >= 1
        assert batch.lengths.max() <= batch.inputs.shape[1]
        for row, length in zip(batch.inputs, batch.lengths, strict=True):
            assert (row[length:] == row[-1]).all() or length == len(row)
            if read:
                assert bytes(row[:length].astype(np.uint8)).decode().isprintable()
                assert 0 not in row[:length]
                assert not row[length:].any()


def test_numbers_are_standardized_by_the_training_split(here):
    own_data.numbers(here / "x.csv")
    data = tasks.find("x.csv").load()
    train = _whole(data.train).inputs[..., 0]
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-6)
    assert abs(_whole(data.test).inputs.mean()) > 1e-6


def test_images_of_one_channel_stay_grey_and_what_is_transparent_stands_on_white(here):
    own_data.grey(here / "grey")
    assert tasks.find("./grey").model.architecture.inputs.features == 4
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save("clear.png")
    assert (own.images([Path("clear.png")]).pixels == 255).all()


def test_documents_that_differ_in_blanks_at_their_ends_are_one(here):
    """Otherwise one of the two may be trained on, and the other be tested."""
    documents = own_data.sentences(300)
    lines = [json.dumps({"text": each + end}) for each in documents for end in ("", " ", "\n")]
    (here / "x.jsonl").write_text("\n".join(lines))
    (here / "y.jsonl").write_text("\n".join(lines[::3]))
    splits = [tasks.find(name).load() for name in ("x.jsonl", "y.jsonl")]
    assert len(splits[0].train) == pytest.approx(len(splits[1].train), rel=0.05)


def test_a_column_of_numbers_and_an_identifier_is_text(here):
    rows = [[f"{n}" if n else "1_000", "xy"[n % 2]] for n in range(60)]
    own_data.table(here / "x.csv", ["a", "label"], rows)
    assert "class of a text" in tasks.find("x.csv").about
    own_data.table(here / "y.csv", ["a", "label"], rows[1:])
    assert "1 numbers" in tasks.find("y.csv").about


def test_a_long_cell_is_read_up_to_its_first_tokens(here):
    rows = [[f"{n} " + "long " * 40_000 * (n % 20 < 2), "xy"[n % 2]] for n in range(60)]
    own_data.table(here / "x.csv", ["text", "label"], rows)
    assert tasks.find("x.csv").tokens == 256


def test_a_disk_that_is_full_is_told_as_it_is(here, monkeypatch):
    """NumPy's error has no number of the system."""

    def full(*_):
        raise OSError("168000 requested and 75744 written")

    own_data.text(here / "x.txt")
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataUnavailableError, match="cannot be written: 168000 requested"):
        tasks.find("x.txt")


def test_the_same_example_twice_counts_once(here):
    rows = [[n % 40, f"text {n % 40}", n % 2] for n in range(160)]
    own_data.table(here / "x.csv", ["id", "text", "label"], rows)
    data = tasks.find("x.csv").load()
    assert len(data.train) + len(data.validation) + len(data.test) == 40


def _bomb(place):
    """A picture of a few bytes that says it has ten thousand million pixels."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    size = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    place.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )


def _with(folder, change):
    own_data.grey(folder)
    change(folder)


REFUSED = {
    "no such file": ("gone.txt", lambda p: None, "There is no file or folder 'gone.txt'"),
    "empty": ("x.txt", lambda p: p.write_text(" \n"), "is empty"),
    "binary": ("x.txt", lambda p: p.write_bytes(b"one\n\0\1\2"), r"binary.*byte 5 .*line 2"),
    "latin": ("x.txt", lambda p: p.write_bytes(b"one\ncaf\xe9 "), r"byte 8 \(in line 2\) is 0xe9"),
    "short": ("x.txt", lambda p: p.write_text("Once upon a time."), "too short.* 4 windows of 128"),
    "no object": ("x.jsonl", lambda p: p.write_text('{"text": "a"}\n\n[1]'), "Line 3 .* list"),
    "no text": ("x.jsonl", lambda p: p.write_text('{"txt": "a"}'), "Line 1 .* no field 'text'"),
    "text no text": ("x.jsonl", lambda p: p.write_text('{"text": 1}'), "Line 1 .* no field 'text'"),
    "no JSON": ("x.jsonl", lambda p: p.write_text('{"text": "a"}\n{'), "Line 2 .* no JSON"),
    "a zero": ("x.jsonl", lambda p: p.write_text('{"text": "a\\u0000"}'), "zero character"),
    "half a pair": ("x.jsonl", lambda p: p.write_text('{"text": "\\ud800"}'), "surrogates"),
    "deep": ("x.jsonl", lambda p: p.write_text("[" * 200_000), "Line 1 .* no JSON"),
    "no label": ("x.csv", lambda p: p.write_text("a,b\n1,2"), "no column for the class.*a, b"),
    "empty cells": ("x.csv", lambda p: p.write_text(",,\n,,\n"), "has no filled cell"),
    "a mark alone": ("x.csv", lambda p: p.write_text("\ufeff"), "is empty|no filled cell"),
    "alike at first": (
        "x.csv",
        lambda p: own_data.table(
            p, ["text", "label"], [["so " * 100 + str(n), "xy"[n % 2]] for n in range(60)]
        ),
        "same content in the 256 bytes of a text that are read stands in two classes",
    ),
    "a class alike at first": (
        "x.csv",
        lambda p: own_data.table(
            p,
            ["text", "label"],
            [["so " * 100 * (n % 3 == 0) + str(n), "xyz"[n % 3]] for n in range(60)],
        ),
        "Class 'x' .* different examples in the 256 bytes of a text that are read: 1; each",
    ),
    "semicolons": ("x.csv", lambda p: p.write_text("a;label\n1;2"), "not by ';'"),
    "two labels": ("x.csv", lambda p: p.write_text("y,label\n1,2"), "more than one column"),
    "label only": ("x.csv", lambda p: p.write_text("label\n1"), "no column beside"),
    "no rows": ("x.csv", lambda p: p.write_text("a,label\n"), "header and no rows"),
    "one class": ("x.csv", lambda p: p.write_text("a,label\n1,x\n2,x"), "one class only, 'x'"),
    "ragged": ("x.csv", lambda p: p.write_text("a,label\n1,x\n1,2,x"), "Line 3 .* 3 cells"),
    "no number": ("x.csv", lambda p: p.write_text("a,b,label\n1,2,x\n1,?,x"), "Line 3.*'b'.*'?'"),
    "infinite": (
        "x.csv",
        lambda p: p.write_text("a,b,label\n1,inf,x"),
        "'inf', .* no number up to",
    ),
    "digits of another script": (
        "x.csv",
        lambda p: p.write_text("a,b,label\n1,\u0663,x", encoding="utf-8"),
        "Line 2.*'b'.*no number up to",
    ),
    "underscores": (
        "x.csv",
        lambda p: p.write_text("a,b,label\n1,1_000,x"),
        "'1_000', .* no number",
    ),
    "no class": ("x.csv", lambda p: p.write_text("a,b,label\n1,2,"), "Line 2 .* no label"),
    "open quote": ("x.csv", lambda p: p.write_text('a,label\n"1,x'), "Line 2 .* no row"),
    "few": ("x.csv", lambda p: p.write_text("a,label\n1,x\n2,y"), "too small: .* needs 10"),
    "mislabelled": (
        "x.csv",
        lambda p: p.write_text("a,b,label\n1,2,x\n1,2,y\n3,4,x\n3,4,y"),
        r"two classes \(2 contents.*line 2 is 'x', line 3 is 'y'",
    ),
    "no class folders": ("x", lambda p: p.mkdir(), "has no folders in it"),
    "empty folders": ("x", lambda p: (p / "a").mkdir(parents=True), "are empty"),
    "damaged image": (
        "x",
        lambda p: _with(p, lambda q: (q / "dark/0.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")),
        "dark/0.png' cannot be read as an image",
    ),
    "cut image": (
        "x",
        lambda p: _with(
            p, lambda q: (q / "dark/0.png").write_bytes((q / "dark/0.png").read_bytes()[:60])
        ),
        "dark/0.png' cannot be read as an image",
    ),
    "no image": (
        "x",
        lambda p: _with(p, lambda q: (q / "dark/notes.doc").write_text("x")),
        "'dark/notes.doc' .* is no image",
    ),
    "a bomb": (
        "x",
        lambda p: _with(p, lambda q: _bomb(q / "dark/0.png")),
        "too many pixels: at most 50,000,000",
    ),
    "deep image": (
        "x",
        lambda p: _with(p, lambda q: Image.new("I;16", (8, 8)).save(q / "dark/0.png")),
        "more than 8 bits",
    ),
    "an image in two classes": (
        "x",
        lambda p: _with(p, lambda q: shutil.copy(q / "dark/0.png", q / "light/0.png")),
        "two classes",
    ),
    "a link out": (
        "x",
        lambda p: _with(p, lambda q: (q / "dark/passwords.png").symlink_to("/etc/passwd")),
        "is a link out of 'x'",
    ),
    "a link to itself": (
        "x",
        lambda p: _with(p, lambda q: (q / "dark/round.png").symlink_to("round.png")),
        "dark/round.png' is a link that leads back to itself",
    ),
    "a folder linked": (
        "x",
        lambda p: _with(p, lambda q: (q / "all").symlink_to("/etc")),
        "is a link out of 'x'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_task_is_refused_in_six_lines_and_nothing_runs(case, here, capsys):
    name, write, said = REFUSED[case]
    write(Path(name))
    before = sorted(here.rglob("*"))
    assert main(["run", "--variants", "q,k,v", "--tasks", f"./{name}"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.strip().splitlines()) <= 6
    with pytest.raises(DataRefusedError, match=f"(?s){said}"):
        tasks.find(f"./{name}")
    assert sorted(here.rglob("*")) == before


def test_what_never_ends_is_not_read():
    with pytest.raises(DataRefusedError, match="neither a file nor a folder"):
        tasks.find("/dev/zero")


def test_a_file_that_does_not_fit_in_memory_is_refused_by_its_size(here):
    with (here / "x.txt").open("wb") as file:
        file.truncate(own.TEXT_BYTES + 1)
    with pytest.raises(DataRefusedError, match="at most 200,000,000"):
        tasks.find("x.txt")


def test_a_name_that_could_steer_a_terminal_is_refused(here):
    with pytest.raises(DataRefusedError, match="control characters"):
        tasks.find("./\x1b[2J.txt")


def test_a_file_without_a_known_suffix_is_named_with_its_folder(here, capsys):
    own_data.text(here / "book.tex")
    assert main(["run", "--variants", "q,k,v", "--tasks", "book.tex", "--dry-run"]) == 2
    assert "./book.tex" in capsys.readouterr().err
    assert main(["run", "--variants", "q,k,v", "--tasks", "./book.tex", "--dry-run"]) == 0


@pytest.mark.slow
def test_a_study_of_each_kind_runs_to_a_table_and_a_page(here):
    for name, write in own_data.KINDS.items():
        write(here / name)
    names = [f"./{name}" for name in own_data.KINDS] + ["labelled.csv#bpe-300"]
    words = ["run", "--variants", "q,k=v", "--seeds", "1", "--smoke", "--tasks", *names]
    done = subprocess.run(
        [sys.executable, "-m", "qkvbench", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"[{len(names)}/{len(names)}]" in done.stderr
    (store,) = (here / "results").iterdir()
    page = (store / "report.html").read_text()
    for name in names:
        assert name.removeprefix("./") in done.stdout
        assert escape(name) in page
    assert "<b>[red]" not in page
    study = json.loads((store / "study.json").read_text())
    assert study["tasks"] == names


def test_the_page_on_own_data_states_the_limits_that_hold():
    said = (ROOT / "docs" / "own-data.md").read_text()
    numbers = [own.TEXT_BYTES, own.TABLE_BYTES, own.MOST_NUMBERS, own.MOST_IMAGES]
    numbers += [own.IMAGE_BYTES, own.IMAGE_PIXELS]
    for number in numbers:
        assert f"{number:,}" in said
    assert f"{own.MIN_EXAMPLES} different" in said
    assert f"±{own.LARGEST:g}" in said
    for word in (*own.FORMATS, *own.LABELS, *own.TEXTS):
        assert f"`{word}`" in said
