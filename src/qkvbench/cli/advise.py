"""`qkvbench advise`: which layers of a checkpoint to change, for a cache, a size or a time."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from qkvbench.cli import names
from qkvbench.cli.convert import checked_start, command_for, find_checkpoint, read_text, say
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost.units import seconds_text
from qkvbench.model import QUANTITY_NAMES, Target
from qkvbench.reports.parts.formatting import printable
from qkvbench.results.store import write_atomically
from qkvbench.variant import write

if TYPE_CHECKING:
    from qkvbench.hub.fit.latency import Steps
    from qkvbench.hub.fit.road import Advice


def answer(request: Request) -> int:
    """Print the plan and what it costs, and write it to a file for `convert`."""
    target = _target(request)
    equations = [write(names.variant(text)) for text in request.options]
    start = checked_start(request.start)
    text = read_text(request.text)
    out = Path(request.out)
    if out.suffix != ".json":
        raise RequestError(f"--out {out} is a plan, whose name ends in .json.")
    if not os.access(out.parent, os.W_OK):
        raise RequestError(f"{out.parent} is no folder that can be written; give another --out.")
    checkpoint = find_checkpoint(request.source)
    from qkvbench.hub.fit import road

    try:
        advice = road.advise(
            checkpoint,
            text or "",
            target,
            equations,
            start,
            road.Reading(request.window, request.tokens, request.held_out_tokens),
            request.pairs,
            say,
        )
    except ValueError as error:
        raise RequestError(f"{error}") from None
    if isinstance(advice, road.NothingToGain):
        _print_steps(advice.steps, request)
        return 0
    document = _document(request.source, start, target, advice)
    write_atomically(out, (json.dumps(document, indent=1) + "\n").encode())
    if request.json:
        print(json.dumps(document, indent=1))
        return 0
    _print(advice, target, request, out)
    return 0


def _target(request: Request) -> Target:
    """The target that was asked for; RequestError if it is none."""
    if request.cache:
        return Target("cache", _share("--cache", request.cache))
    if request.params:
        return Target("params", _share("--params", request.params))
    share, at, context = request.latency.partition("@")
    if not at or not context.isdigit() or not int(context):
        raise RequestError(
            f"--latency {printable(request.latency)} does not say behind how many tokens: write "
            "90%@2048."
        )
    return Target("latency", _share("--latency", share), int(context))


def _share(name: str, text: str) -> float:
    """The share of a text such as 50%."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text)
    percent = float(match[1]) if match else 0.0
    if match and not match[2] and percent < 1:
        raise RequestError(
            f"{name} {printable(text)} is less than one percent; write {100 * percent:g}%, or "
            f"{percent:g}% if you mean it."
        )
    if not 0 < percent < 100:
        raise RequestError(
            f"{name} {printable(text)} is not a share between 0 and 100 % of the original's; "
            "write 50%."
        )
    return percent / 100


def _print_steps(steps: "Steps", request: Request) -> None:
    """Say that no equation saves time, with what was measured."""
    step = seconds_text(steps.step_s)
    if request.json:
        medians = {name: median(times) for name, times in steps.changed_s.items()}
        found = {"nothing_to_gain": True, "context": steps.context, "step_s": steps.step_s}
        print(json.dumps(found | {"options": medians}, indent=1))
        return
    print(
        f"Nothing is to be gained: no equation makes a step faster. After {steps.context:,} tokens "
        f"it takes {step};"
    )
    for equation, times in steps.changed_s.items():
        print(f"with {equation} in all layers {seconds_text(median(times))}.")
    print("No plan is written. These equations save memory: advise --cache 75%.")


def _document(source: str, start: str, target: Target, advice: "Advice") -> dict[str, object]:
    """The plan as JSON values, with what was measured for it."""
    from qkvbench.hub.fit.planning import mode_of, total

    return {
        "version": 1,
        "source": source,
        "start": start,
        "mode": mode_of(advice.plan),
        "target": asdict(target),
        "share": advice.share,
        "effect": asdict(advice.effect),
        "loss": advice.loss,
        "unchanged": asdict(advice.unchanged[1]),
        "options": [asdict(option) for option in advice.options],
        "rivals": {
            name: {"mode": mode_of(plan), "values": total(plan), **asdict(effect)}
            for name, (plan, effect) in advice.rivals.items()
        },
        "curve": [
            {"values": total(plan), "predicted": advice.predicted(plan)} for plan in advice.curve
        ],
        "pairs": [
            {"layers": [one, other], "divergence": measured, "sum": predicted}
            for one, other, measured, predicted in advice.pairs
        ],
    }


def _print(advice: "Advice", target: Target, request: Request, out: Path) -> None:
    from qkvbench.hub.fit.planning import UNCHANGED, total
    from qkvbench.hub.fit.road import ranges

    by_equation: dict[str, list[int]] = {}
    for option in advice.plan:
        if option.equation != UNCHANGED:
            by_equation.setdefault(option.equation, []).append(option.layer)
    chosen = "; ".join(
        f"{equation} in layers {ranges(sorted(layers))}" for equation, layers in by_equation.items()
    )
    effect = advice.effect
    counted = QUANTITY_NAMES[target.quantity]
    print(
        f"{advice.share:.0%} of the {counted} costs {effect.loss:+.3f} nats a token (of "
        f"{advice.loss:.3f}), before healing: {chosen or 'nothing is changed'}."
    )
    if advice.unchanged[1].divergence:
        rows = request.start.partition(":")[2]
        print(f"The cache is in {rows}, which alone costs {advice.unchanged[1].loss:+.3f} nats.")
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("plan of equal size")
    for head in ("loss", "divergence", "sum of its layers"):
        table.add_column(head, justify="right")
    rows = {"advised": effect} | {name: found for name, (_, found) in advice.rivals.items()}
    for name, found in rows.items():
        table.add_row(
            name, f"{found.loss:+.3f}", f"{found.divergence:.3f}", f"{found.predicted:.3f}"
        )
    console.print(table, markup=False)
    layers = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("layer", "equation", "divergence", "loss", "output off by"):
        layers.add_column(head, justify="right")
    for option in advice.options:
        if option.equation != UNCHANGED:
            mark = "*" if option in advice.plan else ""
            layers.add_row(
                f"{mark}{option.layer}",
                option.equation,
                f"{option.divergence:.4f}",
                f"{option.loss:+.4f}",
                f"{option.distance:.3f}",
            )
    console.print(layers, markup=False)
    unchanged = [o for o in advice.options if o.equation == UNCHANGED]
    full = total(unchanged) + advice.rest
    curve = ", ".join(
        f"{(total(plan) + advice.rest) / full:.0%} {advice.predicted(plan):.3f}"
        for plan in advice.curve
    )
    print(f"Share of the {counted} and predicted divergence: {curve}.")
    if advice.pairs:
        ratios = [measured / max(predicted, 1e-9) for _, _, measured, predicted in advice.pairs]
        print(
            f"Pairs: {len(ratios)} of the plan measured together are "
            f"{min(ratios):.2f} to {max(ratios):.2f} of the sum of their layers."
        )
    print(command_for(request.source, out, request))
