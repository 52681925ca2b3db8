"""Recipes: each file of this folder but `study` is one study, and its name is the file's.

A recipe's docstring is its caption: the command, the time it takes, what the source reported. Its
function ``study()`` returns the value. One with sizes lists them in ``SIZES``, the usual one first,
and its ``study(size)`` returns that of a size. To add one, add a file.
"""

import importlib
import pkgutil
import re

from qkvbench.recipes.study import Study, Teacher
from qkvbench.results.across import CONTROLS

__all__ = ["CONTROLS", "Study", "Teacher", "about", "find", "named", "names", "sizes", "takes"]


def names() -> list[str]:
    """All recipes, by name."""
    modules = {module.name for module in pkgutil.iter_modules(__path__)} - {"study"}
    return sorted(name.replace("_", "-") for name in modules)


def find(name: str, size: str | None = None) -> Study:
    """The study of a recipe, of its usual size or of another; KeyError if there is none."""
    if size is None:
        return _module(name).study()
    if size not in sizes(name):
        raise KeyError(size)
    return _module(name).study(size)


def sizes(name: str) -> tuple[str, ...]:
    """The sizes of a recipe, the usual one first; empty if it has one only."""
    return tuple(getattr(_module(name), "SIZES", ()))


def named(label: str) -> Study | None:
    """The recipe's study with this name, which may end with a size; None if there is none."""
    for name in names():
        if label == name:
            return find(name)
        if label.startswith(f"{name}-") and (size := label.removeprefix(f"{name}-")) in sizes(name):
            return find(name, size)
    return None


def about(name: str) -> str:
    """The first line of the recipe's caption."""
    return (_module(name).__doc__ or "").strip().splitlines()[0]


def takes(name: str) -> str | None:
    """The time that the recipe's caption states; None if it states none."""
    stated = re.search(r"^Takes +(.+(?:\n +.+)*)", _module(name).__doc__ or "", re.MULTILINE)
    return " ".join(stated[1].split()) if stated else None


def _module(name: str):  # noqa: ANN202 (a module, whose contract is stated above)
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
