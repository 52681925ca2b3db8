"""`qkvbench claims`: the ledger, given the runs in some folders."""

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
from qkvbench.claims import Arithmetic, Claim, Entry, Finding, StoreView, Verdict
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports import ledger
from qkvbench.reports.full import styled
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
    stores = [_open(word) for word in request.words if word not in chosen]
    source = names.optional_name("source", request.source, [each.name for each in claims.SOURCES])
    verdict = names.optional_name(
        "verdict", request.verdict, [_flag(each) for each in claims.VERDICTS]
    )
    entries = [
        entry
        for entry in claims.ledger(stores)
        if (not chosen or entry.claim.name in chosen)
        and source in (None, entry.claim.source.name)
        and verdict in (None, _flag(entry.finding.verdict))
    ]
    if request.out is not None:
        _write(Path(request.out), ledger.page(entries, [each.name for each in stores]))
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
        "name": claim.name,
        "source": claim.source.name,
        "place": claim.place,
        "about": claim.text,
        "quantity": claim.quantity,
        "stated": [asdict(each) for each in claim.figures],
        "arithmetic": {"says": computed.text, "figures": [asdict(f) for f in computed.figures]},
        "recipe": claim.recipe,
        **_finding_facts(entry.finding),
    }


def print_ledger(entries: Sequence[Entry], console: Console) -> None:
    """A row for each claim: its name and verdict, its text and the reason; then the counts."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, leading=1)
    table.add_column("Claim and verdict", no_wrap=True)
    table.add_column("In our words, and the reason", overflow="fold")
    for entry in entries:
        finding = entry.finding
        left = Text.assemble((entry.claim.name, "bold"), "\n", _verdict(finding))
        right = Text("\n").join([styled(entry.claim.text), *_reasons(finding)])
        table.add_row(left, right)
    console.print(table)
    console.print(_counts(entries))
    console.print(styled("`qkvbench claims NAME` prints one claim in full."), style="dim")


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
    rows.append(("recipe", f"qkvbench run {claim.recipe}" if claim.recipe else "none"))
    rows += [("runs", text) for text in _runs(finding)]
    if finding.other_scale:
        other = finding.other_scale
        rows.append(("other scale", f"{other.verdict}. {other.reason}"))
        rows += [("", text) for text in _runs(other)]
    return rows


def _runs(finding: Finding) -> list[str]:
    return [f"{each.text}. Records: {', '.join(each.runs)}." for each in finding.evidence]


def _reasons(finding: Finding) -> list[Text]:
    lines = [Text.assemble(styled(finding.summary), style="dim")]
    if finding.other_scale:
        lines.append(Text.assemble(("at another scale: ", "dim"), _verdict(finding.other_scale)))
    return lines


def _verdict(finding: Finding) -> Text:
    return Text(finding.verdict, style=STYLES[finding.verdict])


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


def _finding_facts(finding: Finding) -> dict[str, Any]:
    return {
        "verdict": finding.verdict,
        "why": finding.reason,
        "takes": finding.requires or None,
        "evidence": [asdict(each) for each in finding.evidence],
        "beside": finding.other_scale and _finding_facts(finding.other_scale),
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
        if not Store(folder).runs().good:
            raise RequestError(f"There is no run in {folder}; 'qkvbench run' puts them there.")
        return claims.open_store(folder)
    except StoreError as error:
        raise RequestError(str(error)) from None


def _write(place: Path, text: str) -> None:
    try:
        place.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{place} cannot be written: {error.strerror}.") from None


def _console() -> Console:
    """As wide as the terminal; for a file, `NARROW` columns."""
    console = Console()
    return console if console.is_terminal else Console(width=NARROW)
