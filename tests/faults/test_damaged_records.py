"""A damaged record is named with the reason, and the other records are used."""

import json

import pytest

import fake_study
from qkvbench.cli import main
from qkvbench.results.store import Store
from qkvbench.sweep.study import to_run

DAMAGED = {
    "empty": b"",
    "half": b'{"schema_version": 1, "id": "0000',
    "nan": b'{"schema_version": 1, "metrics": {"accuracy": NaN}}',
    "schema": b'{"schema_version": 7}',
    "id": None,
}


@pytest.fixture(name="store")
def _store(tmp_path):
    """A study in which one record has each kind of damage."""
    store = fake_study.build(tmp_path / "study", tasks=("digits",))
    good = sorted((store.path / "runs").glob("*.json"), key=lambda path: path.name != f"{0:016x}")
    for place, content in zip(good[1:], DAMAGED.values(), strict=False):
        other = json.dumps(json.loads(place.read_text()) | {"id": "f" * 16}).encode()
        place.write_bytes(other if content is None else content)
    return store


def test_damaged_records_are_named_and_the_rest_is_used(store, capsys):
    assert len(store.damaged()) == 1 + len(DAMAGED)
    assert main(["report", str(store.path)]) == 0
    out, err = capsys.readouterr()
    assert "q,k=v" in out
    for damaged in store.damaged():
        assert damaged.path.name in err
        assert damaged.reason in err
    assert "Traceback" not in err


def test_strict_makes_them_an_exit_status(store):
    assert main(["report", str(store.path), "--strict", "--json"]) == 1


def test_runs_with_a_damaged_record_are_run_again_and_no_others(store):
    wanted = fake_study.experiments("digits")
    names = {damaged.path.stem for damaged in store.damaged()}
    missing = {each.id for each in to_run(wanted, Store(store.path))}
    assert missing == {each.id for each in wanted} & names
