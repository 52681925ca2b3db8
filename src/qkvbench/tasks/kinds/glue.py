"""GLUE (arXiv:1804.07461): one or two sentences and a class, with the metrics of the benchmark.

The labels of the published test splits are not public: what is scored is the published validation
split, as is usual, and what runs on the way is a part of the training split. A task without
pre-training says little; `--init-from masked-reviews` begins with an encoder that had some, and the
tokenizer is the one of the film reviews, so that both have the same tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from qkvbench.data.batch import IGNORE_INDEX, Predictions
from qkvbench.data.cache import prepare_once
from qkvbench.data.hub import HubData
from qkvbench.data.hub_rows import rows
from qkvbench.data.tokenizer import Fitted, Tokenizer
from qkvbench.experiment import Training
from qkvbench.tasks import Metric, Task, accuracy
from qkvbench.tasks.kinds.reviews import BYTE_PAIRS, read_length, review_tokenizer
from qkvbench.tasks.kinds.splits import VALIDATION, save_splits
from qkvbench.tasks.kinds.texts import Source, folder_name, pad, text_classification

REPOSITORY = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
# The share of the training split that is scored on the way, if that is not more than VALIDATION.
HELD_OUT = 0.1
# arXiv:1910.10683, section 2.4: similarities in steps of a fifth are classes.
STEP = 0.2
Score = Callable[[Predictions], dict[str, float]]


@dataclass(frozen=True)
class Glue:
    """A task of GLUE: its name and configuration, the columns of its texts, its score.

    ``rows`` are those of all its splits, as the card's viewer states them. ``scored`` is the
    published split whose labels are public. ``number`` gives the class of a label.
    """

    about: str
    name: str
    config: str
    texts: tuple[str, ...]
    classes: int
    metric: Metric
    score: Score
    training: Training
    rows: int
    length: int = 128
    scored: str = "validation"
    number: Callable[[Any], int] = int

    @property
    def data(self) -> HubData:
        """The two splits that are read."""
        files = {name: f"{self.config}/{name}-*.parquet" for name in ("train", self.scored)}
        return HubData(
            repository=REPOSITORY,
            revision=REVISION,
            files=files,
            columns=(*self.texts, "label"),
            # Tokens in 16 bits, a class and a length.
            prepared_bytes=self.rows * (2 * self.length + 16),
            licence="other: those of the nine collections",
        )


def glue(task: Glue, tokenizer: Tokenizer = BYTE_PAIRS) -> Task:
    """The task as published, read with these tokens."""
    length = read_length(task.length, tokenizer)
    source = Source(
        about=f"{task.about} (GLUE's {task.name}; not yet run on the real data).",
        tier="hub",
        benchmark="glue",
        version=1,
        model="glue",
        classes=task.classes,
        chance=task.metric.chance,
        length=length,
        training=task.training,
        folder=partial(splits_folder, task, length),
        hub=task.data,
    )
    return replace(
        text_classification(source, tokenizer),
        metric=task.metric,
        score=task.score,
        with_tokenizer=partial(glue, task),
    )


def splits_folder(task: Glue, length: int, tokenizer: Tokenizer) -> Path:
    """The folder of the prepared splits, made on first use."""
    name = folder_name(f"glue-{task.config}-{task.scored}-{REVISION[:8]}", tokenizer, length)
    return prepare_once(name, lambda: review_tokenizer(tokenizer), partial(_prepare, task, length))


def _prepare(task: Glue, length: int, tokens: Fitted, folder: Path) -> None:
    labelled = {
        split: [_example(task, row) for row in rows(task.data, split)] for split in task.data.files
    }
    ordered = sorted(labelled["train"], key=_place)
    held_out = min(VALIDATION, int(HELD_OUT * len(ordered)))
    parts = {
        "train": ordered[held_out:],
        "validation": ordered[:held_out],
        "test": labelled[task.scored],
    }
    save_splits(folder, {name: _arrays(part, tokens, length) for name, part in parts.items()})


def _place(example: tuple[tuple[str, ...], int]) -> bytes:
    """A hash of the texts: any prefix of examples in its order is a fair sample."""
    return sha256("\0".join(example[0]).encode()).digest()


def _example(task: Glue, row: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    return tuple(" ".join(row[name].split()) for name in task.texts), task.number(row["label"])


def _arrays(
    examples: Sequence[tuple[tuple[str, ...], int]], tokens: Fitted, length: int
) -> dict[str, np.ndarray]:
    count = len(examples[0][0]) if examples else 0
    parts = [list(tokens.encode(texts[place] for texts, _ in examples)) for place in range(count)]
    joined = [join(each, tokens.separator, length) for each in zip(*parts, strict=True)]
    inputs, lengths = pad(joined, tokens.separator, length)
    targets = np.array([label for _, label in examples], np.int64)[:, None]
    return {"inputs": inputs, "targets": targets, "lengths": lengths}


def join(
    texts: Sequence[Integer[np.ndarray, " _tokens"]], separator: int, length: int
) -> Integer[np.ndarray, " tokens"]:
    """The texts with a separator between two; of two that are too long the longer one is cut."""
    match texts:
        case [only]:
            return only[:length]
        case [one, two]:
            room = length - 1
            first = max(min(len(one), room - len(two)), min(len(one), room // 2))
            second = two[: room - first]
            return np.concatenate([one[:first], np.array([separator], one.dtype), second])
        case _:
            raise ValueError(f"A task of GLUE has one text or two, not {len(texts)}.")


def in_steps(similarity: float) -> int:
    """The class of a similarity from 0 to 5."""
    return round(float(similarity) / STEP)


def matthews(outcome: Predictions) -> dict[str, float]:
    """Matthews's correlation of predicted and right classes, and `accuracy`.

    It is 0 if every prediction is the same, or every right class.
    """
    predicted, right = _classes(outcome)
    found = 0.0
    if _vary(predicted, right):
        # Imported here: tasks are listed without it.
        from sklearn.metrics import matthews_corrcoef

        found = float(matthews_corrcoef(right, predicted))
    return {"matthews": found, **accuracy(outcome)}


def f1(outcome: Predictions) -> dict[str, float]:
    """F1 of class 1 (a paraphrase, the same question), and `accuracy`.

    Not scikit-learn's: a score is asked of each item alone, too, and a call there takes longer.
    """
    predicted, right = _classes(outcome)
    both = int(np.sum((predicted == 1) & (right == 1)))
    either = int(np.sum(predicted == 1) + np.sum(right == 1))
    return {"f1": 2 * both / either if either else 0.0, **accuracy(outcome)}


def correlations(outcome: Predictions) -> dict[str, float]:
    """Pearson's and Spearman's correlation of predicted and right similarities, and the loss.

    Both are 0 if every prediction is the same.
    """
    predicted, right = _classes(outcome)
    found = (0.0, 0.0)
    if _vary(predicted, right):
        from scipy.stats import pearsonr, spearmanr

        found = (pearsonr(predicted, right)[0], spearmanr(predicted, right)[0])
    return {"pearson": float(found[0]), "spearman": float(found[1]), **accuracy(outcome)}


def _vary(*values: np.ndarray) -> bool:
    """Whether each array has two different numbers, without which there is no correlation."""
    return all(each.size > 0 and bool(np.any(each != each[0])) for each in values)


def _classes(outcome: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the right class of each item."""
    scored = outcome.targets != IGNORE_INDEX
    return outcome.predicted[scored], outcome.targets[scored]
