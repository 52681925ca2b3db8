"""`qkvbench claims`: the ledger, given the runs in some folders."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qkvbench import claims
from qkvbench.claims import Arithmetic, Claim, Entry, Finding, OtherScale, StoreView, Verdict
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports import ledger
from qkvbench.reports.full import styled
from qkvbench.results.store import StoreError

STYLES: dict[Verdict, str] = {
    "impossible": "bold red",
    "refuted": "red",
    "supported": "green",
    "not distinguishable": "yellow",
    "not yet run": "dim",
    "not testable here": "cyan",
}
WIDTH = 120
# Columns of the overview: claim, stated, computed.
NAME, STATED = 34, 26
# What follows from shapes or from the source's own table is no news: its names are enough.
BY_ARITHMETIC = "by arithmetic"
HEADINGS = [
    "",
    BY_ARITHMETIC,
    *(f"{direction} at a smaller scale" for direction in get_args(claims.Direction)),
    "no run or measurement bears on it",
]


def answer(request: Request) -> int:
    """Print the ledger, or one claim of it at length."""
    chosen = [word for word in request.words if word in claims.names()]
    stores = [_open(word) for word in request.words if word not in chosen]
    source = names.optional_name("source", request.source, [each.name for each in claims.SOURCES])
    verdict = names.optional_name(
        "verdict", request.verdict, [_flag(each) for each in claims.VERDICTS]
    )
    entries = [
        entry
        for entry in claims.ledger(stores, chosen=chosen or None)
        if source in (None, entry.claim.source.name)
        and verdict in (None, _flag(entry.finding.verdict))
    ]
    if request.out is not None:
        names.write_page(Path(request.out), ledger.page(entries, [each.name for each in stores]))
    elif request.json:
        found = _without_infinity([facts(entry) for entry in entries])
        print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
    elif chosen:
        for entry in entries:
            print_claim(entry, _console())
    else:
        print_ledger(entries, _console())
    return 0


def _without_infinity(value: Any) -> Any:
    """The same with null for an open end, which JSON has no number for."""
    match value:
        case dict():
            return {key: _without_infinity(each) for key, each in value.items()}
        case list() | tuple():
            return [_without_infinity(each) for each in value]
        case float() if math.isinf(value):
            return None
        case _:
            return value


def facts(entry: Entry) -> dict[str, Any]:
    """An entry as JSON values."""
    claim, computed = entry.claim, entry.claim.arithmetic()
    return {
        "name": claim.name,
        "source": claim.source.name,
        "place": claim.place,
        "about": claim.text,
        "quantity": claim.quantity,
        "stated": [asdict(each) for each in claim.figures],
        "arithmetic": {"says": computed.text, "figures": [asdict(f) for f in computed.figures]},
        "recipe": claim.recipe,
        "benchmark": claim.benchmark,
        **_finding_facts(entry.finding),
    }


def print_ledger(entries: Sequence[Entry], console: Console) -> None:
    """The counts; then for each verdict its claims, a line each: claim, stated, computed."""
    console.print(_counts(entries))
    for verdict in claims.VERDICTS:
        group = [entry for entry in entries if entry.finding.verdict == verdict]
        if not group:
            continue
        console.print()
        heading = Text.assemble(
            (verdict, STYLES[verdict]), (f" ({len(group)}): {claims.MEANINGS[verdict]}", "dim")
        )
        console.print(heading)
        for heading, part in _parts(verdict, group):
            if heading:
                console.print(Text(f"  {heading}", style="dim"))
            if heading == BY_ARITHMETIC:
                listed = ", ".join(entry.claim.name for entry in part)
                console.print(Padding(Text(listed), (0, 0, 0, 4)))
            else:
                for entry in part:
                    console.print(_line(entry, console.width))
    console.print()
    console.print(styled("`qkvbench claims NAME` prints one claim in full."), style="dim")


def _parts(verdict: Verdict, group: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """The claims of one verdict under the headings that they need."""
    parts: dict[str, list[Entry]] = {}
    for entry in group:
        other = entry.finding.other_scale
        match verdict:
            case "supported":
                heading = "" if entry.finding.evidence else BY_ARITHMETIC
            case "not testable here":
                heading = other.label if other else HEADINGS[-1]
            case _:
                heading = ""
        parts.setdefault(heading, []).append(entry)
    return sorted(parts.items(), key=lambda part: HEADINGS.index(part[0]))


def _line(entry: Entry, width: int) -> Text:
    """One claim in one line: its name, the figures stated, and those computed or found."""
    stated, found = in_short(entry)
    line = Text.assemble(
        ("  " + entry.claim.name.ljust(NAME), "bold"), " ", _cut(stated, STATED).ljust(STATED), " "
    )
    line.append_text(styled(found))
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line


def in_short(entry: Entry) -> tuple[str, str]:
    """The stated figure that matters, and what stands against it: both short enough for a row."""
    claim, finding = entry.claim, entry.finding
    figures = " · ".join(each.text for each in claim.figures) or "–"
    if finding.decided_by is not None:
        printed, computed = finding.decided_by
        return printed.text, computed.text
    if finding.evidence:
        return figures, finding.evidence[0].short
    if finding.verdict == "not testable here" and finding.other_scale is not None:
        return figures, finding.other_scale.summary
    return figures, finding.summary


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def print_claim(entry: Entry, console: Console) -> None:
    """Everything about one claim."""
    claim, finding, computed = entry.claim, entry.finding, entry.claim.arithmetic()
    console.print(Text.assemble((entry.claim.name, "bold"), "  ", _verdict(finding)))
    console.print(styled(claim.text))
    console.print()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _rows(claim, finding, computed):
        grid.add_row(name, styled(text))
    console.print(grid)
    console.print()


def _rows(claim: Claim, finding: Finding, computed: Arithmetic) -> list[tuple[str, str]]:
    rows = [
        ("reason", finding.reason),
        *([("requires", f"{finding.requires}.")] if finding.requires else []),
        ("place", f"{claim.place} ({claim.source.about})"),
        ("quantity", claim.quantity),
        ("printed", " · ".join(each.text for each in claim.figures) or "no figure"),
    ]
    if computed.figures:
        rows.append(("computed", " · ".join(each.text for each in computed.figures)))
    if computed.text not in finding.reason:
        rows.append(("arithmetic", computed.text))
    rows.append(("command", claim.command or "none"))
    rows += [("runs", text) for text in _runs(finding)]
    if finding.other_scale:
        other = finding.other_scale
        rows.append(("smaller scale", f"{other.direction}. {other.reason}"))
        rows += [("", text) for text in _runs(other)]
    return rows


def _runs(finding: Finding | OtherScale) -> list[str]:
    return [f"{each.text}. Records: {', '.join(each.runs)}." for each in finding.evidence]


def _verdict(finding: Finding) -> Text:
    return Text(finding.verdict, style=STYLES[finding.verdict])


def _counts(entries: Sequence[Entry]) -> Text:
    parts = [
        Text(f"{count} {verdict}", style=STYLES[verdict])
        for verdict in claims.VERDICTS
        if (count := sum(entry.finding.verdict == verdict for entry in entries))
    ]
    return Text.assemble(f"{len(entries)} claims: ", Text(", ").join(parts), ".")


def _finding_facts(finding: Finding) -> dict[str, Any]:
    other = finding.other_scale
    return {
        "verdict": finding.verdict,
        "why": finding.reason,
        "takes": finding.requires or None,
        "evidence": [asdict(each) for each in finding.evidence],
        "smaller_scale": other and asdict(other),
    }


def _flag(verdict: Verdict) -> str:
    return verdict.replace(" ", "-")


def _open(word: str) -> StoreView:
    folder = Path(word)
    if not folder.is_dir():
        raise RequestError(
            f"{word} is neither a claim nor a folder of results."
            f"{names.suggestion(word, claims.names())}\n'qkvbench ls claims' lists the claims."
        )
    try:
        store = claims.open_store(folder)
    except StoreError as error:
        raise RequestError(str(error)) from None
    if not store.runs and not store.measurements and not store.benchmarks:
        raise RequestError(f"There is no run in {folder}; 'qkvbench run' puts them there.")
    return store


def _console() -> Console:
    """As wide as the terminal; for a file, `WIDTH` columns."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
