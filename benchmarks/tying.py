"""Perplexity and recall of a pretrained model after a tie, by every start, without training.

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/tying.py [--model smollm2-135m|minilm-l6] --out FILE.jsonl
        .venv/bin/python benchmarks/tying.py --texts FOLDER     (its texts, for the command line)
Text    film reviews for the fit and for the damage of single layers; Shakespeare's plays, a text of
        another kind, for what is measured

Each line of the file is one case, written when it is measured; a case that is there is not measured
again. Losses are per window, so that differences can be paired.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from qkvbench.data import plays
from qkvbench.data.reviews import reviews
from qkvbench.hub.fit import planning, quality, source, starts
from qkvbench.hub.fit.attentions import attentions
from qkvbench.hub.fit.moments import Moments, collect
from qkvbench.hub.fit.planning import Option, Trial
from qkvbench.hub.fit.projections import Layer, Weights, layers_of
from qkvbench.hub.fit.tying import DEFAULT_START, check_change, fit_layer, fits
from qkvbench.variant import parse

Fit = Callable[[Layer, Weights, Moments], Weights]


def texts() -> dict[str, str]:
    """Reviews to fit and to measure, and the beginnings of four plays."""
    found = reviews()
    kept = {
        name: bytes(part[:400_000])
        for name, part in (("fit", found.train), ("reviews", found.test))
    }
    parts = {
        name: text.decode(errors="ignore").replace("\0", "\n\n") for name, text in kept.items()
    }
    # A cast of characters comes first.
    held = [text[2000:14000] for text in plays.texts()["test"].values()]
    return parts | {"plays": "\n\n".join(held)}


def tie_layer(equation: str, start: str) -> Fit:
    """A layer with this equation, fitted by this start."""

    def fit(layer: Layer, weights: Weights, moments: Moments) -> Weights:
        change = check_change(layer.number, parse(equation), layer.geometry.kv_heads)
        assert change is not None
        return fit_layer(layer, change, moments, start, weights)

    return fit


def main() -> None:
    """Measure every case that the file does not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("tying.jsonl"))
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--fit", type=int, default=8192, help="tokens of the fit")
    parser.add_argument("--damage", type=int, default=1024, help="tokens of single layers' damage")
    parser.add_argument("--held-out", type=int, default=2048, help="tokens that are measured")
    parser.add_argument("--cases", nargs="+", help="titles (all)")
    request = parser.parse_args()
    if request.texts:
        request.texts.mkdir(parents=True, exist_ok=True)
        for name, text in texts().items():
            (request.texts / f"{name}.txt").write_text(text, encoding="utf-8")
        return
    torch.set_num_threads(1)
    Benchmark(request).run()


