"""How much the norm of the gradient varies from batch to batch, by arm and length of sequence.

Run     python benchmarks/gradient_norms.py [--arms q,k,v q,k=v] [--lengths 32 128 512]
        [--batches N] [--steps N] [--tokens N]
Size    the decoder of lm-reviews (2 layers, d_model 96, 4 heads, rotary), on its own data

Every batch has as many tokens whatever the length, so that it is not the amount of data that makes
the difference. Norms are taken before clipping, over batches that all arms share: of the untrained
model, and after `--steps` of training at that length with the task's own schedule. The spread is
the standard deviation over the mean, which no scale of the loss changes; its own standard error
over N batches is about spread / sqrt(2N).
"""

import argparse
import statistics
from dataclasses import replace

import numpy as np

from qkvbench import tasks
from qkvbench.backends.torch import Learner, prepare
from qkvbench.data import reviews
from qkvbench.data.batch import Split
from qkvbench.experiment import Experiment
from qkvbench.tasks._splits import Windows
from qkvbench.train.loop import batch_indices, learning_rate

ARMS = ["q,k,v", "q=k,v", "q,k=v", "q=k=v", "q,k=R(q),v=R(q)", "q=k=x,v"]


def norms(learner: Learner, split: Split, batches: int, size: int) -> list[float]:
    """The gradient's norm on so many batches, evenly spread over a split; nothing is updated."""
    starts = np.linspace(0, len(split) - size, batches).astype(int)
    return [learner.gradients(split.batch(np.arange(s, s + size)))[1] for s in starts]


def line(arm: str, length: int, when: str, found: list[float]) -> str:
    """One row of the table."""
    mean, deviation = statistics.mean(found), statistics.stdev(found)
    row = f"{arm:18} {length:6}  {when:>11}  {mean:9.4f} {deviation**2:12.3e}"
    return f"{row} {deviation / mean:8.3f}"


def main() -> None:
    """Train each arm at each length, and print mean, variance and spread before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128, 512])
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    prepare(words.threads)
    task, stream = tasks.find("lm-reviews"), reviews()
    print(f"{words.batches} batches of {words.tokens} tokens, seed {words.seed}")
    print(f"{'arm':18} {'length':>6}  {'when':>11}  {'mean':>9} {'variance':>12} {'spread':>8}")
    for length in words.lengths:
        size = max(1, words.tokens // length)
        train, held = Windows(stream.train, length), Windows(stream.validation, length)
        training = replace(task.training, batch=size, steps=words.steps)
        base = Experiment(task.model, "lm-reviews", task.version, training, seed=words.seed)
        for experiment in base.vary(variants=words.arms, seeds=[words.seed]):
            learner = Learner(experiment)
            before = norms(learner, held, words.batches, size)
            print(line(experiment.variant, length, "untrained", before), flush=True)
            order = batch_indices(len(train), training, words.seed)
            for step in range(1, words.steps + 1):
                learner.gradients(train.batch(next(order)))
                learner.update(learning_rate(training, step))
            after = norms(learner, held, words.batches, size)
            print(line(experiment.variant, length, f"{words.steps} steps", after), flush=True)


if __name__ == "__main__":
    main()
