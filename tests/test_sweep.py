"""A study runs in processes of its own, resumes, and survives failures of single runs."""

import shutil
import sys
import time
from collections import deque
from dataclasses import replace

import psutil
import pytest

import own_data
from qkvbench import tasks
from qkvbench.recipes import Study
from qkvbench.results.store import Store
from qkvbench.sweep.local import Returned, Workers
from qkvbench.sweep.study import failure_record, models_to_measure, run_study
from qkvbench.sweep.sweeper import Sweeper
from qkvbench.train.dependencies import Phase
from qkvbench.train.multi_process import ProcessFailure
from qkvbench.train.run import run

STUDY = Study("test", ("q,k,v", "q,k=v"), {"recall": 2}, smoke=True)
# So many steps take some seconds; those of a smoke take none.
LONG = 300


class Noted:
    """Progress that notes all events."""

    def __init__(self, at_end=lambda: None):
        self.plans, self.endings, self.lacked, self.measured = [], [], [], []
        self.tuned, self.seeds = [], []
        self.at_end = at_end

    def on_tune(self, missing, total):
        self.tuned.append((missing, total))

    def on_untuned(self, task, arm):
        self.lacked.append((task, arm))

    def on_plan(self, missing, total):
        self.plans.append((missing, total))

    def on_capacity(self, why):
        pass

    def on_prepare(self, task):
        pass

    def on_missing_data(self, task, reason):
        self.lacked.append((task, reason))

    def on_step(self, run, step, loss):
        pass

    def on_end(self, record):
        self.endings.append(record)
        self.at_end()

    def on_seeds(self, count, total):
        self.seeds.append((count, total, len(self.endings)))

    def on_unmeasured(self, reason):
        self.lacked.append(("measurement", reason))

    def on_measure(self, arms):
        self.measured.append(arms)


def carried_out(study, path, noted=None, jobs=2, *, fail_fast=False):
    noted = noted or Noted()
    run_study(study, Store(path), command="test", jobs=jobs, fail_fast=fail_fast, progress=noted)
    return noted


@pytest.fixture(name="carried", scope="module")
def _carried(tmp_path_factory):
    """The folder of STUDY after it was carried out, and what was reported on the way."""
    path = tmp_path_factory.mktemp("study")
    return path, carried_out(STUDY, path)


def test_a_study_is_run_once_and_the_same_call_again_runs_nothing(carried):
    path, first = carried
    assert first.plans == [(4, 4)]
    assert {record.status for record in first.endings} == {"done"}
    assert first.measured == [2]
    before = {each: each.stat().st_mtime_ns for each in path.glob("*/*.json")}
    assert len(before) == 4 + 2

    again = carried_out(STUDY, path)
    assert again.plans == [(0, 4)]
    assert again.endings == again.measured == again.seeds == []
    assert {each: each.stat().st_mtime_ns for each in path.glob("*/*.json")} == before


def test_an_arm_in_its_own_process_has_the_bits_of_one_that_runs_alone(carried):
    path, _ = carried
    for record in Store(path).runs().good:
        alone = run(next(each for each in STUDY.experiments() if each.id == record.id))
        assert alone.metrics == record.metrics
        assert alone.curve == record.curve


def test_the_first_seeds_are_announced_when_the_last_arm_has_them(carried):
    """And not the last seed, whose answer is the study's own."""
    _, noted = carried
    ((count, total, ended),) = noted.seeds
    assert (count, total) == (1, 2)
    # The other process may have ended a run of the next seed before.
    assert {record.seed for record in noted.endings[ended:]} == {1}
    assert noted.endings[ended - 1].seed == 0


def test_seeds_that_ended_before_are_not_announced_again(carried, tmp_path):
    shutil.copytree(carried[0], tmp_path / "more")
    more = carried_out(replace(STUDY, seeds=dict.fromkeys(STUDY.seeds, 4)), tmp_path / "more")
    assert [count for count, _, _ in more.seeds] == [3]


def test_one_seed_of_every_arm_comes_before_the_second():
    seeds = [experiment.seed for experiment in STUDY.experiments()]
    assert seeds == [0, 0, 1, 1]


def imported_by(experiment):
    """The large libraries that a run imports which its process had not from the start."""
    before = set(sys.modules)
    run(experiment)
    late = {name.partition(".")[0] for name in set(sys.modules) - before}
    return late - {"qkvbench", "torch"}, "torch._dynamo" in before


def test_a_run_waits_for_no_import_that_the_fork_server_could_have_done():
    with Workers("torch") as workers:
        assert workers.call(imported_by, STUDY.experiments()[0]) == (set(), True)


def test_a_killed_process_is_reported_and_the_others_continue():
    with Workers("torch") as workers:
        long, short = workers.start(time.sleep, 60), workers.start(abs, -3)
        long.process.kill()
        answers = {}
        while len(answers) < 2:
            answers |= {id(child): answer for child, answer in workers.poll(1.0)}
    assert answers[id(short)] == Returned(3)
    assert answers[id(long)] == ProcessFailure(
        "killed",
        "The process was ended by SIGKILL. The system does this when memory runs out.",
    )


class Uneven(Study):
    """The second arm is far from its end when the first one ends."""

    def experiments(self):
        first, second = super().experiments()
        return first, replace(second, training=replace(second.training, steps=LONG))


