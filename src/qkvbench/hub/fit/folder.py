"""The folder of a converted model: written beside its place and renamed when it is whole."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qkvbench.cost.units import bytes_text

CARD, MEASURED = "README.md", "measured.json"


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
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{existing} cannot be written.\nWrite another --out.")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ValueError(
            f"{existing} has {bytes_text(free)} left, and {bytes_text(needed_bytes)} are needed.\n"
            "Make room, or write another --out."
        )


@contextmanager
def replacement(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place if the block ends without an error."""
    sibling = out.with_name(f".{out.name}.making")
    shutil.rmtree(sibling, ignore_errors=True)
    sibling.mkdir(parents=True)
    try:
        yield sibling
    except BaseException:
        shutil.rmtree(sibling, ignore_errors=True)
        raise
    if out.exists():
        aside = out.with_name(f".{out.name}.replaced")
        shutil.rmtree(aside, ignore_errors=True)
        out.rename(aside)
        sibling.rename(out)
        shutil.rmtree(aside)
    else:
        sibling.rename(out)


def state_folder(out: Path) -> Path:
    """The folder of a healing's state, until the model is written."""
    return out.with_name(f".{out.name}.healing")


def save(
    model: Any, tokenizer: Any, folder: Path, card: str, measured: Mapping[str, object]
) -> None:
    """Write the model, its tokenizer, its code, its card and the measured numbers."""
    model.save_pretrained(folder, with_code=True)
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
