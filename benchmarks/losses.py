"""The runs of a folder, and their scores as losses."""

from pathlib import Path

from qkvbench.results.record import Record
from qkvbench.results.store import Store


def done(folder: Path) -> list[Record]:
    """The runs of a folder that have a result."""
    return [run for run in Store(folder).runs().good if run.status == "done"]


def loss(run: Record) -> float:
    """The score, with the sign that makes more of it worse."""
    return run.score if run.metric.better == "lower" else -run.score
