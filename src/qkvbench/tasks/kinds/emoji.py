"""Pictures with names, split by concept: no form of a test concept is in training.

A farmer is one concept, be it a man, a woman or neither (`qkvbench.data.emoji.concept`).
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
# Concepts for tests and for validation; most are for training.
TEST = 256
VALIDATION = 128
WHITE = 1.0

Language = Literal["english", "german"]
MakeSplit = Callable[[UInt8[np.ndarray, "items 32 32 3"], Sequence[str]], Split]

# Augmentation: each training picture is shifted by a few pixels.
shift_images = partial(
    augment_patches, augment=partial(shift, pixels=3, fill=WHITE), patch=PATCH, channels=CHANNELS
)


def shift_second_input(batch: Batch, rng: np.random.Generator) -> Batch:
    """The same for pictures that are the second input."""
    assert batch.second is not None
    pictures = shift_images(Batch(batch.second.inputs, batch.targets), rng)
    return replace(batch, second=Sequences(pictures.inputs))


def load(language: Language, fit: Callable[[Sequence[str]], MakeSplit], settings: str) -> Data:
    """The splits, each made from its pictures and names by what `fit` learns from training names.

    `settings` is a text of all else that decides their content, for their identity.
    """
    found = all_emoji()
    parts = split_by_concept(found.concepts, found.english)
    names: Sequence[str] = getattr(found, language)
    named = {split: [names[number] for number in numbers] for split, numbers in parts.items()}
    make = fit(named["train"])
    splits = {split: make(found.pixels[numbers], named[split]) for split, numbers in parts.items()}
    cut = f"{found.identity} {language} {TEST} {VALIDATION} {settings}"
    return Data(**splits, identity=sha256(cut.encode()).hexdigest())


def split_by_concept(concepts: Sequence[str], names: Sequence[str]) -> Mapping[str, list[int]]:
    """The numbers of the pictures of each split, in the order of the hashes of their concepts.

    In splits that are scored each concept has one picture, so that one answer is right: the form
    with the shortest name, which is the plain one, `farmer` and not `woman farmer`.
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
    """Pictures as a model reads them: square patches with values in −1..1."""
    return (patchify(pixels, PATCH) / 127.5 - 1).astype(np.float32)


# Several tasks read it.
@lru_cache(maxsize=1)
def all_emoji() -> Emoji:
    """The pictures and their names, read once."""
    return emoji()
