"""Odd-one-out detection: of ten images nine are of one class, one is of another.

The model reads ten vectors without an order, one for each image, and predicts a position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Num

from qkvbench.data.batch import Batch
from qkvbench.data.labelled_images import LabelledImages
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Encoder, Init, NoPosition, Vectors, transformer
from qkvbench.model.rng import generator
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks.kinds.splits import patchify, save_splits

# Images in a set.
SET = 10
# Sets drawn for each split.
SETS = {"train": 20_000, "validation": 1_000, "test": 2_000}


@dataclass(frozen=True, eq=False)
class Sets:
    """Sets of ten images, as indices into `vectors`, which has a row for each image."""

    vectors: Num[np.ndarray, "images features"]
    members: Int[np.ndarray, "sets ten"]
    targets: Int[np.ndarray, "sets one"]

    def __len__(self) -> int:
        """How many sets there are."""
        return len(self.members)

    def batch(self, indices: Int[np.ndarray, " items"]) -> Batch:
        """The sets with these numbers."""
        vectors = self.vectors[self.members[indices]]
        return Batch(_numbers(vectors), np.array(self.targets[indices]))

    def images(self) -> Float[np.ndarray, "images features"]:
        """Each image once, its patches one after the other."""
        return _numbers(self.vectors)

    def with_features(self, vectors: Float[np.ndarray, "images features"]) -> "Sets":
        """The same sets, with these vectors for the images."""
        return replace(self, vectors=vectors)


def _numbers(vectors: np.ndarray) -> np.ndarray:
    """Pixels as values in −1..1; features of a network unchanged."""
    if vectors.dtype == np.uint8:
        return (vectors / 127.5 - 1).astype(np.float32)
    return np.array(vectors)


def members(
    labels: Int[np.ndarray, " images"], count: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "sets ten"], Int[np.ndarray, "sets one"]]:
    """Distinct sets: the numbers of their images, and the position of the odd one in each.

    Both classes are drawn uniformly; no image is twice in a set.
    """
    kinds = np.unique(labels)
    of = {kind: np.flatnonzero(labels == kind) for kind in kinds.tolist()}
    found: dict[frozenset[int], tuple[list[int], int]] = {}
    while len(found) < count:
        usual, odd = rng.choice(kinds, 2, replace=False).tolist()
        images = rng.choice(of[usual], SET, replace=False)
        place = int(rng.integers(SET))
        images[place] = rng.choice(of[odd])
        found.setdefault(frozenset(images.tolist()), (images.tolist(), place))
    numbers, places = zip(*found.values(), strict=True)
    return np.array(numbers, np.int32), np.array(places, np.int64)[:, None]


def odd_one(
    *,
    about: str,
    version: int,
    model: str,
    features: int,
    training: Training,
    load: Callable[[], Data],
    feature_extractor: Experiment | None = None,
) -> Task:
    """The task of predicting the position of the odd one, from `features` numbers per image."""
    return Task(
        about=about,
        benchmark="anomaly",
        tier="packaged",
        version=version,
        metric=Metric("accuracy", "share", "higher", chance=1 / SET),
        tokens=SET,
        model=transformer(
            model,
            Encoder(Vectors(features), SET, "which position"),
            layers=2,
            d_model=64,
            heads=4,
            position=NoPosition(),
            init=Init(embedding_std=0.5, position_std=0.5),
        ),
        training=training,
        load=load,
        score=accuracy,
        feature_extractor=feature_extractor,
    )


def prepare(name: str, patch: int, splits: Mapping[str, LabelledImages], folder: Path) -> None:
    """Draw sets from the images of each split, and save both."""
    arrays = {}
    for split, images in splits.items():
        rng = generator(0, "task", f"{name} {split}")
        numbers, places = members(images.labels, SETS[split], rng)
        arrays[split] = {
            "vectors": patchify(images.pixels, patch).reshape(len(images.labels), -1),
            "members": numbers,
            "targets": places,
        }
    save_splits(folder, arrays)
