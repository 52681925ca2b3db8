"""Training on long sequences, by arm and length: time of a step, memory, how gradients vary.

Run     python benchmarks/long_sequences.py [--arms A B ...] [--lengths 512 2048 ...] [--seeds N]
        [--steps N] [--batches N] [--tokens N] [--forward 16384 102400 ...] [--figure FILE]
        [--findings FOLDER]: `studies/benchmarks` is where the ledger of claims finds them
Size    long-plays, its text and its decoder: rotary, 4 heads, 2 layers of width 64 unless asked
        (--layers, --width); forward only, one layer

Every batch has as many tokens whatever the length, and all arms see the same batches in turn, so
that neither the amount of data nor the machine's mood makes a difference between arms. Between
lengths the text does: sixteen windows of sixteen places are less alike than one of one play.

The spread of a gradient's norm is its standard deviation over its mean, taken before clipping,
which no scale of the loss changes: over batches at the weights that training began and ended with,
and over the steps of the second half of training. Beside it stands the ratio to the first arm's,
as its geometric mean over seeds. A spread over N batches is known to about 1 / sqrt(2N) of itself.

Memory is what two steps add to a process of their own at most. The arms are the catalogue's, but
`+2d`: its scores go by rows, which takes several times as long.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from findings import add_option, write_findings
from scipy import stats

from qkvbench import tasks
from qkvbench.backends import find
from qkvbench.claims.kit.measured import MeasuredChange
from qkvbench.cost.units import bytes_text
from qkvbench.data.plays import plays
from qkvbench.experiment import Experiment
from qkvbench.measure.memory import peak_bytes, reset_peak_memory
from qkvbench.model import transformer
from qkvbench.sweep.local import Workers
from qkvbench.task_ref import TaskRef
from qkvbench.tasks.kinds.splits import Windows
from qkvbench.train.loop import batch_indices, learning_rate
from qkvbench.variant import write
from qkvbench.variant.catalogue import CATALOGUE

ARMS = [write(entry.variant) for entry in CATALOGUE if entry.variant.scores.correction is None]
LENGTHS = [512, 1024, 2048, 4096, 8192]
FIGURE = Path(__file__).parents[1] / "docs" / "long-sequences.svg"
HUES = ("#1b6ca8", "#c2562d", "#3b8b4c", "#7d4fa0", "#a8841b", "#2aa1a1", "#b03a6f", "#777777")


@dataclass(frozen=True)
class Seen:
    """What one seed of one arm showed at one length: times of steps, and norms of gradients."""

    step_s: list[float]
    steps: list[float]
    before: list[float]
    after: list[float]

    def spreads(self) -> tuple[float, float, float]:
        """Of the norm: over batches before training and after it, and over its later steps."""
        return spread(self.before), spread(self.after), spread(self.steps[len(self.steps) // 2 :])


def spread(norms: Sequence[float]) -> float:
    """The standard deviation over the mean."""
    return statistics.stdev(norms) / statistics.mean(norms)


def experiments(words: argparse.Namespace, length: int, seed: int) -> tuple[Experiment, ...]:
    """One arm after the other, trained as long-plays is, in windows of `length`."""
    task = tasks.find("long-plays")
    size = max(1, words.tokens // length)
    training = replace(
        task.training, steps=words.steps, warmup=max(1, words.steps // 10), batch=size
    )
    model = transformer(
        "long-sequences",
        task.model.architecture,
        layers=words.layers,
        d_model=words.width,
        heads=task.model.geometry.heads,
        position=task.model.position,
        init=task.model.init,
    )
    base = Experiment(model, TaskRef("long-plays"), task.version, training, seed=seed)
    return base.vary(variants=words.arms, seeds=[seed])


def trained(runs: Sequence[Experiment], length: int, batches: int) -> list[Seen]:
    """All arms trained side by side, a step of each in turn; norms before, on the way and after.

    The batches of the norms before and after follow those of training, and nothing learns them.
    """
    training, seed = runs[0].training, runs[0].seed
    find(runs[0].backend).prepare(runs[0].threads)
    split = Windows(plays().train, length)
    order = batch_indices(len(split), training, seed)
    learned = [split.batch(next(order)) for _ in range(training.steps)]
    looked_at = [split.batch(next(order)) for _ in range(batches)]
    learners = [find(run.backend).Learner(run) for run in runs]
    before = [[learner.gradients(batch)[1] for learner in learners] for batch in looked_at]
    step_s: list[list[float]] = []
    norms: list[list[float]] = []
    for step, batch in enumerate(learned, 1):
        row_s, row = [], []
        for learner in learners:
            began = time.perf_counter()
            row.append(learner.gradients(batch)[1])
            learner.update(learning_rate(training, step))
            row_s.append(time.perf_counter() - began)
        step_s.append(row_s)
        norms.append(row)
    after = [[learner.gradients(batch)[1] for learner in learners] for batch in looked_at]
    columns = (zip(*rows, strict=True) for rows in (step_s, norms, before, after))
    return [Seen(*map(list, each)) for each in zip(*columns, strict=True)]


def memory(run: Experiment, length: int) -> int:
    """Bytes that two training steps on one window add to this process at most."""
    backend = find(run.backend)
    backend.prepare(run.threads)

    def steps(tokens: int) -> None:
        batch = Windows(plays().train, tokens).batch(np.arange(max(1, 16 // tokens)))
        learner = backend.Learner(run)
        for _ in range(2):
            learner.gradients(batch)
            learner.update(1e-3)

    # What every step needs is loaded by a small one.
    steps(16)
    before = reset_peak_memory(backend)
    steps(length)
    return peak_bytes(backend) - before


def forward(run: Experiment, length: int) -> tuple[float, int]:
    """Seconds and bytes that it takes one layer to score one window, in a process of its own."""
    backend = find(run.backend)
    backend.prepare(run.threads)
    learner = backend.Learner(replace(run, model=replace(run.model, blocks=run.model.blocks[:1])))
    stream = plays().train
    learner.predict(Windows(stream, 16).batch(np.arange(1)))
    before = reset_peak_memory(backend)
    batch = Windows(stream, length).batch(np.arange(1))
    began = time.perf_counter()
    learner.predict(batch)
    return time.perf_counter() - began, peak_bytes(backend) - before


def row(arm: str, length: int, seeds: Sequence[Seen], base: Sequence[Seen], held: int) -> str:
    """One line of the table: medians of times, means of spreads, ratios to the first arm's."""
    step_s = statistics.median(each for seen in seeds for each in seen.step_s)
    ratio = statistics.median(
        own / other
        for seen, first in zip(seeds, base, strict=True)
        for own, other in zip(seen.step_s, first.step_s, strict=True)
    )
    cells = [f"{arm:16} {length:6} {1000 * step_s:8.0f} {ratio:6.2f} {bytes_text(held):>9}"]
    for own, first in zip(spreads(seeds), spreads(base), strict=True):
        times = statistics.geometric_mean(a / b for a, b in zip(own, first, strict=True))
        cells.append(f"{statistics.mean(own):8.3f} {times:5.2f}")
    return "".join(cells)


