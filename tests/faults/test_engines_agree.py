"""The same plan gives the same records on every engine, whatever happens to a process."""

import os
import signal
import threading
from dataclasses import replace

import pytest

from faults.sweeps import under_way, watch, workers
from qkvbench.recipes import Study
from qkvbench.results.store import Store
from qkvbench.sweep.engines import EngineChoice, find, names, parse_choice
from qkvbench.sweep.study import run_study
from qkvbench.sweep.sweeper import TRIES
from qkvbench.train.run import run
from test_sweep import Noted

# No decoder: nothing is timed, which would take longer than all runs.
PLAN = Study("plan", ("q,k,v", "q,k=v", "q=k=v"), {"digits": 2}, smoke=True)
ELSEWHERE = {"observed", "machine", "started"}


class Long(Study):
    """Runs of which each can be met under way."""

    def experiments(self):
        return tuple(
            replace(each, training=replace(each.training, steps=1500, warmup=1))
            for each in super().experiments()
        )


LONG = Long("long", ("q,k,v", "q,k=v"), {"digits": 1}, smoke=True)


def swept(study, path, engine="local", options=(), jobs=2):
    noted = Noted()
    run_study(
        study,
        Store(path),
        command="test",
        jobs=jobs,
        fail_fast=False,
        progress=noted,
        engine=parse_choice(engine, options),
    )
    return noted


def said(record):
    """All that a record says but when, where and how fast."""
    return record.model_dump(exclude=ELSEWHERE)


@pytest.fixture(name="alone", scope="module")
def _alone():
    """Each run of the plan, carried out in this process."""
    return {each.id: said(run(each)) for each in PLAN.experiments()}


def recorded(path):
    return {each.id: said(each) for each in Store(path).runs().good}


def test_local_processes_give_the_same_records_and_are_never_more_than_asked_for(tmp_path, alone):
    with watch(tmp_path) as (marks, most):
        swept(PLAN, tmp_path, jobs=2)
    assert recorded(tmp_path) == alone
    assert [len(each) for each in marks.values()] == [1] * len(alone)
    assert most == [2]


@pytest.mark.slow
def test_submitit_gives_the_same_records_within_the_same_window(tmp_path, alone):
    with watch(tmp_path) as (_, most):
        swept(PLAN, tmp_path, "slurm", ["cluster=local"], jobs=2)
    assert recorded(tmp_path) == alone
    assert most == [2]
    # What was changed of engine is no other study.
    assert swept(PLAN, tmp_path).plans == [(0, 6)]


@pytest.mark.nightly
@pytest.mark.timeout(900)  # Ray's workers stand behind all others: a busy machine makes them wait
def test_ray_gives_the_same_records(tmp_path, alone):
    with watch(tmp_path) as (_, most):
        swept(PLAN, tmp_path, "ray", jobs=2)
    assert recorded(tmp_path) == alone
    assert most == [2]


@pytest.mark.slow
def test_a_job_that_the_scheduler_preempts_goes_on_by_itself(tmp_path):
    once = replace_variants(LONG, "q,k,v")

    def preempt():
        (worker,) = under_way(tmp_path)
        os.kill(worker, signal.SIGUSR2)

    thread = threading.Thread(target=preempt)
    thread.start()
    noted = swept(once, tmp_path, "slurm", ["cluster=local"], jobs=1)
    thread.join()
    (experiment,) = once.experiments()
    assert [record.status for record in noted.endings] == ["done"]
    assert said(noted.endings[0]) == said(run(experiment))


def replace_variants(study, *variants):
    return replace(study, variants=variants)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.nightly)])
def test_a_worker_that_is_killed_once_is_tried_again(tmp_path, engine):
    once = replace_variants(LONG, "q,k=v")

    def kill():
        (worker,) = under_way(tmp_path)
        os.kill(worker, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    noted = swept(once, tmp_path, engine, jobs=1)
    thread.join()
    (experiment,) = once.experiments()
    assert [record.status for record in noted.endings] == ["done"]
    assert said(noted.endings[0]) == said(run(experiment))


@pytest.mark.slow
def test_a_worker_that_is_always_killed_ends_as_a_row_and_the_others_go_on(tmp_path):
    first, second = LONG.experiments()
    kills, over = [], threading.Event()

    def kill():
        from qkvbench.sweep.leases import Lease

        while not over.wait(0.02):
            claims = [Lease.read(place) for place in Store(tmp_path).leases.glob(f"{first.id}.*")]
            for claim in claims:
                mine = claim is not None and claim.owner != claim.sweeper
                if mine and claim.owner.pid not in kills and not claim.owner.is_dead:
                    kills.append(claim.owner.pid)
                    os.kill(claim.owner.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        noted = swept(LONG, tmp_path, jobs=2)
    finally:
        over.set()
        thread.join()
    assert {record.id: record.status for record in noted.endings} == {
        first.id: "killed",
        second.id: "done",
    }
    (killed,) = (record for record in noted.endings if record.status == "killed")
    assert len(kills) == TRIES
    assert f"{TRIES} times" in killed.reason
    assert workers(tmp_path) == []


@pytest.mark.parametrize("name", ["local", "slurm", pytest.param("ray", marks=pytest.mark.nightly)])
def test_an_engine_whose_package_is_installed_lacks_nothing(name):
    assert find(name).missing_requirement() is None


def test_every_engine_refuses_options_that_it_does_not_have():
    assert names() == ["local", "ray", "slurm"]
    for name in names():
        with pytest.raises(ValueError, match="has no option 'wings=2'"):
            parse_choice(name, ["wings=2"])
    assert parse_choice("slurm", ["minutes=5", "partition=short"]).options.minutes == 5
    with pytest.raises(ValueError, match="write a whole number"):
        parse_choice("slurm", ["minutes=soon"])
    assert EngineChoice().name == "local"
