"""The study as one JSON document: every score, difference, bound and cost, and the run ids."""

import json
from dataclasses import asdict
from typing import Any

from qkvbench.reports.parts.analyses import document as layer_histories
from qkvbench.reports.parts.caveats import limits
from qkvbench.reports.parts.findings import findings
from qkvbench.reports.parts.registered import document as registration
from qkvbench.reports.parts.tuning import document as learning_rates
from qkvbench.results.view import Cell, TaskView, View

ABOUT = "every number of the study as one JSON document"
SUFFIX = "json"


def render(view: View) -> str:
    """The document, as strict JSON."""
    return json.dumps(document(view), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def document(view: View) -> dict[str, Any]:
    """The document as plain values. Equations in texts are between backquotes."""
    return {
        "name": view.name,
        "command": view.command,
        "baseline": view.baseline,
        "arms": list(view.arms),
        "cost_task": view.cost_task,
        "tasks": [_task(task) for task in view.tasks],
        "measurements": {
            arm: {
                "id": each.id,
                "decode_p50_s": each.decode_p50_s,
                "decode_ratio": ratio.model_dump() if (ratio := view.decode_ratio(arm)) else None,
                "memory_bytes": each.memory_bytes,
                "cache_bytes": each.cache_bytes,
                "kernel": each.kernel,
            }
            for arm, each in view.measurements.items()
        },
        "over_tasks": {arm: asdict(each) for arm, each in view.aggregates.items()},
        "averages": [
            {**asdict(each), "metric": each.metric.model_dump()} for each in view.averages
        ],
        "preregistered": registration(view),
        "learning_rates": learning_rates(view),
        "waiting": list(view.waiting),
        "other_runs": view.others,
        "damaged": [{"path": str(each.path), "reason": each.reason} for each in view.damaged],
        "code_revisions": list(view.revisions),
        "shows": [asdict(note) for note in findings(view)],
        "cannot_tell": [asdict(note) for note in limits(view)],
    }


def _task(task: TaskView) -> dict[str, Any]:
    return {
        "task": task.name,
        "model": task.model,
        "metric": task.metric.model_dump(),
        "statistics": asdict(task.result),
        "cells": [_cell(cell) for cell in task.cells],
        "costs": {arm: cost.model_dump() for arm, cost in task.costs.items()},
        "verdicts": task.verdicts,
        "over_items": {arm: asdict(each) for arm, each in task.items.items()},
        "fronts": [asdict(front) for front in task.fronts],
        "layers": layer_histories(task),
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "variant": cell.variant,
        "runs": [
            {
                "id": run.id,
                "seed": run.seed,
                "status": run.status,
                "reason": run.reason,
                "score": cell.scores.get(run.seed),
                "solved_step": run.solved_step,
            }
            for run in cell.runs
        ],
        "missing_seeds": list(cell.missing),
    }
