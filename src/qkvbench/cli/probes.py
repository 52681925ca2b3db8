"""The costs that `qkvbench prune` tried for a target of loss, as text."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from qkvbench.cost.search import Probe
from qkvbench.model import Target


def print_probes(wanted: str, probes: Sequence[Probe], found: Target) -> None:
    """The costs that were tried for a loss, in order; nothing if there are none."""
    if not probes:
        return
    print(f"{wanted}: {found} is the cheapest of {len(probes)} tried that is within it.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("tried", "plans cost", "loss grows, on validation"):
        table.add_column(head, justify="right")
    for each in probes:
        bound = Target(found.quantity, each.share, found.tokens)
        table.add_row(str(bound), f"{each.cost:.1%}", f"{each.growth:+.2%}")
    Console().print(table, markup=False)
