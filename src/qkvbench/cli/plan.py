"""`qkvbench plan`: the number of seeds that a margin needs, from the noise of a pilot study."""

import json
from dataclasses import asdict, dataclass

from qkvbench.cli.parser import Request
from qkvbench.cli.report import load_view
from qkvbench.reports.parts.formatting import margin_text, printable
from qkvbench.results.planning import (
    CONFIDENCE,
    MAX_COUNTED_SEEDS,
    MAX_SEEDS,
    POWERS,
    SeedsNeeded,
    counted_seeds_needed,
    seeds_needed,
    upper_deviation,
)
from qkvbench.results.stats import Comparison, Tally
from qkvbench.results.view import TaskView


@dataclass(frozen=True)
class Row:
    """One task: the seeds for the pilot's noise, and for the upper bound of the noise."""

    task: str
    margin: float | None
    reason: str | None
    likely: list[SeedsNeeded]
    careful: list[SeedsNeeded]
    counted: dict[str, int | None] | None = None


def answer(request: Request) -> int:
    """Print the number of seeds that each task needs."""
    study = load_view(request.folder, request.margin)
    rows = [_row(task) for task in study.tasks]
    if request.json:
        print(json.dumps([asdict(row) for row in rows], allow_nan=False, indent=1))
        return 0
    print(f"Seeds that {printable(study.name)} needs, for the noise of its runs. In brackets: for")
    print(f"the upper {CONFIDENCE:.0%} bound of the noise, which a pilot does not know exactly.\n")
    for row, task in zip(rows, study.tasks, strict=True):
        print("\n".join(map(printable, _lines(row, task))))
    print("To find: a true difference of the margin is clear. To match: an arm that is equal is")
    print("shown to be within it (two one-sided tests, Holm). All arms: tested together.")
    return 0


def _row(task: TaskView) -> Row:
    margin, result = task.result.margin, task.result
    if margin is None:
        return Row(task.name, None, "its unit has no default margin; give --margin", [], [])
    if result.standing != "compared":
        return Row(task.name, margin, f"nothing is compared: {result.standing}", [], [])
    match result:
        case Comparison(deviation=deviation, degrees=degrees, differences=differences):
            assert deviation is not None
            sizes = dict.fromkeys((2, 1 + len(differences)))
            upper = upper_deviation(deviation, degrees=degrees)
            return Row(
                task.name,
                margin,
                None,
                _needs(margin, deviation, sizes),
                _needs(margin, upper, sizes),
            )
        case Tally(counts=counts, baseline=baseline, incomplete=incomplete):
            base = counts[baseline]
            arms = len(counts) - len(incomplete)
            counted = {
                f"{size} arms, power {power:.0%}": counted_seeds_needed(
                    share=base.solved / base.seeds, margin=margin, arms=size, power=power
                )
                for size in dict.fromkeys((2, arms))
                for power in POWERS
            }
            return Row(task.name, margin, None, [], [], counted)


def _needs(margin: float, deviation: float, sizes: dict[int, None]) -> list[SeedsNeeded]:
    return [
        seeds_needed(margin=margin, deviation=deviation, arms=arms, power=power)
        for arms in sizes
        for power in POWERS
    ]


def _lines(row: Row, task: TaskView) -> list[str]:
    if row.reason is not None or row.margin is None:
        return [f"{row.task}: {row.reason}.", ""]
    if row.counted is not None:
        head = f"{row.task}: to find {row.margin:.0%} of the seeds fewer solved than the baseline"
        rows = [f"  {what:24} {_seeds(n, MAX_COUNTED_SEEDS)}" for what, n in row.counted.items()]
        return [head, *rows, ""]
    margin = margin_text(row.margin, task.metric.unit)
    noise = row.likely[0].deviation
    lines = [
        f"{row.task}: margin {margin}; noise {noise:.3g} ({row.careful[0].deviation:.3g}), "
        f"{len(task.result.seeds)} seeds so far",
        f"  {'':24} {'to find':>14} {'to match':>14}",
    ]
    for likely, upper in zip(row.likely, row.careful, strict=True):
        arms = "one pair" if likely.arms == 2 else f"all {likely.arms} arms"
        lines.append(
            f"  {f'{arms}, power {likely.power:.0%}':24} "
            f"{_both(likely.detect, upper.detect):>14} {_both(likely.match, upper.match):>14}"
        )
    return [*lines, ""]


def _both(likely: int | None, upper: int | None) -> str:
    return f"{_seeds(likely, MAX_SEEDS)} ({_seeds(upper, MAX_SEEDS)})"


def _seeds(count: int | None, most: int) -> str:
    return f">{most}" if count is None else str(count)
