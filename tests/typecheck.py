"""How the package's types are checked while tests run."""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

# The tower lets a whole number stand for a float, as type checkers do. Self needs a class, and
# what is decorated here is one function at a time.
_CONF = BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any}))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its arguments and its result checked at each call."""
    try:
        return beartype(function, conf=_CONF)
    except BeartypeDecorHintPep3119Exception:
        # It takes a Protocol that is not runtime_checkable: nothing can be asked of its instances.
        return function
