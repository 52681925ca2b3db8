"""Small files of each kind that a person may bring, for tests."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(5)
WORDS = ["film", "plot", "actor", "café", "scene", "very", "good", "dull", "long", "odd"]


def sentences(count):
    """Different sentences, as a person's text has them."""
    return [f"{number} " + " ".join(RANDOM.choice(WORDS, 12)) for number in range(count)]


def text(place: Path) -> Path:
    """Paragraphs, parted by blank lines."""
    place.write_text("\n\n".join(sentences(300)))
    return place


def json_lines(place: Path) -> Path:
    """A document in each line."""
    place.write_text("".join(json.dumps({"text": each}) + "\n" for each in sentences(300)))
    return place


def labelled_text(place: Path) -> Path:
    """Sentences of two classes, beside a column that is not read."""
    rows = [[n, each, ["bad", "fine"][n % 2]] for n, each in enumerate(sentences(120))]
    return table(place, ["id", "sentence", "label"], rows)


def numbers(place: Path) -> Path:
    """Rows of four numbers, of three classes that differ in their means."""
    rows = [[*(RANDOM.normal(n % 3, 0.3, 4).round(4)), "abc"[n % 3]] for n in range(150)]
    return table(place, ["one", "two", "three", "four", "Class"], rows)


def grey(place: Path) -> Path:
    """Images of 8 by 8, of two classes, bright and dark."""
    return pictures(place, 8, channels=0)


def coloured(place: Path) -> Path:
    """Images of 20 by 20, in three channels."""
    return pictures(place, 20, channels=3)


def pictures(place: Path, side: int, *, channels: int) -> Path:
    """Forty images of each of two classes."""
    for number in range(80):
        folder = place / ["dark", "light"][number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (side, side, channels) if channels else (side, side)
        pixels = RANDOM.integers(0, 100, shape) + 150 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return place


def table(place: Path, header, rows) -> Path:
    """A CSV file."""
    with place.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return place


KINDS = {
    "my text.txt": text,
    "docs.jsonl": json_lines,
    "labelled.csv": labelled_text,
    "numbers.csv": numbers,
    "grey <b>[red]images": grey,
    "coloured": coloured,
}
