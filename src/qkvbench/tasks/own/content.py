"""The identity of a person's own data, and their folder in the cache."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from qkvbench.data.cache import keep, lookup
from qkvbench.experiment import Training

# Raised with every change to what is prepared from the same bytes.
PREPARATION = 3
CLASSIFYING = Training(steps=600, batch=32, learning_rate=2e-3, warmup=60)
CLASSIFYING_TEXT = Training(steps=600, batch=32, learning_rate=3e-3, warmup=60, evaluations=5)


@dataclass(frozen=True)
class Content:
    """The hash of the bytes that were read, and the kind of task that is made from them."""

    kind: str
    digest: str

    @property
    def key(self) -> str:
        """The name of the prepared content in the cache."""
        mark = sha256(f"{PREPARATION} {self.kind} {self.digest}".encode()).hexdigest()
        return f"own-{mark[:24]}"

    @property
    def version(self) -> int:
        """The version of the task: other content has another. JSON keeps 48 bits exactly."""
        return int(self.key.removeprefix("own-")[:12], 16)

    def prepared(self, make: Callable[[Path], None]) -> Path:
        """The folder in the cache, filled by `make` on first use."""
        return lookup(self.key) or keep(self.key, make)


def most_frequent(folder: Path) -> float:
    """The accuracy on the prepared test split of always predicting its majority class."""
    targets = np.load(folder / "test.targets.npy")
    return float(np.bincount(targets.ravel()).max() / targets.size)
