"""Arrays out of a pickle, and nothing else: no name that could be code is ever looked up."""

from collections.abc import Callable
from io import BytesIO
from pickle import Unpickler, UnpicklingError
from typing import Any, cast

import numpy as np

# What an array of numbers is made of, under the names that pickles of old and new NumPy use.
_REBUILD = cast(Callable[..., Any], np.empty(0).__reduce__()[0])


class ForbiddenPickleError(Exception):
    """The pickle asks for something else than arrays of numbers."""


def arrays(content: bytes) -> Any:
    """The tuples, lists and numeric arrays of a pickle.

    Raises ForbiddenPickleError where it names anything else, before that is looked up.
    """
    try:
        return _ArraysOnly(BytesIO(content), encoding="latin1").load()
    except (UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise ForbiddenPickleError(f"This pickle does not hold arrays: {error}") from error


def _numeric(*described: Any) -> np.dtype[Any]:
    """The type of an array's numbers; an array of objects would hold what is not checked."""
    found = np.dtype(*described)
    if found.kind not in "biuf":
        raise ForbiddenPickleError(f"This pickle holds {found}, which are no plain numbers.")
    return found


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _numeric,
}


class _ArraysOnly(Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """One of the four names that arrays are made with."""
        if (module, name) not in _ADMITTED:
            raise ForbiddenPickleError(
                f"This pickle asks for {module}.{name}; only arrays of numbers are read."
            )
        return _ADMITTED[module, name]