class Benchmark:
    """The model, its texts, and the cases that are measured already."""

    def __init__(self, request: argparse.Namespace) -> None:
        checkpoint = source.find(request.model)
        self.model, self.tokenizer = checkpoint.model(), checkpoint.tokenizer()
        self.request, self.out = request, request.out
        self.layers = layers_of(self.model)
        self.weights = [layer.read() for layer in self.layers]
        self.found = {}
        if self.out.is_file():
            rows = map(json.loads, self.out.read_text().splitlines())
            self.found = {row["case"]: row for row in rows}
        text, window = texts(), request.window
        count = {
            name: tokens // window
            for name, tokens in vars(request).items()
            if name in ("fit", "damage", "held_out")
        }
        windows = quality.windows(
            self.tokenizer, text["fit"], window, count["fit"] + count["damage"]
        )
        self.fit, self.damage = windows[: count["fit"]], windows[count["fit"] :]
        self.held = {
            "plays": quality.windows(self.tokenizer, text["plays"], window, count["held_out"]),
        }
        self.causal = self.model.get_output_embeddings() is not None
        if not self.causal:
            self.original = {n: quality.embeddings(self.model, w) for n, w in self.held.items()}

    def run(self) -> None:
        """Every case, the most telling ones first."""
        began = time.time()
        self.calibration = collect(self.model, [{"input_ids": row[None]} for row in self.fit])
        print(f"{self.fit.numel()} tokens read in {time.time() - began:.0f} s", flush=True)
        every = range(len(self.layers))
        self.case("q,k,v", [], "q,k,v", "", recalled=True)
        rank = self.layers[0].geometry.kv_heads * self.layers[0].geometry.head_dim
        latent = f"q,k=L({rank}),v=L({rank})"
        for start in starts.LEAST_ERROR:
            self.case(f"q,k=v {start}", every, "q,k=v", start, recalled=True)
            self.case(f"latent of equal bytes {start}", every, latent, start, recalled=True)
        if self.causal and not self.request.cases:
            self.halves()
        for start in ("aligned", "keep-v", "keep-k", "average", "regressed"):
            self.case(f"q,k=v {start}", every, "q,k=v", start)
        for equation in ("q,k,v/1", "q,k=v/1"):
            for start in (*starts.LEAST_ERROR, "keep-k"):
                self.case(f"{equation} {start}", every, equation, start)

    def halves(self) -> None:
        """Half of the layers tied: by plan, evenly, the first, the last, at random."""
        options = self.options()
        full = sum(option.values for option in options if option.equation == planning.UNCHANGED)
        half = len(self.layers) - len(self.layers) // 2
        budget = full - half * (full // len(self.layers) // 2)
        plans = {"by plan": planning.best_plan(options, budget)}
        hows = ("uniform", "first", "last", "random")
        plans |= {how: planning.spread(options, budget, how) for how in hows}
        for how, plan in plans.items():
            chosen = [option.layer for option in plan if option.equation != planning.UNCHANGED]
            predicted, recalled = sum(option.divergence for option in plan), how == "by plan"
            self.case(
                f"q,k=v half {how}",
                chosen,
                "q,k=v",
                DEFAULT_START,
                recalled=recalled,
                predicted=predicted,
            )

    def options(self) -> list[Option]:
        """The damage of each layer alone, from the file or measured."""
        if "options" not in self.found:
            changes = planning.options_of(self.model, ["q,k=v"])
            fitted = planning.every_fit(self.model, changes, self.calibration, DEFAULT_START)
            trial = Trial(self.model, self.damage, attentions(self.model, fitted))
            rows = []
            for layer in range(len(self.layers)):
                rows += [trial.unchanged(layer), trial.option(layer, changes["q,k=v"])]
                print(rows[-1], flush=True)
            self.write({"case": "options", "options": [asdict(row) for row in rows]})
        return [Option(**row) for row in self.found["options"]["options"]]

    def case(
        self,
        name: str,
        layers: "range | list[int]",
        equation: str,
        start: str,
        *,
        recalled: bool = False,
        **notes: object,
    ) -> None:
        """Measure one case, and restore the model."""
        if name in self.found or (self.request.cases and name not in self.request.cases):
            return
        began = time.time()
        heads = self.layers[0].geometry.kv_heads
        changes = [check_change(number, parse(equation), heads) for number in layers]
        made = fits(self.model, [c for c in changes if c], self.calibration, start)
        for (number, _), weights in made.items():
            self.layers[number].write(weights)
        row: dict[str, object] = {"case": name, "layers": list(layers), **notes}
        for text, windows in self.held.items():
            if self.causal:
                row[text] = quality.losses(self.model, windows)
            else:
                after = quality.embeddings(self.model, windows)
                row[text] = quality.similarity(self.original[text], after)
        if self.causal and recalled:
            row["recall"] = asdict(quality.recall(self.model, self.tokenizer))
        for number in layers:
            self.layers[number].write(self.weights[number])
        row["seconds"] = round(time.time() - began)
        self.write(row)
        shown = {
            key: statistics.fmean(value) if isinstance(value, list) and value else value
            for key, value in row.items()
            if key != "layers"
        }
        print(shown, flush=True)

    def write(self, row: dict[str, object]) -> None:
        """Add a line to the file."""
        self.found[str(row["case"])] = row
        with self.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
