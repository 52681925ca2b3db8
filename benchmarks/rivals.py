"""Rivals over the length of a text: time and memory of training, prefill and decoding.

Run     python benchmarks/rivals.py [--arms A B ...] [--lengths 512 ...] [--rounds N] [--width N]
        [--prefill 32768 ...] [--figure FILE] [--lines FILE] [--findings FOLDER]
Size    a decoder of 2 layers of width 256, 4 heads, RoPE, bytes; one sequence, one thread, fp32

All arms of a length take turns, round by round, so that the mood of the machine is that of all of
them; times are of the processor, so that other work on it does not count. A ratio is to the first
arm's in the same round: the median of rounds, and the least and the largest. Arithmetic stands
beside: of a pass its multiply-accumulates, which count a causal softmax whole; of a decoded token
the bytes of its cache; of memory the bound that `cost.step_memory` computes.

Memory is what the work adds to a process of its own at most, the model itself included.
`--prefill` goes on to longer prompts, one round each, without the arms that would take minutes.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from findings import add_option, write_findings
from line_chart import opening
from scipy import stats

from qkvbench import cost
from qkvbench.backends import find
from qkvbench.claims.kit.measured import MeasuredChange
from qkvbench.cost import CACHE_FORMATS
from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.data.batch import Batch
from qkvbench.experiment import Experiment, Training
from qkvbench.measure.memory import peak_bytes, reset_peak_memory
from qkvbench.model import Decoder, Init, Model, Rotary, transformer
from qkvbench.reports.parts.svg import apart
from qkvbench.sweep.local import Workers
from qkvbench.task_ref import TaskRef
from qkvbench.variant import parse

ARMS = ("q,k,v", "q,k,v+window256+sinks4", "q,k,v+elu", "q,k,v+favor128", "q,k,v+gateddelta")
LENGTHS = (512, 1024, 2048, 4096, 8192)
VOCABULARY = 256
# A pass that softmax needs more products for than this many is left to the others.
MOST_MACS = 2e12
DOCS = Path(__file__).parents[1] / "docs"
HUES = ("#222222", "#1b6ca8", "#c2562d", "#3b8b4c", "#7d4fa0")
# Each kind of work, and what its arithmetic counts.
KINDS = {
    "training step": "multiply-accumulates",
    "prefill": "multiply-accumulates",
    "decode": "bytes of the cache",
}

Line = dict[str, Any]


def model(arm: str, width: int) -> Model:
    """The decoder of an arm."""
    base = transformer(
        "rivals",
        Decoder(VOCABULARY),
        layers=2,
        d_model=width,
        heads=4,
        position=Rotary(),
        init=Init(embedding_std=0.5, position_std=0.5),
    )
    return base.with_variant(parse(arm))


def experiment(arm: str, width: int) -> Experiment:
    """The training of an arm."""
    training = Training(steps=2, batch=1, learning_rate=1e-3, warmup=0)
    return Experiment(model(arm, width), TaskRef("lm-reviews"), 1, training, seed=0)


def work(kind: str, arm: str, length: int, width: int) -> Callable[[], object]:
    """The work of one kind, ready to be timed."""
    backend = find("torch")
    if kind != "training step":
        name: Any = kind
        return backend.workload(name, model(arm, width), "fp32", context=length, batch=1).step
    rng = np.random.default_rng(0)
    learner = backend.Learner(experiment(arm, width))
    inputs, targets = rng.integers(VOCABULARY, size=(2, 1, length))
    batch = Batch(inputs, targets)

    def step() -> None:
        learner.gradients(batch)
        learner.update(1e-3)

    return step


def times(
    kind: str, arms: Sequence[str], length: int, width: int, rounds: int
) -> list[list[float]]:
    """Seconds of the processor for each arm in each round, in a process of their own.

    A round of a step that takes no time is several of them.
    """
    find("torch").prepare(1)
    works = [work(kind, arm, length, width) for arm in arms]
    repeat = 20 if kind == "decode" else 1
    for each in works:
        each()
    found: list[list[float]] = []
    for number in range(rounds):
        row = [0.0] * len(works)
        # Every round begins with another arm.
        for at in np.roll(np.arange(len(works)), number):
            began = time.process_time()
            for _ in range(repeat):
                works[at]()
            row[at] = (time.process_time() - began) / repeat
        found.append(row)
    return [list(column) for column in zip(*found, strict=True)]


def memory(kind: str, arm: str, length: int, width: int) -> int:
    """Bytes that two rounds of the work add to this process at most, after one of a short text."""
    backend = find("torch")
    backend.prepare(1)
    work(kind, arm, 64, width)()
    before = reset_peak_memory(backend)
    step = work(kind, arm, length, width)
    for _ in range(2):
        step()
    return peak_bytes(backend) - before


def arithmetic(kind: str, arm: str, length: int, width: int) -> int:
    """The number of `KINDS` for this work."""
    of = model(arm, width)
    if kind == "decode":
        return cost.cache_bytes(of, length, 1, CACHE_FORMATS["fp32"], page=1)
    return cost.macs(of, length) * (3 if kind == "training step" else 1)


def line(kind: str, arm: str, length: int, width: int, own: list[float], base: list[float]) -> Line:
    """The times of one arm at one length, and what arithmetic says of it."""
    ratios = [one / other for one, other in zip(own, base, strict=True)]
    return {
        "kind": kind,
        "arm": arm,
        "tokens": length,
        "seconds": statistics.median(own),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "logs": [math.log(each) for each in ratios],
        "computed": arithmetic(kind, arm, length, width),
    }


def show(found: Line, first: Line) -> str:
    """One line of the table."""
    computed = found["computed"] / first["computed"]
    return (
        f"{found['kind']:14} {found['tokens']:7} {found['arm']:24} "
        f"{seconds_text(found['seconds']):>9}  {found['ratio']:6.2f} of {first['arm']} "
        f"({found['least']:.2f} to {found['most']:.2f}), computed {computed:6.3f}"
        f"{bytes_text(found['bytes']) if found.get('bytes') else '':>10}"
    )


def break_even(lines: Sequence[Line]) -> str:
    """From which length on a rival is faster, between the measured ones on a logarithmic scale."""
    points = [(math.log2(each["tokens"]), math.log2(each["ratio"])) for each in lines]
    if points[-1][1] >= 0:
        return f"not up to {lines[-1]['tokens']}"
    above = [number for number, (_, ratio) in enumerate(points) if ratio >= 0]
    if not above:
        return f"below {lines[0]['tokens']}"
    (x0, y0), (x1, y1) = points[above[-1]], points[above[-1] + 1]
    return f"about {round(2 ** (x0 + (x1 - x0) * y0 / (y0 - y1)), -1):.0f}"


def change(found: Line) -> MeasuredChange:
    """The change of the time from the first arm, with Student's interval of logarithms."""
    logs, ends = found["logs"], (None, None)
    if len(logs) > 2:
        error = statistics.stdev(logs) / math.sqrt(len(logs))
        half = float(stats.t.ppf(0.975, len(logs) - 1)) * error
        middle = statistics.mean(logs)
        ends = tuple(100 * math.expm1(each) for each in (middle - half, middle + half))
    return MeasuredChange(
        quantity=f"time of a long {found['kind']}",
        model="rivals",
        arm=found["arm"],
        against="q,k,v",
        setting=f"{found['tokens']:,} tokens, batch 1, cpu",
        percent=100 * math.expm1(statistics.mean(logs)),
        low=ends[0],
        high=ends[1],
    )


