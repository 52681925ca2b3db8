"""The runs of a study that have ended, those that have not, and how long these take."""

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass

from qkvbench.results.record import StudyInfo
from qkvbench.results.store import Store
from qkvbench.results.tuning import tuning_ended
from qkvbench.results.view import View


@dataclass(frozen=True)
class Remaining:
    """The state of a study. ``failed`` counts runs that ended without a score, by their status.

    ``left`` counts the runs of each task that have not ended, those that tune it included;
    ``run_s`` is the median training time of a run of each task that has one.
    """

    total: int
    done: int
    failed: dict[str, int]
    left: dict[str, int]
    run_s: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether every run has ended."""
        return not self.left

    @property
    def left_s(self) -> float | None:
        """Seconds that the runs take one after the other; None if a task has no run to go by."""
        if any(task not in self.run_s for task in self.left):
            return None
        return sum(count * self.run_s[task] for task, count in self.left.items())


def remaining(store: Store, study: StudyInfo, view: View) -> Remaining:
    """The state of the study whose records `view` has."""
    runs = [run for run in view.runs if run.status != "interrupted"]
    planned = {task: len(study.variants) * seeds for task, seeds in study.seeds.items()}
    ended = Counter(run.task for run in runs)
    total, done = sum(planned.values()), sum(run.status == "done" for run in runs)
    if study.tuning is not None:
        tuned = {record.id: record for record in store.runs().good}
        for task, arms in study.tuning.runs.items():
            ids = [run for each in arms.values() for run in each]
            stored = sum(tuning_ended(tuned.get(run)) for run in ids)
            planned[task] = planned.get(task, 0) + len(ids)
            ended[task] += stored
            total, done = total + len(ids), done + stored
    times: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.observed is not None:
            times[run.task].append(run.observed.train_s)
    return Remaining(
        total=total,
        done=done,
        failed=dict(Counter(run.status for run in runs if run.status != "done")),
        left={task: left for task, count in planned.items() if (left := count - ended[task]) > 0},
        run_s={task: statistics.median(each) for task, each in times.items()},
    )
