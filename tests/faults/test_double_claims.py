"""Of all sweepers that claim a run one gets it, and a dead process holds no claim."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

from faults.sweeps import free_of_claims, kill, start, statuses, under_way, until, watch, workers
from qkvbench.sweep.leases import (
    LeaseLostError,
    Leases,
    Owner,
    _start_time,
    heartbeat,
    this_process,
)

RUN = "0123456789abcdef"


@pytest.fixture(name="claims")
def _claims(tmp_path):
    return Leases(tmp_path / "claims", expiry_s=0.2)


def _dead():
    """A process of this machine that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Owner(this_process().host, process.pid, this_process().born)


def test_a_claimed_run_cannot_be_claimed_again_until_it_is_released(claims):
    first = claims.acquire(RUN)
    assert claims.acquire(RUN) is None
    claims.release(first)
    assert list(claims.folder.iterdir()) == []
    assert claims.acquire(RUN) is not None


def test_the_claim_of_a_dead_process_is_taken_over_at_once(claims):
    first = claims.acquire(RUN)
    (claims.folder / f"{RUN}.0").write_bytes(replace(first, owner=_dead()).to_bytes())
    second = claims.acquire(RUN)
    assert second.number == 1
    assert claims.renew(first) is None
    assert claims.adopt(replace(first, token="another")) is None
    claims.release(second)
    assert list(claims.folder.iterdir()) == []


def test_a_process_that_wakes_late_has_lost_its_run_even_if_the_next_one_has_ended(claims):
    first = claims.acquire(RUN)
    (claims.folder / f"{RUN}.0").write_bytes(replace(first, owner=_dead()).to_bytes())
    second = claims.acquire(RUN)
    claims.release(second)
    assert claims.renew(first) is None
    assert list(claims.folder.iterdir()) == []
    third = claims.acquire(RUN)
    assert third.number == first.number
    assert claims.renew(first) is None
    assert claims.renew(third) is not None


def test_a_process_that_wakes_late_releases_no_lease_of_another(tmp_path):
    """The run was taken over, ended without a result, and was begun again under the same number."""
    late, second, third = (Leases(tmp_path / "claims", expiry_s=0.0) for _ in range(3))
    old = late.acquire(RUN)
    assert second.acquire(RUN) is None
    second.release(second.acquire(RUN))
    held = third.acquire(RUN)
    assert (held.number, held.token != old.token) == (old.number, True)
    late.release(old)
    assert third.current(held) == held
    assert third.renew(held) is not None


def test_a_clock_that_is_set_kills_no_process(claims, monkeypatch):
    first = claims.acquire(RUN)
    # psutil adds the time of the boot, which is derived from the clock of the wall.
    monkeypatch.setattr("psutil.Process.create_time", lambda _: 1e9)
    this_process.cache_clear()
    assert this_process() == first.owner
    assert not first.owner.is_dead
    assert claims.acquire(RUN) is None


def test_a_process_with_a_strange_name_is_alive_and_a_zombie_is_dead(tmp_path):
    strange = tmp_path / "a (strange) name) S"
    shutil.copy(shutil.which("sleep"), strange)
    with subprocess.Popen([strange, "60"]) as process:
        owner = Owner(this_process().host, process.pid, _start_time(process.pid))
        assert not owner.is_dead
        process.kill()
        until(lambda: owner.is_dead)
        assert process.returncode is None
    assert owner.is_dead


def test_a_claim_without_a_heartbeat_on_another_machine_is_taken_over_after_a_while(
    claims, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr("qkvbench.sweep.leases.time.monotonic", lambda: clock[0])
    first = claims.acquire(RUN)
    there = replace(first, owner=Owner("another machine", 1, 0.0))
    place = claims.folder / f"{RUN}.0"
    for beat in range(5):
        place.write_bytes(replace(there, heartbeats=beat).to_bytes())
        assert claims.acquire(RUN) is None
        clock[0] += claims.expiry_s
    assert claims.acquire(RUN) is None
    clock[0] += claims.expiry_s
    assert claims.acquire(RUN).number == 1


def test_a_run_whose_claim_was_taken_over_stops(claims, monkeypatch):
    monkeypatch.setattr("qkvbench.sweep.leases.HEARTBEAT_S", 0.01)
    first = claims.acquire(RUN)
    with heartbeat(claims, first) as tell:
        tell(1, 0.5)
        (claims.folder / f"{RUN}.1").write_bytes(replace(first, number=1, token="other").to_bytes())
        with pytest.raises(LeaseLostError, match="taken over"):
            _told_for_ever(tell)


def _told_for_ever(tell):
    while True:
        tell(1, 0.5)


def test_a_claim_that_is_still_being_written_cannot_be_taken_over(claims):
    claims.folder.mkdir()
    (claims.folder / f"{RUN}.0").write_bytes(b"")
    assert claims.acquire(RUN) is None


def _wins(folder, runs):
    claims = Leases(folder)
    return [run for run in runs if claims.acquire(run) is not None]


def test_of_many_processes_that_take_over_a_dead_one_s_run_one_gets_it(claims):
    runs = [f"{number:016x}" for number in range(50)]
    dead = _dead()
    for number, run in enumerate(runs):
        claim = claims.acquire(run)
        if number % 2:
            (claims.folder / f"{run}.0").write_bytes(replace(claim, owner=dead).to_bytes())
        else:
            claims.release(claim)
    with ProcessPoolExecutor(6, mp_context=get_context("forkserver")) as pool:
        wins = [pool.submit(_wins, claims.folder, runs) for _ in range(6)]
        won = [run for each in wins for run in each.result()]
    assert sorted(won) == runs


@pytest.mark.slow
def test_two_sweepers_share_a_plan_and_a_run_of_the_killed_one_is_done_once(tmp_path):
    out = tmp_path / "study"
    with watch(out) as (marks, _):
        one, other = start(out, "--jobs", "1"), start(out, "--jobs", "1")
        under_way(out)
        kill(one)
        _, said = other.communicate()
    assert other.returncode == 0, said
    assert statuses(out) == ["done"] * 4
    # Each was written once: by whom the killed one had begun, too.
    assert [len(each) for each in marks.values()] == [1] * 4
    assert free_of_claims(out)


@pytest.mark.slow
def test_a_run_of_a_killed_sweeper_and_its_killed_worker_is_taken_over(tmp_path):
    out = tmp_path / "study"
    with watch(out) as (marks, _):
        one = start(out, "--jobs", "1")
        (worker,) = under_way(out)
        kill(one)
        os.kill(worker, signal.SIGKILL)
        other = start(out, "--jobs", "1")
        _, said = other.communicate()
    assert other.returncode == 0, said
    assert statuses(out) == ["done"] * 4
    assert [len(each) for each in marks.values()] == [1] * 4
    assert workers(out) == []
    assert free_of_claims(out)
    assert json.loads((out / "study.json").read_text())["name"] == "study"
