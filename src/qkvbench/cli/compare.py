"""`qkvbench compare`: two arms of a study beside each other, from its store."""

import json

from pydantic import TypeAdapter
from rich.console import Console

from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cli.report import opened
from qkvbench.reports.parts.comparison import lines, sentence
from qkvbench.reports.terminal import styled
from qkvbench.results.pair import Pair, pair


def answer(request: Request) -> int:
    """Print the comparison."""
    study = opened(request.folder, request.margin)
    first, second = (names.arm(text, study.arms) for text in (request.first, request.second))
    if first == second:
        raise RequestError(
            f"'{request.first}' and '{request.second}' are one arm, {first}; "
            f"name two of {', '.join(study.arms)}."
        )
    found = pair(study, first, second)
    if not any(task.seeds for task in found.tasks):
        raise RequestError(
            f"{first} and {second} have no seed of any task in common in {request.folder}.\n"
            "'qkvbench report' shows which runs are there."
        )
    if request.json:
        whole = TypeAdapter(Pair).dump_python(found, mode="json")
        document = {"sentence": sentence(found), **whole}
        print(json.dumps(document, allow_nan=False, ensure_ascii=False, indent=1))
        return 0
    console = Console(highlight=False)
    for line in lines(found):
        # Lines are whole where a program reads them: the sentence is the first.
        console.print(styled(line), soft_wrap=not console.is_terminal)
    return 0
