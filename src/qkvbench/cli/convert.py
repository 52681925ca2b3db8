"""`qkvbench convert`: a pretrained checkpoint with a smaller cache, measured before and after."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qkvbench.cli import names
from qkvbench.cli.parser import START, WINDOW, Request, RequestError
from qkvbench.data import DataUnavailableError
from qkvbench.reports.parts.formatting import printable
from qkvbench.variant import write

# A healing writes the model twice, and the state that it resumes from.
COPIES = 3


def answer(request: Request) -> int:
    """Write the converted model, and print what it costs."""
    from qkvbench.hub.fit.folder import check_place
    from qkvbench.hub.fit.healing import parse_healing

    out = Path(request.out)
    text, held_out = read_text(request.text), read_text(request.held_out)
    try:
        healing = parse_healing(request.heal or ())
        if healing.tokens and text is None:
            raise RequestError("A healing reads a text: add --text FILE.\nNothing was written.")
        check_place(out, 0, force=request.force)
        checkpoint = find_checkpoint(request.source)
        mode = read_mode(request.to, request.layers, checkpoint.layers)
        copies = COPIES if healing.tokens else 1
        check_place(out, copies * checkpoint.weight_bytes, force=request.force)
        from qkvbench.hub.fit.road import Reading, Texts, convert_checkpoint

        done = convert_checkpoint(
            checkpoint,
            mode,
            out,
            ["qkvbench", *sys.argv[1:]],
            texts=Texts(text, held_out),
            start=checked_start(request.start),
            reading=Reading(request.window, request.tokens, request.held_out_tokens),
            healing=healing,
            memory_bytes=read_bytes(request.memory),
            force=request.force,
            progress=say,
        )
    except ValueError as error:
        raise RequestError(f"{error}") from None
    if request.json:
        print(json.dumps(done.measured, indent=1))
        return 0
    print(f"{out} is written.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for head in ("before", "after"):
        table.add_column(head, justify="right")
    for row in done.rows:
        table.add_row(*map(printable, row))
    Console().print(table, markup=False)
    return 0


def command_for(source: str, plan: Path, request: Request) -> str:
    """The command that converts a checkpoint by a plan, fitted as the plan was."""
    words = ["qkvbench", "convert", source, "--layers", str(plan), "--text", request.text]
    start = getattr(request, "start", START)
    words += ["--start", start] if start != START else []
    words += ["--window", str(request.window)] if request.window != WINDOW else []
    return shlex.join([*words, "--out", "DIR"])


def say(line: str) -> None:
    """Print a line of progress."""
    print(printable(line), file=sys.stderr, flush=True)


def find_checkpoint(name: str) -> Any:
    """The checkpoint; RequestError if it cannot be had."""
    try:
        from transformers.utils import logging

        from qkvbench.hub.fit import source

        # Its bars would hide the lines of progress.
        logging.disable_progress_bar()
        return source.find(name)
    except (DataUnavailableError, ValueError) as error:
        raise RequestError(f"{error}") from None
    except ImportError:
        raise RequestError(
            "Pretrained models need transformers, which is not installed: ./qkv setup hf"
        ) from None


def checked_start(text: str) -> str:
    """The text of a start; RequestError with the closest name if there is none."""
    from qkvbench.hub.fit.starts import STARTS, parse_start

    try:
        parse_start(text)
    except ValueError as error:
        name = text.partition(":")[0]
        closest = "" if name in STARTS else names.suggestion(name, list(STARTS))
        raise RequestError(f"{error}{closest}") from None
    return text


def read_bytes(text: str | None) -> int | None:
    """The bytes of a text such as 2GB; None if the text is None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kMGT])(i?)B?)?", text)
    if match is None or not float(match[1]):
        raise RequestError(f"--memory {printable(text)} is not a size; write 500MB or 2GB.")
    power = "kMGT".index(match[2]) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def read_text(name: str | None) -> str | None:
    """The text of a file; None if the name is None."""
    if name is None:
        return None
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{printable(name)} is no text in UTF-8: byte {error.start:,} is part of none."
        ) from None
    except OSError as error:
        raise RequestError(f"{printable(name)} cannot be read: {error.strerror}.") from None


def read_mode(to: str | None, layers: str | None, count: int) -> str | list[str]:
    """The equation of all layers, or of each; RequestError if the words do not say which."""
    if layers is not None and layers.endswith(".json"):
        found = _plan_file(Path(layers), count)
        if to is not None:
            raise RequestError(
                f"{printable(layers)} says the equation of each layer: leave out --to."
            )
        return found
    if to is None:
        raise RequestError("Write --to EQUATION, such as 'q,k=v', or --layers PLAN.json.")
    equation = write(names.variant(to))
    if layers is None:
        return equation
    chosen = _numbers(layers, count)
    return [equation if number in chosen else "q,k,v" for number in range(count)]


def _plan_file(file: Path, count: int) -> list[str]:
    """The equations in a file that `advise` wrote."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        mode = found["mode"]
        equations = [write(names.variant(text)) for text in mode]
    except OSError as error:
        raise RequestError(f"{printable(str(file))} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RequestError(
            f"{printable(str(file))} is no plan: 'qkvbench advise' writes one."
        ) from None
    if len(equations) != count:
        raise RequestError(
            f"{printable(str(file))} is a plan for {len(equations)} layers; this model has {count}."
        )
    return equations


def _numbers(text: str, count: int) -> set[int]:
    """The layers of a text such as 0,3,5-9."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < count:
            raise RequestError(
                f"--layers {printable(text)} is not a list of layers from 0 to {count - 1}.\n"
                "Write numbers and ranges, such as 0,3,5-9, or a plan.json."
            )
        found |= set(range(first, last + 1))
    return found
