"""Healing of a pretrained model from every start, with equal tokens: is the best start still best?

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/healing.py --model minilm-l6 --out minilm.jsonl
        ./qkv advise smollm2-135m --cache 75% --text fit.txt --out plan.json
        .venv/bin/python benchmarks/healing.py --model smollm2-135m --plan plan.json --out FILE
        .venv/bin/python benchmarks/healing.py --draw minilm.jsonl
Text    film reviews to fit and to heal on; Shakespeare's plays and other reviews to measure on
Healing by blocks, all weights of the changed attention layers, side by side on the same windows.
        The peak learning rate of each case is the one with the least error on the deciding windows
        after the first budget

Each line of the file is one healing at one rate, measured if that is the best; a case that is there
is not run again, and one that was interrupted is resumed.
"""

import argparse
import copy
import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from line_chart import opening
from torch import Tensor
from tying import texts

from qkvbench.data.reviews import reviews
from qkvbench.hub.fit import folder, quality, source
from qkvbench.hub.fit.healing import DECIDING_TOKENS, Healer, Healing, Lessons
from qkvbench.hub.fit.moments import collect
from qkvbench.hub.fit.source import load_model
from qkvbench.hub.fit.tying import DEFAULT_START, tie
from qkvbench.hub.models import attention_layers
from qkvbench.hub.modes import Mode
from qkvbench.reports.parts.svg import apart

# Tokens that are read for healing, whatever the budget: so a smaller one reads part of them.
MOST_TOKENS = 393_216
COLORS = (
    "#1b6ca8", "#c8553d", "#588157", "#8a5a9e", "#b08900", "#7a7a7a", "#2a9d8f", "#222222",
    "#d1495b", "#4f6d7a",
)  # fmt: skip
FIGURE = Path(__file__).parents[1] / "docs" / "healing.svg"


@dataclass(frozen=True)
class Case:
    """A mode and a start."""

    title: str
    mode: Mode
    start: str = DEFAULT_START


@dataclass(frozen=True)
class Size:
    """How much is read of a model: windows, tokens of the fit, of the measurement, of healing."""

    window: int
    fit: int
    held_out: int
    budgets: tuple[int, ...]
    rates: tuple[float, ...]


SIZES = {
    "minilm-l6": Size(128, 4096, 4096, (32_768, 98_304), (1e-4, 1e-3)),
    "smollm2-135m": Size(512, 8192, 2048, (8_192, 98_304, 393_216), (1e-4, 3e-4, 1e-3)),
}


def cases(model: str, plan: Path | None) -> list[Case]:
    """What is compared, the most telling first."""
    refitted = Case("q,k=v refitted", "q,k=v")
    starts = ("whitened", "keep-k", "aligned", "keep-v", "average")
    if model != "minilm-l6":
        found = [refitted, Case("latent of equal bytes", "q,k=L(192),v=L(192)")]
        if plan is not None:
            advice = json.loads(plan.read_text(encoding="utf-8"))
            found.append(Case("q,k=v half by plan", advice["mode"]))
            found.append(Case("q,k=v half uniform", advice["rivals"]["uniform"]["mode"]))
        naive = [Case(f"q,k=v {start}", "q,k=v", start) for start in starts]
        return [*found, Case("q,k,v/1 refitted", "q,k,v/1"), *naive]
    return [
        refitted,
        *(Case(f"q,k=v {start}", "q,k=v", start) for start in starts),
        Case("q,k=v/1 refitted", "q,k=v/1"),
        Case("q,k,v/1 refitted", "q,k,v/1"),
        Case("latent of equal bytes", "q,k=L(384),v=L(384)"),
    ]


