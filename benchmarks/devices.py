"""A training step over two processes of one thread, and by one process of two threads.

    python benchmarks/devices.py [--steps N]

Prints for each: the median time of a step, what the process holds of weights and moments, and how
much its memory had grown at the most (the system's own count). The model is the small decoder, on
random tokens.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import product

import numpy as np

from qkvbench.backends import torch as backend
from qkvbench.backends.torch.training.parallel import local_shard
from qkvbench.data.batch import Batch
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Decoder, Init, Rotary, transformer
from qkvbench.task_ref import TaskRef

WARM_UP = 3
LAYOUTS = [("one process, 2 threads", 1, "ddp", 2), ("one process, 1 thread", 1, "ddp", 1)]
LAYOUTS += [(f"2 processes by {sharding}", 2, sharding, 1) for sharding in ("ddp", "fsdp")]


def stepped(devices: int, sharding: str, threads: int, steps: int) -> dict[str, float]:
    """What this process observes of so many steps."""
    model = transformer(
        "decoder",
        Decoder(256),
        layers=6,
        d_model=384,
        heads=6,
        position=Rotary(),
        init=Init(embedding_std=0.5, position_std=0.5),
    )
    training = Training(steps=steps, batch=8, learning_rate=1e-3, warmup=1)
    experiment = Experiment(
        model,
        TaskRef("none"),
        1,
        training,
        seed=0,
        threads=threads,
        devices=devices,
        sharding=sharding,
    )
    backend.prepare(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    learner = backend.Learner(experiment)
    rng = np.random.default_rng(0)
    times = []
    for _ in range(WARM_UP + steps):
        tokens = rng.integers(0, 256, (8, 257))
        began = time.perf_counter()
        learner.gradients(Batch(tokens[:, :-1], tokens[:, 1:]))
        learner.update(1e-3)
        times.append(time.perf_counter() - began)
    tensors = learner.training_state.live_tensors().values()
    kept = sum(local_shard(tensor).nbytes for tensor in tensors)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    step_s = statistics.median(times[WARM_UP:])
    return {"step_s": step_s, "held_bytes": kept, "grown_bytes": grown * 1024}


def observed(devices: int, sharding: str, threads: int, steps: int) -> dict[str, float]:
    """The same, of the first of fresh processes."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    words = [__file__, "--here", str(devices), sharding, str(threads), "--steps", str(steps)]
    told = subprocess.run(
        [sys.executable, *(start if devices > 1 else []), *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    return json.loads(told.stdout.strip().splitlines()[-1])


def main() -> None:
    """Observe all layouts, in turn, twice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--here", nargs=3)
    asked = parser.parse_args()
    if asked.here:
        devices, sharding, threads = asked.here
        told = stepped(int(devices), sharding, int(threads), asked.steps)
        if backend.rank_and_world_size()[0] == 0:
            print(json.dumps(told))
        return
    for _, (name, *layout) in product(range(2), LAYOUTS):
        told = observed(*layout, asked.steps)
        print(
            f"{name:24} {told['step_s'] * 1e3:8.1f} ms a step   held "
            f"{told['held_bytes'] / 1e6:7.2f} MB   grown {told['grown_bytes'] / 1e6:7.1f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
