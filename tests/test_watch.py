"""`watch` shows a study while it runs, ends with it, and writes nothing but the page."""

import os
import pty
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from fake_study import build, info, scored
from qkvbench.cli import main
from qkvbench.results.remaining import remaining
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.sweep.leases import Leases

ARMS = ("q,k,v", "q,k=v", "q=k,v")
RELOAD = 'http-equiv="refresh"'


def unfinished(folder, missing=2):
    """A store that lacks some runs, and the records of these."""
    store = Store(folder)
    store.write_study(info(ARMS, ("digits", "sort")))
    records = [*scored("digits", ARMS), *scored("sort", ARMS)]
    for record in records[missing:]:
        store.write_run(record)
    return store, records[:missing]


pytestmark = pytest.mark.usefixtures("foreground")


def started(folder, **streams):
    words = ["watch", str(folder), "--every", "0.1"]
    return subprocess.Popen([sys.executable, "-P", "-m", "qkvbench", *words], **streams)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_look_says_what_is_done_and_left_and_writes_a_page_that_reloads_itself(tmp_path, capsys):
    unfinished(tmp_path)
    before = contents(tmp_path)
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert "16 of 18 runs done, 2 left. None is in progress" in capsys.readouterr().out
    page = tmp_path / "report.html"
    assert RELOAD in page.read_text()
    after = contents(tmp_path)
    assert after.pop(page)
    assert after == before


def test_the_page_of_a_complete_study_does_not_reload_itself(tmp_path, capsys):
    build(tmp_path)
    assert main(["watch", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "no run is left. 1 file damaged." in out
    assert "q,k=v" in out.partition("\n\n")[2]
    assert RELOAD not in (tmp_path / "report.html").read_text()


def test_a_folder_without_runs_is_no_mistake(tmp_path, capsys):
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert f"There is no run in {tmp_path} yet." in capsys.readouterr().out
    (tmp_path / "study.json").write_text("{")
    (tmp_path / "runs").mkdir()
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert "no run" in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()


def test_it_ends_when_the_last_run_does_and_its_page_reloads_no_longer(tmp_path):
    store, missing = unfinished(tmp_path)
    watch = started(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watch.stdout.readline().startswith("16 of 18 runs done, 2 left.")
    for record in missing:
        store.write_run(record)
    out, _ = watch.communicate(timeout=120)
    assert watch.returncode == 0
    assert "18 of 18 runs done; no run is left." in out
    assert RELOAD not in (tmp_path / "report.html").read_text()


def test_ctrl_c_ends_it_with_130_and_leaves_a_page_that_stays_as_it_is(tmp_path):
    unfinished(tmp_path)
    watch = started(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=120)
    assert watch.returncode == 130
    assert err == "No longer watched; the study itself goes on.\n"
    assert RELOAD not in (tmp_path / "report.html").read_text()


def test_a_terminal_shows_the_answer_in_place(tmp_path):
    store, missing = unfinished(tmp_path)
    ours, theirs = pty.openpty()
    watch = started(tmp_path, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    while b"2 left" not in shown:
        shown += os.read(ours, 4096)
    for record in missing:
        store.write_run(record)
    while watch.poll() is None or b"no run is left" not in shown:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert watch.wait(timeout=120) == 0
    assert b"no run is left" in shown
    # It moves up over what it had written.
    assert b"\x1b[1A" in shown


def test_the_time_left_is_that_of_the_runs_of_each_task_that_are_left(tmp_path):
    store, _ = unfinished(tmp_path, missing=5)
    state = remaining(store, store.study(), view(store))
    assert (state.total, state.done, state.left) == (18, 13, {"digits": 5})
    assert state.left_s == pytest.approx(5 * 6.2)
    # No run of a task to go by: no time.
    assert replace(state, left={"digits": 5, "recall": 1}).left_s is None


def test_a_failed_run_has_ended_and_an_interrupted_one_has_not(tmp_path):
    store, missing = unfinished(tmp_path)
    for status, record in zip(("failed", "interrupted"), missing, strict=True):
        store.write_run(
            record.model_copy(update={"status": status, "metrics": {}, "observed": None})
        )
    state = remaining(store, store.study(), view(store))
    assert state.failed == {"failed": 1}
    assert state.left == {"digits": 1}


def test_runs_in_progress_are_those_with_a_valid_lease(tmp_path):
    leases = Leases(tmp_path / "leases")
    assert leases.in_progress() == 0
    held = leases.acquire("0" * 16)
    leases.acquire("1" * 16)
    assert leases.in_progress() == 2
    leases.release(held)
    assert leases.in_progress() == 1
