"""Arrays out of a pickle, and nothing else: no name that could be code is ever looked up."""

from collections.abc import Callable
from io import BytesIO
from pickle import Unpickler, UnpicklingError
from typing import Any

import numpy as np


class ForbiddenPickleError(Exception):
    """The pickle asks for something else than arrays of numbers."""


def arrays(content: bytes) -> Any:
    """The tuples, lists and numeric arrays of a pickle.

    Raises ForbiddenPickleError where it names anything else, before that is looked up.
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


# NumPy's own names would do more than they are asked for: `ndarray` takes bytes for the addresses
# of objects, and the state of a type may say so. So these stand in for them and read plain numbers.
class _Type:
    """A type of numbers, by its description and then its byte order."""

    def __init__(self, description: str, *_: Any) -> None:
        found = np.dtype(str(description))
        if found.kind not in "biuf":
            raise ForbiddenPickleError(f"This pickle holds {found}, which are no plain numbers.")
        self.found = found

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The second of a type's state is its byte order; nothing else of it is read."""
        if state[1] in ("<", ">"):
            self.found = self.found.newbyteorder(state[1])


class _Array:
    """An array, once its state is there: a version, shape, type, order of columns, and bytes."""

    values: np.ndarray

    def __init__(self, *_: Any) -> None:
        """What it is begun with says nothing."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The numbers; ValueError where bytes and shape do not fit."""
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Type):
            raise ForbiddenPickleError("This pickle holds an array without a type of numbers.")
        # Python 2 wrote bytes as text.
        held = content.encode("latin1") if isinstance(content, str) else content
        flat = np.frombuffer(held, kind.found)
        self.values = flat.reshape(shape, order="F" if by_columns else "C").copy()


# Under the names that pickles of old and new NumPy use. `ndarray` is only ever an argument.
_ADMITTED: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
}


class _ArraysOnly(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands in for one of the four names that arrays are made with."""
        if (module, name) not in _ADMITTED:
            raise ForbiddenPickleError(
                f"This pickle asks for {module}.{name}; only arrays of numbers are read."
            )
        return _ADMITTED[module, name]


def _plain(value: Any) -> Any:
    """The same with arrays in place of what stood in for them."""
    match value:
        case _Array():
            return value.values
        case tuple() | list():
            return type(value)(_plain(each) for each in value)
        case _:
            return value