def spreads(seeds: Sequence[Seen]) -> list[tuple[float, ...]]:
    """Of each of the three spreads, that of every seed."""
    return list(zip(*(seen.spreads() for seen in seeds), strict=True))


def spread_change(
    arm: str, against: str, length: int, seeds: Sequence[Seen], base: Sequence[Seen]
) -> MeasuredChange:
    """How the spread after training differs between two arms, with its interval over seeds.

    Student's t of the logarithms of the ratios; None with fewer than three seeds.
    """
    logs = [
        math.log(own.spreads()[1] / first.spreads()[1])
        for own, first in zip(seeds, base, strict=True)
    ]
    middle, ends = statistics.mean(logs), (None, None)
    if len(logs) > 2:
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        half = float(stats.t.ppf(0.975, len(logs) - 1)) * error
        ends = tuple(100 * math.expm1(each) for each in (middle - half, middle + half))
    return MeasuredChange(
        quantity="spread of the gradient's norm",
        model="long-plays",
        arm=arm,
        against=against,
        setting=f"windows of {length:,} tokens, {len(logs)} seeds, cpu",
        percent=100 * math.expm1(middle),
        low=ends[0],
        high=ends[1],
    )


def figure(
    panels: Mapping[str, Mapping[str, Mapping[int, float]]], lengths: Sequence[int], text: str
) -> str:
    """For each quantity its lines over the length, both axes logarithmic."""
    width, height, left, top = 330, 360, 58, 44
    whole = width * len(panels) + 130
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height + 20}" role="img" '
        'font-family="sans-serif" font-size="11">',
        "<title>Training on long sequences</title>",
        f'<rect width="{whole}" height="{height + 20}" fill="#fff"/>',
        f'<text x="10" y="{height + 10}" fill="#555">{text}</text>',
    ]
    for number, (title, arms) in enumerate(panels.items()):
        values = [value for points in arms.values() for value in points.values()]
        low, high = math.log2(min(values)) - 0.2, math.log2(max(values)) + 0.2
        near, far = number * width + left, (number + 1) * width - 14

        def x(length: float, near: float = near, far: float = far) -> float:
            first, last = math.log2(lengths[0]), math.log2(lengths[-1])
            return near + (math.log2(length) - first) / max(last - first, 1e-9) * (far - near)

        def y(value: float, low: float = low, high: float = high) -> float:
            return height - 40 - (math.log2(value) - low) / (high - low) * (height - 40 - top)

        parts.append(f'<text x="{near}" y="24" font-size="13">{title}</text>')
        for length in lengths:
            parts.append(
                f'<line x1="{x(length):.1f}" x2="{x(length):.1f}" y1="{top}" y2="{height - 40}" '
                f'stroke="#eee"/><text x="{x(length):.1f}" y="{height - 24}" '
                f'text-anchor="middle">{length}</text>'
            )
        # Half powers of two where whole ones would be too few.
        fine = 1 if high - low > 2.5 else 2 if high - low > 1.2 else 4
        for step in range(math.ceil(low * fine), math.floor(high * fine) + 1):
            value = 2 ** (step / fine)
            told = (
                bytes_text(round(value))
                if "emory" in title
                else f"{value:.0f}"
                if value >= 100
                else f"{value:.3g}"
            )
            parts.append(
                f'<line x1="{near}" x2="{far}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                f'stroke="#eee"/><text x="{near - 5}" y="{y(value) + 4:.1f}" '
                f'text-anchor="end">{told}</text>'
            )
        for order, points in enumerate(arms.values()):
            hue, dash = HUES[order % len(HUES)], "" if order < len(HUES) else "5 3"
            places = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points.items())
            parts.append(
                f'<polyline fill="none" stroke="{hue}" stroke-width="1.6" '
                f'stroke-dasharray="{dash}" points="{places}"/>'
            )
            parts += [
                f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.6" fill="{hue}"/>'
                for a, b in points.items()
            ]
    for order, arm in enumerate(next(iter(panels.values()))):
        place, near = top + 10 + 18 * order, width * len(panels) + 4
        dash = "" if order < len(HUES) else "5 3"
        parts.append(
            f'<line x1="{near}" x2="{near + 18}" y1="{place - 4}" y2="{place - 4}" '
            f'stroke="{HUES[order % len(HUES)]}" stroke-width="2" stroke-dasharray="{dash}"/>'
            f'<text x="{near + 24}" y="{place}">{arm}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def over(
    found: Mapping[str, Mapping[int, list[Seen]]], value: Callable[[list[Seen]], float]
) -> dict[str, dict[int, float]]:
    """One number for each arm and length, from its seeds."""
    return {
        arm: {length: value(seeds) for length, seeds in by_length.items()}
        for arm, by_length in found.items()
    }


