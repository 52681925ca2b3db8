"""A report's work grows with the runs of a study: each is read once, each arm's statistics too."""

import cProfile
import os
import pstats
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest

import fake_study
from large_study import ARMS, TASKS, write_large_study
from qkvbench.reports import page
from qkvbench.results import stats, welch
from qkvbench.results.store import Store
from qkvbench.results.view import view

SEEDS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    write_large_study(folder, SEEDS)
    return Store(folder)


def calls_of(profile):
    """How often each function was called, by file and name."""
    rows = pstats.Stats(profile).stats.items()  # pyright: ignore[reportAttributeAccessIssue]
    return {(os.path.basename(file), name): row[1] for (file, _, name), row in rows}  # noqa: PTH119


@pytest.fixture(scope="module")
def calls(store):
    # What other tests have cached would not be counted.
    for cached in (stats._estimate, stats._sensitivity, stats._beats_chance, welch._moments):
        cached.cache_clear()
    profile = cProfile.Profile()
    profile.enable()
    page.render(view(store))
    profile.disable()
    return calls_of(profile)


def test_a_report_reads_and_parses_each_record_once(calls):
    runs = len(ARMS) * len(TASKS) * SEEDS
    # Besides runs: the measurement of each arm, and the study twice, for its damage too.
    assert calls["store.py", "read_regular"] == runs + len(ARMS) + 2
    assert calls["experiment.py", "from_json"] == runs


def test_experiments_of_an_arm_are_checked_and_hashed_as_one(calls):
    assert calls["experiment.py", "_first_seed"] <= len(ARMS) * len(TASKS)
    assert calls["experiment.py", "around_seed"] <= 2 * len(ARMS) * len(TASKS)


@pytest.mark.parametrize(
    "one", [("stats.py", "_estimate"), ("welch.py", "_moments"), ("stats.py", "_sensitivity")]
)
def test_the_statistics_of_an_arm_are_computed_once_though_it_is_compared_with_all(calls, one):
    assert 0 < calls[one] <= len(ARMS) * len(TASKS)


def test_a_page_that_would_be_too_large_says_what_is_left_out_and_where_it_is(store, monkeypatch):
    study = view(store)
    whole = page.render(study)
    assert "larger than 2 MB" not in whole
    monkeypatch.setattr(page, "LARGEST_BYTES", len(whole.encode()) - 1)
    assert "larger than 2 MB: learning curves." in page.render(study)
    monkeypatch.setattr(page, "LARGEST_BYTES", 1)
    least = page.render(study)
    assert "measures of layers, the score of every run" in least
    assert 'qkvbench query DIR "from runs"' in least
    run = study.runs[0].id
    assert f"runs/{run}.json" in whole
    assert f"runs/{run}.json" not in least
    # The links from the table to a task's arms still have their targets.
    assert 'href="#cell-0-0"' in least
    assert 'id="cell-0-0"' in least


@pytest.mark.nightly
def test_ten_thousand_runs_make_a_page_within_a_gigabyte(tmp_path):
    arms = [*fake_study.ARMS, *(f"{one};{other}" for one, other in permutations(PAIRED, 2))][:25]
    store = Store(tmp_path)
    names = [f"{task}{at}" for task in ("digits", "lm-reviews") for at in POSITIONS]
    rng = np.random.default_rng(0)
    for name in names:
        score = 2.4 if name.startswith("lm") else 0.9
        for run in fake_study.experiments(name, arms, 50):
            store.write_run(fake_study.record(run, score + 0.004 * rng.normal()))
    seeds = dict.fromkeys(names, 50)
    store.write_study(fake_study.info(arms, ()).model_copy(update={"tasks": names, "seeds": seeds}))
    code = (
        "import resource, sys\n"
        "from qkvbench.cli import main\n"
        "assert main(['report', sys.argv[1]]) == 0\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    seconds, kibibytes = map(float, said.splitlines()[-1].split())
    assert (tmp_path / "report.html").stat().st_size <= page.LARGEST_BYTES
    assert kibibytes < 1e9 / 1024
    # Seconds of processor time, twice those of a quiet machine with two cores.
    assert seconds < 20


PAIRED = ("q,k,v", "q,k=v", "q=k,v", "q=k=v", "q=v,k")


POSITIONS = ("", "@learned", "@rotary", "@none")
