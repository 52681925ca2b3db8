"""Loading a checkpoint's folder: settings and safetensors inside it are read, no code is run.

A checkpoint is untrusted data. Weights come from safetensors alone, since reading a pickle can run
code. No setting may name code, neither in the folder (``auto_map``) nor elsewhere: older versions
of transformers fetched and ran an attention implementation that was written as a repository
(CVE-2026-4372). Nothing outside the folder is read.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from qkvbench.hub.families import FAMILIES, check_mode_is_used

# Settings with which transformers chooses a function; a value with a slash is a repository.
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
# Settings that transformers itself never writes into a file.
INTERNAL = tuple(f"_{name}_internal" for name in IMPLEMENTATIONS)
# Settings that name a file of their own.
FILES = ("tokenizer_file", "vocab_file", "merges_file")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".msgpack", ".h5")
# Much more than any configuration, which has some thousand characters.
SETTINGS_BYTES = 16_000_000


class UnsafeFolderError(ValueError):
    """A folder is not read: the reason, and what to do instead."""


@dataclass(frozen=True)
class Folder:
    """A checkpoint's folder that is safe to load.

    ``trusted``: the caller allows code in it to run.
    """

    path: Path
    settings: dict[str, Any]
    trusted: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of ``from_pretrained``: local files, safetensors, no code by default."""
        return {
            "local_files_only": True,
            "use_safetensors": True,
            "trust_remote_code": self.trusted,
        }


def check_folder(folder: str | Path, *, trust_code: bool = False) -> Folder:
    """The folder, if everything that would be read is safe; UnsafeFolderError otherwise.

    Code that the settings name (``auto_map``) is ignored. With ``trust_code`` it must be in the
    folder itself.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UnsafeFolderError(
            f"There is no folder {printable(path)}.\n"
            "Give a folder that save_pretrained wrote; nothing is downloaded."
        )
    path = path.resolve()
    _check_links(path)
    for file in sorted(path.glob("*.json")):
        if file.name.endswith(".index.json"):
            _check_parts(read_json(file), path, file.name)
        elif file.name.endswith("config.json"):
            content = _read(file)
            check_settings(content, file.name)
            _check_code(content, path, file.name, trust_code=trust_code)
    settings = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if not settings:
        raise UnsafeFolderError(
            f"{printable(path.name)} has no config.json with settings in it.\n"
            "Give a folder that save_pretrained wrote."
        )
    _check_weights(path)
    return Folder(path, settings, trusted=trust_code)


def check_settings(settings: object, filename: str = "config.json") -> None:
    """Refuse settings that choose code to run; UnsafeFolderError names the setting."""
    for setting, key, value in _entries(settings):
        name = f"{printable(setting)} in {printable(filename)}"
        if key in INTERNAL:
            raise UnsafeFolderError(
                f"{name} is never written by transformers; older versions ran the code it names.\n"
                "Take it out of the file, or get the checkpoint from someone you trust."
            )
        if key.removeprefix("_") in IMPLEMENTATIONS and "/" in json.dumps(value):
            raise UnsafeFolderError(
                f"{name} is {printable(value)}, a repository with code that would run.\n"
                'Write the name of an implementation there, such as "sdpa".'
            )
        if key == "quantization_config":
            raise UnsafeFolderError(
                f"{name} lets other packages, and code that they download, read the weights.\n"
                "Save the checkpoint with its weights as fp32, fp16 or bf16."
            )
        if key in FILES and isinstance(value, str) and not _inside(value):
            raise UnsafeFolderError(
                f"{name} is {printable(value)}, a file outside of the folder.\n"
                "Put the file into the folder and write its bare name."
            )


# Arguments of `from_pretrained` that name other files.
UNCHECKED = ("subfolder", "variant", "gguf_file")


def load(
    folder: str | Path,
    *,
    auto: str = "AutoModelForCausalLM",
    trust_code: bool = False,
    **kwargs: Any,
) -> Any:
    """The model in a folder, read as `check_folder` allows.

    ``auto`` is the Auto class of transformers; ``kwargs`` go to its ``from_pretrained``, but for
    those that would read other files than were checked.
    UnsafeFolderError if the model needs code that is not trusted, ValueError if its config has a
    ``qkv_mode`` that its class would ignore, or if its weights are damaged.
    """
    if unchecked := [name for name in UNCHECKED if kwargs.get(name)]:
        raise UnsafeFolderError(
            f"{unchecked[0]}={printable(kwargs[unchecked[0]])} reads files that are not checked.\n"
            "Give the folder itself whose config.json and *.safetensors are to be read."
        )
    # Before transformers is imported, which takes seconds.
    safe = check_folder(folder, trust_code=trust_code)
    check_mode_is_used(safe.settings)
    import transformers

    kind = str(safe.settings.get("model_type"))
    if kind in {family.model_type for family in FAMILIES.values()}:
        from qkvbench.hub.models import register

        register()
    if not trust_code and kind not in transformers.CONFIG_MAPPING:
        raise UnsafeFolderError(
            f"transformers {transformers.__version__} has no model of type {printable(kind)}.\n"
            "If the folder has code for it and you trust its author, pass trust_code=True."
        )
    from safetensors import SafetensorError

    try:
        return getattr(transformers, auto).from_pretrained(safe.path, **(kwargs | safe.options))
    except SafetensorError as error:
        raise ValueError(f"Weights in {printable(safe.path)} are damaged: {error}") from None


def printable(value: object) -> str:
    """Untrusted text, shortened and without control characters."""
    text = "".join(char if char.isprintable() else "?" for char in str(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _check_links(folder: Path) -> None:
    """Refuse links that lead out of the folder, and entries that are neither file nor folder."""
    allowed = [folder]
    if folder.parent.name == "snapshots":
        # In the Hub's cache the files of a snapshot are links to blobs.
        allowed.append(folder.parent.parent / "blobs")
    for parent, folders, files in os.walk(folder):
        for entry in (Path(parent, each) for each in (*folders, *files)):
            target = entry.resolve()
            name = printable(entry.relative_to(folder))
            if not any(target.is_relative_to(place) for place in allowed):
                raise UnsafeFolderError(
                    f"{name} is a link that leads out of the folder.\n"
                    "Copy what it links to into the folder, if it belongs there."
                )
            if not (target.is_file() or target.is_dir()):
                raise UnsafeFolderError(
                    f"{name} is neither a file nor a folder.\nTake it out of the folder."
                )


def _check_parts(index: dict[str, Any], folder: Path, filename: str) -> None:
    """Refuse an index that names files outside its folder."""
    parts = index.get("weight_map")
    if not isinstance(parts, dict):
        raise UnsafeFolderError(
            f"{printable(filename)} does not say which file holds which tensor."
        )
    for part in set(map(str, parts.values())):
        if not _inside(part) or not (folder / part).is_file():
            raise UnsafeFolderError(
                f"{printable(filename)} names {printable(part)}, which is no file in the folder.\n"
                "Save the checkpoint again; its parts must be in the folder of their index."
            )


def _check_code(settings: object, folder: Path, filename: str, *, trust_code: bool) -> None:
    """Refuse trusted code that is not in the folder, and adapters to other models."""
    if filename == "adapter_config.json":
        raise UnsafeFolderError(
            f"{printable(filename)} makes transformers load another model, which it names.\n"
            "Merge the adapter (merge_and_unload) and save the model by itself."
        )
    if not trust_code:
        return
    named = [value for _, key, value in _entries(settings) if key == "auto_map"]
    for name in (text for value in named for text in _texts(value)):
        # org/repo--module.Class is code from elsewhere; module.Class is a file in the folder.
        module = name.rpartition(".")[0]
        if "--" in name or not _inside(f"{module}.py") or not (folder / f"{module}.py").is_file():
            raise UnsafeFolderError(
                f"auto_map in {printable(filename)} names {printable(name)}, code that is not in "
                "the folder.\nOnly code in the folder itself can be trusted."
            )


def _check_weights(folder: Path) -> None:
    """Refuse a folder without safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    reason = (
        f"its weights are in {printable(pickles[0])}, which is not read"
        if pickles
        else "no weights"
    )
    raise UnsafeFolderError(
        f"{printable(folder.name)} has no .safetensors file: {reason}.\n"
        "Reading such a file can run code. If you trust it, load it elsewhere and save it again "
        "with save_pretrained, which writes safetensors."
    )


