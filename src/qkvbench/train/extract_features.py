"""Inputs as features of a frozen network that another experiment has trained."""

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
from qkvbench.train.artifacts import require_weights

# Pictures in a batch of the feature extractor.
BATCH = 1024


class FeatureExtractorError(Exception):
    """A task and an experiment's feature extractor do not fit. The message says why."""


def check_extractor(task: Task, experiment: Experiment) -> None:
    """Raise if a task needs a feature extractor and the experiment has none, or vice versa."""
    if task.feature_extractor is not None and experiment.feature_extractor is None:
        raise FeatureExtractorError(
            f"{experiment.task} reads features of a network that another experiment has trained; "
            "give the experiment the task's own: feature_extractor=task.feature_extractor."
        )
    if task.feature_extractor is None and experiment.feature_extractor is not None:
        raise FeatureExtractorError(
            f"{experiment.task} has no feature extractor; leave out the experiment's "
            "feature_extractor."
        )


def with_features(data: Data, extractor: Experiment) -> Data:
    """The data with features of the trained `extractor` as inputs; the features are cached.

    MissingWeightsError if the extractor is not trained, DataUnavailableError if the cache cannot be
    written.
    """
    name = f"features-{extractor.id}-{data.identity[:16]}"
    splits: dict[str, Split] = {
        "train": data.train,
        "validation": data.validation,
        "test": data.test,
    }
    with alone(name):
        folder = lookup(name)
        if folder is None:
            network = _trained_network(extractor)
            features = {
                split: _features(each, extractor, network) for split, each in splits.items()
            }

            def write(making: Path) -> None:
                for split, vectors in features.items():
                    np.save(making / f"{split}.npy", vectors)

            folder = keep(name, write)
    vectors = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in splits}
    extracted = {
        split: _pictures(each).with_features(vectors[split]) for split, each in splits.items()
    }
    return replace(data, **extracted, identity=identity_of(folder))


def _trained_network(extractor: Experiment) -> Learner:
    """A learner with the final weights of an experiment, all of them."""
    weights = require_weights(extractor)
    backend = find(extractor.backend)
    backend.prepare(extractor.threads)
    network = backend.Learner(extractor)
    loaded = network.load_matching(weights)
    assert set(loaded) == set(network.weights())
    return network


def _features(
    split: Split, extractor: Experiment, network: Learner
) -> Float[np.ndarray, "pictures features"]:
    """The input of the network's head for each picture."""
    inputs = extractor.model.inputs
    assert isinstance(inputs, Vectors)
    pictures = _pictures(split).images()
    patches = pictures.reshape(
        len(pictures), -1, inputs.features
    )  # (pictures, positions, features)
    no_targets = np.zeros((len(pictures), 1), np.int64)
    parts = [
        network.features(Batch(patches[first : first + BATCH], no_targets[first : first + BATCH]))
        for first in range(0, len(patches), BATCH)
    ]
    return np.concatenate(parts).reshape(len(pictures), -1)


def _pictures(split: Split) -> ImageSplit:
    assert isinstance(split, ImageSplit)
    return split
