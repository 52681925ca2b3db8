"""Reports on a study. Each file of this folder is one report, with the name of the file.

A report has `ABOUT`, a one-line description; `SUFFIX`, the file extension; and `render`, which
makes its whole text from a study's view. To add one, add a file. Reports neither train nor measure
and need no framework.
"""

import importlib
import pkgutil
from typing import Protocol, cast

from qkvbench.results.view import View


class Report(Protocol):
    """The contract of a report's module."""

    ABOUT: str
    SUFFIX: str

    def render(self, view: View) -> str:
        """The report's text."""
        ...


def names() -> list[str]:
    """All reports, by name."""
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg
    )


def find(name: str) -> Report:
    """The report with this name; KeyError if there is none."""
    if name not in names():
        raise KeyError(name)
    return cast(Report, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
