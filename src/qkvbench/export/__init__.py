"""Exported programs of decoders: one module for each format, whose name is the format's.

The contract of a module: ``ABOUT``, one line; ``SUFFIXES``, that of its file and of what lies
beside it; ``missing_requirement()``, the reason why it cannot write, or None; ``write(stepping,
path, options)``, which writes the program to a file that did not exist.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

    from qkvbench.export.stepping import Stepping

WeightDtype = Literal["fp32", "int8", "int4"]
OTHERS = {"checkpoint", "rounding", "stepping"}
# The vocabulary of a decoder over bytes.
BYTES = 256


class ExportError(Exception):
    """A model cannot be written in a format; the message names what is in the way."""


@dataclass(frozen=True)
class Options:
    """How a program is written.

    ``weights`` in int8 are rounded row by row, in int4 in groups of 32, and used as such. ``text``,
    (windows, time), shows which inputs of the matrices are large: int4 is fitted to them.
    """

    weights: WeightDtype = "fp32"
    text: "Tensor | None" = None


class Format(Protocol):
    """The module of a format."""

    ABOUT: str
    SUFFIXES: tuple[str, ...]

    def missing_requirement(self) -> str | None:
        """Why the format cannot be written here; None if it can."""
        ...

    def write(self, stepping: "Stepping", path: Path, options: Options) -> None:
        """Write the program; ExportError if the format lacks what it needs."""
        ...


def missing(extra: str, packages: Iterable[str]) -> str | None:
    """Which packages of an extra are not installed, and how to get them; None if all are."""
    absent = [name for name in packages if find_spec(name) is None]
    if not absent:
        return None
    verb = "are" if len(absent) > 1 else "is"
    return f"{', '.join(absent)} {verb} needed and not installed: ./qkv setup {extra}"


def check_weights(options: Options, name: str) -> None:
    """Refuse few bits for a format that has fp32 alone."""
    if options.weights != "fp32":
        raise ExportError(
            f"{name} has fp32 weights only; --to onnx has int8, and --to edge int8 and int4."
        )


def names() -> list[str]:
    """The formats, as they are written on the command line."""
    found = {module.name for module in iter_modules(__path__)} - OTHERS
    return sorted(name.replace("_", "-") for name in found)


def find(name: str) -> Format:
    """The format with this name."""
    return cast(Format, import_module(f"qkvbench.export.{name.replace('-', '_')}"))
