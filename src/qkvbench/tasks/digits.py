"""Handwritten digits, 8 by 8, that come with scikit-learn: an image is 16 patches of 2 by 2."""

import gzip
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from qkvbench.experiment import Training
from qkvbench.model import Encoder, Init, Learned, Vectors, transformer
from qkvbench.model.rng import generator
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks.kinds.splits import split_in_order

CLASSES = 10
SIDE = 8
PATCH = 2
PATCHES = (SIDE // PATCH) ** 2
MAX_GREY = 16.0


def load() -> Data:
    """The distinct images, in a fixed order: any prefix is balanced over the classes."""
    # Read, not imported: scikit-learn takes a second to import, in each run's process.
    path = Path(
        str(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz"))
    )
    with gzip.open(path, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
    _, first = np.unique(pixels, axis=0, return_index=True)
    first = generator(0, "task", "digits").permutation(first)
    pixels, labels = pixels[first], labels[first].astype(np.int64)
    order = np.argsort(_rank_in_class(labels), kind="stable")
    return split_in_order(_patches(pixels[order]), labels[order, None], validation=200, test=500)


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    ranks = np.empty_like(labels)
    for label in range(CLASSES):
        ranks[labels == label] = np.arange(np.sum(labels == label))
    return ranks


def _patches(pixels: np.ndarray) -> np.ndarray:
    cut = pixels.reshape(-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).transpose(0, 1, 3, 2, 4)
    patches = cut.reshape(len(pixels), PATCHES, PATCH**2)
    return (2 * patches / MAX_GREY - 1).astype(np.float32)


TASK = Task(
    about="Name a handwritten digit from its 16 patches (scikit-learn's digits).",
    benchmark="imagenet",
    tier="built-in",
    version=1,
    metric=Metric("accuracy", "share", "higher", chance=1 / CLASSES),
    tokens=PATCHES,
    model=transformer(
        "digits",
        Encoder(Vectors(PATCH**2), CLASSES, "the whole"),
        layers=2,
        d_model=64,
        heads=4,
        position=Learned(PATCHES),
        init=Init(embedding_std=0.5, position_std=0.5),
    ),
    training=Training(steps=600, batch=32, learning_rate=2e-3, warmup=60),
    load=load,
    score=accuracy,
)
