"""Six processes write fifty runs each into one store while another reads it."""

from multiprocessing import get_context

import fake_study
from qkvbench.results.store import Store

WRITERS, RUNS = 6, 50


def _records():
    """More ids than one writer has, so that each is written by several."""
    experiments = fake_study.experiments("digits", seeds=10)[:75]
    return [fake_study.record(each, score=0.5 + each.seed / 100) for each in experiments]


def _write(path, writer):
    records = _records()
    store = Store(path)
    for number in range(RUNS):
        store.write_run(records[(number + 5 * writer) % len(records)])


def test_many_writers_leave_each_record_once_and_no_reader_sees_half_a_record(tmp_path):
    store = Store(tmp_path / "study")
    context = get_context("forkserver")
    writers = [context.Process(target=_write, args=(store.path, n)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        shelf = store.runs()
        assert shelf.damaged == ()
        assert len(shelf.good) >= seen
        seen = len(shelf.good)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    expected = {(number + 5 * writer) % 75 for number in range(RUNS) for writer in range(WRITERS)}
    records = _records()
    assert {each.id for each in store.runs().good} == {records[number].id for number in expected}
    assert {path.suffix for path in (store.path / "runs").iterdir()} == {".json"}
