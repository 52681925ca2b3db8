"""`qkvbench prune CHECKPOINT --text FILE`: a learned plan of a pretrained model, beside rivals."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from qkvbench.cli import names
from qkvbench.cli.convert import checked_start, command_for, find_checkpoint, read_text, say
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cli.probes import print_probes
from qkvbench.cost.search import UnreachableLossError
from qkvbench.model import QUANTITY_NAMES, LossTarget, Target, parse_target
from qkvbench.results.store import write_atomically
from qkvbench.variant import write

if TYPE_CHECKING:
    from qkvbench.hub.fit.learned import Learning

# The plan, for `convert --layers`, with everything that was found.
PLAN = "plan.json"
# Steps of the gates.
STEPS = 128


def answer(request: Request) -> int:
    """Learn the plan, compare it, print what was found and write it to the folder."""
    target = _target(request)
    text = read_text(request.text)
    if text is None:
        raise RequestError(
            f"{request.task} is a pretrained model, whose layers are fitted to a text: add --text "
            "FILE."
        )
    equations = [write(each) for each in names.variants(request.options)]
    start = checked_start(request.start)
    checkpoint, folder = find_checkpoint(request.task), Path(request.out)
    from qkvbench.hub.fit.healing import parse_healing
    from qkvbench.hub.fit.learned import Wanted, learn_plan
    from qkvbench.hub.fit.road import Reading

    steps = 2 if request.smoke else request.steps or STEPS
    reading = Reading(request.window, request.tokens, request.held_out_tokens)

    try:
        healing = parse_healing(request.heal)
        folder.mkdir(parents=True, exist_ok=True)
        found = learn_plan(
            checkpoint,
            text,
            Wanted(target, equations, steps, reading, start),
            healing,
            folder,
            say,
        )
    except (ValueError, OSError, UnreachableLossError) as error:
        raise RequestError(f"{error}") from None
    document = _document(request, found)
    text = json.dumps(document, indent=1, allow_nan=False)
    write_atomically(folder / PLAN, f"{text}\n".encode())
    if request.json:
        print(text)
    else:
        _print(request, found, folder)
    return 0


def _target(request: Request) -> Target | LossTarget:
    """The target; RequestError for what only the models of tasks can have."""
    task_words = {
        "--layers": request.layers,
        "--model": request.model,
        "--position": request.position,
        "--distill": request.distill,
    }
    if given := [word for word, value in task_words.items() if value]:
        raise RequestError(
            f"{', '.join(given)}: for the model of a task. Gates of a pretrained model learn from "
            "its own predictions always."
        )
    try:
        return parse_target(request.target)
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None


def _document(request: Request, found: "Learning") -> dict[str, object]:
    """Everything that was found, as JSON values; `mode` is the plan for `convert`."""
    from qkvbench.hub.fit.learned import LEARNED
    from qkvbench.hub.fit.planning import mode_of

    return {
        "version": 1,
        "source": request.task,
        "wanted": request.target,
        "target": str(found.target),
        "start": request.start,
        "tried": [asdict(each) for each in found.probes],
        "mode": mode_of(found.plans[LEARNED].plan),
        "share": found.share,
        "loss": found.loss,
        "healed_tokens": found.healed_tokens,
        "plans": {
            name: {
                "mode": mode_of(each.plan),
                "before": {"divergence": each.before.divergence, "loss": each.before.loss},
                "after": each.after and dict(zip(("divergence", "loss"), each.after, strict=True)),
            }
            for name, each in found.plans.items()
        },
        "options": [asdict(each) for each in found.options],
        "history": [{"step": step, "probabilities": rows} for step, rows in found.history],
    }


def _print(request: Request, found: "Learning", folder: Path) -> None:
    from qkvbench.hub.fit.planning import UNCHANGED, mode_of
    from qkvbench.hub.fit.road import ranges

    modes = {name: mode_of(each.plan) for name, each in found.plans.items()}
    same = _same(modes)
    print_probes(request.target, found.probes, found.target)
    print(
        f"{found.target}: the learned plan has {found.share:.1%} of the "
        f"{QUANTITY_NAMES[found.target.quantity]}; it agrees with the integer program in "
        f"{same:.0%} of the layers.\n"
        f"The original's loss is {found.loss:.3f} nats a token; below is what a plan adds."
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("plan of equal cost")
    for head in ("divergence", "loss", "healed: divergence", "loss", "layers changed"):
        table.add_column(head, justify="right")
    for name, each in found.plans.items():
        after = (
            ("", "") if each.after is None else (f"{each.after[0]:.4f}", f"{each.after[1]:+.4f}")
        )
        changed = [n for n, equation in enumerate(modes[name]) if equation != UNCHANGED]
        table.add_row(
            name,
            f"{each.before.divergence:.4f}",
            f"{each.before.loss:+.4f}",
            *after,
            ranges(changed),
        )
    Console().print(table, markup=False)
    print(command_for(request.task, folder / PLAN, request))


def _same(modes: Mapping[str, list[str]]) -> float:
    from qkvbench.hub.fit.learned import LEARNED, PROGRAM

    pairs = list(zip(modes[LEARNED], modes[PROGRAM], strict=True))
    return sum(one == other for one, other in pairs) / len(pairs)
