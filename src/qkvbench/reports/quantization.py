"""Costs of cached rows and weights in few bits, by arm, and whether they differ between arms."""

from collections.abc import Mapping, Sequence

from qkvbench.reports.parts.formatting import metric_text, p_text, printable
from qkvbench.results.critical import LEVEL
from qkvbench.results.quantization import Cost, TaskCosts, quantization_costs
from qkvbench.results.view import View

ABOUT = "what cached rows and weights in few bits cost each arm, with intervals"
SUFFIX = "txt"

NOTHING = (
    "No run of this study was scored in few bits: 'qkvbench run ... --quantize int8 int4' does "
    "that, and so does the recipe quantization."
)


def render(view: View) -> str:
    """One section for each task: costs by form, then schemes against each other."""
    by_task = quantization_costs(view)
    if not by_task:
        return f"{printable(view.name)}\n\n{NOTHING}\n"
    return "\n\n".join([printable(view.name), *(_part(each) for each in by_task)]) + "\n"


def _part(task: TaskCosts) -> str:
    arms = list(task.whole)
    whole = ", ".join(f"{printable(arm)} {score:.4g}" for arm, score in task.whole.items())
    lines = [
        f"{printable(task.task)} · {metric_text(task.metric)}",
        f"As trained: {whole}.",
        "Costs of the same weights in few bits, mean over seeds, ± half of a 95% interval; ▼ "
        f"larger and ▲ smaller than that of {printable(task.baseline)} (Holm over the table).",
        "",
        *_table("form", {form: task.costs[form] for form in task.costs}, arms),
    ]
    if task.contrasts:
        named = {f"{form} - {other}": cells for (form, other), cells in task.contrasts.items()}
        lines += ["", "One scheme less another, of the same weights:", ""]
        lines += _table("schemes", named, arms)
    lines += ["", *_answers(task)]
    return "\n".join(lines)


def _table(head: str, rows: Mapping[str, Mapping[str, Cost]], arms: Sequence[str]) -> list[str]:
    texts = [[head, *map(printable, arms)]]
    for name, cells in rows.items():
        texts.append([name, *(_cell(cells.get(arm)) for arm in arms)])
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    return [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]


def _cell(cost: Cost | None) -> str:
    if cost is None:
        return "—"
    mark = ""
    if cost.p is not None and cost.p < LEVEL and cost.against is not None:
        mark = "▼ " if cost.against.value > 0 else "▲ "
    half = "" if cost.low is None or cost.high is None else f" ±{(cost.high - cost.low) / 2:.4f}"
    return f"{mark}{cost.value:+.4f}{half}"


def _answers(task: TaskCosts) -> list[str]:
    """A sentence for each arm: the forms that cost it more, or less, than the baseline."""
    found: list[str] = []
    for arm in task.whole:
        marked = {
            form: cells[arm]
            for form, cells in task.costs.items()
            if arm in cells and (p := cells[arm].p) is not None and p < LEVEL
        }
        parts = [
            f"{form} by {against.value:+.4f} ({p_text(cost.p or 0)})"
            for form, cost in marked.items()
            if (against := cost.against) is not None
        ]
        if arm != task.baseline:
            text = ", ".join(parts) or "none is seen to differ"
            found.append(
                f"{printable(arm)}, cost against that of {printable(task.baseline)}: {text}."
            )
    return found
