"""The tuned learning rates of a study: a table of the validation scores by rate, and notes."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from qkvbench.reports.parts.formatting import SEPARATOR, Note, number, plural
from qkvbench.results.tuning import RateScore, Sensitivity
from qkvbench.results.view import View


@dataclass(frozen=True)
class RateTable:
    """One task: the metric, a column for each rate, and for each arm its cells and the chosen one.

    ``chosen`` is the index of a cell; None if the arm has no rate.
    """

    task: str
    metric: str
    better: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], int | None], ...]


def rate_tables(view: View) -> tuple[RateTable, ...]:
    """The sensitivity of each task to the learning rate; empty if the study is not tuned."""
    by_task: dict[str, list[Sensitivity]] = {}
    for each in view.tuning:
        by_task.setdefault(each.task, []).append(each)
    return tuple(_table(task, arms) for task, arms in by_task.items())


def document(view: View) -> list[dict[str, Any]]:
    """The sensitivities as JSON values; of rates of another study the factors alone."""
    if view.carried:
        return [
            {"task": task, "arm": arm, "chosen": factor, "taken_from": view.carried.taken_from}
            for task, arms in view.carried.chosen.items()
            for arm, factor in arms.items()
        ]
    return [{**asdict(each), "at_edge": each.at_edge} for each in view.tuning]


def rate_notes(view: View) -> list[Note]:
    """How the learning rates were chosen, those at the edge of the grid, and those not chosen."""
    if view.carried:
        factors = SEPARATOR.join(
            f"`{arm}` ({task}, {factor_text(factor)})"
            for task, arms in view.carried.chosen.items()
            for arm, factor in arms.items()
        )
        return [
            Note(
                "Learning rates",
                f"those that {view.carried.taken_from} chose on validation, as factors of the "
                f"task's own: {factors}. Under these conditions others may be better.",
            )
        ]
    if not view.tuning:
        return [
            Note(
                "One setting",
                "the arms of a task share learning rate and initialization; tuned separately, an "
                "arm could do better.",
            )
        ]
    rates, seeds = len(view.tuning[0].rates), len(view.tuning[0].seeds)
    notes = [
        Note(
            "Learning rates",
            f"tuned per arm on validation ({rates} rates × {plural(seeds, 'seed')} each); "
            "all else is shared: with weight decay or warm-up tuned too, an arm could do better.",
        )
    ]
    if edge := [each for each in view.tuning if each.at_edge]:
        arms = SEPARATOR.join(
            f"`{each.arm}` ({each.task}, {factor_text(each.chosen or 1)})" for each in edge
        )
        notes.append(
            Note("Rates at the edge of those tried", f"a better one may lie beyond: {arms}.")
        )
    if untuned := [each for each in view.tuning if each.chosen is None]:
        arms = SEPARATOR.join(f"`{each.arm}` ({each.task})" for each in untuned)
        notes.append(Note("Not tuned yet, so not run", f"{arms}."))
    return notes


def factor_text(factor: float) -> str:
    """A factor of the task's own rate: ``×2``, ``×1/4``."""
    return f"×1/{1 / factor:.3g}" if factor < 1 else f"×{factor:.3g}"


def _table(task: str, arms: list[Sensitivity]) -> RateTable:
    rates = arms[0].rates
    learning_rates = [_first(arm.rates[i].learning_rate for arm in arms) for i in range(len(rates))]
    metric = next((each.metric for each in arms if each.metric), "")
    return RateTable(
        task=task,
        metric=metric.replace("_", " "),
        better=arms[0].better,
        head=tuple(
            factor_text(rate.factor) + (f" = {value:.4g}" if value else "")
            for rate, value in zip(rates, learning_rates, strict=True)
        ),
        rows=tuple(
            (
                arm.arm,
                tuple(_cell(rate) for rate in arm.rates),
                next((i for i, each in enumerate(arm.rates) if each.factor == arm.chosen), None),
            )
            for arm in arms
        ),
    )


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _cell(rate: RateScore) -> str:
    """The mean score; seeds that solved the task, and at which step; or why there is none."""
    if rate.score is None:
        return "diverged" if rate.diverged else "–"
    text = number(rate.score, 3)
    if rate.solved is None:
        return text
    text += f", {rate.solved} solved"
    return text if rate.solved_step is None else f"{text} at {rate.solved_step:,.0f}"
