"""Inputs as the network of another experiment sees them, which has ended and learns no more."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from qkvbench.backends import Learner, find
from qkvbench.data.batch import Batch, ImageSplit, Split
from qkvbench.data.cache import alone, identity_of, keep, lookup
from qkvbench.experiment import Experiment
from qkvbench.model import Vectors
from qkvbench.tasks import Data, Task

# Pictures that a network looks at at a time.
AT_ONCE = 1024


class NotSeenError(Exception):
    """A task and what its inputs are to be seen through do not fit. The message says why."""


def checked(task: Task, experiment: Experiment) -> None:
    """Refuse to go on where a task is seen through a network and none is named, or otherwise."""
    if task.feature_extractor is not None and experiment.feature_extractor is None:
        raise NotSeenError(
            f"{experiment.task} is seen through a network that another experiment has trained; "
            "give the experiment the task's own: seen_through=task.seen_through."
        )
    if task.feature_extractor is None and experiment.feature_extractor is not None:
        raise NotSeenError(
            f"{experiment.task} is seen as it is; leave out the experiment's seen_through."
        )


def seen(data: Data, through: Experiment, weights: Callable[[], Path]) -> Data:
    """The data as they are seen with the `weights` that `through` ended with; kept in the cache.

    Raises DataUnavailableError where the cache cannot be written.
    """
    name = f"seen-{through.id}-{data.identity[:16]}"
    splits: dict[str, Split] = {
        "train": data.train,
        "validation": data.validation,
        "test": data.test,
    }
    with alone(name):
        folder = lookup(name)
        if folder is None:
            network = _network(through, weights())
            found = {split: _looked(each, through, network) for split, each in splits.items()}

            def make(making: Path) -> None:
                for split, vectors in found.items():
                    np.save(making / f"{split}.npy", vectors)

            folder = keep(name, make)
    vectors = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in splits}
    again = {split: _pictured(each).with_features(vectors[split]) for split, each in splits.items()}
    return replace(data, **again, identity=identity_of(folder))


def _network(through: Experiment, weights: Path) -> Learner:
    """The network of an experiment with all the weights that it ended with."""
    backend = find(through.backend)
    backend.prepare(through.threads)
    network = backend.Learner(through)
    taken = network.load_matching(weights)
    assert set(taken) == set(network.weights())
    return network


def _looked(
    split: Split, through: Experiment, network: Learner
) -> Float[np.ndarray, "pictures features"]:
    """What the network's head would read of each picture."""
    inputs = through.model.inputs
    assert isinstance(inputs, Vectors)
    pictures = _pictured(split).images()
    cut = pictures.reshape(len(pictures), -1, inputs.features)
    none = np.zeros((len(pictures), 1), np.int64)
    parts = [
        network.features(Batch(cut[first : first + AT_ONCE], none[first : first + AT_ONCE]))
        for first in range(0, len(cut), AT_ONCE)
    ]
    return np.concatenate(parts).reshape(len(pictures), -1)


def _pictured(split: Split) -> ImageSplit:
    assert isinstance(split, ImageSplit)
    return split
