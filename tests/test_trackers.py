"""A tracker shows the values of the store; if it fails, a study does not."""

import json
import sqlite3

import pytest

import fake_study
from faults.sweeps import until
from qkvbench.sweep import trackers
from qkvbench.sweep.trackers import Mirror

RUNS = fake_study.experiments("digits", arms=("q,k,v", "q,k=v"), seeds=1)
RECORDS = [fake_study.record(each, score=0.9) for each in RUNS]


def mirrored(name, folder):
    """Mirror two runs side by side: first their losses, at the end their scores."""
    failures = []
    mirror = Mirror(name, folder, "study", failures.append)
    for step in (10, 20):
        for run in RUNS:
            mirror.on_step(run, step, 1 / step)
    for record in RECORDS:
        mirror.on_end(record)
    return failures


def test_every_tracker_has_a_name():
    assert trackers.names() == ["mlflow", "tensorboard", "trackio", "wandb"]


def test_a_failing_tracker_is_reported_once_and_not_used_again(tmp_path):
    (tmp_path / "file").write_text("in the way")
    failures = mirrored("tensorboard", tmp_path / "file" / "below")
    assert len(failures) == 1
    assert "goes on without it" in failures[0]


@pytest.mark.slow
def test_tensorboard_s_event_files_hold_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert mirrored("tensorboard", tmp_path) == []
    for record in RECORDS:
        events = EventAccumulator(str(tmp_path / f"digits-{record.id}"))
        events.Reload()
        losses = {each.step: each.value for each in events.Scalars("train/loss")}
        assert losses == pytest.approx({10: 0.1, 20: 0.05})
        scores = {each.step: each.value for each in events.Scalars("validation/accuracy")}
        assert scores == pytest.approx(
            {point.step: point.metrics["accuracy"] for point in record.curve}
        )
        assert events.Scalars("test/accuracy")[0].value == pytest.approx(0.9)


@pytest.mark.slow
def test_wandb_writes_its_runs_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mirrored("wandb", tmp_path) == []
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == len(RUNS)

    def complete():
        text = b"".join(path.read_bytes() for path in files)
        return all(word in text for word in (b"validation/accuracy", *names))

    # A process of wandb's own writes them, and may still do so when a run is finished.
    names = [run.id.encode() for run in RUNS]
    until(complete)


@pytest.mark.nightly
def test_trackio_keeps_the_curves_on_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    assert mirrored("trackio", tmp_path) == []
    assert capsys.readouterr().out == ""
    (place,) = tmp_path.glob("*.db")
    with sqlite3.connect(place) as base:
        rows = [json.loads(row[0]) for row in base.execute("select metrics from metrics")]
    assert sum("train/loss" in row for row in rows) == 4
    assert sum("test/accuracy" in row for row in rows) == 2


@pytest.mark.nightly
def test_mlflow_s_files_hold_the_curves(tmp_path):
    from mlflow import MlflowClient

    assert mirrored("mlflow", tmp_path) == []
    client = MlflowClient(tracking_uri=tmp_path.absolute().as_uri())
    experiment = client.get_experiment_by_name("study")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.params["id"] for run in runs} == {run.id for run in RUNS}
    for run in runs:
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted((each.step, each.value) for each in losses) == [(10, 0.1), (20, 0.05)]
        assert run.info.status == "FINISHED"
