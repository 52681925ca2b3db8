"""One of the processes of a run over several devices: `python -m qkvbench.train.rank FOLDER`."""

import os
import sys
from pathlib import Path

from qkvbench.backends import Learner, multi_device_backend
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record
from qkvbench.train.multi_process import RunFolder, throttle
from qkvbench.train.run import discard_weights, run


def main(path: Path) -> int:
    """Run the request in the folder, and write this process's result there."""
    folder = RunFolder(path)
    experiment, weights, checkpoints = folder.read_request()
    rank, _ = multi_device_backend(experiment.backend).rank_and_world_size()
    parent = os.getppid()
    write_progress = throttle(folder.write_progress)

    def report(step: int, loss: float) -> None:
        if os.getppid() != parent:
            # The parent was killed and cannot end this process; without it the others end, too.
            raise SystemExit("The process that started this one has ended.")
        if rank == 0:
            write_progress(step, loss)

    def save_weights(_experiment: Experiment, _record: Record, learner: Learner) -> None:
        learner.save(folder.weights)

    record = run(experiment, report, save_weights if weights else discard_weights, checkpoints)
    ended = record.status in ("done", "diverged")
    if rank == 0 or not ended:
        folder.write_record(record, rank)
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
