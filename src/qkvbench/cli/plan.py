"""`qkvbench plan`: the number of seeds that a margin needs, from the noise of a pilot study."""

import json
from dataclasses import asdict, dataclass

from qkvbench.cli.parser import Request
from qkvbench.cli.report import load_view
from qkvbench.reports.parts.formatting import margin_text, plural, printable
from qkvbench.results.planning import (
    CONFIDENCE,
    MAX_COUNTED_SEEDS,
    MAX_SEEDS,
    ArmPlan,
    CountPlan,
    plan_arm,
    plan_counts,
)
from qkvbench.results.stats import Comparison, Tally
from qkvbench.results.view import TaskView


@dataclass(frozen=True)
class Row:
    """One task: the plan of each arm, or of counts; ``reason`` if there is none."""

    task: str
    margin: float | None
    reason: str | None = None
    arms: tuple[ArmPlan, ...] = ()
    counts: CountPlan | None = None


def answer(request: Request) -> int:
    """Print the number of seeds that each task needs."""
    study = load_view(request.folder, request.margin)
    rows = [_row(task) for task in study.tasks]
    if request.json:
        print(json.dumps([asdict(row) for row in rows], allow_nan=False, indent=1))
        return 0
    print(f"Seeds that {printable(study.name)} needs, with 80% power. In brackets: for the upper")
    print(f"{CONFIDENCE:.0%} bound of the noise, which a pilot does not know exactly.\n")
    for row, task in zip(rows, study.tasks, strict=True):
        print("\n".join(map(printable, _lines(row, task))))
    print("Likely, certain: a true loss of the margin gets this verdict. Match: an arm that is")
    print("equal is shown to be within the margin. Each arm with its own noise and the baseline's.")
    return 0


def _row(task: TaskView) -> Row:
    margin, result = task.result.margin, task.result
    if margin is None:
        return Row(task.name, None, "its unit has no default margin; give --margin")
    if result.standing != "compared":
        return Row(task.name, margin, f"nothing is compared: {result.standing}")
    match result:
        case Comparison(differences=differences, baseline=baseline):
            base = list(task.cell(baseline).scores.values())
            plans = [
                plan_arm(
                    arm,
                    base,
                    list(task.cell(arm).scores.values()),
                    metric=task.metric,
                    margin=margin,
                )
                for arm, each in differences.items()
                if each.p is not None
            ]
            return Row(task.name, margin, arms=tuple(plans))
        case Tally(counts=counts, baseline=baseline):
            base = counts[baseline]
            return Row(
                task.name, margin, counts=plan_counts(base.solved, base.seeds, margin=margin)
            )


def _lines(row: Row, task: TaskView) -> list[str]:
    if row.reason is not None or row.margin is None:
        return [f"{row.task}: {row.reason}.", ""]
    so_far = f"{plural(len(task.result.seeds), 'seed')} so far"
    if row.counts is not None:
        plan = row.counts
        needed = _both(plan.seeds, plan.careful, MAX_COUNTED_SEEDS)
        return [
            f"{row.task}: to find as likely that {row.margin:.0%} of the seeds fewer are solved, "
            f"{so_far}",
            f"  all solved at one step: {needed}; fewer if one is slower",
            "",
        ]
    lines = [
        f"{row.task}: margin {margin_text(row.margin, task.metric.unit)}, {so_far}",
        f"  {'':24} {'likely':>12} {'certain':>12} {'match':>12}",
    ]
    for plan in sorted(row.arms, key=lambda each: each.deviations[1]):
        pairs = [
            _both(getattr(plan.expected, name), getattr(plan.careful, name), MAX_SEEDS)
            for name in ("likely", "certain", "match")
        ]
        lines.append(f"  {plan.arm:24} " + " ".join(f"{each:>12}" for each in pairs))
    return [*lines, ""]


def _both(expected: int | None, careful: int | None, most: int) -> str:
    return f"{_seeds(expected, most)} ({_seeds(careful, most)})"


def _seeds(count: int | None, most: int) -> str:
    return f">{most}" if count is None else str(count)
