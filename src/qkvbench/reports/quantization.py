"""Costs of cached rows and weights in few bits, by arm, and whether they differ between arms."""

from collections.abc import Mapping

from qkvbench.reports.parts.formatting import metric_text, p_text, printable
from qkvbench.results.critical import LEVEL
from qkvbench.results.quantization import Cost, TaskCosts, quantization_costs
from qkvbench.results.view import View

ABOUT = "what cached rows and weights in few bits cost each arm, with intervals"
SUFFIX = "txt"

# Longer names of arms are letters in the heads of tables.
LONGEST = 17

NOTHING = (
    "No run of this study was scored in few bits: 'qkvbench run ... --quantize int8 int4' does "
    "that, and so does the recipe quantization."
)


def render(view: View) -> str:
    """One section for each task: the answer, costs by form, then schemes against each other."""
    by_task = quantization_costs(view)
    if not by_task:
        return f"{printable(view.name)}\n\n{NOTHING}\n"
    return "\n\n".join([printable(view.name), *(_part(each) for each in by_task)]) + "\n"


def _part(task: TaskCosts) -> str:
    arms = list(task.whole)
    letters = {
        arm: arm if len(arm) <= LONGEST else f"({chr(ord('a') + place % 26)})"
        for place, arm in enumerate(arms)
    }
    whole = ", ".join(f"{printable(arm)} {score:.4g}" for arm, score in task.whole.items())
    lines = [
        f"{printable(task.task)} · {metric_text(task.metric)}",
        *_answers(task),
        "",
        f"As trained: {whole}.",
        "Costs of the same weights in few bits, means over seeds, ± half of a 95% interval; ▼ more",
        f"and ▲ less than {printable(task.baseline)} loses (Holm over the table); — a run has no",
        "score in the form.",
        *(f"{letters[arm]}: {printable(arm)}" for arm in arms if letters[arm] != arm),
        "",
        *_table("form", task.costs, letters),
    ]
    if task.contrasts:
        named = {f"{form} - {other}": cells for (form, other), cells in task.contrasts.items()}
        lines += ["", "One scheme less another, of the same weights:", ""]
        lines += _table("schemes", named, letters)
    return "\n".join(lines)


def _table(
    head: str, rows: Mapping[str, Mapping[str, Cost]], letters: Mapping[str, str]
) -> list[str]:
    """The cells in columns, one for each arm."""
    texts = [[head, *map(printable, letters.values())]]
    texts += [[name, *(_cell(cells.get(arm)) for arm in letters)] for name, cells in rows.items()]
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
    """A sentence for each arm: the forms in which it loses more, or less, than the baseline."""
    found: list[str] = []
    for arm in task.whole:
        compared = {form: cells[arm] for form, cells in task.costs.items() if arm in cells}
        if not any(cost.against for cost in compared.values()):
            continue
        parts = [
            f"{form} by {against.value:+.4f} ({p_text(cost.p)})"
            for form, cost in compared.items()
            if (against := cost.against) is not None and cost.p is not None and cost.p < LEVEL
        ]
        rest = ", ".join(parts) or "no form is seen to cost it more, or less"
        found.append(f"{printable(arm)} against {printable(task.baseline)}: {rest}.")
    return found
