"""Pictures with names, by concept: no concept of a test was learned from in any of its forms.

A farmer is one concept, be it a man, a woman or neither; `qkvbench.data.emoji` says what is one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from qkvbench.data.batch import Batch, Sequences, Split
from qkvbench.data.emoji import SIDE, Emoji, emoji
from qkvbench.tasks import Data
from qkvbench.tasks.kinds.augment import augment_patches, shift
from qkvbench.tasks.kinds.splits import patchify

PATCH = 4
CHANNELS = 3
SQUARES = (SIDE // PATCH) ** 2
FEATURES = CHANNELS * PATCH**2
# So many concepts are for tests and for validation; most are left to learn from.
TEST = 256
VALIDATION = 128
WHITE = 1.0

Language = Literal["english", "german"]
MakeSplit = Callable[[UInt8[np.ndarray, "items 32 32 3"], Sequence[str]], Split]

# Each time a picture is learned from it lies up to so many pixels elsewhere.
shift_images = partial(
    augment_patches, augment=partial(shift, pixels=3, bared=WHITE), patch=PATCH, channels=CHANNELS
)


def shift_second_input(batch: Batch, rng: np.random.Generator) -> Batch:
    """The same where the pictures are the second input."""
    assert batch.second is not None
    pictures = shift_images(Batch(batch.second.inputs, batch.targets), rng)
    return replace(batch, second=Sequences(pictures.inputs))


def load(language: Language, made: Callable[[Sequence[str]], MakeSplit], settings: str) -> Data:
    """The splits, each made of its pictures and names by what `made` learns from training names.

    `settings` are what else decides what is in them.
    """
    found = all_emoji()
    parts = split_by_concept(found.concepts, found.english)
    names: Sequence[str] = getattr(found, language)
    named = {split: [names[number] for number in numbers] for split, numbers in parts.items()}
    make = made(named["train"])
    splits = {split: make(found.pixels[numbers], named[split]) for split, numbers in parts.items()}
    cut = f"{found.identity} {language} {TEST} {VALIDATION} {settings}"
    return Data(**splits, identity=sha256(cut.encode()).hexdigest())


def split_by_concept(concepts: Sequence[str], names: Sequence[str]) -> Mapping[str, list[int]]:
    """The numbers of the pictures of each split, in the order of the hashes of their concepts.

    Where pictures are scored one stands for a concept, so that one answer is right: the form with
    the shortest name, which is the plain one, `farmer` and not `woman farmer`.
    """
    forms: dict[str, list[int]] = {}
    for number, concept in enumerate(concepts):
        forms.setdefault(concept, []).append(number)
    order = sorted(forms, key=lambda concept: sha256(concept.encode()).digest())
    plain = [min(forms[concept], key=lambda number: len(names[number])) for concept in order]
    return {
        "test": plain[:TEST],
        "validation": plain[TEST : TEST + VALIDATION],
        "train": [n for concept in order[TEST + VALIDATION :] for n in forms[concept]],
    }


def as_inputs(
    pixels: UInt8[np.ndarray, "items 32 32 3"],
) -> Float[np.ndarray, "items squares features"]:
    """Pictures as a model reads them: squares, whose numbers lie in −1..1."""
    return (patchify(pixels, PATCH) / 127.5 - 1).astype(np.float32)


# Asked for by several tasks, while the files behind it stay as they are.
@lru_cache(maxsize=1)
def all_emoji() -> Emoji:
    """The pictures and their names, read once."""
    return emoji()
