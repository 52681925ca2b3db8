"""`qkvbench evidence`: what all folders of results together show of one arm."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports.full import styled
from qkvbench.reports.parts.evidence import lines, sentence
from qkvbench.reports.parts.formatting import printable
from qkvbench.results.evidence import Run, Setting, runs_of, settings
from qkvbench.results.store import Store, StoreError
from qkvbench.results.view import BASELINE

# Where `run` writes, and where studies are committed.
FOLDERS = ("studies", "results")
# Folders that a message names.
MOST_NAMED = 4


def answer(request: Request) -> int:
    """Print the verdict in every setting."""
    if Path(request.variant).is_dir():
        raise RequestError(
            f"{printable(request.variant)} is a folder; the arm comes first, then the folders."
        )
    (arm,) = names.arms([request.variant])
    (against,) = names.arms([request.against or BASELINE])
    if arm == against:
        raise RequestError(f"{arm} would be compared with itself; name another arm.")
    folders = [Path(each) for each in request.folders] or default_folders()
    if not folders:
        raise RequestError(
            "There is no folder of results here: neither studies/NAME nor results/NAME.\n"
            "Name some, as in 'qkvbench evidence q,k=v DIR ...'; 'qkvbench run' writes them."
        )
    margins = names.margins(request.margin)
    found = settings(every_run(folders), arm=arm, against=against, margins=margins)
    if not found:
        raise RequestError(
            f"No setting has runs of both {arm} and {against} in {_places(folders)}.\n"
            f"'qkvbench run --variants {against} {arm} --tasks lm-reviews' makes some."
        )
    named = {name for each in found for name in (*each.names, str(each.shared.task))}
    names.check_margin_names(margins, sorted(named))
    if request.json:
        print(json.dumps(document(found, arm, against), indent=1, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    width = console.width if console.is_terminal else None
    for line in lines(found, arm, against, width):
        console.print(styled(line), soft_wrap=not console.is_terminal)
    return 0


def default_folders() -> list[Path]:
    """The folders of results below the current one."""
    return [folder.parent for root in FOLDERS for folder in sorted(Path(root).glob("*/study.json"))]


def every_run(folders: Sequence[Path]) -> list[Run]:
    """The runs of all folders; RequestError if one is no folder of results."""
    found: list[Run] = []
    for folder in folders:
        if not (folder / "runs").is_dir():
            raise RequestError(
                f"{folder} is not a folder of results: it has no runs.\n"
                "'qkvbench run' writes such folders."
            )
        store = Store(folder)
        try:
            found += runs_of(store, folder.name)
            damaged = store.runs().damaged
        except StoreError as error:
            raise RequestError(str(error)) from None
        for each in damaged:
            print(printable(f"Left out, damaged: {each.path}: {each.reason}"), file=sys.stderr)
    return found


def document(found: Sequence[Setting], arm: str, against: str) -> dict[str, Any]:
    """The settings as JSON values."""
    return {
        "sentence": sentence(found, arm, against),
        "verdicts": dict(Counter(each.verdict or each.silence for each in found)),
        "settings": [
            {
                "task": list(each.names),
                "folders": list(each.folders),
                "steps": each.shared.training.steps,
                "tuned_rates": each.tuned,
                "parameters": each.parameters,
                "seeds": {"baseline": each.seeds[0], "arm": each.seeds[1]},
                "verdict": each.verdict,
                "effective_speed": each.speed,
                "statistics": asdict(each.result),
                "runs": list(each.runs),
            }
            for each in found
        ],
    }


def _places(folders: Sequence[Path]) -> str:
    """The folders by name if they are few, or how many they are."""
    if len(folders) <= MOST_NAMED:
        return ", ".join(map(str, folders))
    return f"{len(folders)} folders of results"