def panel(
    title: str, said: str, lines: Sequence[Line], value: str, computed: str, left: int, top: int
) -> list[str]:
    """Lines of one quantity over the length, times softmax's; dashed what arithmetic says."""
    wide, high = 330, 250
    lengths = sorted({each["tokens"] for each in lines})
    arms = list(dict.fromkeys(each["arm"] for each in lines))
    first = {each["tokens"]: each for each in lines if each["arm"] == arms[0]}

    def ratio(each: Line, key: str) -> float:
        return each["ratio"] if key == "seconds" else each[key] / first[each["tokens"]][key]

    values = [ratio(each, key) for each in lines for key in (value, computed)]
    low = math.floor(max(min(map(math.log2, values)), -7) - 0.1)
    top_value = math.ceil(max(map(math.log2, values)) + 0.1)

    def x(length: float) -> float:
        span = math.log2(lengths[-1] / lengths[0])
        return left + 44 + math.log2(length / lengths[0]) / span * (wide - 130)

    def y(number: float) -> float:
        share = (math.log2(max(number, 2.0**low)) - low) / (top_value - low)
        return top + 40 + (1 - share) * (high - 80)

    parts = [
        f'<text x="{left}" y="{top + 14}" font-size="13" fill="#222222">{title}</text>',
        f'<text x="{left}" y="{top + 28}" font-size="11" fill="#555555">{said}</text>',
    ]
    for step in range(low, top_value + 1):
        hue = "#999999" if step == 0 else "#eeeeee"
        label = f"{2**step}×" if step >= 0 else f"1/{2**-step}"
        parts.append(
            f'<line x1="{x(lengths[0]):.1f}" x2="{x(lengths[-1]):.1f}" y1="{y(2.0**step):.1f}" '
            f'y2="{y(2.0**step):.1f}" stroke="{hue}"/>'
            f'<text x="{left + 38}" y="{y(2.0**step) + 4:.1f}" font-size="10" fill="#555555" '
            f'text-anchor="end">{label}</text>'
        )
    parts += [
        f'<text x="{x(length):.1f}" y="{top + high - 22}" font-size="10" fill="#555555" '
        f'text-anchor="middle">{length}</text>'
        for length in lengths
    ]
    ends: dict[str, float] = {}
    for hue, arm in zip(HUES, arms, strict=False):
        own = [each for each in lines if each["arm"] == arm]
        for key, dash in ((computed, "4 3"), (value, "")):
            points = " ".join(f"{x(e['tokens']):.1f},{y(ratio(e, key)):.1f}" for e in own)
            parts.append(
                f'<polyline fill="none" stroke="{hue}" stroke-width="{1 if dash else 2}" '
                f'stroke-dasharray="{dash}" points="{points}"/>'
            )
        ends[arm] = y(ratio(own[-1], value))
    for arm, place in apart(ends, 12).items():
        hue = HUES[arms.index(arm)]
        text = arm.removeprefix("q,k,v") or "softmax"
        parts.append(
            f'<text x="{x(lengths[-1]) + 5:.1f}" y="{place + 4:.1f}" font-size="10" '
            f'fill="{hue}">{text}</text>'
        )
    return parts


