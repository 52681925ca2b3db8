"""Examples and their classes: each content once, no content in two classes, enough of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qkvbench.data.cache import DataRefusedError
from qkvbench.data.own.files import shown

# With so many distinct examples each class has two for tests and one for validation.
MIN_EXAMPLES = 10


@dataclass(frozen=True)
class Labelled:
    """The numbers of the distinct examples, their classes, and the classes' names."""

    kept: list[int]
    labels: list[int]
    classes: list[str]


def number_labels(
    name: str,
    contents: Sequence[bytes],
    labels: Sequence[str],
    places: Sequence[str],
    read: str = "",
) -> Labelled:
    """The examples of a task, each content once; `places` tells a person where each is.

    ``read`` says what of an example is its content, if that is a part of it.
    """
    first: dict[bytes, int] = {}
    twofold: dict[int, int] = {}
    for number, content in enumerate(contents):
        before = first.setdefault(content, number)
        if labels[before] != labels[number]:
            twofold.setdefault(before, number)
    if twofold:
        one, two = next(iter(twofold.items()))
        raise DataRefusedError(
            f"In '{name}' the same content{read} stands in two classes ({len(twofold):,} contents "
            "do):\n"
            f"{places[one]} is '{shown(labels[one])}', {places[two]} is '{shown(labels[two])}'.\n"
            "Which is right cannot be known here: correct them or take them out."
        )
    kept = list(first.values())
    counts = Counter(labels[number] for number in kept)
    if len(counts) < 2:
        only = next(iter(counts), "")
        raise DataRefusedError(
            f"'{name}' has one class only, '{shown(only)}'; to tell classes apart takes two."
        )
    rare, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < MIN_EXAMPLES:
        few = sum(count < MIN_EXAMPLES for count in counts.values())
        raise DataRefusedError(
            f"Class '{shown(rare)}' of '{name}' is too small: different examples{read}: {fewest}; "
            f"each class needs {MIN_EXAMPLES},\nfor three splits. So it is with {few} of "
            f"{len(counts)} classes: add examples, or leave them out."
        )
    classes = sorted(counts)
    numbers = {label: number for number, label in enumerate(classes)}
    return Labelled(kept, [numbers[labels[number]] for number in kept], classes)
