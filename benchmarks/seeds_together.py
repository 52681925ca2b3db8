"""Seeds trained in one program against seeds trained alone: time and memory, by size of the model.

    python benchmarks/seeds_together.py [--lanes 1 2 4 8] [--rounds 12]

One thread. A step of each number of lanes in turns, on one batch for each lane; memory in a process
of its own for each. A step's time for each run, over that of a run alone, is what training together
buys: below 1 it pays, at equal cores.
"""

import argparse
import multiprocessing
import statistics
import threading
import time
from dataclasses import replace
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from qkvbench.experiment import Experiment
    from qkvbench.tasks import Task

THREADS = 1
# Layers, width: a task's own size, and what is larger than any of ours.
SIZES = {"sort": (2, 64), "lm-reviews": (2, 96), "wide": (4, 256)}


def experiment_of(name: str) -> "tuple[Task, Experiment]":
    """A run of this size: a task's own model, or a larger one of the same kind."""
    from qkvbench import tasks
    from qkvbench.experiment import Experiment
    from qkvbench.task_ref import TaskRef

    task = tasks.find("lm-reviews" if name == "wide" else name)
    model = task.model
    if name == "wide":
        from qkvbench.model import Decoder, Rotary, transformer

        layers, width = SIZES[name]
        model = transformer(
            "wide",
            Decoder(256),
            layers=layers,
            d_model=width,
            heads=4,
            position=Rotary(),
            start=model.init,
        )
    return task, Experiment(
        model=model,
        task=TaskRef("lm-reviews" if name == "wide" else name),
        task_version=task.version,
        training=task.training,
        seed=0,
        backend="jax",
        threads=THREADS,
    )


class Lanes:
    """So many runs in one program, or one alone; `step` takes one step of all."""

    def __init__(self, name: str, lanes: int) -> None:
        """Built and compiled."""
        from qkvbench.backends.jax import Group, Learner

        task, base = experiment_of(name)
        experiments = [replace(base, seed=seed) for seed in range(lanes)]
        group = Group(experiments) if lanes > 1 else None
        self.learners = [group.learner(each) if group else Learner(each) for each in experiments]
        data = task.load()
        rng = np.random.default_rng(0)
        size = base.training.batch
        self.batches = [
            data.train.batch(rng.integers(0, len(data.train), size)) for _ in experiments
        ]
        self.step()

    def step(self) -> float:
        """Seconds that one step of every lane takes."""
        began = time.perf_counter()
        if len(self.learners) == 1:
            self._one(0)
        else:
            threads = [
                threading.Thread(target=self._one, args=(lane,))
                for lane in range(len(self.learners))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return time.perf_counter() - began

    @property
    def compile_s(self) -> float:
        """What compiling has taken."""
        return self.learners[0].compile_s

    def _one(self, lane: int) -> None:
        learner = self.learners[lane]
        learner.gradients(self.batches[lane])
        learner.update(1e-3)
        # The next step waits for this one's arrays; so does the clock.
        np.asarray(next(iter(learner.values.values())))


def memory(name: str, lanes: int, answer: "Queue[int]") -> None:
    """What the process holds at most, beyond what it had before the learners."""
    import psutil

    from qkvbench.backends import find
    from qkvbench.measure.memory import peak_bytes

    backend = find("jax")
    backend.prepare(THREADS)
    experiment_of(name)[0].load()
    before = psutil.Process().memory_info().rss
    runs = Lanes(name, lanes)
    for _ in range(3):
        runs.step()
    answer.put(max(0, peak_bytes(backend) - before))


def main() -> None:
    """Print a line for each size and number of lanes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    words = parser.parse_args()

    from qkvbench.backends import find
    from qkvbench.cost import parameters
    from qkvbench.cost.units import bytes_text

    find("jax").prepare(THREADS)
    context = multiprocessing.get_context("spawn")
    for name in words.sizes:
        runs = {lanes: Lanes(name, lanes) for lanes in words.lanes}
        times = {lanes: [] for lanes in runs}
        for _ in range(words.rounds):
            for lanes, each in runs.items():
                times[lanes].append(each.step())
        alone = statistics.median(times[words.lanes[0]]) / words.lanes[0]
        print(f"{name}: {parameters(experiment_of(name)[1].model).total:,} parameters")
        for lanes, each in runs.items():
            answer = context.Queue()
            process = context.Process(target=memory, args=(name, lanes, answer))
            process.start()
            held = answer.get()
            process.join()
            step = statistics.median(times[lanes])
            print(
                f"  {lanes} lanes  step p50 {step * 1e3:8.1f} ms  for each run, over alone "
                f"{step / lanes / alone:.2f}  compiling {each.compile_s:5.1f} s  "
                f"memory {bytes_text(held)}, for each {bytes_text(held // lanes)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
