"""Checks of a training state before it is restored."""

from collections.abc import Mapping
from typing import Any, Protocol


class Array(Protocol):
    """An array of any framework."""

    @property
    def dtype(self) -> Any:
        """The type of its numbers."""
        ...

    @property
    def shape(self) -> Any:
        """Its sizes."""
        ...


def check_state(own: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    """ValueError if names, shapes or dtypes of a given state are not those of a learner's own."""
    for name in sorted(own.keys() | given.keys()):
        here, there = own.get(name), given.get(name)
        if here is None or there is None or (here.dtype, here.shape) != (there.dtype, there.shape):
            raise ValueError(
                f"{name} is {_text(here)} in this learner and {_text(there)} in the state."
            )


def _text(array: Array | None) -> str:
    if array is None:
        return "missing"
    return f"{str(array.dtype).removeprefix('torch.')} of {tuple(array.shape)}"
