"""What a token costs as the context grows, by variant, and where the cache outweighs the weights.

Run     python benchmarks/token_cost.py [--contexts N ...] [--seconds S] [--cache T] [--svg FILE]
Size    2 layers of width 512, 8 heads of 64, vocabulary 4,096; rotary but where it says otherwise
Takes   about four minutes

All arms of a context are in one process and take turns, a step each, in rounds. Times are of the
processor, in one thread: others on the machine do not count, but for the memory they read. A step
reads one token over a cache that holds random rows, and the token is then forgotten. A latent with
rotary positions makes its keys when they are read; without positions nothing is made of any row.

The point at which the cache of a sequence is as large as the weights is computed, not observed: it
is drawn as a ring.
"""

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from line_chart import opening

from qkvbench import cost
from qkvbench.backends.torch import Decoding, prepare
from qkvbench.cost import CACHE_DTYPES, CACHE_FORMATS
from qkvbench.cost.units import bytes_text
from qkvbench.model import Decoder, Init, Model, NoPosition, Position, Rotary, transformer
from qkvbench.reports.parts.svg import apart
from qkvbench.variant import parse

LATENT = "q,k=L(128),v=L(128)"
# What is compared, with its positions and its colour.
ARMS: dict[str, tuple[str, Position, str]] = {
    "q,k,v": ("q,k,v", Rotary(), "#1b6ca8"),
    "q,k=v": ("q,k=v", Rotary(), "#c8553d"),
    "q,k,v/1": ("q,k,v/1", Rotary(), "#588157"),
    "q,k=v/1": ("q,k=v/1", Rotary(), "#8a5a9e"),
    LATENT: (LATENT, Rotary(), "#b08900"),
    "the latent, no positions": (LATENT, NoPosition(), "#7a7a7a"),
}
CONTEXTS = [2**power for power in range(10, 18)]
WEIGHT_BYTES = 4
FEWEST_ROUNDS = 5
FIGURE = Path(__file__).parents[1] / "docs" / "token-cost.svg"


@dataclass(frozen=True)
class Line:
    """The seconds of a step by context, and where the cache outweighs the weights."""

    seconds: dict[int, float]
    outweighs: float

    def at(self, tokens: float) -> float:
        """Seconds at any context within, along straight lines between logarithms."""
        places = sorted(self.seconds)
        upper = next(place for place in places if place >= tokens)
        lower = max((place for place in places if place < upper), default=upper)
        if lower == upper:
            return self.seconds[upper]
        share = math.log(tokens / lower) / math.log(upper / lower)
        first, second = (math.log(self.seconds[place]) for place in (lower, upper))
        return math.exp(first + share * (second - first))


def model_of(arm: str) -> Model:
    """The decoder of an arm."""
    variant, position, _ = ARMS[arm]
    return transformer(
        "token-cost",
        Decoder(4096),
        layers=2,
        d_model=512,
        heads=8,
        position=position,
        init=Init(embedding_std=0.02, position_std=0.02, weight_std=0.02),
    ).with_variant(parse(variant))


def outweighs(arm: str, rows: str) -> float:
    """Tokens whose cache is as large as all weights, computed."""
    model = model_of(arm)
    per_token = cost.cache_bytes_per_token(model, CACHE_FORMATS[rows])
    return WEIGHT_BYTES * cost.parameters(model).total / per_token


def step_seconds(context: int, seconds: float, rows: str) -> dict[str, float]:
    """The median step of each arm over this context, in rounds of one of each."""
    works = {
        arm: Decoding(model_of(arm), "fp32", context=context, batch=1, rows=rows) for arm in ARMS
    }
    for work in works.values():
        work.step()
    taken: dict[str, list[float]] = {arm: [] for arm in works}
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(taken["q,k,v"]) < FEWEST_ROUNDS:
        for arm, work in works.items():
            began = time.process_time()
            work.step()
            taken[arm].append(time.process_time() - began)
    return {arm: statistics.median(each) for arm, each in taken.items()}


