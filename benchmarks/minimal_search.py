"""The smallest model that is about as good as the plain one: a search by one stated rule.

Run     python benchmarks/minimal_search.py FOLDER [--seeds 5] [--allowed 0.025] [--dry-run]
Takes   about 40 minutes on two cores; every step is a run of the sweep, and the same command again
        goes on where it ended
Rule    From q,k,v on, of what was not tried yet and makes the model smaller than it is now, that
        which saves most is tried: a change of all blocks in addition to those kept, or another
        equation in the place of q,k,v. It is kept if on each task of the search the mean loss is at
        most `--allowed` above that of q,k,v. Each is tried once
Then    The model that is left was chosen by these runs, so they are no evidence for it. That is a
        registered study with seeds of its own and a task that the search has not seen.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from losses import done, loss

from qkvbench import tasks
from qkvbench.cost.matched import with_arm
from qkvbench.cost.parameters import parameters
from qkvbench.model import CHANGES, parse_arm, write_arm
from qkvbench.results.store import Store

BASELINE = "q,k,v"
EQUATIONS = ("q,k=v", "q,k,v/1", "q,k=v/1", "q=k,v-diag", "q=k=v-diag")
TASKS = ("lm-reviews", "recall")

# An arm -> its mean loss less the baseline's, by task.
Gaps = Callable[[str], Mapping[str, float]]


@dataclass(frozen=True)
class Tried:
    """One step of the search: the arm, its learned numbers, its gaps, and whether it was kept."""

    arm: str
    parameters: int
    gaps: Mapping[str, float]
    kept: bool


@dataclass(frozen=True)
class Made:
    """An equation and the changes of its blocks."""

    equation: str = BASELINE
    changes: frozenset[str] = frozenset()

    @property
    def arm(self) -> str:
        """Its text."""
        return write_arm(parse_arm("~".join([self.equation, *sorted(self.changes)])))

    def with_part(self, part: str) -> "Made":
        """With another equation, or one more change."""
        if part in CHANGES:
            return Made(self.equation, self.changes | {part})
        return Made(part, self.changes)


def main() -> None:
    """Search, and print each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--allowed", type=float, default=0.025, help="in the unit of each task")
    parser.add_argument("--dry-run", action="store_true", help="the first arm that is tried")
    args = parser.parse_args()
    if args.dry_run:
        print(*next(_smaller(Made(), {BASELINE})))
        return
    last = BASELINE
    for step in search(lambda arm: _gaps(args.folder, arm, args.seeds), args.allowed):
        gaps = ", ".join(f"{task} {gap:+.4f}" for task, gap in step.gaps.items())
        print(
            f"{'kept' if step.kept else 'no  '} {step.parameters:9,} {step.arm}: {gaps}", flush=True
        )
        last = step.arm if step.kept else last
    print(f"Left: {last} with {size(last):,} learned numbers of {size(BASELINE):,}.")


def search(gaps: Gaps, allowed: float) -> Iterator[Tried]:
    """The steps of the search, by the rule above."""
    current, tried = Made(), {BASELINE}
    while found := next(_smaller(current, tried), None):
        part, count = found
        tried.add(part)
        new = current.with_part(part)
        measured = gaps(new.arm)
        kept = all(gap <= allowed for gap in measured.values())
        yield Tried(new.arm, count, measured, kept)
        current = new if kept else current


def _smaller(current: Made, tried: set[str]) -> Iterator[tuple[str, int]]:
    """The untried parts that make the model smaller, with its size then, the smallest first."""
    now, found = size(current.arm), dict[str, int]()
    for part in (*EQUATIONS, *CHANGES):
        if part in tried:
            continue
        try:
            found[part] = size(current.with_part(part).arm)
        except ValueError:
            # It excludes one that was kept.
            continue
    order = sorted(found.items(), key=lambda each: each[1])
    yield from (each for each in order if each[1] < now)


def size(arm: str) -> int:
    """The learned numbers of the arm's model on the first task."""
    task = tasks.find(TASKS[0])
    return parameters(with_arm(task.model, parse_arm(arm), tokens=task.tokens)).total


def _gaps(folder: Path, arm: str, seeds: int) -> dict[str, float]:
    """Of runs that are made if they are not there. The study has all arms that were tried."""
    study = Store(folder).study()
    arms = dict.fromkeys([*(study.variants if study else [BASELINE]), arm])
    command: Sequence[str] = (
        *(sys.executable, "-m", "qkvbench", "run", "--tasks", *TASKS, "--variants", *arms),
        *("--seeds", str(seeds), "--jobs", "2", "--out", str(folder)),
    )
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    runs = done(folder)

    def mean(of: str, task: str) -> float:
        return float(np.mean([loss(run) for run in runs if (run.arm, run.task) == (of, task)]))

    return {task: mean(arm, task) - mean(BASELINE, task) for task in TASKS}


if __name__ == "__main__":
    main()
