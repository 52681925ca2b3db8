"""A run that is killed at any moment resumes, with the bits of a run that was never killed."""

import random
from dataclasses import replace

import pytest

from faults.runs import TRAINING, end, experiment, kill_after, start

KILLS = 3


def whole_and_killed(wanted, tmp_path, kills, *, seed):
    """The ends of a run that was left alone and of one that was killed so often and in a save."""
    moments = random.Random(seed)
    alone, often = tmp_path / "alone", tmp_path / "often"
    for folder in (alone, often):
        folder.mkdir()
    process = start(wanted, alone)
    process.join()
    for _ in range(kills):
        # A step and its checkpoint take some hundredths of a second.
        kill_after(start(wanted, often), often, moments.randint(2, 7), moments.random() / 30)
    process = start(wanted, often, stage=(wanted.training.steps - 4, "flushed, not renamed"))
    process.join()
    process = start(wanted, often)
    process.join()
    assert process.exitcode == 0
    return end(alone), end(often)


@pytest.mark.parametrize(
    ("variant", "precision"),
    [
        pytest.param("q,k,v", "fp32", marks=pytest.mark.slow),
        pytest.param("q,k=v", "bf16", marks=pytest.mark.slow),
        pytest.param("q,k,v", "bf16", marks=pytest.mark.nightly),
        pytest.param("q,k=v", "fp32", marks=pytest.mark.nightly),
    ],
)
def test_a_run_that_is_killed_again_and_again_has_the_bits_of_one_that_was_not(
    variant, precision, tmp_path
):
    wanted = experiment(variant, precision=precision)
    alone, often = whole_and_killed(wanted, tmp_path, KILLS, seed=7)
    assert alone["record"]["status"] == "done", alone["record"]["reason"]
    assert alone["resumed"] == []
    assert len(often["resumed"]) >= 2
    assert often["weights"] == alone["weights"]
    assert often["losses"] == alone["losses"]
    assert often["record"] == alone["record"]


@pytest.mark.parametrize(
    ("changed", "training"),
    [
        pytest.param({"precision": "fp16"}, {}, marks=pytest.mark.slow),
        pytest.param({"checkpointing": True}, {"micro_batches": 3}, marks=pytest.mark.slow),
        # Each of the four processes compiles: minutes.
        pytest.param(
            {"compiled": True},
            {"micro_batches": 1},
            marks=[pytest.mark.nightly, pytest.mark.timeout(1800)],
        ),
    ],
    ids=["fp16 and its scale", "activations made again", "compiled"],
)
def test_a_killed_run_in_another_mode_of_execution_has_the_bits_of_one_that_was_not(
    changed, training, tmp_path
):
    short = replace(TRAINING, steps=16, **training)
    alone, often = whole_and_killed(experiment(training=short, **changed), tmp_path, 1, seed=3)
    assert alone["record"]["status"] == "done", alone["record"]["reason"]
    assert often == {**alone, "resumed": often["resumed"]}


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_run_survives_two_hundred_kills(tmp_path):
    # No process gets further than ten steps before it is killed.
    kills = 200
    wanted = experiment(training=replace(TRAINING, steps=10 * kills, evaluations=20))
    alone, often = whole_and_killed(wanted, tmp_path, kills, seed=11)
    assert len(often["resumed"]) > kills / 2
    assert often == {**alone, "resumed": often["resumed"]}
