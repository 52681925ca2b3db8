"""`qkvbench slim`: what applies to a checkpoint of transformers, and what it saves of its cache."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost.units import bytes_text
from qkvbench.reports.parts.formatting import printable

if TYPE_CHECKING:
    from qkvbench.hub.savings import Part, Savings


def answer(request: Request) -> int:
    """Print the answer in one line, the bytes of both caches, and the code that uses it."""
    try:
        from qkvbench.hub.savings import savings
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "huggingface_hub"):
            raise
        raise RequestError(
            f"slim needs {error.name}, which is not installed: ./qkv setup hf"
        ) from None
    try:
        found = savings(request.source, context=request.context)
    except (ValueError, OSError) as error:
        raise RequestError(str(error)) from None
    if request.json:
        print(json.dumps(facts(found), allow_nan=False, indent=1))
    else:
        print("\n".join(printable(line) for line in lines(found)))
    return 0


def facts(found: "Savings") -> dict[str, object]:
    """The answer as JSON values; a number that is not known is null."""
    values: dict[str, Any] = asdict(found)
    values |= {"library_bytes": found.library_bytes, "slim_bytes": found.slim_bytes}
    for condition in values["conditions"]:
        if not math.isfinite(condition["number"]):
            condition["number"] = None
    return values


def lines(found: "Savings") -> list[str]:
    """The lines of the answer."""
    code = ["", *(f"    {line}" for line in found.code)] if found.code else []
    if not code:
        code = ["", "A smaller cache at a loss that is measured: ./qkv advise, ./qkv convert."]
    return [_headline(found), *_reason(found), "", *_table(found.parts), *code]


def _headline(found: "Savings") -> str:
    """The answer in one line: the saving and its accuracy, or the reason that there is none."""
    if found.library_bytes == found.slim_bytes:
        return f"Nothing to save in {found.model}: {found.reason}."
    saving = [part for part in found.parts if part.slim_bytes != part.library_bytes]
    what = "; ".join(
        f"{part.enough} ({part.name}, {part.exactness})"
        if len(found.parts) > 1
        else f"{part.enough}, {part.exactness}"
        for part in saving
    )
    share = found.slim_bytes / found.library_bytes
    return f"{found.model} can do with {share:.0%} of its cache: {what}."


def _reason(found: "Savings") -> list[str]:
    """Why some layers keep both."""
    if found.reason is None or found.library_bytes == found.slim_bytes:
        return []
    return [f"Not everywhere: {found.reason}."]


def _table(parts: Sequence["Part"]) -> list[str]:
    """The bytes of both caches."""
    rows = [["", "layers", "the library keeps", "a token", "at", "", "enough", "a token", ""]]
    for part in parts:
        rows.append(
            [
                part.name,
                str(part.layers),
                part.library,
                bytes_text(part.library_bytes_per_token),
                f"{part.tokens} tokens",
                bytes_text(part.library_bytes),
                part.enough,
                bytes_text(part.slim_bytes_per_token),
                bytes_text(part.slim_bytes),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