class Benchmark:
    """The model, its texts, and the healings that are measured already."""

    def __init__(self, request: argparse.Namespace) -> None:
        self.checkpoint = source.find(request.model)
        self.request, self.size = request, SIZES[request.model]
        self.tokenizer, self.out = self.checkpoint.tokenizer(), request.out
        self.original = self.checkpoint.model()
        self.rows: list[dict[str, Any]] = []
        if self.out.is_file():
            self.rows = [json.loads(line) for line in self.out.read_text().splitlines()]
        window, most = self.size.window, MOST_TOKENS
        wanted = most // window + DECIDING_TOKENS // window + self.size.fit // window
        # A token of reviews is some four characters.
        text = bytes(reviews().train[: 6 * window * wanted]).decode(errors="ignore")
        read = quality.windows(self.tokenizer, text.replace("\0", "\n\n"), window, wanted)
        self.fit, rest = read.split([self.size.fit // window, len(read) - self.size.fit // window])
        self.deciding, self.text = rest.split(
            [DECIDING_TOKENS // window, len(rest) - DECIDING_TOKENS // window]
        )
        held = texts()
        self.held = {
            name: quality.windows(self.tokenizer, held[name], window, self.size.held_out // window)
            for name in ("plays", "reviews")
        }
        self.predicts = self.original.get_output_embeddings() is not None
        self.before = self.measured(self.original)
        self.calibration = collect(self.original, [{"input_ids": row[None]} for row in self.fit])

    def run(self) -> None:
        """All cases of a budget before the next budget."""
        every = cases(self.request.model, self.request.plan)
        if self.request.cases:
            every = [case for case in every if case.title in self.request.cases]
        self.add("original", 0, 0, 0.0, self.before)
        for case in every:
            if not self.has(case.title, 0):
                made = self.made(case)
                self.add(case.title, 0, 0, 0.0, self.measured(made))
                self.keep(made, case, 0, 0)
        budgets = self.request.budgets or self.size.budgets
        seed = self.request.seed
        for tokens in budgets:
            left = [case for case in every if not self.has(case.title, tokens, seed)]
            first = tokens == self.size.budgets[0] and seed == 0
            rates = {
                case.title: self.size.rates if first else (self.best_rate(case.title),)
                for case in left
            }
            self.healed_together(left, tokens, seed, rates)

    def made(self, case: Case) -> Any:
        """The model with this mode, from this start; read again if it was kept."""
        if self.request.models is not None and (place := self.place(case, 0, 0)).is_dir():
            return load_model(place, self.checkpoint.auto)
        return tie(self.checkpoint.model(), case.mode, self.calibration, case.start)

    def place(self, case: Case, tokens: int, seed: int) -> Path:
        """The folder of a model that is kept."""
        return self.request.models / slug(f"{case.title} {tokens} {seed}")

    def best_rate(self, title: str) -> float:
        """The rate with the least error on the deciding windows after the first budget."""
        first = self.size.budgets[0]
        rows = [r for r in self.rows if r["case"] == title and r["tokens"] == first]
        return min(rows, key=lambda row: row["deciding"])["rate"]

    def healed_together(
        self, left: list[Case], tokens: int, seed: int, rates: dict[str, tuple[float, ...]]
    ) -> None:
        """Heal cases side by side, at each of their rates; measure each at its best one.

        They read the same windows in the same order, so one pass of the original serves all.
        """
        lessons, healers = Lessons(self.original), {}
        for case in left:
            made, title = self.made(case), slug(case.title)
            share(made, self.original)
            for rate in rates[case.title]:
                model = unshared(made)
                healers[case.title, rate] = Healer(
                    model,
                    lessons,
                    self.text,
                    self.deciding,
                    Healing(blocks=tokens, blocks_lr=rate, seed=seed),
                    self.out.with_suffix(f".{title}.{tokens}.{seed}.{rate:g}.state"),
                    partial(print, case.title, tokens, f"{rate:g}:", flush=True),
                )
        for _ in zip_longest(*(healer.steps() for healer in healers.values())):
            pass
        for case in left:
            nearest = {
                rate: min(distance for _, _, distance in healers[case.title, rate].history)
                for rate in rates[case.title]
            }
            best = min(nearest, key=lambda rate: nearest[rate])
            for rate, distance in nearest.items():
                healer = healers.pop((case.title, rate))
                notes = {"deciding": distance, "history": healer.history}
                if rate == best:
                    notes |= self.measured(healer.model)
                    self.keep(healer.model, case, tokens, seed)
                self.add(case.title, tokens, seed, rate, notes)
                shutil.rmtree(healer.folder)

    def keep(self, model: Any, case: Case, tokens: int, seed: int) -> None:
        """Write the model to its own folder if models are kept."""
        if self.request.models is None:
            return
        place = self.place(case, tokens, seed)
        place.mkdir(parents=True, exist_ok=True)
        folder.write_settings(model.config, self.checkpoint.folder, place)
        folder.replace_weights(model, place)
        self.tokenizer.save_pretrained(place)

    @torch.no_grad()
    def measured(self, model: Any) -> dict[str, Any]:
        """Losses and recall, or embeddings and how many second halves of windows are found."""
        if self.predicts:
            losses = {name: quality.losses(model, rows) for name, rows in self.held.items()}
            return losses | {"recall": asdict(quality.recall(model, self.tokenizer))}
        found: dict[str, Any] = {}
        for name, rows in self.held.items():
            ours = quality.embeddings(model, rows)
            original = getattr(self, "embeddings", {}).get(name, ours)
            found[name] = float((ours * original).sum(-1).mean())
            found[f"{name} retrieval"] = retrieval(model, rows)
            if not hasattr(self, "before"):
                self.embeddings = getattr(self, "embeddings", {}) | {name: ours}
        return found

    def has(self, title: str, tokens: int, seed: int = 0) -> bool:
        """Whether this healing was measured."""
        wanted = (title, tokens, seed)
        return any(
            (r["case"], r["tokens"], r["seed"]) == wanted and "plays" in r for r in self.rows
        )

    def add(self, title: str, tokens: int, seed: int, rate: float, found: dict[str, Any]) -> None:
        """Add a line to the file, unless it is there."""
        wanted = (title, tokens, seed, rate)
        if any((r["case"], r["tokens"], r["seed"], r["rate"]) == wanted for r in self.rows):
            return
        row = {"case": title, "tokens": tokens, "seed": seed, "rate": rate, **found}
        self.rows.append(row)
        with self.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({key: value for key, value in row.items() if key != "history"}, flush=True)


def slug(title: str) -> str:
    """The title as part of a file's name."""
    return re.sub(r"[^\w=]+", "-", title)


def unshared(model: Any) -> Any:
    """A copy of a model whose attention is its own, and that shares everything else."""
    attention = tuple(f"{name}." for name, _ in attention_layers(model))
    kept = {
        id(parameter): parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(attention)
    }
    return copy.deepcopy(model, kept)


def share(model: Any, original: Any) -> None:
    """Let the model hold the original's own tensors where nothing is trained, so that many fit.

    The output projection of some families lies outside of their attention, and is another.
    """
    theirs = dict(original.named_parameters())
    attention = tuple(f"{name}." for name, _ in attention_layers(model))
    for name, parameter in model.named_parameters():
        if not name.startswith(attention) and torch.equal(parameter, theirs[name]):
            parameter.data = theirs[name].data


def retrieval(model: Any, rows: Tensor) -> float:
    """The share of first halves of windows whose nearest second half is their own."""
    halves = [quality.embeddings(model, half) for half in rows.chunk(2, dim=1)]
    nearest = (halves[0] @ halves[1].mT).argmax(1)
    return float((nearest == torch.arange(len(rows))).float().mean())


@dataclass(frozen=True)
class Axis:
    """The vertical axis of a figure: its marks, and the height of a value, from 0 to 1."""

    title: str
    subtitle: str
    marks: tuple[float, ...]
    place: Callable[[float], float]


SHARE = Axis(
    "Share of the gap closed by a fit and by healing",
    "MiniLM-L6, all layers, Shakespeare's plays; 0: the cosine of keeping K, 1: the original",
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    lambda share: share,
)
# From .03 to 20 nats.
LOSS = Axis(
    "What smaller caches of SmolLM2-135M cost, after so much healing",
    "nats per token above the original, Shakespeare's plays, logarithmic; mean of the seeds",
    (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    lambda nats: math.log(nats / 0.03) / math.log(20 / 0.03),
)


def measured_lines(rows: list[dict[str, Any]]) -> tuple[Axis, dict[str, dict[int, float]]]:
    """The score of each case by tokens at its best rate, on the plays; the mean of its seeds.

    Losses above the original's; of a model that predicts nothing, the share of the gap that keeping
    K leaves.
    """
    original = next(row for row in rows if row["case"] == "original")
    is_loss = isinstance(original["plays"], list)
    naive = next(r["plays"] for r in rows if r["case"] == "q,k=v keep-k" and r["tokens"] == 0)
    lines: dict[str, dict[int, float]] = {}
    for (title, tokens), seeds in at_best_rates(rows).items():
        plays = [row["plays"] for row in seeds]
        if is_loss:
            value = statistics.fmean(map(statistics.fmean, plays))
            value -= statistics.fmean(original["plays"])
        else:
            value = (statistics.fmean(plays) - naive) / (1 - naive)
        if title != "original":
            lines.setdefault(title, {})[tokens] = value
    return (LOSS if is_loss else SHARE), lines


def at_best_rates(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The rows of each case and number of tokens at its best rate, one for each seed."""
    nearest = {}
    for row in sorted(rows, key=lambda row: -row.get("deciding", 0.0)):
        nearest[row["case"], row["tokens"]] = row["rate"]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["tokens"]):
        key = (row["case"], row["tokens"])
        if row["rate"] == nearest[key]:
            found.setdefault(key, []).append(row)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Perplexity, copying and look-up of each case by tokens, in Markdown."""
    found = at_best_rates(rows)
    budgets = sorted({tokens for _, tokens in found})
    titles = dict.fromkeys(row["case"] for row in rows)
    healed = [title for title in titles if any(found.get((title, n)) for n in budgets[1:])]
    head = ["perplexity · copying, look-up", *(f"{tokens:,} tokens" for tokens in budgets)]
    lines = [head, ["---"] * len(head)]
    for title in ("original", *healed):
        cells = [_cell(found.get((title, tokens), [])) for tokens in budgets]
        lines.append([title, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(seeds: list[dict[str, Any]]) -> str:
    """The mean of the seeds; nothing if there are none."""
    if not seeds:
        return ""
    nats = statistics.fmean(statistics.fmean(row["plays"]) for row in seeds)
    shares = [statistics.fmean(row["recall"][of] for row in seeds) for of in ("copy", "lookup")]
    recall = ", ".join(f"{share:.2f}".lstrip("0") if share >= 0.005 else "0" for share in shares)
    perplexity = math.exp(nats)
    return f"{perplexity:,.0f} · {recall}" if perplexity > 200 else f"{perplexity:.1f} · {recall}"


def drawing(rows: list[dict[str, Any]]) -> str:
    """A figure of the scores by tokens of healing, a line for each case."""
    width, height, left, right, top, bottom = 760, 430, 48, 200, 56, 48
    axis, every = measured_lines(rows)
    # Cases that were not healed have one point, and no line.
    lines = {title: line for title, line in every.items() if len(line) > 1}
    places = sorted({tokens for line in lines.values() for tokens in line})

    def x(tokens: int) -> float:
        return left + (width - left - right) * places.index(tokens) / (len(places) - 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - axis.place(value))

    parts = opening(width, height, left, axis.title, axis.subtitle)
    for mark in axis.marks:
        parts.append(
            f'<path d="M{left} {y(mark):.1f}H{width - right}" stroke="#e4e4e4"/>'
            f'<text x="{left - 6}" y="{y(mark) + 4:.1f}" text-anchor="end" fill="#555555">'
            f"{mark}</text>"
        )
    for tokens in places:
        parts.append(
            f'<text x="{x(tokens):.1f}" y="{height - bottom + 18}" text-anchor="middle" '
            f'fill="#555555">{tokens:,}</text>'
        )
    parts.append(
        f'<text x="{left}" y="{height - 10}" fill="#555555">tokens of healing by blocks, equal for '
        "all</text>"
    )
    ends = apart({title: y(line[max(line)]) for title, line in lines.items()}, 15)
    for (title, line), color in zip(lines.items(), COLORS, strict=False):
        points = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in line.items())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(n):.1f}" cy="{y(value):.1f}" r="3" fill="{color}"/>'
            for n, value in line.items()
        ]
        parts.append(
            f'<text x="{width - right + 8}" y="{ends[title] + 4:.1f}" fill="{color}">{title}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Heal what the file does not have, or draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="minilm-l6", choices=SIZES)
    parser.add_argument(
        "--plan", type=Path, help="half of the layers, written by 'qkvbench advise'"
    )
    parser.add_argument("--budgets", type=int, nargs="+", help="tokens, in ascending order")
    parser.add_argument("--cases", nargs="+", help="titles (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("healing.jsonl"))
    parser.add_argument("--models", type=Path, help="keep every measured model in this folder")
    parser.add_argument("--draw", type=Path, help="only draw this file, and print its table")
    parser.add_argument("--svg", type=Path, default=FIGURE)
    request = parser.parse_args()
    torch.set_num_threads(1)
    if request.draw:
        rows = [json.loads(line) for line in request.draw.read_text().splitlines()]
        request.svg.write_text(drawing(rows), encoding="utf-8")
        if "recall" in rows[0]:
            print(table(rows), end="")
        return
    Benchmark(request).run()


if __name__ == "__main__":
    main()
