"""Records are written atomically, and files that are not records are reported and kept."""

import errno
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

import fake_study
from qkvbench.experiment import from_json, to_json
from qkvbench.results.store import FolderContents, Store, StoreError
from qkvbench.sweep.forecast import forecasts


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study")


@pytest.fixture(scope="module")
def made():
    """One record that is done."""
    return fake_study.record(fake_study.experiments("digits")[0], score=0.91)


def damage(store, made, content):
    """Put this in the record's place."""
    place = store.write_run(made)
    place.write_bytes(content)
    return place


def changed(made, **values):
    return json.dumps(json.loads(made.model_dump_json()) | values).encode()


def test_a_store_reads_the_records_that_were_written(store, made):
    store.write_run(made)
    store.write_study(fake_study.info())
    measured = fake_study.measurement(fake_study.experiments("lm-reviews")[0], number=3)
    store.write_measurement(measured)
    assert store.runs().good == (made,)
    assert store.measurements().good == (measured,)
    assert store.study() == fake_study.info()


def test_a_record_is_strict_json_that_another_program_reads(store, made):
    place = store.write_run(made)
    value = json.loads(place.read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert value["metrics"] == {"accuracy": 0.91}


def test_the_runs_of_an_arm_share_their_model_which_is_parsed_once():
    # Parsing models took most of the time in which thousands of records were read.
    first, other, *_ = (
        from_json(json.loads(json.dumps(to_json(run))))
        for run in fake_study.experiments("digits", ("q,k=v",))
    )
    assert first.seed != other.seed
    assert first.model is other.model
    assert first.model == fake_study.experiments("digits", ("q,k=v",))[0].model


def test_a_store_that_is_not_there_is_empty(store):
    assert store.runs().good == ()
    assert store.study() is None
    assert not store.path.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"schema_version": 1, "id"', "strict JSON"),
        (b'{"schema_version": 1, "score": NaN}', "NaN"),
        (b'{"schema_version": 1, "score": -Infinity}', "Infinity"),
        (b"\xff\xfe\x00", "strict JSON"),
        (b"[" * 100_000, "strict JSON"),
        (b"[1, 2]", "object"),
        (b'{"schema_version": 99}', "A newer version of this program wrote it: schema 99"),
        (b'{"schema_version": 0}', "schema version is 0"),
        (b"{}", "schema version is null"),
        (b'{"schema_version": 1}', "Field required"),
    ],
)
def test_a_file_that_is_no_record_is_named_with_its_reason(store, made, content, reason):
    place = damage(store, made, content)
    shelf = store.runs()
    assert shelf.good == ()
    assert [each.path for each in shelf.damaged] == [place]
    assert reason in shelf.damaged[0].reason
    assert shelf.damaged[0].reason.endswith(".")


IN_THE_WAY = {
    "pipe": os.mkfifo,
    "endless device": lambda place: place.symlink_to("/dev/zero"),
    "folder": lambda place: place.mkdir(),
    "link to itself": lambda place: place.symlink_to(place),
}


@pytest.mark.timeout(60)  # what is wrong would wait, or read, for ever
@pytest.mark.parametrize("make", IN_THE_WAY.values(), ids=list(IN_THE_WAY))
def test_only_regular_files_are_read(store, made, make):
    experiment = fake_study.experiments("digits")[0]
    place = store.write_run(made)
    place.unlink()
    make(place)
    make(store.path / "study.json")
    shelf = store.runs()
    assert [each.path for each in shelf.damaged] == [place]
    assert "It cannot be read" in shelf.damaged[0].reason
    assert store.study() is None
    assert store.done(experiment) is None
    assert "this store" not in str(forecasts([experiment], [experiment], store)[0].source)


def test_a_dead_link_is_no_record(store, made):
    place = store.write_run(made)
    place.unlink()
    place.symlink_to("nothing")
    assert store.runs() == FolderContents((), ())


