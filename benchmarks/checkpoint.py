"""What a checkpoint costs: its bytes, the seconds to keep and to read it, and a step without one.

Run    python benchmarks/checkpoint.py
Takes  about a minute on one core
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qkvbench import tasks
from qkvbench.backends.torch import Learner, prepare
from qkvbench.experiment import Experiment, to_json
from qkvbench.measure.machine import machine
from qkvbench.model import PRESETS, Model
from qkvbench.task_ref import TaskRef
from qkvbench.train.checkpoint import Checkpoints, Progress, checkpoint_periodically

REPEATS = 7
STEPS = 100_000
MODELS = {
    "digits": tasks.find("digits").model,
    "reviews": tasks.find("lm-reviews").model,
    "small-decoder": PRESETS["small-decoder"](),
}


def experiment(model: Model) -> Experiment:
    """A run of this model; which task is no matter here."""
    return Experiment(model, TaskRef("digits"), 1, tasks.find("digits").training, seed=0)


def seconds(work: Callable[[], object]) -> float:
    """The median of a few repeats."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def progress(wanted: Experiment) -> Progress:
    """What a loop of a thousand steps tells."""
    return Progress(
        experiment=to_json(wanted),
        step=1000,
        curve=[],
        snapshots=[],
        solved_step=None,
        step_s=[0.0123456789] * 1000,
        started="",
        train_s=0.0,
        compile_s=None,
        resumed=[],
        machine=machine("cpu"),
    )


def observed(name: str, model: Model) -> str:
    """A row of the table."""
    wanted = experiment(model)
    learner, told = Learner(wanted), progress(wanted)
    with tempfile.TemporaryDirectory() as folder:
        place = Checkpoints(Path(folder))
        keep_s = seconds(lambda: place.save(wanted, told, learner))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        read_s = seconds(lambda: learner.restore(next(place.valid(wanted)).state))
        with checkpoint_periodically(place, wanted, learner, lambda: told) as on_step_end:
            began = time.perf_counter()
            for _ in range(STEPS):
                on_step_end()
            each_s = (time.perf_counter() - began) / STEPS
    parameters = sum(weight.numel() for weight in learner.weights().values())
    return f"{name:16} {parameters:10,} {size:11,} {keep_s:9.4f} {read_s:9.4f} {1e9 * each_s:12.0f}"


def main() -> None:
    """Print a row for each model; the last column is what a step pays where none is due."""
    prepare(1)
    print("model            parameters       bytes  keep (s)  read (s)  a step (ns)")
    for name, model in MODELS.items():
        print(observed(name, model))


if __name__ == "__main__":
    main()
