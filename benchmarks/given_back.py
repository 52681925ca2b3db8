"""How much of what a tie loses does a masked diagonal give back? And how much went to the diagonal?

Run     python benchmarks/given_back.py studies/masked-diagonal
Takes   seconds; nothing is trained

A gap is an arm's mean score less that of q,k,v, positive if the arm is worse. What is given back is
the arm's gap less that of the arm with ``-diag``, a sum of means with Satterthwaite's degrees of
freedom; its share of the gap has no interval. The share of attention on the token itself is the
mean over layers and seeds at the end of training, of the arm whose diagonal is seen.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from losses import done, loss

from qkvbench.results.record import Record
from qkvbench.results.sums import Sum, sum_of

BASELINE, MASKED, MEASURE = "q,k,v", "-diag", "diagonal"

# The runs of the seeds, by task and arm.
Runs = Mapping[str, Mapping[str, Sequence[Record]]]


def main() -> None:
    """Print a line for each task and arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    print("task                 arm      attends to itself  gap           masked        given back")
    for task, arms in read(parser.parse_args().folder).items():
        for arm in arms:
            if f"{arm}{MASKED}" not in arms:
                continue
            before, after = gap(arms, arm), gap(arms, f"{arm}{MASKED}")
            back = given_back(arms, arm)
            share = f"{back.value / before.value:.0%}" if before.value > before.half else ""
            print(
                f"{task:20} {arm:8} {on_itself(arms[arm]):17.2f}  {_text(before)}  {_text(after)}  "
                f"{_text(back)}  {share}"
            )


def read(folder: Path) -> Runs:
    """The runs of a study, by task and arm."""
    found: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for run in done(folder):
        found[run.task][run.variant].append(run)
    return {task: dict(sorted(found[task].items())) for task in sorted(found)}


def gap(arms: Mapping[str, Sequence[Record]], arm: str) -> Sum:
    """How much worse an arm is than the baseline."""
    return sum_of((1, _losses(arms[arm])), (-1, _losses(arms[BASELINE])))


def given_back(arms: Mapping[str, Sequence[Record]], arm: str) -> Sum:
    """How much better an arm is with a masked diagonal."""
    return sum_of((1, _losses(arms[arm])), (-1, _losses(arms[f"{arm}{MASKED}"])))


def on_itself(runs: Sequence[Record]) -> float:
    """The share of attention that a token pays to itself at the end of training."""
    shares = [each for run in runs for each in run.snapshots[-1].measures[MEASURE]]
    return statistics.mean(each for each in shares if each is not None)


def _losses(runs: Sequence[Record]) -> list[float]:
    return [loss(run) for run in runs]


def _text(found: Sum) -> str:
    return f"{found.value:+.3f} ±{found.half:.3f}"


if __name__ == "__main__":
    main()
