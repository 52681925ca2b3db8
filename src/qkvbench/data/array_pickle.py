"""Numeric arrays from a pickle; no other name in it is ever imported."""

from collections.abc import Callable
from io import BytesIO
from pickle import Unpickler, UnpicklingError
from typing import Any

import numpy as np


class ForbiddenPickleError(Exception):
    """The pickle holds something else than arrays of numbers."""


def arrays(content: bytes) -> Any:
    """The tuples, lists and numeric arrays of a pickle.

    Raises ForbiddenPickleError if it names anything else, before that is imported.
    """
    try:
        return _plain(_ArraysOnly(BytesIO(content), encoding="latin1").load())
    except (
        UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
    ) as error:
        raise ForbiddenPickleError(f"This pickle does not hold arrays: {error}") from error


# These replace NumPy's own classes, which are not safe here: the state of a dtype may say that
# bytes are addresses of objects.
class _Type:
    """A type of numbers, by its description and then its byte order."""

    def __init__(self, description: str, *_: Any) -> None:
        found = np.dtype(str(description))
        if found.kind not in "biuf":
            raise ForbiddenPickleError(f"This pickle holds {found}, which are no plain numbers.")
        self.found = found

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Read the byte order, the second entry of the state, and nothing else."""
        if state[1] in ("<", ">"):
            self.found = self.found.newbyteorder(state[1])


class _Array:
    """An array. Its state is a version, shape, type, column order, and bytes."""

    values: np.ndarray

    def __init__(self, *_: Any) -> None:
        """No-op: the state comes later."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Read the numbers; ValueError if bytes and shape do not fit."""
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Type):
            raise ForbiddenPickleError("This pickle holds an array without a type of numbers.")
        # Python 2 wrote bytes as text.
        held = content.encode("latin1") if isinstance(content, str) else content
        flat = np.frombuffer(held, kind.found)
        self.values = flat.reshape(shape, order="F" if by_columns else "C").copy()


# The names in pickles of old and new NumPy. `ndarray` is only an argument.
_ADMITTED: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
}


class _ArraysOnly(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The replacement for one of the four names of which arrays are made."""
        if (module, name) not in _ADMITTED:
            raise ForbiddenPickleError(
                f"This pickle asks for {module}.{name}; only arrays of numbers are read."
            )
        return _ADMITTED[module, name]


def _plain(value: Any) -> Any:
    """The same value with NumPy arrays in place of `_Array`."""
    match value:
        case _Array():
            return value.values
        case tuple() | list():
            return type(value)(_plain(each) for each in value)
        case _:
            return value
