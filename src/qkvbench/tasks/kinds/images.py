"""Classification of images: a sequence of square patches, one class for the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from qkvbench.data.batch import Predictions
from qkvbench.data.hub import HubData
from qkvbench.experiment import Training
from qkvbench.model import Encoder, Init, Learned, Pooling, Vectors, transformer
from qkvbench.tasks import Data, Metric, Task, accuracy, top
from qkvbench.tasks.kinds.augment import AugmentImages, augment_patches
from qkvbench.tasks.kinds.splits import save_splits, stratify

# With more classes than this, top-5 accuracy is a metric as well.
TOP = 5


@dataclass(frozen=True)
class Source:
    """Labelled images of `side` × `side` pixels with one or three `channels`.

    ``pooling`` is how the model reads the class; ``augment`` changes training images.
    """

    about: str
    tier: Literal["packaged", "hub", "own"]
    version: int
    model: str
    side: int
    channels: int
    patch: int
    classes: int
    chance: float
    training: Training
    load: Callable[[], Data]
    pooling: Pooling = "mean"
    augment: AugmentImages | None = None
    hub: HubData | None = None


def image_classification(source: Source) -> Task:
    """The task of naming the class of an image."""
    tokens = (source.side // source.patch) ** 2
    features = source.patch**2 * source.channels
    return Task(
        about=source.about,
        benchmark="imagenet",
        tier=source.tier,
        version=source.version,
        metric=Metric("accuracy", "share", "higher", chance=source.chance),
        tokens=tokens,
        model=transformer(
            source.model,
            Encoder(Vectors(features), source.classes, "the whole", pooling=source.pooling),
            layers=2,
            d_model=64,
            heads=4,
            position=Learned(tokens),
            init=Init(embedding_std=0.5, position_std=0.5),
        ),
        training=source.training,
        load=source.load,
        score=accuracy if source.classes <= TOP else _top_scores,
        augment=source.augment
        and partial(
            augment_patches, augment=source.augment, patch=source.patch, channels=source.channels
        ),
        hub=source.hub,
    )


def _top_scores(outcome: Predictions) -> dict[str, float]:
    """Accuracy, and how often the right class is among the `TOP` likeliest."""
    return accuracy(outcome) | {f"top_{TOP}": top(outcome, TOP)}


def prepare(
    pixels: UInt8[np.ndarray, "items side side channels"], labels: Sequence[int], folder: Path
) -> None:
    """Split distinct images by the hashes of their pixels, and save the splits."""
    parts = stratify([image.tobytes() for image in pixels], labels)
    targets = np.array(labels, np.int64)[:, None]
    save_splits(
        folder,
        {
            name: {"pixels": pixels[numbers], "targets": targets[numbers]}
            for name, numbers in parts.items()
        },
    )
