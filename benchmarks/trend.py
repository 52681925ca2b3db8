"""Does a gap shrink with the budget, or with the size? Every arm's gap, and its change per tenfold.

Run     python benchmarks/trend.py studies/quick studies/budgets-1500 [...] [--svg FILE]
        python benchmarks/trend.py FOLDER FOLDER [...] --over parameters
Takes   seconds; nothing is trained. Every folder is a study with some of the same arms on the task,
        at another number of steps or with a larger model

A gap is an arm's mean score less the baseline's in the same study, positive if the arm is worse.
Its trend is the slope of a line through the gaps over the logarithm of steps or parameters: a sum
of means, with Satterthwaite's degrees of freedom. Every run has its own schedule, so studies share
no runs. The baseline's steps are those with which it would have the arm's score, on a line between
its own scores over that logarithm.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from line_chart import apart, opening
from sums_of_means import Sum, done, loss, sum_of

from qkvbench.results.store import Store

BASELINE = "q,k,v"
HUES = ("#1b6ca8", "#c2562d", "#3b8b4c", "#7d4fa0", "#777777")

# The scores of the seeds, by arm, and by steps or parameters.
Scores = Mapping[str, Mapping[int, Sequence[float]]]


def main() -> None:
    """Print a line for each arm, and draw the gaps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--over", choices=("steps", "parameters"), default="steps")
    parser.add_argument("--task", default="lm-reviews")
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    scores = read(args.folders, args.task, args.over)
    steps = sorted(scores[BASELINE])
    print(f"scores of {BASELINE}: " + ", ".join(_scores(scores, BASELINE, n) for n in steps))
    for arm in scores:
        if arm == BASELINE:
            continue
        here = [n for n in steps if n in scores[arm]]
        print(f"{arm}:")
        for n in here:
            print(
                f"  {n:9,} {args.over}  gap {_text(gap(scores, arm, n))}  "
                f"seeds {len(scores[arm][n])}  q,k,v would need {_needed(scores, arm, n)}"
            )
        if len(here) > 1:
            found = trend(scores, arm, here)
            print(f"  changes by {_text(found)} with ten times the {args.over}, p {found.p:.3g}")
    if args.svg:
        args.svg.write_text(figure(scores, steps, args.over), encoding="utf-8")


def read(folders: Sequence[Path], task: str, over: str) -> Scores:
    """The scores of the runs of these studies on the task."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        study = Store(folder).study()
        assert study is not None, f"{folder} has no study"
        runs = [run for run in done(folder) if run.id in study.runs and run.task == task]
        base = next(run for run in runs if run.arm == BASELINE)
        steps = base.parsed_experiment.training.steps
        place = steps if over == "steps" else base.cost.total_parameters
        for run in runs:
            found[run.arm][place].append(loss(run))
    # An interval takes two seeds.
    return {
        arm: {n: rows for n, rows in sorted(of.items()) if len(rows) > 1}
        for arm, of in found.items()
    }


def gap(scores: Scores, arm: str, steps: int) -> Sum:
    """The arm's mean less the baseline's."""
    return sum_of((1, scores[arm][steps]), (-1, scores[BASELINE][steps]))


def trend(scores: Scores, arm: str, steps: Sequence[int]) -> Sum:
    """The slope of the gaps over log10 of the steps, by least squares."""
    places = np.log10(steps)
    weights = (places - places.mean()) / ((places - places.mean()) ** 2).sum()
    parts = zip(weights, steps, strict=True)
    return sum_of(
        *(
            (sign * float(weight), scores[name][n])
            for weight, n in parts
            for sign, name in ((1, arm), (-1, BASELINE))
        )
    )


def needed(scores: Scores, arm: str, steps: int) -> float | None:
    """The steps with which the baseline has the arm's mean; None outside of its own budgets."""
    own = {n: float(np.mean(rows)) for n, rows in scores[BASELINE].items()}
    level = float(np.mean(scores[arm][steps]))
    if not min(own.values()) <= level <= max(own.values()):
        return None
    # Descending losses, as `interp` wants its places ascending.
    places = sorted((loss, math.log(n)) for n, loss in own.items())
    return math.exp(np.interp(level, *zip(*places, strict=True)))


def _needed(scores: Scores, arm: str, steps: int) -> str:
    found = needed(scores, arm, steps)
    fewest = min(scores[BASELINE])
    if found is not None:
        return f"{found:,.0f} ({found / steps:.0%})"
    below = np.mean(scores[arm][steps]) > np.mean(scores[BASELINE][fewest])
    return f"fewer than {fewest:,}" if below else f"more than {max(scores[BASELINE]):,}"


def _scores(scores: Scores, arm: str, steps: int) -> str:
    return f"{np.mean(scores[arm][steps]):.4f} at {steps}"


def _text(each: Sum) -> str:
    return f"{each.value:+.4f} ± {each.half:.4f}"


def figure(scores: Scores, steps: Sequence[int], over: str) -> str:
    """The gaps with their intervals, of arms with two and more, without that of no attention."""
    width, height, left, right, top, bottom = 640, 380, 60, 90, 50, 44
    arms = [arm for arm in scores if arm not in (BASELINE, "none") and len(scores[arm]) > 1]
    gaps = {arm: {n: gap(scores, arm, n) for n in steps if n in scores[arm]} for arm in arms}
    ends = [
        each.value + side * each.half
        for of in gaps.values()
        for each in of.values()
        for side in (-1, 1)
    ]
    low, high = min(0.0, *ends), max(ends)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    first, last = math.log(steps[0]), math.log(steps[-1])

    def x(n: float) -> float:
        return left + 14 + (math.log(n) - first) / (last - first) * (width - left - right - 14)

    def y(value: float) -> float:
        return height - bottom - (value - low) / (high - low) * (height - bottom - top)

    parts = opening(
        width,
        height,
        left,
        f"What each arm loses against q,k,v, by {over}",
        "bits per byte of film reviews; bars: 95% intervals; below 0 an arm is better",
    )
    for n in steps:
        parts.append(
            f'<text x="{x(n):.1f}" y="{height - bottom + 18}" text-anchor="middle">{n:,}</text>'
        )
    for tick in np.arange(math.ceil(low * 10) / 10, high, 0.1):
        stroke = "#888888" if abs(tick) < 1e-9 else "#e6e6e6"
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            f'stroke="{stroke}"/>'
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
        )
    parts.append(
        f'<text x="{(left + width - right) / 2:.0f}" y="{height - 8}" text-anchor="middle">'
        f"{over} (logarithmic)</text>"
    )
    labels = apart({arm: y(of[max(of)].value) for arm, of in gaps.items()}, 15)
    for hue, (arm, of) in zip(HUES, gaps.items(), strict=False):
        points = " ".join(f"{x(n):.1f},{y(each.value):.1f}" for n, each in of.items())
        parts.append(f'<polyline fill="none" stroke="{hue}" stroke-width="1.8" points="{points}"/>')
        for n, each in of.items():
            parts.append(
                f'<line x1="{x(n):.1f}" x2="{x(n):.1f}" y1="{y(each.value - each.half):.1f}" '
                f'y2="{y(each.value + each.half):.1f}" stroke="{hue}"/>'
                f'<circle cx="{x(n):.1f}" cy="{y(each.value):.1f}" r="3.2" fill="{hue}"/>'
            )
        parts.append(
            f'<text x="{width - right + 8}" y="{labels[arm] + 4:.1f}" fill="{hue}">{arm}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
