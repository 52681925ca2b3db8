"""What may be read of a checkpoint's folder: settings and safetensors inside it, and no code.

A checkpoint is data of a stranger. Weights come from safetensors alone, since reading a pickle
runs what it says. No setting may name code, neither in the folder (``auto_map``) nor elsewhere:
an attention implementation that is written as a repository was code that older versions of
transformers fetched and ran (CVE-2026-4372). Nothing outside the folder is read.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

# Settings with which transformers chooses a function; a value with a slash is a repository.
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
# What transformers itself never writes into a file.
INTERNAL = tuple(f"_{name}_internal" for name in IMPLEMENTATIONS)
# Settings that name a file of their own.
FILES = ("tokenizer_file", "vocab_file", "merges_file")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5")
# A configuration has some thousand characters; one that is larger is something else.
SETTINGS_BYTES = 16_000_000


class UnsafeFolderError(ValueError):
    """What in a folder is not read, and what to do instead."""


@dataclass(frozen=True)
class Folder:
    """A folder of a checkpoint in which nothing was found that must not be read.

    ``trusted``: whether code that lies in it may run, because the caller said so.
    """

    path: Path
    settings: dict[str, Any]
    trusted: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What each ``from_pretrained`` is told: these files, safetensors, and no code."""
        return {
            "local_files_only": True,
            "use_safetensors": True,
            "trust_remote_code": self.trusted,
        }


