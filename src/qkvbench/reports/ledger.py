"""The ledger of claims as one HTML file: each claim with its verdict and evidence."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qkvbench.claims import MEANINGS, SOURCES, VERDICTS, Entry, ledger, of_study
from qkvbench.reports.page import equations
from qkvbench.reports.parts.formatting import plural
from qkvbench.results.view import View

ABOUT = "the claims of the literature with their verdicts, given this study alone"
SUFFIX = "html"

_FOLDER = Path(__file__).parent


def render(view: View) -> str:
    """The whole ledger, with the evidence of this study."""
    return page(tuple(ledger((of_study(view),))), (view.name,))


def page(entries: Sequence[Entry], stores: Sequence[str]) -> str:
    """The page of these entries; `stores` are the names of the studies that were read."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["equations"] = equations
    return environment.get_template("_ledger.html").render(
        # Safe unescaped: the package's own files, not the text of a record.
        css=Markup("".join((_FOLDER / name).read_text(encoding="utf-8") for name in _STYLES)),
        entries=entries,
        stores=stores,
        sources=SOURCES,
        verdicts=[
            (verdict, MEANINGS[verdict], [e for e in entries if e.finding.verdict == verdict])
            for verdict in VERDICTS
        ],
        arithmetic={entry.claim.name: entry.claim.arithmetic() for entry in entries},
        plural=plural,
    )


_STYLES = ("_page.css", "_ledger.css")
