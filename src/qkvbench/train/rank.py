"""One of the processes of a run over many devices: `python -m qkvbench.train.rank FOLDER`."""

import os
import sys
from pathlib import Path

from qkvbench.backends import Learner, multi_device_backend
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record
from qkvbench.train.devices import Meeting, seldom
from qkvbench.train.run import left, run


def main(folder: Path) -> int:
    """Run what is asked in the folder, and leave there what this process has to say of it."""
    meeting = Meeting(folder)
    experiment, weights, checkpoints = meeting.asked()
    rank, _ = multi_device_backend(experiment.backend).started()
    started_by = os.getppid()
    tell = seldom(meeting.tell)

    def report(step: int, loss: float) -> None:
        if os.getppid() != started_by:
            # Who started it was killed and can end it no more; the others miss this one, and end.
            raise SystemExit("The process that started this one is gone.")
        if rank == 0:
            tell(step, loss)

    def at_end(_experiment: Experiment, _record: Record, learner: Learner) -> None:
        learner.save(meeting.weights)

    record = run(experiment, report, at_end if weights else left, checkpoints)
    ended = record.status in ("done", "diverged")
    if rank == 0 or not ended:
        meeting.end(record, rank)
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