@pytest.mark.slow
def test_an_interrupt_records_and_ends_the_runs_in_progress_and_loses_nothing(tmp_path):
    def stop():
        raise KeyboardInterrupt

    uneven = Uneven("uneven", STUDY.variants, {"recall": 1}, smoke=True)
    with pytest.raises(KeyboardInterrupt):
        carried_out(uneven, tmp_path, Noted(stop))
    statuses = [record.status for record in Store(tmp_path).runs().good]
    assert sorted(statuses) == ["done", "interrupted"]
    # The fork server is a child of this process, and the runs are children of the fork server.
    own = psutil.Process()
    runs = set(own.children(recursive=True)) - set(own.children())
    assert runs == set()

    resumed = carried_out(uneven, tmp_path)
    assert resumed.plans == [(1, 2)]
    assert [record.status for record in Store(tmp_path).runs().good] == ["done"] * 2


class Endless:
    """An engine whose runs never end by themselves."""

    def __init__(self):
        self.started = []

    def start(self, jobs):
        self.started += [job.experiment for job in jobs]

    def poll(self, seconds):
        time.sleep(0.01)
        return iter(())

    def stop(self):
        pass


def test_a_run_that_another_sweeper_interrupted_is_run_and_not_counted_as_ended(tmp_path):
    store, runs = Store(tmp_path), list(STUDY.experiments())
    marks = {each: store.mark(each) for each in runs}

    def failed(experiment, failure):
        return failure_record(experiment, tasks.find(experiment.task), failure)

    def sweeper():
        return Sweeper(store, Endless(), 8, on_step=lambda *_: None, failure_record=failed)

    first, second = sweeper(), sweeper()
    jobs, _ = first._acquire(Phase(runs, saves_weights=False), deque(runs), marks)
    first.engine.start(jobs)
    assert second._acquire(Phase(runs, saves_weights=False), deque(runs), marks) == ([], [])
    first.stop()
    assert {store.run(each).status for each in runs} == {"interrupted"}
    jobs, ended = second._acquire(Phase(runs, saves_weights=False), deque(runs), marks)
    assert [job.experiment for job in jobs] == list(runs)
    assert ended == []
    # What it then records itself is the run's end.
    second.stop()
    assert {store.run(each).status for each in runs} == {"interrupted"}


def test_own_data_may_go_away_while_a_study_runs(tmp_path, monkeypatch):
    """Runs that read them again fail in words, and the study ends with what it has."""

    class Gone(Noted):
        def on_end(self, record):
            super().on_end(record)
            (tmp_path / "numbers.csv").unlink(missing_ok=True)

    monkeypatch.chdir(tmp_path)
    own_data.numbers(tmp_path / "numbers.csv")
    tuned = Study("mixed", ("q,k,v",), {"numbers.csv": 1}, smoke=True, tuned=True)
    noted = carried_out(tuned, tmp_path / "study", Gone())
    (lost,) = {record.reason for record in noted.endings if record.status != "done"}
    assert "There is no file or folder 'numbers.csv'" in lost
    assert ("numbers.csv", "q,k,v") in noted.lacked
    assert Store(tmp_path / "study").study().tasks == ["numbers.csv"]


def test_an_interrupt_while_data_are_fetched_leaves_nothing_running(tmp_path):
    class Impatient(Noted):
        def on_prepare(self, task):
            raise KeyboardInterrupt

    with Workers("torch") as workers:
        child = workers.start(time.sleep, 60)
    assert child.process.exitcode is not None
    with pytest.raises(KeyboardInterrupt):
        carried_out(STUDY, tmp_path, Impatient())
    assert Store(tmp_path).runs().good == ()


def test_a_run_on_built_in_data_ends_before_other_data_are_read(tmp_path, monkeypatch):
    class Events(Noted):
        def __init__(self):
            super().__init__()
            self.events = []

        def on_prepare(self, task):
            self.events.append(("reads", task))

        def on_end(self, record):
            super().on_end(record)
            self.events.append(("ends", record.task, record.seed))

    monkeypatch.chdir(tmp_path)
    own_data.numbers(tmp_path / "numbers.csv")
    study = Study("mixed", ("q,k,v",), {"numbers.csv": 1, "sort": 2}, smoke=True)
    noted = carried_out(study, tmp_path / "study", Events())
    assert noted.events[:3] == [("reads", "sort"), ("ends", "sort", 0), ("reads", "numbers.csv")]
    assert sorted(noted.events[3:]) == [("ends", "numbers.csv", 0), ("ends", "sort", 1)]


def test_arms_that_cannot_be_timed_leave_the_runs_as_they_are(tmp_path, monkeypatch):
    def fails(*_):
        raise ChildProcessError("The process was ended by SIGKILL.")

    monkeypatch.setattr("qkvbench.sweep.study.measurements", fails)
    noted = carried_out(replace(STUDY, seeds={"recall": 1}), tmp_path)
    assert {record.status for record in noted.endings} == {"done"}
    assert noted.lacked == [("measurement", "The process was ended by SIGKILL.")]


@pytest.mark.slow
def test_fail_fast_stops_at_the_first_failure(tmp_path):
    class Wild(Study):
        def experiments(self):
            return tuple(
                replace(each, training=replace(each.training, learning_rate=1e30, warmup=0))
                for each in super().experiments()
            )

    noted = Noted()
    wild = Wild("wild", STUDY.variants, STUDY.seeds, smoke=True)
    carried_out(wild, tmp_path, noted, jobs=1, fail_fast=True)
    assert [record.status for record in noted.endings] == ["diverged"]


def test_a_study_measures_its_language_model_in_each_variant():
    study = Study("test", ("q,k,v", "q,k=v"), {"digits": 1, "recall": 1, "lm-reviews": 1})
    models = models_to_measure(study)
    assert {model.name for model in models} == {"reviews"}
    assert [model.variant for model in models] == ["q,k,v", "q,k=v"]
    assert models_to_measure(replace(study, seeds={"digits": 1})) == []
