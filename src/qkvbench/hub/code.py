"""The code in a saved folder: this package's own files, so that there is one implementation.

The modules that our models import are copied, each into a file named after its dotted name. A
machine without qkvbench runs them if the folder is loaded with trust_remote_code=True.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

ENTRY = "qkvbench.hub.models"
# An imported name must not itself be a module: transformers copies the files that imports name.
_IMPORT = re.compile(r"^(\s*)from (qkvbench(?:\.\w+)+) import", re.MULTILINE)


def write_code(folder: Path, names: Mapping[str, str]) -> None:
    """Copy the code into the folder and name each class in its config."""
    for module, text in _sources(ENTRY).items():
        (folder / f"{_flat(module)}.py").write_text(text, encoding="utf-8")
    file = folder / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["auto_map"] = {auto: f"{_flat(ENTRY)}.{name}" for auto, name in names.items()}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sources(entry: str) -> dict[str, str]:
    """The text of this module and of all of ours that it imports, with relative imports."""
    texts: dict[str, str] = {}
    queue = [entry]
    while queue:
        module = queue.pop()
        if module not in texts:
            text = _source(module)
            queue += [match[2] for match in _IMPORT.finditer(text)]
            texts[module] = _IMPORT.sub(_relative, text)
    return texts


def _relative(match: re.Match[str]) -> str:
    """An import of ours as one from a file in the same folder."""
    return f"{match[1]}from .{_flat(match[2])} import"


def _source(module: str) -> str:
    """The text of a module, or of a package's ``__init__``."""
    *folders, name = module.split(".")[1:]
    folder = files("qkvbench").joinpath(*folders)
    file = folder.joinpath(f"{name}.py")
    return (file if file.is_file() else folder.joinpath(name, "__init__.py")).read_text("utf-8")


def _flat(module: str) -> str:
    return module.replace(".", "_")