def test_a_file_is_read_up_to_the_size_of_a_large_record(store, made, monkeypatch):
    place = store.write_run(made)
    monkeypatch.setattr("qkvbench.results.store._LARGEST_BYTES", place.stat().st_size - 1)
    assert "too large" in store.runs().damaged[0].reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"id": "0123456789abcdef"}, "not its file's name"),
        ({"id": "../../x"}, "not its file's name"),
        ({"variant": "<script>"}, "variant"),
        ({"seed": 8}, "seed"),
        ({"task": "sort"}, "task"),
        ({"experiment": {}}, "experiment"),
        ({"metrics": {}}, "accuracy"),
        ({"metrics": {"accuracy": 1.01}}, "its accuracy is 1.01, which is not from 0 to 1"),
        ({"metrics": {"accuracy": -0.1}}, "its accuracy is -0.1"),
        ({"metrics": {"accuracy": 0.9, "loss": 1e308}}, "its loss is 1e+308"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_record_that_contradicts_itself_is_damaged(store, made, values, reason):
    damage(store, made, changed(made, **values))
    (damaged,) = store.runs().damaged
    assert reason in damaged.reason or "Field required" in damaged.reason


def test_a_record_under_another_experiments_name_is_damaged(store, made):
    other = fake_study.experiments("digits")[1].id
    place = store.write_run(made)
    place.rename(place.with_name(f"{other}.json")).write_bytes(changed(made, id=other))
    (damaged,) = store.runs().damaged
    assert "experiment's is" in damaged.reason


def test_a_damaged_file_is_moved_aside_and_never_lost(store, made):
    place = damage(store, made, b"first")
    store.write_run(made)
    place.write_bytes(b"second")
    store.write_run(made)
    kept = sorted(path.read_bytes() for path in place.parent.glob("*.damaged"))
    assert kept == [b"first", b"second"]
    assert store.runs().good == (made,)
    assert store.runs().damaged == ()


def test_a_damaged_study_is_moved_aside_too(store):
    store.write_study(fake_study.info())
    (store.path / "study.json").write_text("{")
    assert store.study() is None
    assert "strict JSON" in store.study_damage().reason
    store.write_study(fake_study.info())
    assert (store.path / "study.json.damaged").read_text() == "{"
    assert store.study_damage() is None


def test_done_is_done_whatever_the_code_was(store):
    experiment = fake_study.experiments("digits")[0]
    assert store.done(experiment) is None
    store.write_run(fake_study.record(experiment, status="diverged", reason="no number"))
    assert store.done(experiment) is None
    done = fake_study.revised(fake_study.record(experiment), code="another")
    store.write_run(done)
    assert store.done(experiment) == done


def test_another_task_version_is_not_done(store):
    experiment = fake_study.experiments("digits")[0]
    store.write_run(fake_study.record(experiment))
    later = replace(experiment, task_version=experiment.task_version + 1)
    assert store.done(later) is None


def test_a_run_that_is_done_is_not_replaced_by_one_that_is_not(store, made):
    store.write_run(made)
    store.write_run(made.model_copy(update={"status": "interrupted", "metrics": {}}))
    assert store.runs().good == (made,)


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "0" * 15, "0" * 16 + "\n", "0" * 15 + "G"])
def test_an_id_is_never_a_path(store, made, name):
    measured = fake_study.measurement(fake_study.experiments("lm-reviews")[0], number=0)
    with pytest.raises(ValueError, match="16 hexadecimal digits"):
        store.write_measurement(measured.model_copy(update={"id": name}))
    with pytest.raises(ValueError, match="experiment is"):
        store.write_run(made.model_copy(update={"id": name}))
    assert not store.path.exists()


def test_a_file_in_the_place_of_the_store_is_an_error(tmp_path, made):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    for act in (Store(blocked).runs, lambda: Store(blocked).write_run(made)):
        with pytest.raises(StoreError, match="is a file; a store is a folder"):
            act()
    with pytest.raises(StoreError, match="is a file; a store is a folder"):
        Store(blocked / "deeper").write_run(made)
    assert blocked.read_text() == "not a folder"


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "no permission"), (errno.EIO, "error")],
)
def test_a_failed_write_is_an_error_and_leaves_no_partial_file(
    store, made, monkeypatch, number, reason
):
    store.write_study(fake_study.info())

    def refuse(_descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match=f"{made.id}.*{reason}"):
            store.write_run(made)
    assert list((store.path / "runs").iterdir()) == []


def test_temporary_files_of_killed_writers_are_deleted_when_old(store, made):
    store.write_run(made)
    old, fresh = (store.path / "runs" / f".{name}.tmp" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.write_text("{")
    os.utime(old, (time.time() - 86_400,) * 2)
    assert store.runs().damaged == ()
    store.write_study(fake_study.info())
    assert not old.exists()
    assert fresh.exists()


def write_all(path):
    """Write every run, some of them twice; run in several processes."""
    store = Store(path)
    for experiment in fake_study.experiments("digits")[:8]:
        store.write_run(fake_study.record(experiment))


def test_many_writers_and_a_reader_work_at_the_same_time(tmp_path):
    with ProcessPoolExecutor(4, mp_context=get_context("forkserver")) as pool:
        writers = [pool.submit(write_all, tmp_path) for _ in range(4)]
        while not all(writer.done() for writer in writers):
            assert Store(tmp_path).runs().damaged == ()
        for writer in writers:
            writer.result()
    ids = [record.id for record in Store(tmp_path).runs().good]
    assert sorted(ids) == sorted({each.id for each in fake_study.experiments("digits")[:8]})
    assert [path.suffix for path in (tmp_path / "runs").iterdir()] == [".json"] * 8
