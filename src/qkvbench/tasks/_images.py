"""Classification of images: square patches in a row, one class for the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from qkvbench.experiment import Training
from qkvbench.model import Encoder, Learned, Start, Vectors, transformer
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks._splits import save, stratified


@dataclass(frozen=True)
class Source:
    """Labelled images of `side` × `side` pixels with one or three `channels`."""

    about: str
    tier: Literal["packaged", "own"]
    version: int
    model: str
    side: int
    channels: int
    patch: int
    classes: int
    chance: float
    training: Training
    load: Callable[[], Data]


def image_classification(source: Source) -> Task:
    """The task of naming the class of an image."""
    tokens = (source.side // source.patch) ** 2
    return Task(
        about=source.about,
        benchmark="imagenet",
        tier=source.tier,
        version=source.version,
        metric=Metric("accuracy", "share", "higher", chance=source.chance),
        tokens=tokens,
        model=transformer(
            source.model,
            Encoder(Vectors(source.patch**2 * source.channels), source.classes, "the whole"),
            layers=2,
            d_model=64,
            heads=4,
            position=Learned(tokens),
            start=Start(table=0.5, position=0.5),
        ),
        training=source.training,
        load=source.load,
        score=accuracy,
    )


def prepare(
    pixels: UInt8[np.ndarray, "items side side channels"], labels: Sequence[int], folder: Path
) -> None:
    """Split different images by the hashes of their pixels, and keep the splits."""
    parts = stratified([image.tobytes() for image in pixels], labels)
    targets = np.array(labels, np.int64)[:, None]
    save(
        folder,
        {
            name: {"pixels": pixels[numbers], "targets": targets[numbers]}
            for name, numbers in parts.items()
        },
    )
