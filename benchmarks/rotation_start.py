"""How large a learned rotation should begin: a table of scores by `Start.rotation`.

Run     python benchmarks/rotation_start.py [--seeds N] [--jobs N]
"""

import argparse
import statistics
from dataclasses import replace

from qkvbench import tasks
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record
from qkvbench.sweep.local import Workers
from qkvbench.task_ref import parse_task

VARIANT = "q,k=R(q),v=R(q)"
SIZES = (0.0, 0.3, 1.0, 3.0)
TASKS = ("sort", "recall", "lm-reviews")


def experiments(name: str, size: float, seeds: int) -> tuple[Experiment, ...]:
    """The runs of one task whose rotations begin at one size."""
    task = tasks.find(name)
    model = replace(task.model, start=replace(task.model.init, rotation=size))
    base = Experiment(model, parse_task(name), task.version, task.training, seed=0)
    return base.vary(variants=[VARIANT], seeds=range(seeds))


def main() -> None:
    """Run everything and print mean and single scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    words = parser.parse_args()
    cells = {(name, size): experiments(name, size, words.seeds) for name in TASKS for size in SIZES}
    runs = [run for cell in cells.values() for run in cell]
    with Workers("torch") as workers:
        answers = dict(workers.run_all(runs, words.jobs, lambda *_: None))
    for (name, size), cell in cells.items():
        found = [answers[run] for run in cell]
        scores = [each.score for each in found if isinstance(each, Record) and each.metrics]
        listed = " ".join(f"{score:.3f}" for score in scores)
        print(f"{name:11} rotation {size:<4} mean {statistics.mean(scores):.3f}   {listed}")


if __name__ == "__main__":
    main()
