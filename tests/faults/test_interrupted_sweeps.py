"""Ctrl-C and SIGTERM end a sweep with no process left; the same command resumes it."""

import os
import signal
import time

import pytest

from faults.sweeps import alive, family, free_of_claims, start, statuses, under_way, until
from qkvbench.results.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # two sweeps, one after the other: minutes on a busy machine
    pytest.mark.usefixtures("foreground"),
]


def _resumed(out):
    again = start(out, "--jobs", "2")
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert statuses(out) == ["done"] * 4
    assert free_of_claims(out)
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly)],
)
def test_one_signal_ends_the_runs_with_a_checkpoint_and_a_note(tmp_path, number, code):
    out = tmp_path / "study"
    sweep = start(out, "--jobs", "2")
    running = under_way(out)
    members = family(sweep)
    assert {each.pid for each in members} > set(running)
    # A terminal sends Ctrl-C to the whole group; a system's SIGTERM is for one process.
    if number == signal.SIGINT:
        os.killpg(sweep.pid, number)
    else:
        os.kill(sweep.pid, number)
    _, said = sweep.communicate()
    assert sweep.returncode == code, said
    assert "Traceback" not in said
    until(lambda: not alive(members))
    noted = {record.id: record.status for record in Store(out).runs().good}
    assert "interrupted" in noted.values()
    kept = [path.parent.name for path in (out / "checkpoints").glob("*/step-*")]
    assert kept
    assert {noted[name] for name in kept} == {"interrupted"}
    assert free_of_claims(out)
    _resumed(out)


def test_a_second_signal_ends_at_once_a_run_that_does_not_end_by_itself(tmp_path):
    out = tmp_path / "study"
    sweep = start(out, "--jobs", "1")
    (worker,) = under_way(out)
    members = family(sweep)
    # It can answer nothing: the sweep waits for it, until it is told again.
    os.kill(worker, signal.SIGSTOP)
    os.killpg(sweep.pid, signal.SIGINT)
    time.sleep(1)
    assert sweep.poll() is None
    os.killpg(sweep.pid, signal.SIGINT)
    sweep.communicate()
    assert sweep.returncode == 130
    until(lambda: not alive(members))
    assert "interrupted" in statuses(out)
    _resumed(out)
