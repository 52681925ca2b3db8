"""Does a caption need its picture? The same network scored with its own pictures and with others'.

Run     python benchmarks/captions_without_pictures.py [--seeds N ...]
Size    the task captioning as it is, `q,k,v`; seeds that no study uses
"""

import argparse
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from qkvbench import tasks
from qkvbench.backends import Learner
from qkvbench.data.batch import Batch, Sequences, Split
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record
from qkvbench.task_ref import TaskRef
from qkvbench.train.loop import score
from qkvbench.train.run import run


@dataclass(frozen=True)
class Exchanged:
    """A split whose items each come with the second input of the item half a split away."""

    split: Split

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.split)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The items with these numbers, beside what belongs to others."""
        others = self.split.batch((indices + len(self) // 2) % len(self)).second
        assert isinstance(others, Sequences)
        return replace(self.split.batch(indices), second=others)


def main() -> None:
    """Train, score twice, print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    words = parser.parse_args()
    task = tasks.find("captioning")
    test = task.load().test

    def tell(experiment: Experiment, record: Record, learner: Learner) -> None:
        other = score(task, learner, Exchanged(test), None)["bits_per_byte"]
        own = record.metrics["bits_per_byte"]
        print(
            f"seed {experiment.seed}: {own:.3f} bits a byte with its picture, "
            f"{other:.3f} with another's",
            flush=True,
        )

    for seed in words.seeds:
        ended = run(
            Experiment(task.model, TaskRef("captioning"), task.version, task.training, seed),
            at_end=tell,
        )
        if ended.status != "done":
            raise SystemExit(f"seed {seed}: {ended.reason}")


if __name__ == "__main__":
    main()
