"""How large a difference may be and still count as none, by what a score is measured in.

A margin belongs to the question, not to the data, so it is stated before it is used: here, or on
the command line. The defaults are the size at which losses begin to be argued over in this field,
about one percent; a wider one would call losses "equal" that are reported as losses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qkvbench.results.record import MetricInfo

# One point of accuracy; 0.02 bits, which is 1.4% of a perplexity; the same in nats; half a point.
BY_UNIT: Mapping[str, float] = {"share": 0.01, "bits": 0.02, "nats": 0.014, "BLEU": 0.5}
# Of all seeds: one more or less of four. Counts of few seeds can prove no smaller one.
OF_SOLVED = 0.25


@dataclass(frozen=True)
class Margins:
    """What was stated on the command line: one margin for all tasks, or some tasks' own."""

    every: float | None = None
    tasks: Mapping[str, float] | None = None

    def of(self, task: str, metric: MetricInfo) -> float | None:
        """The margin of a task, in its metric's unit, or in seeds where those are counted.

        None where nobody stated one: then nothing can match.
        """
        stated: Mapping[str, float] = {} if self.tasks is None else self.tasks
        if task in stated:
            return stated[task]
        if self.every is not None:
            return self.every
        return OF_SOLVED if metric.solved is not None else BY_UNIT.get(metric.unit)


def stated(words: Sequence[str]) -> Margins:
    """The margins that ``0.01`` and ``task=0.01`` state; ValueError where they state none."""
    every: float | None = None
    tasks: dict[str, float] = {}
    for word in words:
        task, equals, text = word.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 < value < float("inf"):
            raise ValueError(f"'{word}' states no margin: write a number above 0, or TASK=NUMBER.")
        if task in tasks or (not equals and every is not None):
            of = task or "all tasks"
            raise ValueError(f"'{word}' is a second margin for {of}: write one, or TASK=NUMBER.")
        if equals:
            tasks[task] = value
        else:
            every = value
    return Margins(every, tasks)
