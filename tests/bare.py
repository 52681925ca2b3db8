"""The packages that a machine lacks after `./qkv test`: the quick tests do not find them either."""

import re
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Distributions whose modules have another name.
MODULES = {
    "mkdocs-material": "material",
    "mkdocstrings-python": "mkdocstrings",
    "mlflow-skinny": "mlflow",
}
# The line of `qkv` that installs what the quick tests need.
INSTALLED = re.compile(r"^ *\*\) ensure ([a-z ]+) ;;$", re.MULTILINE)


def absent() -> frozenset[str]:
    """The modules of the extras that `./qkv test` does not install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (installed,) = INSTALLED.findall((ROOT / "qkv").read_text())
    there = {_module(line) for line in project["dependencies"]}
    there |= {_module(line) for extra in installed.split() for line in extras[extra]}
    named = {_module(line) for lines in extras.values() for line in lines}
    return frozenset(named - there - {_module(project["name"])})


def _module(requirement: str) -> str:
    """The module of a requirement such as ``lm-eval>=0.4.9``."""
    name = re.split(r"[^a-z0-9-]", requirement, maxsplit=1)[0]
    return MODULES.get(name, name).replace("-", "_")


class _Finder(PathFinder):
    """Python's own finder, on a machine without these packages."""

    absent: frozenset[str] = frozenset()

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in cls.absent:
            return None
        return super().find_spec(fullname, path, target)


def hide(modules: frozenset[str]) -> None:
    """From here on this process does not find these modules."""
    _Finder.absent = modules
    if PathFinder in sys.meta_path:
        sys.meta_path[sys.meta_path.index(PathFinder)] = _Finder