def drawing(lines: dict[str, Line], said: str) -> str:
    """The lines on logarithmic axes; a ring where the cache outweighs the weights."""
    width, height, left, right, top, bottom = 760, 430, 62, 190, 44, 48
    contexts = sorted(next(iter(lines.values())).seconds)
    values = [each for line in lines.values() for each in line.seconds.values()]
    low, high = (
        rounded(math.log10(edge(values))) for edge, rounded in ((min, math.floor), (max, math.ceil))
    )

    def x(tokens: float) -> float:
        share = math.log(tokens / contexts[0]) / math.log(contexts[-1] / contexts[0])
        return left + (width - left - right) * share

    def y(seconds: float) -> float:
        return top + (height - top - bottom) * (high - math.log10(seconds)) / (high - low)

    title = "A decode step in milliseconds of the processor, by tokens in the cache"
    parts = opening(width, height, left, title, said)
    for power in range(low, high + 1):
        for digit in (1, 2, 5) if power < high else (1,):
            place = y(digit * 10.0**power)
            parts.append(
                f'<path d="M{left} {place:.1f}H{width - right}" stroke="#e4e4e4"/>'
                f'<text x="{left - 6}" y="{place + 4:.1f}" text-anchor="end" fill="#555555">'
                f"{digit * 10.0 ** (power + 3):g}</text>"
            )
    for tokens in contexts:
        parts.append(
            f'<text x="{x(tokens):.1f}" y="{height - bottom + 18}" text-anchor="middle" '
            f'fill="#555555">{tokens // 1024}k</text>'
        )
    parts.append(
        f'<text x="{left}" y="{height - 10}" fill="#555555">ring: from here on a sequence\'s cache '
        "is larger than all weights (computed)</text>"
    )
    ends = apart({arm: y(line.seconds[contexts[-1]]) for arm, line in lines.items()}, 15)
    for arm, line in lines.items():
        colour = ARMS[arm][2]
        points = " ".join(f"{x(n):.1f},{y(line.seconds[n]):.1f}" for n in contexts)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        if contexts[0] <= line.outweighs <= contexts[-1]:
            parts.append(
                f'<circle cx="{x(line.outweighs):.1f}" cy="{y(line.at(line.outweighs)):.1f}" r="5" '
                f'fill="#ffffff" stroke="{colour}" stroke-width="2"/>'
            )
        parts.append(
            f'<text x="{width - right + 8}" y="{ends[arm] + 4:.1f}" fill="{colour}">{arm}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Time all arms at each context, print the table, draw the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--seconds", type=float, default=8.0, help="of rounds, at each context")
    parser.add_argument("--cache", default="fp32", choices=CACHE_DTYPES)
    parser.add_argument("--svg", type=Path, default=FIGURE)
    words = parser.parse_args()
    prepare(threads=1)
    seconds: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    print(f"{'tokens':>8} " + " ".join(f"{arm:>24}" for arm in ARMS) + "   (ms a step)")
    for context in sorted(words.contexts):
        for arm, step_s in step_seconds(context, words.seconds, words.cache).items():
            seconds[arm][context] = step_s
        cells = " ".join(f"{1e3 * seconds[arm][context]:24.2f}" for arm in ARMS)
        print(f"{context:8,} {cells}", flush=True)
    lines = {arm: Line(seconds[arm], outweighs(arm, words.cache)) for arm in ARMS}
    for arm, line in lines.items():
        per_token = WEIGHT_BYTES * cost.parameters(model_of(arm)).total / line.outweighs
        print(
            f"{arm}: {bytes_text(per_token)} a token; the cache outweighs the weights from "
            f"{line.outweighs:,.0f} tokens on"
        )
    said = f"fp32 weights, {words.cache} rows, one sequence, one thread"
    words.svg.write_text(drawing(lines, said), encoding="utf-8")


if __name__ == "__main__":
    main()
