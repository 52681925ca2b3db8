"""Evaluate nested lists of digits: the ListOps task of Long Range Arena. arXiv:2011.04006.

Trees are drawn by the published procedure (arXiv:1804.06028) with the sizes of Long Range Arena, so
nothing is fetched: a node is a list with probability 1/4, of 2 to 10 parts, to a depth of 10, and
expressions of more than 500 and fewer than 2,000 tokens are kept. The numbers are drawn by this
bench's own generator, so the expressions are not those of the published files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from qkvbench.data.cache import keep, lookup
from qkvbench.experiment import Training
from qkvbench.model import Encoder, Init, Learned, Tokens, transformer
from qkvbench.model.rng import generator
from qkvbench.tasks import Data, Metric, Task, accuracy
from qkvbench.tasks.kinds.splits import load_splits, save_splits

DIGITS = 10
LIST_SHARE = 0.25
MOST_PARTS = 10
DEPTH = 10
SHORTER, LONGER = 2000, 500
COUNTS = {"test": 2000, "validation": 2000, "train": 96_000}
# What a list means; its tokens are behind the ten digits, and the last one ends a list.
OPERATORS: Mapping[str, Callable[[Sequence[int]], int]] = {
    "MIN": min,
    "MAX": max,
    "MED": lambda parts: int(median(parts)),
    "SM": lambda parts: sum(parts) % DIGITS,
}
END = DIGITS + len(OPERATORS)
PADDING = END + 1


def expression(rng: np.random.Generator, longer: int, shorter: int) -> tuple[list[int], int]:
    """The tokens of an expression of more than `longer` and less than `shorter`, and its value."""
    draws = _Draws(rng)
    while True:
        tokens: list[int] = []
        value = _draw(draws, 1, tokens, shorter)
        if longer < len(tokens) < shorter:
            return tokens, value


class _Draws:
    """Random numbers, many drawn at a time: one by one takes most of the time."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.left: Iterator[float] = iter(())

    def below(self, count: int) -> int:
        """A number from 0 to below `count`."""
        return int(self.share() * count)

    def share(self) -> float:
        """A number from 0 to below 1."""
        for found in self.left:
            return found
        self.left = iter(self.rng.random(4096).tolist())
        return next(self.left)


def _draw(draws: _Draws, depth: int, tokens: list[int], shorter: int) -> int:
    """The value of a node, whose tokens are appended; it is cut short if it becomes too long."""
    if depth >= DEPTH or draws.share() > LIST_SHARE:
        value = draws.below(DIGITS)
        tokens.append(value)
        return value
    operator = draws.below(len(OPERATORS))
    tokens.append(DIGITS + operator)
    parts = [
        _draw(draws, depth + 1, tokens, shorter)
        for _ in range(2 + draws.below(MOST_PARTS - 1))
        if len(tokens) < shorter
    ]
    tokens.append(END)
    return list(OPERATORS.values())[operator](parts or [0])


def load() -> Data:
    """Distinct expressions, drawn on first use in some minutes."""
    name = "lra-listops-1"
    return load_splits(lookup(name) or keep(name, partial(prepare, COUNTS)))


def prepare(counts: Mapping[str, int], folder: Path) -> None:
    """Draw and save so many expressions for each split."""
    rng, seen = generator(0, "task", "lra-listops"), set[bytes]()
    splits: dict[str, dict[str, np.ndarray]] = {}
    for split, count in counts.items():
        inputs = np.full((count, SHORTER), PADDING, np.uint16)
        targets = np.empty((count, 1), np.int64)
        lengths = np.empty(count, np.int64)
        for row in range(count):
            while (found := expression(rng, LONGER, SHORTER)) and bytes(found[0]) in seen:
                continue
            tokens, targets[row, 0] = found
            seen.add(bytes(tokens))
            inputs[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
        splits[split] = {"inputs": inputs, "targets": targets, "lengths": lengths}
    save_splits(folder, splits)


TASK = Task(
    about="Evaluate a nested list of 500 to 2,000 tokens (Long Range Arena, drawn here).",
    benchmark="long",
    tier="built-in",
    version=1,
    metric=Metric("accuracy", "share", "higher", chance=1 / DIGITS),
    tokens=SHORTER,
    model=transformer(
        "lra-listops",
        Encoder(Tokens(PADDING + 1), DIGITS, "the whole"),
        layers=2,
        d_model=64,
        heads=4,
        position=Learned(SHORTER),
        init=Init(embedding_std=0.5, position_std=0.5),
    ),
    training=Training(steps=5000, batch=32, learning_rate=1e-3, warmup=1000, evaluations=10),
    load=load,
    score=accuracy,
)
