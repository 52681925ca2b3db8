"""A language model's task from a text or from JSON lines."""

from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from qkvbench.data import own
from qkvbench.data.cache import identity_of
from qkvbench.data.documents import pack
from qkvbench.data.streams import SPLITS, Streams, byte_streams
from qkvbench.data.tokenizer import Bytes, Tokenizer
from qkvbench.tasks import Task
from qkvbench.tasks.kinds.language import Source, language_model, load
from qkvbench.tasks.own.content import Content

JSON_LINES = (".jsonl", ".ndjson")
# Epochs at most, unless that would be fewer than MIN_STEPS steps. With 25 kB and 25 epochs:
# 3.0 bits per byte of validation text after 7 epochs, 4.8 at the end.
EPOCHS = 8
MIN_STEPS = 50
# Own texts are small as a rule, so a larger share is held out than of a large collection.
SHARES = {"test": 0.10, "validation": 0.10, "train": 0.80}


def text_task(path: Path) -> Task:
    """Predict the next token of the documents in a file."""
    name = own.shown(str(path))
    found = own.content(path, own.TEXT_BYTES)
    lines = path.suffix.lower() in JSON_LINES
    content = Content("JSON lines" if lines else "text", sha256(found).hexdigest())

    def make(folder: Path) -> None:
        documents = (own.json_documents if lines else own.text_documents)(name, found)
        # A document and the same one with a blank at its end are one.
        distinct = {document.strip(): document for document in reversed(documents)}
        distinct.pop(b"", None)
        for split, stream in pack(distinct.values(), SHARES).items():
            np.save(folder / f"{split}.npy", np.frombuffer(stream, np.uint8))

    folder = content.prepared(make)
    source = Source(
        about=f"Predict the next token of {name}.",
        tier="own",
        version=content.version,
        model="own-text",
        read=partial(_streams, folder),
    )
    return _checked_task(source, Bytes())


def _checked_task(source: Source, tokenizer: Tokenizer) -> Task:
    """The task; a text too short for its splits or vocabulary is refused before anything runs."""
    windows = len(load(source, tokenizer).train)
    task = language_model(source, tokenizer)
    usual = task.training
    steps = min(usual.steps, max(MIN_STEPS, EPOCHS * windows // usual.batch))
    training = replace(usual, steps=steps, warmup=min(usual.warmup, steps // 5))
    return replace(task, training=training, with_tokenizer=partial(_checked_task, source))


def _streams(folder: Path) -> Streams:
    parts = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    return byte_streams(parts, identity_of(folder))
