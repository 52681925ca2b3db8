"""A run that is interrupted keeps a checkpoint of its last step and resumes there."""

import os
import signal
from dataclasses import replace

import pytest

from faults.runs import TRAINING, experiment, repeatable
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.run import run

SHORT = replace(TRAINING, steps=6, evaluations=2)
ENDS = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt}


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize(("number", "error"), ENDS.items(), ids=["SIGTERM", "Ctrl-C"])
def test_a_run_that_is_asked_to_end_keeps_its_last_step_and_goes_on_there(number, error, tmp_path):
    # No checkpoint is due by time in a run this short.
    wanted, place = experiment(training=SHORT), Checkpoints(tmp_path)

    def ask(step, _loss):
        if step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(error) as raised:
        run(wanted, ask, checkpoints=place)
    if number == signal.SIGTERM:
        assert raised.value.code == 128 + signal.SIGTERM
    assert [found.progress.step for found in place.valid(wanted)] == [4]
    again = run(wanted, checkpoints=place)
    assert again.observed.resumed == [4]
    assert repeatable(again) == repeatable(run(wanted))
    place.remove(wanted)
    assert not place.folder(wanted).exists()


def test_a_second_request_to_end_ends_a_run_at_once(tmp_path):
    wanted, place = experiment(training=SHORT), Checkpoints(tmp_path)
    reached = []

    def ask_twice(step, _loss):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("once")
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("twice")

    with pytest.raises(SystemExit):
        run(wanted, ask_twice, checkpoints=place)
    assert reached == ["once"]
    assert list(place.valid(wanted)) == []


def test_the_signal_handlers_after_a_run_are_those_from_before(tmp_path):
    before = [signal.getsignal(number) for number in ENDS]
    run(experiment(training=replace(SHORT, steps=2)), checkpoints=Checkpoints(tmp_path))
    assert [signal.getsignal(number) for number in ENDS] == before


def test_a_short_run_writes_no_checkpoint(tmp_path):
    run(experiment(training=SHORT), checkpoints=Checkpoints(tmp_path / "place"))
    assert not (tmp_path / "place").exists()