def main() -> None:
    """Train every arm at every length, print the table, draw the figure, then go forward only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--forward", nargs="*", type=int, default=[])
    parser.add_argument("--figure", type=Path, default=FIGURE)
    add_option(parser)
    words = parser.parse_args()
    found: dict[str, dict[int, list[Seen]]] = {arm: {} for arm in words.arms}
    held: dict[str, dict[int, int]] = {arm: {} for arm in words.arms}
    print(
        f"{words.seeds} seeds, {words.steps} steps of {words.tokens} tokens, spreads over "
        f"{words.batches} batches; {words.layers} layers of width {words.width}\n"
        f"{'arm':16} {'length':>6} {'ms/step':>8} {'ratio':>6} {'memory':>9}"
        f"{'before':>8} {'ratio':>5}{'after':>8} {'ratio':>5}{'steps':>8} {'ratio':>5}",
        flush=True,
    )
    with Workers("torch") as workers:
        for length in words.lengths:
            for seed in range(words.seeds):
                runs = experiments(words, length, seed)
                seen = workers.call(trained, runs, length, words.batches)
                for arm, each in zip(words.arms, seen, strict=True):
                    found[arm].setdefault(length, []).append(each)
            first = found[words.arms[0]][length]
            for arm, run in zip(words.arms, experiments(words, length, 0), strict=True):
                held[arm][length] = workers.call(memory, run, length)
                print(row(arm, length, found[arm][length], first, held[arm][length]), flush=True)
        panels = {
            "Time of a step, ms": over(
                found, lambda seeds: 1000 * statistics.median(s for e in seeds for s in e.step_s)
            ),
            "Memory of a step, one window": held,
            "Spread of the gradient's norm, trained": over(
                found, lambda seeds: statistics.mean(each.spreads()[1] for each in seeds)
            ),
        }
        text = (
            f"{words.tokens} tokens a step in windows of this length, both axes logarithmic; "
            f"{words.seeds} seeds, {words.batches} batches."
        )
        words.figure.write_text(figure(panels, words.lengths, text), encoding="utf-8")
        print(f"{words.figure.name} is drawn.", flush=True)
        base = words.arms[0]
        changes = [
            spread_change(arm, base, length, found[arm][length], found[base][length])
            for arm in words.arms[1:]
            for length in words.lengths
        ]
        write_findings(words.findings, "long_sequences", "cpu", changes)
        for length in words.forward:
            for arm, run in zip(words.arms, experiments(words, words.tokens, 0), strict=True):
                taken_s, peak = workers.call(forward, run, length)
                print(
                    f"{arm:16} {length:7} tokens forward, one layer: {taken_s:7.1f} s "
                    f"{bytes_text(peak):>9}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
