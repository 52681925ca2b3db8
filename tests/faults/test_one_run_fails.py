"""A full disk, no memory, a loss that is NaN: one run ends as a row, and the others go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qkvbench.experiment import from_json
from qkvbench.results.store import Store
from qkvbench.train.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

SITE = Path(__file__).parent / "site"
# What site/sitecustomize.py does to each arm at step 4, and how the arm ends.
ENDS = {
    "q,k,v": "done",
    "q=k,v": "oom",
    "q,k=v": "oom",
    "q=v,k": "killed",
    "q=k=v": "diverged",
    "q=k=x,v": "failed",
    "q=x,k,v": "done",
}
STEP = 4


def command(folder, **surroundings):
    """The study's own command line, in a process of its own."""
    words = ["run", "--variants", *ENDS, "--tasks", "digits", "--seeds", "1", "--smoke"]
    return subprocess.run(
        [sys.executable, "-m", "qkvbench", *words, "--jobs", "1", "--out", str(folder)],
        env={**os.environ, **surroundings},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The store of a study in which five of seven arms meet a fault, and how the command ended."""
    folder = tmp_path_factory.mktemp("faults") / "store"
    path = os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")])
    done = command(folder, PYTHONPATH=path)
    return Store(folder), done


@pytest.fixture
def runs(study):
    store, _ = study
    return {record.variant: record for record in store.runs().good}


def checkpoints(study, record):
    store, _ = study
    return Checkpoints(store.checkpoints).folder(from_json(record.experiment))


def test_every_arm_ends_as_what_it_met_and_the_study_goes_on(study, runs):
    _, done = study
    assert {variant: runs[variant].status for variant in runs} == ENDS, done.stderr
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_memory_that_runs_out_is_a_row_and_never_a_smaller_batch(runs):
    assert "CUDA out of memory" in runs["q=k,v"].reason
    assert "allocate" in runs["q,k=v"].reason
    assert "SIGKILL" in runs["q=v,k"].reason
    batches = {record.experiment["training"]["batch"] for record in runs.values()}
    assert batches == {runs["q,k,v"].experiment["training"]["batch"]}
    parts = {record.experiment["training"]["micro_batches"] for record in runs.values()}
    assert parts == {1}


def test_a_full_disk_is_named_with_path_and_bytes_and_leaves_nothing_half(study, runs):
    record = runs["q=k=x,v"]
    folder = checkpoints(study, record)
    assert str(folder / f"step-{STEP:09d}") in record.reason
    assert " bytes cannot be written: " in record.reason
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"step-{STEP - 2:09d}", f"step-{STEP - 1:09d}"]
    assert all(not name.endswith(".tmp") for name in names)
    newest = next(Checkpoints(study[0].checkpoints).valid(from_json(record.experiment)))
    assert newest.progress.step == STEP - 1


def test_a_nan_loss_stops_before_the_step_and_the_last_healthy_checkpoint_stays(study, runs):
    record = runs["q=k=v"]
    assert f"At step {STEP} of" in record.reason
    assert "the step was not taken" in record.reason
    assert record.metrics == {}
    newest = next(Checkpoints(study[0].checkpoints).valid(from_json(record.experiment)))
    assert newest.progress.step == STEP - 1


def test_a_failed_run_keeps_its_checkpoints_and_a_done_run_keeps_none(study, runs):
    for variant, record in runs.items():
        assert checkpoints(study, record).exists() == (ENDS[variant] != "done"), variant


def test_the_table_counts_the_failed_runs(study):
    store, done = study
    for path in store.path.glob("runs/*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    for word in ("diverged", "oom", "killed", "failed"):
        assert word in done.stdout + done.stderr


def test_the_same_command_without_the_faults_finishes_the_study(study, runs):
    store, _ = study
    again = command(store.path)
    assert again.returncode == 0, again.stderr
    after = {record.variant: record for record in store.runs().good}
    assert {record.status for record in after.values()} == {"done"}
    # Each went on from its last checkpoint.
    for variant, status in ENDS.items():
        assert after[variant].observed.resumed == ([] if status == "done" else [STEP - 1]), variant
    assert not store.checkpoints.exists()
