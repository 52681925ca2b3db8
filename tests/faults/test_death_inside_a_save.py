"""A process that dies inside a save loses that checkpoint and no earlier one."""

import signal
from dataclasses import replace

import pytest

from faults.runs import TRAINING, end, every_step, experiment, left_over, start

STEP = 5
SHORT = replace(TRAINING, steps=8)
MOMENTS = {
    # What is kept when the process dies there.
    "half of the numbers": STEP - 1,
    "written, not flushed": STEP - 1,
    "flushed, not renamed": STEP - 1,
    "renamed, folder not flushed": STEP,
}


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "kept"), MOMENTS.items(), ids=list(MOMENTS))
def test_a_run_that_dies_inside_a_save_resumes_from_the_last_whole_checkpoint(
    moment, kept, tmp_path
):
    wanted = experiment(training=SHORT)
    process = start(wanted, tmp_path, stage=(STEP, moment))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    # A temporary file is left, and is not taken for a checkpoint.
    assert bool(left_over(tmp_path)) == (kept < STEP)

    newest = next(every_step(tmp_path / "checkpoints").valid(wanted))
    assert newest.progress.step == kept
    assert left_over(tmp_path) == []

    process = start(wanted, tmp_path)
    process.join()
    assert process.exitcode == 0
    ended = end(tmp_path)
    assert ended["resumed"] == [kept]
    assert sorted(ended["losses"]) == list(range(1, SHORT.steps + 1))
