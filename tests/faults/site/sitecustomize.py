"""Faults of single runs of a real study: each variant meets one, in the process that trains it.

Python imports this file in every process of a test's command line, those of its workers included.
"""

import math
import os
import resource
import signal
import sys
from dataclasses import replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

# The step at which it happens.
STEP = 4


def _cuda_memory(_learner):
    import torch

    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _host_memory(_learner):
    import torch

    kept_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit_bytes = kept_bytes + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    torch.ones(2**32)


def _killed(_learner):
    os.kill(os.getpid(), signal.SIGKILL)


def _no_number(learner):
    loss = learner.training_loss
    learner.training_loss = lambda *arguments: loss(*arguments) * math.nan


def _full_disk(_learner):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


FAULTS = {
    "q=k,v": _cuda_memory,
    "q,k=v": _host_memory,
    "q=v,k": _killed,
    "q=k=v": _no_number,
    "q=k=x,v": _full_disk,
}


def _changed(run):
    """Give the module that runs an experiment a checkpoint after every step, and a fault."""
    train, kept = run.train, run.checkpoint_periodically

    def faulty(experiment, task, data, learner, report, trained, *rest):
        gradients = learner.gradients

        def watched(batch):
            # Whoever tries again meets it again.
            if trained.step + 1 == STEP and experiment.variant in FAULTS:
                FAULTS[experiment.variant](learner)
            return gradients(batch)

        learner.gradients = watched
        return train(experiment, task, data, learner, report, trained, *rest)

    def often(place, *rest):
        return kept(replace(place, every_s=0.0, share=math.inf), *rest)

    run.train, run.checkpoint_periodically = faulty, often


class _Changing(MetaPathFinder):
    """Finds one module, and changes it when it has been imported."""

    def find_spec(self, name, path, target=None):
        if name != "qkvbench.train.run":
            return None
        spec = PathFinder.find_spec(name, path, target)
        spec.loader = _Changed(spec.loader)
        return spec


class _Changed(Loader):
    def __init__(self, own):
        self.own = own

    def create_module(self, spec):
        return self.own.create_module(spec)

    def exec_module(self, module):
        self.own.exec_module(module)
        _changed(module)


sys.meta_path.insert(0, _Changing())
