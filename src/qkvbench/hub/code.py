"""Code in a saved folder: this package's own files, so that there is no second meaning.

What a planned model needs of the package is copied, file by file, each under its dotted name.
Whoever loads such a folder with trust_remote_code=True runs these files and needs no qkvbench.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

ENTRY = "qkvbench.hub.models"
_IMPORT = re.compile(r"^(\s*)from (qkvbench(?:\.\w+)*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


def write_code(folder: Path, names: Mapping[str, str]) -> None:
    """Copy the code into the folder and say in its config where each class is."""
    for module, text in collected(ENTRY).items():
        (folder / f"{_flat(module)}.py").write_text(text, encoding="utf-8")
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["auto_map"] = {auto: f"{_flat(ENTRY)}.{name}" for auto, name in names.items()}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def collected(entry: str) -> dict[str, str]:
    """This module and all of ours that it needs, by name, importing each other as neighbours."""
    found: dict[str, str] = {}
    left = [entry]
    while left:
        module = left.pop()
        if module in found:
            continue
        text = _source(module)
        needed: list[str] = []
        found[module] = _IMPORT.sub(lambda match: _neighbour(match, needed), text)
        left += needed
    return found


def _neighbour(match: re.Match[str], needed: list[str]) -> str:
    """An import of ours as one of files beside each other, noting what it needs."""
    indent, package, names = match.groups()
    wanted = [name.strip() for name in names.strip("()").split(",") if name.strip()]
    # A name may itself be a module: `from qkvbench.backends.torch import paths`.
    modules = [name for name in wanted if _is_module(f"{package}.{name}")]
    needed += [f"{package}.{name}" for name in modules]
    lines = [f"{indent}from . import {_flat(f'{package}.{name}')} as {name}" for name in modules]
    others = [name for name in wanted if name not in modules]
    if others:
        needed.append(package)
        lines.append(f"{indent}from .{_flat(package)} import {', '.join(others)}")
    return "\n".join(lines)


def _source(module: str) -> str:
    place = files("qkvbench").joinpath(*module.split(".")[1:])
    file = place.joinpath("__init__.py") if place.is_dir() else None
    text = (file or files("qkvbench").joinpath(*_file(module))).read_text(encoding="utf-8")
    return text


def _is_module(module: str) -> bool:
    return files("qkvbench").joinpath(*_file(module)).is_file()


def _file(module: str) -> list[str]:
    *folders, last = module.split(".")[1:]
    return [*folders, f"{last}.py"]


def _flat(module: str) -> str:
    return module.replace(".", "_")
