"""A classification task from a table: of texts, or of rows of numbers."""

import json
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Float

from qkvbench.data import own
from qkvbench.data.cache import keep, lookup
from qkvbench.data.tokenizer import Bytes, Tokenizer
from qkvbench.model import Encoder, Init, Learned, Vectors, transformer
from qkvbench.tasks import Metric, Task, accuracy
from qkvbench.tasks.kinds.splits import load_splits, save_splits, stratify
from qkvbench.tasks.kinds.texts import Source, folder_name, prepare, text_classification
from qkvbench.tasks.own.content import CLASSIFYING, CLASSIFYING_TEXT, Content, most_frequent

DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Tokens of a text that are read at most.
MAX_LENGTH = 256


def table_task(path: Path) -> Task:
    """Name the class of a row."""
    name = own.shown(str(path))
    found = own.content(path, own.TABLE_BYTES)
    delimiter = DELIMITERS[path.suffix.lower()]
    content = Content(f"table {delimiter}", sha256(found).hexdigest())
    folder = content.prepared(partial(_make, name, found, delimiter))
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    if texts:
        return _of_texts(name, content, [(text, label) for text, label in texts], Bytes())
    return _of_numbers(name, content, folder)


def _make(name: str, found: bytes, delimiter: str, folder: Path) -> None:
    table = own.table(name, found, delimiter)
    # No tokenizer reads fewer bytes of a text than one of bytes, so what is equal in these is the
    # same example to all.
    contents = [
        row.encode()[:MAX_LENGTH] if isinstance(row, str) else row.tobytes()
        for row in table.examples
    ]
    cut = any(isinstance(row, str) and len(row.encode()) > MAX_LENGTH for row in table.examples)
    read = f" in the {MAX_LENGTH} bytes of a text that are read" if cut else ""
    right = own.number_labels(name, contents, table.labels, table.places, read)
    texts: list[tuple[object, int]] = []
    if isinstance(table.examples, list):
        kept_texts = [table.examples[number] for number in right.kept]
        texts = list(zip(kept_texts, right.labels, strict=True))
    else:
        _save_numbers(table.examples[right.kept], right.labels, folder)
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")


def _save_numbers(
    numbers: Float[np.ndarray, "rows columns"], labels: list[int], folder: Path
) -> None:
    """Save rows as sequences of numbers, standardized by the rows of the training split."""
    parts = stratify([row.tobytes() for row in numbers], labels)
    training = numbers[parts["train"]]
    middle, spread = training.mean(axis=0), training.std(axis=0)
    # A column that is constant in training, but for rounding, is not scaled.
    standard = (numbers - middle) / np.where(spread > 1e-12 * abs(middle), spread, 1)
    targets = np.array(labels, np.int64)[:, None]
    save_splits(
        folder,
        {
            split: {
                "inputs": standard[rows, :, None].astype(np.float32),
                "targets": targets[rows],
            }
            for split, rows in parts.items()
        },
    )


def _of_numbers(name: str, content: Content, folder: Path) -> Task:
    columns = np.load(folder / "train.inputs.npy", mmap_mode="r").shape[1]
    classes = 1 + int(np.load(folder / "train.targets.npy").max())
    return Task(
        about=f"Name the class of a row of {name}: {classes} classes, {columns} numbers.",
        benchmark="own",
        tier="own",
        version=content.version,
        metric=Metric("accuracy", "share", "higher", chance=most_frequent(folder)),
        tokens=columns,
        model=transformer(
            "own-rows",
            Encoder(Vectors(1), classes, "the whole"),
            layers=2,
            d_model=64,
            heads=4,
            position=Learned(columns),
            init=Init(embedding_std=0.5, position_std=0.5),
        ),
        training=CLASSIFYING,
        load=partial(load_splits, folder),
        score=accuracy,
    )


def _of_texts(
    name: str, content: Content, texts: list[tuple[str, int]], tokenizer: Tokenizer
) -> Task:
    """The task; a training split too small for the vocabulary is refused before it runs."""

    def splits_folder(read: Tokenizer) -> Path:
        def make(folder: Path) -> None:
            words, labels = zip(*texts, strict=True)
            prepare(words, labels, read, lambda most: min(most, MAX_LENGTH), folder)

        key = folder_name(content.key, read, MAX_LENGTH)
        return lookup(key) or keep(key, make)

    folder = splits_folder(tokenizer)
    classes = 1 + max(label for _, label in texts)
    source = Source(
        about=f"Name the class of a text of {name}: {classes} classes.",
        tier="own",
        benchmark="own",
        version=content.version,
        model="own-labelled-text",
        classes=classes,
        chance=most_frequent(folder),
        length=np.load(folder / "test.inputs.npy", mmap_mode="r").shape[1],
        training=CLASSIFYING_TEXT,
        folder=splits_folder,
    )
    again = partial(_of_texts, name, content, texts)
    return replace(text_classification(source, tokenizer), with_tokenizer=again)
