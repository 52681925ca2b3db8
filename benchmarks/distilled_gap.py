"""Does a teacher close the gap that sharing opens? Gaps with a teacher, without, and their change.

Run     python benchmarks/distilled_gap.py results/distillation studies/quick [studies/...]
Takes   seconds; nothing is trained. The first folder has runs with a teacher ('qkvbench run
        distillation'), the others the same runs without: every seed that they have counts, once

A gap is an arm's mean score less the baseline's, positive if the arm is worse. Its change is the
gap with a teacher less the gap without, by Welch's test over four independent means.
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from losses import done, loss

from qkvbench.experiment import Experiment
from qkvbench.results.sums import Sum, sum_of

BASELINE = "q,k,v"


def main() -> None:
    """Print a line for each task and arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("taught", type=Path)
    parser.add_argument("plain", type=Path, nargs="+")
    args = parser.parse_args()
    taught = done(args.taught)
    wanted = {_key(each.parsed_experiment) for each in taught}
    plain = {run.id: run for folder in args.plain for run in done(folder)}
    scores: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    for run in taught:
        scores[run.task, run.arm, True].append(loss(run))
    for run in plain.values():
        if run.parsed_experiment.teacher is None and _key(run.parsed_experiment) in wanted:
            scores[run.task, run.arm, False].append(loss(run))
    for task in dict.fromkeys(run.task for run in taught):
        print(f"{task}: gap to {BASELINE} without a teacher, with one, and the change")
        for arm in dict.fromkeys(run.arm for run in taught if run.task == task):
            own = [scores[task, arm, each] for each in (False, True)]
            base = [scores[task, BASELINE, each] for each in (False, True)]
            if min(map(len, (*own, *base))) < 2:
                print(f"  {arm:18} too few runs: {[len(each) for each in own]}")
                continue
            gained = sum_of((1, own[0]), (-1, own[1]))
            seeds = f"{len(own[0])} and {len(own[1])}"
            print(f"  {arm:18} gains {_text(gained)}  seeds {seeds}", end="")
            if arm == BASELINE:
                print()
                continue
            gaps = [sum_of((1, one), (-1, other)) for one, other in zip(own, base, strict=True)]
            change = sum_of((1, own[1]), (-1, base[1]), (-1, own[0]), (1, base[0]))
            print(
                f"  gap {_text(gaps[0])} -> {_text(gaps[1])}  change {_text(change)} "
                f"p {change.p:.3g}"
            )


def _text(each: Sum) -> str:
    return f"{each.value:+.4f} ± {each.half:.4f}"


def _key(experiment: Experiment) -> str:
    """What two runs must share but the teacher and the seed."""
    return replace(experiment, teacher=None, seed=0).id


if __name__ == "__main__":
    main()
