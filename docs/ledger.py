"""The verdicts of today in claims.md: their counts, and every claim that is impossible or refuted.

Run     .venv/bin/python docs/ledger.py      half a minute: it reads all of studies/
"""

from collections.abc import Sequence
from pathlib import Path

from qkvbench import claims
from qkvbench.cli.claims import in_short

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "claims.md"
BEGIN, END = "## The verdicts today\n", "## Verdicts\n"


def main() -> None:
    """Write the section."""
    stores = [claims.open_store(path) for path in (ROOT / "studies").iterdir() if path.is_dir()]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + section([*claims.ledger(stores)]) + END + rest.partition(END)[2])


def section(entries: Sequence[claims.Entry]) -> str:
    """The counts, and a table for each of the two verdicts."""
    groups = {
        verdict: [entry for entry in entries if entry.finding.verdict == verdict]
        for verdict in claims.VERDICTS
    }
    counts = ", ".join(f"{len(group)} {verdict}" for verdict, group in groups.items() if group)
    return "".join(
        [
            f"{BEGIN}\n{len(entries)} claims, with all of [studies/](../studies/README.md): "
            f"{counts}. `docs/ledger.py` wrote this section; `./qkv claims studies/*/` prints the "
            "others, too.\n\n",
            *(_table(verdict, groups[verdict]) for verdict in ("impossible", "refuted")),
        ]
    )


def _table(verdict: claims.Verdict, entries: Sequence[claims.Entry]) -> str:
    rows = [
        f"| {_cell(entry.claim.text)} (`{entry.claim.name}`) | {' | '.join(map(_cell, short))} |\n"
        for entry in entries
        for short in [in_short(entry)]
    ]
    return "".join(
        [f"| {verdict} | stated | what stands against it |\n|---|---|---|\n", *rows, "\n"]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
