"""Whether weights or a training state fit a model, by names, shapes and dtypes."""

from collections.abc import Mapping
from typing import Any, TypeVar

Shapes = dict[str, tuple[int, ...]]
Array = TypeVar("Array")

# Names in files of the first version.
_FORMER_NAMES = {"likeness.sharpness": "logit_scale"}


def renamed(weights: dict[str, Array]) -> dict[str, Array]:
    """The weights of a file of any version by today's names."""
    return {_FORMER_NAMES.get(name, name): value for name, value in weights.items()}


def check_shapes(model: Shapes, file: Shapes) -> None:
    """ValueError if names or shapes differ."""
    if model.keys() != file.keys():
        differing = sorted(model.keys() ^ file.keys())
        raise ValueError(f"These weights are in one of model and file only: {differing[:4]} ...")
    for name, shape in model.items():
        if shape != file[name]:
            raise ValueError(f"{name} is {shape} in the model and {file[name]} in the file.")


def matching_names(model: Shapes, file: Shapes) -> list[str]:
    """The weights that match in name and shape.

    ValueError if any weight of a block does not match: a partly loaded block is of no use.
    """
    names = [name for name, shape in model.items() if file.get(name) == shape]
    blocks = {name for name in (*model, *file) if "blocks" in name.split(".")}
    if different := sorted(blocks.difference(names)):
        name = different[0]
        raise ValueError(
            f"Initial weights must match the model in every weight of its layers; {name} "
            f"{_text(model, name)} in the model and {_text(file, name)} in the file."
        )
    return names


def _text(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"is {shapes[name]}" if name in shapes else "is not"


def check_state(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """ValueError if names, shapes or dtypes of a given state are not those of a learner's own.

    Both are arrays of one framework.
    """
    for name in sorted(own.keys() | given.keys()):
        here, there = own.get(name), given.get(name)
        if here is None or there is None or _kind(here) != _kind(there):
            here, there = ("missing" if x is None else _kind(x) for x in (here, there))
            raise ValueError(f"{name} is {here} in this learner and {there} in the state.")


def _kind(array: Any) -> str:
    return f"{str(array.dtype).removeprefix('torch.')} of {tuple(array.shape)}"
