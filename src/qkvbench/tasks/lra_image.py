"""Name one of ten things from 1,024 grey pixels in a row: the Image task of Long Range Arena.

CIFAR-10 (Krizhevsky 2009) in its published splits, in grey. arXiv:2011.04006.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from qkvbench.data.cache import keep, lookup
from qkvbench.data.hub import HubData
from qkvbench.data.hub_images import save_images
from qkvbench.data.hub_rows import rows
from qkvbench.experiment import Training
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.images import Source, image_classification
from qkvbench.tasks.kinds.splits import PatchedImages, load_splits
from qkvbench.tasks.long_pixels import TASK as LONG_PIXELS

SIDE = 32
CLASSES = 10
# The last training images are scored on the way, as published.
TRAIN = 45_000
# Columns of the card: img (bytes, path), label.
CIFAR_10 = HubData(
    repository="uoft-cs/cifar10",
    revision="0b2714987fa478483af9968de7c934580d0bb9a2",
    files={split: f"plain_text/{split}-*.parquet" for split in ("train", "test")},
    columns=("img", "label"),
    prepared_bytes=60_000 * (SIDE**2 + 8),
    licence="not stated",
)


def load() -> Data:
    """The splits, prepared on first use."""
    name = f"lra-image-{CIFAR_10.revision[:8]}-1"
    folder = lookup(name) or keep(name, _prepare)
    return load_splits(folder, partial(PatchedImages, patch=1))


def _prepare(folder: Path) -> None:
    save_images(_examples(), ("train", "validation", "test"), folder, side=SIDE, mode="L")


def _examples() -> Iterator[tuple[str, bytes, int]]:
    """The split, the file and the class of each image."""
    for published in CIFAR_10.files:
        for number, row in enumerate(rows(CIFAR_10, published, image="img")):
            last = published == "train" and number >= TRAIN
            yield "validation" if last else published, row["img"]["bytes"], row["label"]


IN_PIXELS = image_classification(
    Source(
        about="Name a thing from 1,024 grey pixels in a row (LRA; not yet run on the real data).",
        tier="hub",
        version=1,
        model="lra-image",
        side=SIDE,
        channels=1,
        patch=1,
        classes=CLASSES,
        chance=1 / CLASSES,
        training=Training(steps=35_000, batch=256, learning_rate=1e-3, warmup=1000, evaluations=10),
        load=load,
        hub=CIFAR_10,
    )
)
TASK = replace(
    IN_PIXELS,
    benchmark="long",
    # As of `long-pixels`: one grey value says little.
    model=replace(IN_PIXELS.model, init=LONG_PIXELS.model.init),
)
