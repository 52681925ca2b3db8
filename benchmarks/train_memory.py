"""Memory of a training step against its length: observed in a process of its own, and computed.

python benchmarks/train_memory.py [--lengths 512 1024 ...] [--precision fp32] [--checkpointing]

One sequence at a time through the small decoder (rotary). Observed is the highest level of the
process above the one before the model, after a step of a tiny model has loaded what every step
needs; computed is `cost.step_memory`. The slope is that of log bytes over log tokens, computed and
observed, over the upper half of the lengths: 1 is linear, 2 quadratic.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qkvbench import cost
from qkvbench.backends import find
from qkvbench.cost.units import bytes_text
from qkvbench.data.batch import Batch
from qkvbench.experiment import PRECISIONS, Experiment, Training
from qkvbench.measure.memory import peak_bytes, reset_peak_memory
from qkvbench.model import PRESETS
from qkvbench.sweep.local import Workers
from qkvbench.task_ref import TaskRef

ARMS = ("q,k,v", "q,k=v", "q=k=v", "q,k,v/1")
LENGTHS = (512, 1024, 2048, 4096, 8192)
FIGURE = Path(__file__).parents[1] / "docs" / "train-memory.svg"

Observation = dict[str, list[int]]


def experiment(variant: str, **changed: object) -> Experiment:
    """One arm of the small decoder."""
    training = Training(steps=2, batch=1, learning_rate=1e-3, warmup=0)
    base = Experiment(PRESETS["small-decoder"](), TaskRef("lm-reviews"), 1, training, seed=0)
    return replace(base.vary(variants=[variant], seeds=[0])[0], **changed)


def observed(wanted: Experiment, tokens: int) -> int:
    """Bytes that two training steps on `tokens` add to this process at most."""
    backend = find(wanted.backend)
    backend.prepare(wanted.threads)
    _steps(wanted, 16)
    before = reset_peak_memory(backend)
    _steps(wanted, tokens)
    return peak_bytes(backend) - before


def _steps(wanted: Experiment, tokens: int) -> None:
    learner = find(wanted.backend).Learner(wanted)
    rng = np.random.default_rng(0)
    batch = Batch(*rng.integers(0, 256, (2, wanted.training.batch, tokens)))
    for _ in range(wanted.training.steps):
        learner.gradients(batch)
        learner.update(1e-3)


def slope(lengths: Sequence[int], values: Sequence[int]) -> float:
    """The exponent with which `values` grow, least squares on the upper half of the lengths."""
    upper = slice(len(lengths) // 2, None)
    return float(np.polyfit(np.log(lengths[upper]), np.log(values[upper]), 1)[0])


def figure(lengths: Sequence[int], rows: dict[str, Observation]) -> str:
    """Both axes logarithmic: observed as dots, computed as lines, two straight lines to compare."""
    width, height, left, bottom = 640, 420, 70, 50
    values = [value for row in rows.values() for kind in row.values() for value in kind]
    low, high = math.log2(min(values)) - 0.3, math.log2(max(values)) + 0.5
    first, last = math.log2(lengths[0]), math.log2(lengths[-1])

    def x(tokens: float) -> float:
        return left + (math.log2(tokens) - first) / (last - first) * (width - left - 110)

    def y(count: float) -> float:
        return height - bottom - (math.log2(count) - low) / (high - low) * (height - bottom - 40)

    def line(points: Sequence[tuple[float, float]], style: str) -> str:
        places = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points if math.log2(b) <= high)
        return f'<polyline fill="none" {style} points="{places}"/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="sans-serif" font-size="12">',
        "<title>Memory of a training step against its length</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="20" font-size="14">Memory of a training step, small decoder, one '
        "sequence</text>",
        f'<text x="{(width + left) / 2 - 90}" y="{height - 10}">tokens (both axes logarithmic)'
        "</text>",
    ]
    for tokens in lengths:
        parts.append(
            f'<line x1="{x(tokens):.1f}" x2="{x(tokens):.1f}" y1="40" y2="{height - bottom}" '
            'stroke="#eee"/>'
            f'<text x="{x(tokens):.1f}" y="{height - bottom + 18}" text-anchor="middle">{tokens}'
            "</text>"
        )
    for step in range(math.ceil(low), math.floor(high) + 1):
        parts.append(
            f'<line x1="{left}" x2="{width - 110}" y1="{y(2**step):.1f}" y2="{y(2**step):.1f}" '
            'stroke="#eee"/>'
            f'<text x="{left - 6}" y="{y(2**step) + 4:.1f}" text-anchor="end">'
            f"{bytes_text(2**step)}</text>"
        )
    hues = ("#1b6ca8", "#c2562d", "#3b8b4c", "#7d4fa0")
    start = next(iter(rows.values()))["observed"][-1] * 1.25
    for power, name in ((1, "linear"), (2, "quadratic")):
        points = [(n, start * (n / lengths[-1]) ** power) for n in lengths]
        points = [point for point in points if math.log2(point[1]) >= low]
        parts.append(line(points, 'stroke="#999" stroke-dasharray="4 4"'))
        parts.append(
            f'<text x="{x(points[0][0]) + 4:.1f}" y="{y(points[0][1]) - 6:.1f}" fill="#777">'
            f"{name}</text>"
        )
    for order, (arm, row) in enumerate(rows.items()):
        hue = hues[order % len(hues)]
        parts.append(
            line(
                list(zip(lengths, row["computed"], strict=True)),
                f'stroke="{hue}" stroke-width="1.5"',
            )
        )
        parts += [
            f'<circle cx="{x(n):.1f}" cy="{y(v):.1f}" r="3.5" fill="{hue}"/>'
            for n, v in zip(lengths, row["observed"], strict=True)
        ]
        place = 60 + 18 * order
        parts.append(
            f'<circle cx="{width - 96}" cy="{place - 4}" r="3.5" fill="{hue}"/>'
            f'<text x="{width - 86}" y="{place}">{arm}</text>'
        )
    parts.append(
        f'<text x="{width - 100}" y="{60 + 18 * len(rows) + 8}" fill="#555">dots: observed</text>'
        f'<text x="{width - 100}" y="{60 + 18 * len(rows) + 24}" fill="#555">lines: computed</text>'
        "</svg>"
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    """Observe every arm at every length, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    words = parser.parse_args()
    rows: dict[str, Observation] = {}
    with Workers("torch") as workers:
        for arm in words.arms:
            wanted = experiment(arm, precision=words.precision, checkpointing=words.checkpointing)
            rows[arm] = {"observed": [], "computed": []}
            for tokens in words.lengths:
                rows[arm]["observed"].append(workers.call(observed, wanted, tokens))
                rows[arm]["computed"].append(cost.step_memory(wanted, tokens).total)
                seen, computed = rows[arm]["observed"][-1], rows[arm]["computed"][-1]
                print(
                    f"{arm:8} {tokens:6} tokens   computed {bytes_text(computed):>9}   "
                    f"observed {bytes_text(seen):>9}   observed/computed {seen / computed:.2f}",
                    flush=True,
                )
            print(
                f"{arm:8} slope    computed {slope(words.lengths, rows[arm]['computed']):.2f}   "
                f"observed {slope(words.lengths, rows[arm]['observed']):.2f}"
            )
    words.figure.write_text(figure(words.lengths, rows), encoding="utf-8")
    print(f"{words.figure} is drawn.")


if __name__ == "__main__":
    main()
