"""The time that each arm of a study takes to a given loss: steps of its records, timed here.

Run     python benchmarks/time_to_loss.py STUDY [--task lm-reviews] [--loss BITS] [--rounds 7]
Loss    of the validation split; without --loss, that of the first arm after half of its steps
Steps   of each seed, on a straight line between two evaluations; the median of the seeds
Time    of one step of training, of the processor: rounds in which all arms take turns, one thread;
        the median ratio to the first arm of the same round. Then steps times seconds

Records have times too, but of a sweep, beside other runs. Evaluations are not counted.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from losses import done

from qkvbench import tasks
from qkvbench.backends import find
from qkvbench.cost.units import seconds_text
from qkvbench.experiment import from_json
from qkvbench.results.record import Record
from qkvbench.results.store import Store

BATCHES = 3


def steps_to(loss: float, run: Record) -> float | None:
    """The step at which the curve of a run first comes down to a loss; None if it never does."""
    before = None
    for point in run.curve:
        own = (point.step, point.metrics[run.metric.name])
        if own[1] <= loss:
            if before is None:
                return float(own[0])
            share = (before[1] - loss) / (before[1] - own[1])
            return before[0] + share * (own[0] - before[0])
        before = own
    return None


def halfway(runs: Sequence[Record]) -> float:
    """The mean loss of some runs after half of their steps."""
    middle = from_json(runs[0].experiment).training.steps // 2
    return statistics.fmean(
        next(point.metrics[run.metric.name] for point in run.curve if point.step >= middle)
        for run in runs
    )


def step_seconds(runs: Sequence[Record], rounds: int) -> list[list[float]]:
    """Seconds of the processor of some training steps of each run, in each round."""
    backend = find("torch")
    backend.prepare(1)
    experiments = [from_json(run.experiment) for run in runs]
    data = tasks.find(experiments[0].task).load()
    learners = [backend.Learner(each) for each in experiments]
    rng = np.random.default_rng(0)
    rows, size = len(data.train), experiments[0].training.batch
    batches = [data.train.batch(rng.integers(rows, size=size)) for _ in range(BATCHES)]
    found: list[list[float]] = []
    # The first round is not counted.
    for number in range(rounds + 1):
        row = [0.0] * len(runs)
        for at in np.roll(np.arange(len(runs)), number):
            began = time.process_time()
            for batch in batches:
                learners[at].gradients(batch)
                learners[at].update(1e-4)
            row[at] = (time.process_time() - began) / BATCHES
        found.append(row)
    return [list(column) for column in zip(*found[1:], strict=True)]


def main() -> None:
    """Print a row for each arm that has runs of the task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--task", default="lm-reviews")
    parser.add_argument("--loss", type=float)
    parser.add_argument("--rounds", type=int, default=7)
    words = parser.parse_args()
    runs = [run for run in done(words.study) if run.task == words.task]
    info = Store(words.study).study()
    assert info is not None, f"{words.study} has no study.json"
    arms = {arm: own for arm in info.variants if (own := [r for r in runs if r.arm == arm])}
    first, *_ = arms
    loss = halfway(arms[first]) if words.loss is None else words.loss
    seconds = step_seconds([own[0] for own in arms.values()], words.rounds)
    print(f"{words.task}: to {loss:.3f} of the validation split")
    whole = None
    for (arm, own), times in zip(arms.items(), seconds, strict=True):
        ratio = statistics.median(one / other for one, other in zip(times, seconds[0], strict=True))
        step = statistics.median(times)
        steps = [found for run in own if (found := steps_to(loss, run)) is not None]
        if len(steps) < len(own):
            print(f"{arm:26} {len(steps)} of {len(own)} seeds come there; a step takes {ratio:.2f}")
            continue
        middle = statistics.median(steps)
        whole = whole or middle
        # It may have been there before it was scored for the first time.
        most = "at most " if middle <= own[0].curve[0].step else ""
        print(
            f"{arm:26} {most}{middle:5.0f} steps ({min(steps):.0f} to {max(steps):.0f}) of "
            f"{seconds_text(step)}, {ratio:.2f} of a step of {first}: "
            f"{ratio * middle / whole:.2f} of its time"
        )


if __name__ == "__main__":
    main()
