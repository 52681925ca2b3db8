"""The folder of a converted model: written beside its place and renamed when it is whole."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from qkvbench.cost.units import bytes_text
from qkvbench.hub.families import family_of
from qkvbench.hub.fit.shards import INDEX
from qkvbench.hub.models import write_code_of

CARD, MEASURED, GENERATION = "README.md", "measured.json", "generation_config.json"


def check_place(out: Path, needed_bytes: int, *, force: bool) -> None:
    """Refuse a place that is taken, or a disk without room; ValueError, before anything is done."""
    if out.exists() and not force:
        raise ValueError(
            f"{out} is there already, and is kept.\nWrite --force to replace it, or another --out."
        )
    if out.exists() and not (out / "config.json").is_file():
        raise ValueError(
            f"{out} is no model's folder, so --force does not replace it.\nWrite another --out."
        )
    existing = next(
        each for each in (out.absolute().parent, *out.absolute().parents) if each.exists()
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"{existing} cannot be written.\nWrite another --out.")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ValueError(
            f"{existing} has {bytes_text(free)} left, and {bytes_text(needed_bytes)} are needed.\n"
            "Make room, or write another --out."
        )


@contextmanager
def replacement(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder beside `out` that takes its place if the block ends without an error.

    ValueError if another process makes the same one. A folder that has appeared at `out` meanwhile
    is kept without ``force``, and ValueError says where the new one is.
    """
    sibling = out.with_name(f".{out.name}.making")
    sibling.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        # What a killed process has left.
        shutil.rmtree(sibling, ignore_errors=True)
        sibling.mkdir()
        try:
            yield sibling
        except BaseException:
            shutil.rmtree(sibling, ignore_errors=True)
            raise
        _take_place(sibling, out, force=force)


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """No other process makes this folder while the block runs; ValueError if one does."""
    file = out.with_name(f".{out.name}.lock")
    with file.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"Another process is making {out}.\nWait for it, or write another --out."
            ) from None
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _take_place(made: Path, out: Path, *, force: bool) -> None:
    """Rename a folder that is whole, and remove the one that was there, if that was allowed."""
    if not out.exists():
        made.rename(out)
        return
    if not force:
        free = next(n for n in count(2) if not out.with_name(f"{out.name}-{n}").exists())
        other = made.rename(out.with_name(f"{out.name}-{free}"))
        raise ValueError(f"{out} has appeared meanwhile, and is kept.\nThe model is in {other}.")
    aside = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    out.rename(aside)
    try:
        made.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside)


def state_folder(out: Path) -> Path:
    """The folder of a healing's state, until the model is written."""
    return out.with_name(f".{out.name}.healing")


def write_settings(config: Any, source: Path, folder: Path) -> None:
    """Write the config, the source's settings of generation, and the code that models need."""
    config.save_pretrained(folder)
    generation = source / GENERATION
    if generation.is_file():
        shutil.copyfile(generation, folder / GENERATION)
    write_code_of(family_of(config), folder)


def replace_weights(model: Any, folder: Path) -> None:
    """Write the model's weights, in the type that its folder says, in place of those there."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink(missing_ok=True)
    dtype = getattr(torch, settings["dtype"])
    # A tensor of two names stays one, which the library writes once.
    converted: dict[object, torch.Tensor] = {}
    state = {
        name: converted.setdefault((part.data_ptr(), part.shape), part.to(dtype))
        for name, part in model.state_dict().items()
    }
    with TemporaryDirectory(dir=folder) as place:
        model.save_pretrained(place, state_dict=state)
        for file in (*Path(place).glob("*.safetensors"), *Path(place).glob(INDEX)):
            file.rename(folder / file.name)


def write_texts(tokenizer: Any, folder: Path, card: str, measured: Mapping[str, object]) -> None:
    """Write the tokenizer, the card and the measured numbers."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    (folder / MEASURED).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def card(
    name: str,
    mode: str | list[str],
    auto: str,
    command: str,
    rows: list[tuple[str, str, str]],
    notes: list[str],
) -> str:
    """The model card: what was done, by which command, and what was measured before and after."""
    equations = sorted({mode} if isinstance(mode, str) else set(mode))
    lines = [
        "---",
        f"base_model: {json.dumps(name)}",
        "library_name: transformers",
        "tags: [qkvbench, kv-cache]",
        "---",
        "",
        f"# {name} with {' and '.join(f'`{each}`' for each in equations)}",
        "",
        f"Made from `{name}` by",
        "",
        "```sh",
        command,
        "```",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {title} | {before} | {after} |" for title, before, after in rows),
        "",
        *(f"- {note}" for note in notes),
        "",
        "```python",
        "import transformers",
        "from qkvbench import hub",
        "",
        "hub.register()",
        f'model = transformers.{auto}.from_pretrained("FOLDER")',
        "```",
        "",
        "Without qkvbench, `trust_remote_code=True` runs the code that lies in this folder.",
    ]
    return "\n".join(lines) + "\n"