def figure(lines: Sequence[Line]) -> str:
    """Times of each kind of work, and the memory of training."""
    parts = opening(
        760,
        580,
        16,
        "Rivals of softmax attention, times its own",
        "Solid: measured on one thread. Dashed: by arithmetic. Below 1 the rival takes less.",
    )
    for number, (kind, counted) in enumerate(KINDS.items()):
        of = [each for each in lines if each["kind"] == kind]
        left, top = 16 + 345 * (number % 2), 50 + 262 * (number // 2)
        parts += panel(
            f"Time of a {kind}", f"dashed: {counted}", of, "seconds", "computed", left, top
        )
    of = [each for each in lines if each["kind"] == "training step"]
    parts += panel(
        "Memory of a training step", "dashed: the computed bound", of, "bytes", "bound", 361, 312
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def table(lines: Sequence[Line]) -> list[str]:
    """The rows of a Markdown table: times softmax's at each length, and where it breaks even."""
    lengths = sorted({each["tokens"] for each in lines})
    found = [
        f"| work | arm | {' | '.join(map(str, lengths))} | faster from |",
        f"|---|---|{'---:|' * len(lengths)}---:|",
    ]
    arms = list(dict.fromkeys(each["arm"] for each in lines))
    for kind in dict.fromkeys(each["kind"] for each in lines):
        for arm in arms:
            own = [each for each in lines if (each["kind"], each["arm"]) == (kind, arm)]
            cells = [
                seconds_text(e["seconds"]) if arm == arms[0] else f"{e['ratio']:.2f}×" for e in own
            ]
            end = "" if arm == arms[0] else break_even(own)
            found.append(f"| {kind} | `{arm}` | {' | '.join(cells)} | {end} |")
    return found


def observe(
    workers: Workers, words: argparse.Namespace, kind: str, length: int, rounds: int
) -> list[Line]:
    """The lines of all arms at one length, and on the way their text."""
    arms = words.arms
    if cost.macs(model(arms[0], words.width), length) > MOST_MACS:
        arms = arms[1:]
    seconds = workers.call(times, kind, arms, length, words.width, rounds)
    found = [
        line(kind, arm, length, words.width, own, seconds[0])
        for arm, own in zip(arms, seconds, strict=True)
    ]
    for each in found:
        each["bytes"] = workers.call(memory, kind, each["arm"], length, words.width)
        if kind == "training step":
            each["bound"] = cost.step_memory(experiment(each["arm"], words.width), length).total
        print(show(each, found[0]), flush=True)
        if words.lines:
            with words.lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(each) + "\n")
    return found


def read(path: Path) -> list[Line]:
    """The lines of an earlier run."""
    return [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines()]


def findings(words: argparse.Namespace, lines: Sequence[Line]) -> None:
    """Write what the ledger of claims reads: the longest texts."""
    last = max(words.lengths)
    changes = [
        change(each)
        for each in lines
        if each["tokens"] == last and each["arm"] != words.arms[0] and each["kind"] != "decode"
    ]
    write_findings(words.findings, "rivals", "cpu", changes)


def main() -> None:
    """Measure every kind of work at every length, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--prefill", nargs="*", type=int, default=[])
    parser.add_argument("--figure", type=Path, default=DOCS / "rivals.svg")
    parser.add_argument("--lines", type=Path, help="a file to which a JSON line is added for each")
    parser.add_argument("--again", type=Path, help="draw and print from such a file")
    add_option(parser)
    words = parser.parse_args()
    lines: list[Line] = []
    if words.again:
        lines = [each for each in read(words.again) if each["tokens"] in words.lengths]
    else:
        with Workers("torch") as workers:
            for kind in words.kinds:
                for length in words.lengths:
                    lines += observe(workers, words, kind, length, words.rounds)
            for length in words.prefill:
                observe(workers, words, "prefill", length, 1)
    if {each["kind"] for each in lines} == set(KINDS):
        words.figure.write_text(figure(lines), encoding="utf-8")
    print("\n".join(table(lines)))
    findings(words, lines)


if __name__ == "__main__":
    main()
