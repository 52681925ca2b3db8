"""The names of jaxtyping for code in a saved folder, whose reader may lack it: no shape is checked.

`qkvbench.hub.code` copies this file; the package itself imports jaxtyping.
"""

from typing import Any


class _Unchecked:
    """A type that stands for any array, whatever is written in its brackets."""

    def __class_getitem__(cls, _: Any) -> Any:
        """Any, in the place of a shape."""
        return Any


Bool = Float = Int = Shaped = _Unchecked