def _read(file: Path) -> object:
    """The value in a JSON file."""
    if file.stat().st_size > SETTINGS_BYTES:
        raise UnsafeFolderError(f"{printable(file.name)} is too large for settings.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeFolderError(
            f"{printable(file.name)} is not JSON: {printable(error)}."
        ) from None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    content = _read(file)
    if not isinstance(content, dict):
        raise UnsafeFolderError(
            f"{printable(file.name)} should be an object of settings, not {printable(content)}."
        )
    return content


def _entries(settings: object) -> Iterator[tuple[str, str, object]]:
    """Each setting at any depth: its path, its key, its value."""
    # Not recursive: untrusted settings may be nested deeper than the call stack.
    left: list[tuple[str, object]] = [("", settings)]
    while left:
        path, entry = left.pop()
        match entry:
            case dict():
                for key, value in entry.items():
                    inner = f"{path}.{key}" if path else str(key)
                    yield inner, str(key), value
                    left.append((inner, value))
            case list() | tuple():
                left += [(path, value) for value in entry]
            case _:
                pass


def _texts(value: object) -> list[str]:
    """Every text in a value."""
    inner = [entry for _, _, entry in _entries({"": value})]
    lists = [list(entry) for entry in inner if isinstance(entry, list | tuple)]
    return [text for text in (*inner, *chain(*lists)) if isinstance(text, str)]


def _inside(name: str) -> bool:
    """Whether it is the bare name of a file, with no folder in it."""
    return PurePosixPath(name).name == name and "\\" not in name and name not in ("", ".", "..")
