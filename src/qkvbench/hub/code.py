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
# A name that is imported from one of ours is no module: the library copies what such lines name.
_IMPORT = re.compile(r"^(\s*)from (qkvbench(?:\.\w+)+) import", re.MULTILINE)


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
        if module not in found:
            text = _source(module)
            left += [match[2] for match in _IMPORT.finditer(text)]
            found[module] = _IMPORT.sub(_neighbour, text)
    return found


def _neighbour(match: re.Match[str]) -> str:
    """An import of ours as one from a file beside it."""
    return f"{match[1]}from .{_flat(match[2])} import"


def _source(module: str) -> str:
    """The text of a module, or of a package's own file."""
    *folders, name = module.split(".")[1:]
    place = files("qkvbench").joinpath(*folders)
    file = place.joinpath(f"{name}.py")
    return (file if file.is_file() else place.joinpath(name, "__init__.py")).read_text("utf-8")


def _flat(module: str) -> str:
    return module.replace(".", "_")