def checked(folder: str | Path, *, trust_code: bool = False) -> Folder:
    """The folder, when all that would be read in it may be; UnsafeFolderError otherwise.

    Code that the settings name (``auto_map``) is left alone, and is looked at only with
    ``trust_code``; it must then lie in the folder itself.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UnsafeFolderError(
            f"There is no folder {shown(path)}.\n"
            "Give a folder that save_pretrained wrote; nothing is downloaded."
        )
    path = path.resolve()
    _confined(path)
    for file in sorted(path.glob("*.json")):
        if file.name.endswith(".index.json"):
            _confined_parts(_settings(file), path, file.name)
        elif file.name.endswith("config.json"):
            found = _read(file)
            check_settings(found, file.name)
            _check_code(found, path, file.name, trust_code=trust_code)
    settings = _settings(path / "config.json") if (path / "config.json").is_file() else {}
    if not settings:
        raise UnsafeFolderError(
            f"{shown(path.name)} has no config.json with settings in it.\n"
            "Give a folder that save_pretrained wrote."
        )
    _check_weights(path)
    return Folder(path, settings, trusted=trust_code)


def check_settings(settings: object, where: str = "config.json") -> None:
    """Refuse settings that choose code; UnsafeFolderError names the setting."""
    for place, key, value in _entries(settings):
        name = f"{shown(place)} in {shown(where)}"
        if key in INTERNAL:
            raise UnsafeFolderError(
                f"{name} is never written by transformers; older versions ran the code it names.\n"
                "Take it out of the file, or get the checkpoint from someone you trust."
            )
        if key.removeprefix("_") in IMPLEMENTATIONS and "/" in json.dumps(value):
            raise UnsafeFolderError(
                f"{name} is {shown(value)}, a repository with code that would run.\n"
                'Write the name of an implementation there, such as "sdpa".'
            )
        if key == "quantization_config":
            raise UnsafeFolderError(
                f"{name} lets other packages, and code that they download, read the weights.\n"
                "Save the checkpoint with its weights as fp32, fp16 or bf16."
            )
        if key in FILES and isinstance(value, str) and not _inside(value):
            raise UnsafeFolderError(
                f"{name} is {shown(value)}, a file outside of the folder.\n"
                "Put the file into the folder and write its bare name."
            )


def load(
    folder: str | Path, *, auto: str = "AutoModelForCausalLM", trust_code: bool = False, **more: Any
) -> Any:
    """The model in a folder, read as `checked` says.

    ``auto`` names the class of transformers that finds the model's own; ``more`` goes to its
    ``from_pretrained``. UnsafeFolderError where the model needs code that is not trusted.
    """
    # Before transformers is imported: a refusal does not wait seconds for it.
    safe = checked(folder, trust_code=trust_code)
    import transformers

    kind = safe.settings.get("model_type")
    if not trust_code and kind not in transformers.CONFIG_MAPPING:
        raise UnsafeFolderError(
            f"transformers {transformers.__version__} has no model of type {shown(kind)}.\n"
            "If code for it lies in the folder and you trust who wrote it, pass trust_code=True."
        )
    return getattr(transformers, auto).from_pretrained(safe.path, **(more | safe.options))


def shown(value: object) -> str:
    """A stranger's text, short and without marks that a terminal obeys."""
    text = "".join(mark if mark.isprintable() else "?" for mark in str(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _confined(folder: Path) -> None:
    """Refuse entries that lead out of the folder, and what is neither a file nor a folder."""
    homes = [folder]
    if folder.parent.name == "snapshots":
        # In the Hub's cache the files of a snapshot are links into its own store of contents.
        homes.append(folder.parent.parent / "blobs")
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entry = Path(place, name)
            target = entry.resolve()
            told = shown(entry.relative_to(folder))
            if not any(target.is_relative_to(home) for home in homes):
                raise UnsafeFolderError(
                    f"{told} is a link that leads out of the folder.\n"
                    "Copy what it links to into the folder, if it belongs there."
                )
            if not (target.is_file() or target.is_dir()):
                raise UnsafeFolderError(
                    f"{told} is neither a file nor a folder.\nTake it out of the folder."
                )


def _confined_parts(index: dict[str, Any], folder: Path, where: str) -> None:
    """Refuse an index whose parts do not lie beside it."""
    parts = index.get("weight_map")
    if not isinstance(parts, dict):
        raise UnsafeFolderError(f"{shown(where)} does not say which file holds which tensor.")
    for part in set(map(str, parts.values())):
        if not _inside(part) or not (folder / part).is_file():
            raise UnsafeFolderError(
                f"{shown(where)} names {shown(part)}, which is no file in the folder.\n"
                "Save the checkpoint again; its parts lie beside their index."
            )


def _check_code(settings: object, folder: Path, where: str, *, trust_code: bool) -> None:
    """Refuse trusted code that does not lie in the folder, and adapters to other models."""
    if where == "adapter_config.json":
        raise UnsafeFolderError(
            f"{shown(where)} makes transformers load another model, which it names.\n"
            "Merge the adapter (merge_and_unload) and save the model by itself."
        )
    if not trust_code:
        return
    named = [value for _, key, value in _entries(settings) if key == "auto_map"]
    for name in (text for value in named for text in _texts(value)):
        # org/repo--module.Class is code from elsewhere; module.Class is a file beside the settings.
        module = name.rpartition(".")[0]
        if "--" in name or not _inside(f"{module}.py") or not (folder / f"{module}.py").is_file():
            raise UnsafeFolderError(
                f"auto_map in {shown(where)} names {shown(name)}, code that is not in the folder.\n"
                "Only code that lies beside the settings can be trusted with the folder."
            )


def _check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    told = f"its weights are in {shown(pickles[0])}, which is not read" if pickles else "no weights"
    raise UnsafeFolderError(
        f"{shown(folder.name)} has no .safetensors file: {told}.\n"
        "Reading such a file can run code. Load it where you trust it, and write it again with "
        "save_pretrained, which writes safetensors."
    )


def _read(file: Path) -> object:
    """What is in a JSON file."""
    if file.stat().st_size > SETTINGS_BYTES:
        raise UnsafeFolderError(f"{shown(file.name)} is too large for settings.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeFolderError(f"{shown(file.name)} is no JSON: {shown(error)}.") from None


def _settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    found = _read(file)
    if not isinstance(found, dict):
        raise UnsafeFolderError(f"{shown(file.name)} holds no settings, but {shown(found)}.")
    return found


def _entries(settings: object) -> Iterator[tuple[str, str, object]]:
    """Each setting at any depth: where it stands, its key, its value."""
    # A list of what is left to do, since a stranger's settings may be nested deeper than calls may.
    left: list[tuple[str, object]] = [("", settings)]
    while left:
        place, found = left.pop()
        match found:
            case dict():
                for key, value in found.items():
                    inner = f"{place}.{key}" if place else str(key)
                    yield inner, str(key), value
                    left.append((inner, value))
            case list() | tuple():
                left += [(place, value) for value in found]
            case _:
                pass


def _texts(value: object) -> list[str]:
    """Every text in a value."""
    inner = [found for _, _, found in _entries({"": value})]
    lists = [list(found) for found in inner if isinstance(found, list | tuple)]
    return [text for text in (*inner, *chain(*lists)) if isinstance(text, str)]


def _inside(name: str) -> bool:
    """Whether it is the bare name of a file, with no folder in it."""
    return PurePosixPath(name).name == name and "\\" not in name and name not in ("", ".", "..")
