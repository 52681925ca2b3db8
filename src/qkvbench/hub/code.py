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
# Takes the place of jaxtyping, which the reader's machine may lack.
_SHAPES = "qkvbench.hub.shapes"
# What takes the place of a module that needs more than a folder has: the compiled library.
_INSTEAD = {"qkvbench.hub.decoding": "qkvbench.hub.no_kernel"}
# The README.md of a saved folder, and what it says more if the code is in the folder.
_CARD = """---
library_name: transformers
tags: [qkvbench]
---
A model of transformers whose attention has `qkv_mode` `{mode}`. transformers itself does not know
the type `{model_type}`: install qkv-ablation-bench, which registers it.

```python
from qkvbench import hub

model = hub.load("this folder")  # or hub.register(), and then transformers' own from_pretrained
```
"""
_CARD_OF_CODE = """
The code is in the folder: without qkvbench `from_pretrained("this folder", trust_remote_code=True)`
runs it; torch and transformers are enough.
"""
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


def write_card(folder: Path, model_type: str, mode: object, *, with_code: bool) -> None:
    """Write a README.md that says what loads the folder, unless somebody wrote another."""
    file = folder / "README.md"
    own = _CARD.partition("{mode}")[0]
    if not file.exists() or file.read_text(encoding="utf-8", errors="replace").startswith(own):
        card = _CARD.format(mode=mode, model_type=model_type) + _CARD_OF_CODE * with_code
        file.write_text(card, encoding="utf-8")


def _sources(entry: str) -> dict[str, str]:
    """The text of this module and of all of ours that it imports, with relative imports."""
    texts: dict[str, str] = {}
    queue = [entry, _SHAPES]
    while queue:
        module = queue.pop()
        if module not in texts:
            text = _source(module)
            queue += [_INSTEAD.get(match[2], match[2]) for match in _IMPORT.finditer(text)]
            texts[module] = _IMPORT.sub(_relative, text).replace(
                "from jaxtyping import", f"from .{_flat(_SHAPES)} import"
            )
    return texts


def _relative(match: re.Match[str]) -> str:
    """An import of ours as one from a file in the same folder."""
    return f"{match[1]}from .{_flat(_INSTEAD.get(match[2], match[2]))} import"


def _source(module: str) -> str:
    """The text of a module, or of a package's ``__init__``."""
    *folders, name = module.split(".")[1:]
    folder = files("qkvbench").joinpath(*folders)
    file = folder.joinpath(f"{name}.py")
    return (file if file.is_file() else folder.joinpath(name, "__init__.py")).read_text(
        encoding="utf-8"
    )


def _flat(module: str) -> str:
    return module.replace(".", "_")
