"""Progress of a study on stderr: a bar on a terminal, and a line for each run."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from qkvbench import tasks
from qkvbench.cost.units import seconds_text
from qkvbench.experiment import Experiment
from qkvbench.reports import brief
from qkvbench.results.record import Record
from qkvbench.results.store import Store
from qkvbench.results.tuning import tuning_ended, validation_metric
from qkvbench.results.view import view

if TYPE_CHECKING:
    from qkvbench.sweep.trackers import Mirror


class StudyProgress:
    """Prints the events of a study, forwards them to `mirrors`, and counts the runs by status."""

    mirrors: "Sequence[Mirror]" = ()
    # Its answer is printed on the way.
    store: Store | None = None

    def __init__(self, endings: Counter[str]) -> None:
        """`endings` counts the statuses of the runs that ended."""
        self.console = Console(stderr=True, highlight=False)
        self.bars = Progress(
            # A task may be a path with brackets, which are not markup.
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self.endings = endings
        self.total = 0
        self.before = 0
        # The start of these runs on the clock, and the number of runs that had ended by then.
        self.began_s, self.ended_before = time.monotonic(), 0
        self.tuning = False
        self.bar = self.bars.add_task("runs", total=None)

    def __enter__(self) -> "StudyProgress":
        """Show the bar."""
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self.bars.stop()

    def on_tune(self, missing: int, total: int) -> None:
        """`missing` of `total` tuning runs are not done yet."""
        self.console.print(f"The learning rate of each arm is tuned first, by {total} runs.")
        self.tuning = True
        self._plan(missing, total)

    def on_untuned(self, task: str, arm: str) -> None:
        """An arm cannot run on a task."""
        self.endings["failed"] += 1
        text = f"{task}  {arm}  does not run: tuning runs failed. The same command repeats them."
        self.console.print(text, style="red", markup=False)

    def on_plan(self, missing: int, total: int) -> None:
        """`missing` of `total` runs are not done yet."""
        self.tuning = False
        self._plan(missing, total)

    def _plan(self, missing: int, total: int) -> None:
        done = total - missing
        # Runs that end are counted over the whole command.
        self.total, self.before = total, done - self.endings.total()
        self.bars.update(self.bar, total=total, completed=done)
        self.began_s, self.ended_before = time.monotonic(), self.endings.total()
        if done:
            self.console.print(f"{done} of {total} runs are done already.")
        if missing:
            # A file has no bar: without this line nothing is in it until the first run ends.
            runs = "1 run begins" if missing == 1 else f"{missing} runs begin"
            self.console.print(f"{runs}; the time left is known once one has ended.")

    def on_capacity(self, why: str) -> None:
        """Fewer runs are parallel than requested."""
        self.console.print(why, markup=False)

    def on_prepare(self, task: str) -> None:
        """The data of a task are being read, and downloaded first if they are missing."""
        match tasks.find(task).tier:
            case "built-in" | "own":
                return
            case _:
                text = f"Reading the data of {task}, which are downloaded the first time ..."
                self.console.print(text, markup=False)

    def on_missing_data(self, task: str, reason: str) -> None:
        """The data of a task are unavailable."""
        self.console.print(f"{task} cannot run. {reason}", style="red", markup=False)

    def on_step(self, run: Experiment, step: int, loss: float) -> None:
        """A run finished a step."""
        for mirror in self.mirrors:
            mirror.on_step(run, step, loss)
        here = f"{run.task}  {run.arm}  seed {run.seed}"
        self.bars.update(self.bar, description=f"{here}  step {step}  loss {loss:.3f}")

    def on_end(self, record: Record) -> None:
        """A run ended."""
        for mirror in self.mirrors:
            mirror.on_end(record)
        # A rate at which a tuning run diverges is a bad rate, not a failure.
        fulfilled = self.tuning and tuning_ended(record)
        self.endings["done" if fulfilled else record.status] += 1
        count = self.before + self.endings.total()
        name = f"[{count}/{self.total}] {record.task}  {record.arm}  seed {record.seed}"
        if self.tuning:
            name += f"  rate {record.parsed_experiment.training.learning_rate:g}"
        self.bars.update(self.bar, completed=count)
        if record.status == "done":
            # A run whose weights are from a file was not observed.
            observed = record.observed
            took = seconds_text(observed.train_s) if observed else "not trained here"
            line = f"{name}  {self._score_text(record)}  {took}{self._left_text(count)}"
            self.console.print(line, markup=False, soft_wrap=True)
        else:
            self.console.print(
                f"{name}  {record.status}: {record.reason}", style="red", markup=False
            )

    def _left_text(self, count: int) -> str:
        """The time of the runs that are left, if they take as long as those that have ended."""
        if (left := self.total - count) <= 0:
            return ""
        ended = self.endings.total() - self.ended_before
        left_s = (time.monotonic() - self.began_s) / ended * left
        return f"  (about {seconds_text(left_s)} left)"

    def _score_text(self, record: Record) -> str:
        """The score of a run that is done; of a tuning run that on the validation split."""
        if not (self.tuning and record.curve):
            return f"{record.metric.name} {record.score:.4g}"
        metric, _ = validation_metric(record)
        return f"validation {metric} {record.curve[-1].metrics[metric]:.4g}"

    def on_tracker_error(self, reason: str) -> None:
        """A tracker failed."""
        self.console.print(reason, style="red", markup=False)

    def on_unmeasured(self, reason: str) -> None:
        """The arms could not be timed."""
        self.endings["failed"] += 1
        self.console.print(f"Latency and memory are missing. {reason}", style="red", markup=False)

    def on_seeds(self, count: int, total: int) -> None:
        """The first seeds have ended: the answer so far, each time that they have doubled.

        A study with registered hypotheses gives none before its end.
        """
        if self.store is None or count & (count - 1):
            return
        so_far = view(self.store, first_seeds=count)
        if so_far.preregistered is not None:
            return
        seeds = "the first seed" if count == 1 else f"the first {count} seeds"
        self.console.print(f"\nPreliminary, of {seeds} of {total}; the others go on.\n")
        if self.console.is_terminal:
            brief.print_answer(so_far, self.console)
        else:
            self.console.print(brief.render(so_far), markup=False, soft_wrap=True)

    def on_measure(self, arms: int) -> None:
        """The arms are being timed."""
        self.console.print(f"Timing the decoding of {arms} arms, with nothing else running ...")
