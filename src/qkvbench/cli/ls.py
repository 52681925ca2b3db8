"""`qkvbench ls`: the available variants, tasks, recipes, positions, and so on."""

import json
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkvbench import claims, hardware, recipes, reports, tasks
from qkvbench.cli.parser import Request
from qkvbench.cost import parameters
from qkvbench.cost.units import bytes_text, count_text
from qkvbench.model import CHANGES, POSITIONS, PRESETS
from qkvbench.variant import SUFFIXES
from qkvbench.variant.catalogue import CATALOGUE

# The columns that wrap.
WRAPPED_COLUMNS = ("about", "origin")
# The columns that are left out of the table for lack of space.
JSON_ONLY = ("places", "tier", "version")
WIDTH = 100
# A table that is narrower breaks words; a narrower terminal breaks lines instead.
LEAST_WIDTH = 72


def answer(request: Request) -> int:
    """Print the list."""
    rows = LISTS[request.what]()
    if request.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.header_style = "bold"
    columns = [name for name in rows[0] if name not in JSON_ONLY]
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name not in WRAPPED_COLUMNS)
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in columns))
    console = Console(highlight=False)
    # A file has no width, so the table gets a fixed one.
    console.width = max(console.width, LEAST_WIDTH) if console.is_terminal else WIDTH
    console.print(table)
    return 0


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _variants() -> list[dict[str, object]]:
    return [
        {
            "name": entry.name,
            "equation": entry.equation,
            "about": entry.about,
            "origin": entry.origin,
        }
        for entry in CATALOGUE
    ]


def _tasks() -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "about": task.about,
            "tier": task.tier,
            "benchmark": task.benchmark,
            "metric": task.metric.name,
            "chance": round(task.metric.chance, 4),
            # The attention sites that an arm can name after its @.
            "places": sorted(task.model.places),
            "version": task.version,
        }
        for name in tasks.names()
        for task in [tasks.find(name)]
    ]


def _recipes() -> list[dict[str, object]]:
    return [{"name": name, "about": recipes.about(name)} for name in recipes.names()]


def _models() -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "about": (make.__doc__ or "").strip().splitlines()[0],
            "parameters": parameters(make()).total,
        }
        for name, make in PRESETS.items()
    ]


def _positions() -> list[dict[str, object]]:
    return [{"name": name, "about": scheme.about} for name, scheme in POSITIONS.items()]


def suffixes() -> list[dict[str, object]]:
    """Everything that may follow an equation; letters are numbers, of which N is needed."""
    return [
        {"name": name + (suffix.form if suffix.number else ""), "about": suffix.about}
        for name, suffix in SUFFIXES.items()
    ]


def blocks() -> list[dict[str, object]]:
    """The changes of a block that an arm may name."""
    return [
        {"name": f"~{name}", "about": change.about, "source": change.source}
        for name, change in CHANGES.items()
    ]


def _reports() -> list[dict[str, object]]:
    return [{"name": name, "about": reports.find(name).ABOUT} for name in reports.names()]


def _claims() -> list[dict[str, object]]:
    return [
        {"name": name, "about": claim.text, "source": claim.source.name}
        for name in claims.names()
        for claim in [claims.find(name)]
    ]


def _hardware() -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "about": device.about,
            "memory": bytes_text(device.memory_bytes.value),
            "bandwidth": f"{count_text(device.bandwidth_bytes_per_s.value)}B/s",
            "types": ", ".join(device.flops_per_s),
        }
        for name in hardware.names()
        for device in [hardware.find(name)]
    ]


LISTS: dict[str, Callable[[], list[dict[str, object]]]] = {
    "variants": _variants,
    "tasks": _tasks,
    "recipes": _recipes,
    "models": _models,
    "positions": _positions,
    "suffixes": suffixes,
    "blocks": blocks,
    "reports": _reports,
    "claims": _claims,
    "hardware": _hardware,
}
