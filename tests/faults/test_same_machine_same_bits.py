"""The same machine and number of threads give the same bits, in any process and any order."""

from dataclasses import replace

import pytest

from faults.runs import (
    SERVER,
    TRAINING,
    end,
    every_step,
    experiment,
    learn,
    repeatable,
    save_steps,
    start,
)
from qkvbench.train.run import run

SHORT = replace(TRAINING, steps=6, evaluations=2)


@pytest.mark.slow
def test_a_fresh_process_has_the_bits_of_another_and_another_seed_has_not(tmp_path):
    ends = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        process = start(experiment(training=SHORT, seed=seed), tmp_path / name)
        process.join()
        ends.append(end(tmp_path / name))
    assert ends[0] == ends[1]
    assert ends[0]["weights"] != ends[2]["weights"]
    assert ends[0]["losses"] != ends[2]["losses"]


@pytest.mark.slow
def test_a_run_with_two_threads_is_another_run_and_repeats_as_well(tmp_path):
    ends = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        process = start(experiment(training=SHORT, threads=2), tmp_path / name)
        process.join()
        ends.append(end(tmp_path / name))
    assert ends[0] == ends[1]
    assert ends[0]["record"]["threads"] == 2
    assert ends[0]["record"]["id"] != experiment(training=SHORT).id


def test_a_checkpoint_of_another_number_of_threads_is_named_and_the_run_begins_anew(
    tmp_path, caplog
):
    two = experiment(training=replace(SHORT, steps=2), threads=2)
    place = save_steps(tmp_path, two, [1])
    one = replace(two, threads=1)
    record = run(one, checkpoints=place)
    assert record.status == "done", record.reason
    assert (record.threads, record.observed.resumed) == (1, [])
    assert "is of this run with threads: 2" in caplog.text
    assert "with threads: 1 the run begins anew" in caplog.text
    # What was kept for the other number is still there for it.
    assert next(place.valid(two)).progress.step == 1


def _in_order(folder, variants):
    for variant in variants:
        (folder / variant).mkdir()
        learn(experiment(variant, training=SHORT), folder / variant)


@pytest.mark.slow
def test_the_order_of_the_arms_changes_no_result(tmp_path):
    variants = ["q,k,v", "q,k=v", "q=k=x,v"]
    for name, order in (("there", variants), ("back", variants[::-1])):
        (tmp_path / name).mkdir()
        # One process for all of them: what an arm leaves behind would be seen by the next.
        process = SERVER.Process(target=_in_order, args=(tmp_path / name, order))
        process.start()
        process.join()
    for variant in variants:
        assert end(tmp_path / "there" / variant) == end(tmp_path / "back" / variant)


def test_a_run_that_keeps_checkpoints_has_the_bits_of_one_that_keeps_none(tmp_path):
    wanted = experiment(training=SHORT)
    assert repeatable(run(wanted, checkpoints=every_step(tmp_path))) == repeatable(run(wanted))
