"""Equivalence margins: the largest difference that still counts as none, by the unit of a score.

A margin belongs to the question, not to the data, so it is set before the data are seen: here, or
on the command line. The defaults are about one percent, the size of losses that papers of this
field discuss; a wider margin would call losses "equal" that are reported as losses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qkvbench.results.record import MetricInfo

# One point of accuracy; 0.02 bits, which is 1.4% of a perplexity; the same in nats; half a point.
MARGIN_BY_UNIT: Mapping[str, float] = {"share": 0.01, "bits": 0.02, "nats": 0.014, "BLEU": 0.5}
# A proportion of seeds: one of four. Counts of few seeds cannot show a smaller margin.
SOLVED_MARGIN = 0.25


@dataclass(frozen=True)
class Margins:
    """The margins of the command line: `default` for all tasks, `tasks` for single ones."""

    default: float | None = None
    tasks: Mapping[str, float] | None = None

    def of(self, task: str, metric: MetricInfo) -> float | None:
        """The margin of a task in its metric's unit, or as a proportion of solved seeds.

        None if the unit has no default margin: then no arm can match.
        """
        return self.of_any([task], metric)

    def of_any(self, names: Sequence[str], metric: MetricInfo) -> float | None:
        """The same, of a task that has several names: the first that has a margin of its own."""
        by_task: Mapping[str, float] = {} if self.tasks is None else self.tasks
        own = next((by_task[name] for name in names if name in by_task), None)
        if own is not None:
            return own
        if self.default is not None:
            return self.default
        return SOLVED_MARGIN if metric.solved is not None else MARGIN_BY_UNIT.get(metric.unit)


def parse_margins(words: Sequence[str]) -> Margins:
    """The margins of ``0.01`` and ``task=0.01``; ValueError if a word is not a margin."""
    default: float | None = None
    tasks: dict[str, float] = {}
    for word in words:
        task, equals, text = word.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 < value < float("inf"):
            raise ValueError(f"'{word}' is not a margin: write a number above 0, or TASK=NUMBER.")
        if task in tasks or (not equals and default is not None):
            of = task or "all tasks"
            raise ValueError(f"'{word}' is a second margin for {of}: write one, or TASK=NUMBER.")
        if equals:
            tasks[task] = value
        else:
            default = value
    return Margins(default, tasks)
