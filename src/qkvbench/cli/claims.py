"""`qkvbench claims`: the ledger, with what the folders given show."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkvbench import claims
from qkvbench.claims import Arithmetic, Claim, Entry, Finding, Shown, Verdict
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports import ledger
from qkvbench.reports.terminal import styled
from qkvbench.results.store import Store, StoreError

STYLES: dict[Verdict, str] = {
    "supported": "green",
    "refuted": "red",
    "impossible": "bold red",
    "not distinguishable": "yellow",
    "not testable here": "cyan",
    "not yet run": "dim",
}
NARROW = 100


def answer(request: Request) -> int:
    """Print the ledger, or one claim of it at length."""
    chosen = [word for word in request.words if word in claims.names()]
    shown = [_opened(word) for word in request.words if word not in chosen]
    source = names.optional_name("source", request.source, [each.name for each in claims.SOURCES])
    verdict = names.optional_name(
        "verdict", request.verdict, [_flag(each) for each in claims.VERDICTS]
    )
    entries = [
        entry
        for entry in claims.ledger(shown)
        if (not chosen or entry.name in chosen)
        and source in (None, entry.claim.source.name)
        and verdict in (None, _flag(entry.finding.verdict))
    ]
    if request.out is not None:
        _write(Path(request.out), ledger.page(entries, [each.name for each in shown]))
    elif request.json:
        print(json.dumps([facts(entry) for entry in entries], indent=1, ensure_ascii=False))
    elif chosen:
        for entry in entries:
            print_claim(entry, _console())
    else:
        print_ledger(entries, _console())
    return 0


def facts(entry: Entry) -> dict[str, Any]:
    """An entry as JSON values."""
    claim, computed = entry.claim, entry.claim.arithmetic()
    return {
        "name": entry.name,
        "source": claim.source.name,
        "place": claim.place,
        "about": claim.text,
        "quantity": claim.quantity,
        "stated": [asdict(each) for each in claim.stated],
        "arithmetic": asdict(computed),
        "recipe": claim.recipe,
        **_found(entry.finding),
    }


def print_ledger(entries: Sequence[Entry], console: Console) -> None:
    """A row for each claim: its name and verdict, its words and why; then the counts."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, leading=1)
    table.add_column("Claim and verdict", no_wrap=True)
    table.add_column("In our words, and why", overflow="fold")
    for entry in entries:
        found = entry.finding
        left = Text.assemble((entry.name, "bold"), "\n", (found.verdict, STYLES[found.verdict]))
        right = Text("\n").join([styled(entry.claim.text), *_reasons(found)])
        table.add_row(left, right)
    console.print(table)
    console.print(_counts(entries))
    console.print(styled("`qkvbench claims NAME` says all about one of them."), style="dim")


def print_claim(entry: Entry, console: Console) -> None:
    """Everything about one claim."""
    claim, found, computed = entry.claim, entry.finding, entry.claim.arithmetic()
    console.print(Text.assemble((entry.name, "bold"), "  ", _verdict(found)))
    console.print(styled(claim.text))
    console.print()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in _rows(claim, found, computed):
        grid.add_row(name, styled(text))
    console.print(grid)
    console.print()


def _rows(claim: Claim, found: Finding, computed: Arithmetic) -> list[tuple[str, str]]:
    rows = [
        ("why", found.why),
        *([("takes", f"{found.takes}.")] if found.takes else []),
        ("where", f"{claim.place} ({claim.source.about})"),
        ("quantity", claim.quantity),
        ("stated", " · ".join(each.text for each in claim.stated) or "no figure"),
    ]
    if computed.figures:
        rows.append(("computed", " · ".join(each.text for each in computed.figures)))
    if computed.says not in found.why:
        rows.append(("arithmetic", computed.says))
    rows += [
        ("recipe", f"qkvbench run {claim.recipe}" if claim.recipe else "none"),
        *(("runs", f"{piece.text}. Records: {', '.join(piece.runs)}.") for piece in found.pieces),
    ]
    if found.here:
        rows.append(("beside it", f"{found.here.verdict}. {found.here.why}"))
        rows += [
            ("", f"{piece.text}. Records: {', '.join(piece.runs)}.") for piece in found.here.pieces
        ]
    return rows


def _reasons(found: Finding) -> list[Text]:
    lines = [Text.assemble(styled(found.brief), style="dim")]
    if found.here:
        lines.append(Text.assemble(("beside it, at another scale: ", "dim"), _verdict(found.here)))
    return lines


def _verdict(found: Finding) -> Text:
    return Text(found.verdict, style=STYLES[found.verdict])


def _counts(entries: Sequence[Entry]) -> Text:
    counts: dict[Verdict, int] = {
        verdict: sum(entry.finding.verdict == verdict for entry in entries) for verdict in STYLES
    }
    parts = [
        Text(f"{count} {verdict}", style=STYLES[verdict])
        for verdict, count in counts.items()
        if count
    ]
    return Text.assemble(f"{len(entries)} claims: ", Text(", ").join(parts), ".")


def _found(finding: Finding) -> dict[str, Any]:
    return {
        "verdict": finding.verdict,
        "why": finding.why,
        "takes": finding.takes or None,
        "evidence": [asdict(piece) for piece in finding.pieces],
        "beside": finding.here and _found(finding.here),
    }


def _flag(verdict: Verdict) -> str:
    return verdict.replace(" ", "-")


def _opened(word: str) -> Shown:
    folder = Path(word)
    if not folder.is_dir():
        # A word that is no folder was meant to be a claim, or is a folder misspelt.
        raise RequestError(
            f"{word} is neither a claim nor a folder of results."
            f"{names.suggestion(word, claims.names())}\n'qkvbench ls claims' lists the claims."
        )
    try:
        if not Store(folder).runs().good:
            raise RequestError(f"There is no run in {folder}; 'qkvbench run' puts them there.")
        return claims.opened(folder)
    except StoreError as error:
        raise RequestError(str(error)) from None


def _write(place: Path, text: str) -> None:
    try:
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{place} cannot be written: {error.strerror}.") from None


def _console() -> Console:
    """As wide as the terminal; for a file, as wide as most can show."""
    console = Console()
    return console if console.is_terminal else Console(width=NARROW)
