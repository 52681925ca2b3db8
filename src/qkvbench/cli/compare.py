"""`qkvbench compare`: two arms of a study compared, from its store."""

import json
import sys

from pydantic import TypeAdapter
from rich.console import Console

from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cli.report import load_view
from qkvbench.reports.full import styled
from qkvbench.reports.parts.comparison import lines, sentence
from qkvbench.reports.parts.headline import kernels_text
from qkvbench.results.pair import Pair, pair


def answer(request: Request) -> int:
    """Print the comparison."""
    study = load_view(request.folder, request.margin)
    first, second = (names.arm(text, study.arms) for text in (request.first, request.second))
    if first == second:
        raise RequestError(
            f"'{request.first}' and '{request.second}' are one arm, {first}; "
            f"name two of {', '.join(study.arms)}."
        )
    comparison = pair(study, first, second)
    if not any(task.seeds for task in comparison.tasks):
        raise RequestError(
            f"{first} and {second} have no seed of any task in common in {request.folder}.\n"
            "'qkvbench report' shows which runs are there."
        )
    if request.json:
        fields = TypeAdapter(Pair).dump_python(comparison, mode="json")
        document = {"sentence": sentence(comparison), **fields}
        print(json.dumps(document, allow_nan=False, ensure_ascii=False, indent=1))
        return 0
    console = Console(highlight=False)
    for line in lines(comparison):
        # Wrap for a terminal only, so that a program can read the first line as the sentence.
        console.print(styled(line), soft_wrap=not console.is_terminal)
    if note := kernels_text(study, (first, second)):
        print(f"Decode: {note}", file=sys.stderr)
    return 0
