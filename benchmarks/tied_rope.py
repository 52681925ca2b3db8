"""How a tied root serves keys with RoPE and values without it: perplexity of each way, untrained.

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/tied_rope.py --out FILE.jsonl
Ways    RoPE when the root is read (what 'q,k=v' is); RoPE on a part of the pairs, the fastest;
        joined parts, K being rotated numbers of its own beside numbers that it has from V's root;
        RoPE on V, too, and its inverse on the output ('q,k=v+ropevalue', DeepSeek V4's)
Text    as in benchmarks/tying.py: film reviews for the fit, Shakespeare's plays to measure on

The weights of the library's own Llama are changed, so that each way is computed without a cache. A
pair without RoPE has the frequency zero. Each line of the file is one case; a case that is there is
not measured again.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from tying import texts, tie_layer

from qkvbench.hub.attention import attention_forward
from qkvbench.hub.fit import quality, source
from qkvbench.hub.fit.moments import Moments, collect
from qkvbench.hub.fit.projections import Layer, Weights, layers_of
from qkvbench.hub.fit.starts import fit_latent, fold, problems, turn

Fit = Callable[[Layer, Weights, Moments], Weights]
TURNED_BACK = "rope_on_v_and_back"


@dataclass(frozen=True)
class Case:
    """A way and a start; `pairs` of a head's keep RoPE, and a head caches so many `numbers`."""

    title: str
    pairs: int
    numbers: int
    fit: Fit | None = None
    value_rope: bool = False


def slow(pairs: int, head_dim: int) -> Tensor:
    """The coordinates of the pairs behind the first `pairs`."""
    first = torch.arange(pairs, head_dim // 2)
    return torch.cat([first, first + head_dim // 2])


def joined(pairs: int, rank: int | None) -> Fit:
    """K's first pairs as they are; its other numbers and V from a root of so many numbers.

    Without a rank the root is V, and the numbers of K are those of V at their places.
    """

    def fit(layer: Layer, weights: Weights, moments: Moments) -> Weights:
        places = slow(pairs, layer.geometry.head_dim)
        if rank is None:
            k = weights.k.clone()
            k[:, places] = weights.v[:, places]
            return weights.replaced(k=k)
        return shared(layer, weights, moments, places, rank)

    return fit


def slow_values(pairs: int) -> Fit:
    """V from the slow pairs of K alone, which RoPE hardly turns; the map is folded into O."""

    def fit(layer: Layer, weights: Weights, moments: Moments) -> Weights:
        places = slow(pairs, layer.geometry.head_dim)
        made = shared(layer, weights, moments, places, len(places))
        o = torch.zeros_like(weights.o)
        for head, (k, v) in enumerate(zip(made.k, made.v, strict=True)):
            value_map = v @ torch.linalg.pinv(k[places], rtol=1e-9)
            o[weights.readers(head), :, places] = 0
            for reader in range(*weights.readers(head).indices(len(o))):
                o[reader][:, places] = weights.o[reader] @ value_map
        return made.replaced(v=made.k, o=o)

    return fit


def turned(frequencies: Tensor) -> Fit:
    """The start that knows of the turns of V."""

    def fit(layer: Layer, weights: Weights, moments: Moments) -> Weights:
        found = problems(layer, weights, moments, len(weights.k))
        roots = [turn(one, frequencies) for one in found]
        return fold(layer, weights, roots, roots, moments.mean)

    return fit


def shared(layer: Layer, weights: Weights, moments: Moments, places: Tensor, rank: int) -> Weights:
    """K at these places and V of each head from one root of this rank, with the least error."""
    k, v = weights.k.clone(), weights.v.clone()
    kept = torch.zeros(k.shape[1], dtype=torch.bool)
    kept[places] = True
    for head in range(len(k)):
        readers = weights.readers(head)
        costs = moments.queries[head] * kept[:, None] * kept
        one = replace(moments, queries=costs[None], values=moments.values[readers])
        part = Weights(
            weights.q[readers], (k[head] * kept[:, None])[None], v[head][None], weights.o[readers]
        )
        made = fit_latent(layer, part, one, rank)
        k[head][places], v[head] = made.k[0][places], made.v[0]
    return weights.replaced(k=k, v=v)


def cases(head_dim: int, frequencies: Tensor) -> list[Case]:
    """Every way, the most telling first."""
    whole = head_dim // 2
    found = [Case("q,k,v", whole, 2 * head_dim)]
    for start in ("whitened", "keep-v", "keep-k", "regressed"):
        tie = tie_layer("q,k=v", start)
        found.append(Case(f"RoPE on read, {start}", whole, head_dim, tie))
    found.append(Case("no tie, RoPE on V and back", whole, 2 * head_dim, None, value_rope=True))
    for start in ("whitened", "keep-v", "keep-k"):
        tie = tie_layer("q,k=v", start)
        found.append(Case(f"RoPE on V and back, {start}", whole, head_dim, tie, value_rope=True))
    fit = turned(frequencies)
    title = "RoPE on V and back, fitted to the turns"
    found.append(Case(title, whole, head_dim, fit, value_rope=True))
    for pairs in (head_dim // 4, head_dim // 8, 3 * head_dim // 8):
        found.append(
            Case(
                f"RoPE on V and back, V from the {whole - pairs} slowest pairs",
                whole, head_dim, slow_values(pairs), value_rope=True,
            )
        )  # fmt: skip
    for pairs in (3 * head_dim // 8, head_dim // 4, head_dim // 8):
        found.append(Case(f"no tie, RoPE on {pairs} pairs", pairs, 2 * head_dim))
    for pairs in (head_dim // 4, head_dim // 8):
        for start in ("whitened", "keep-v"):
            tie = tie_layer("q,k=v", start)
            found.append(Case(f"RoPE on {pairs} pairs, {start}", pairs, head_dim, tie))
    for pairs in (head_dim // 4, head_dim // 8):
        own = 2 * pairs
        for rank in (head_dim - own, head_dim):
            title = f"joined parts, {own} rotated and a root of {rank}"
            found.append(Case(title, pairs, own + rank, joined(pairs, rank)))
        found.append(
            Case(f"joined parts, {own} rotated and V", pairs, own + head_dim, joined(pairs, None))
        )
    return found


class Benchmark:
    """The model, its texts, and the cases that are measured already."""

    def __init__(self, request: argparse.Namespace) -> None:
        checkpoint = source.find(request.model)
        self.model, self.tokenizer = checkpoint.model(), checkpoint.tokenizer()
        self.out, self.layers = request.out, layers_of(self.model)
        self.weights = [layer.read() for layer in self.layers]
        self.frequencies = self.model.model.rotary_emb.inv_freq.clone()
        window, text = request.window, texts()
        self.fit = quality.windows(self.tokenizer, text["fit"], window, request.fit // window)
        self.held = quality.windows(
            self.tokenizer, text["plays"], window, request.held_out // window
        )
        self.moments: dict[int, Sequence[Moments]] = {}
        self.found: set[str] = set()
        if self.out.is_file():
            self.found = {json.loads(row)["case"] for row in self.out.read_text().splitlines()}

    def run(self) -> None:
        """Every case that the file does not have."""
        for case in cases(self.layers[0].geometry.head_dim, self.frequencies):
            if case.title not in self.found:
                self.case(case)

    def case(self, case: Case) -> None:
        """Measure one case, and restore the model."""
        frequencies = self.frequencies.clone()
        frequencies[case.pairs :] = 0
        self.model.model.rotary_emb.inv_freq = frequencies
        if case.fit is not None:
            if case.pairs not in self.moments:
                rows = [{"input_ids": row[None]} for row in self.fit]
                self.moments[case.pairs] = collect(self.model, rows).moments
            for layer, weights, one in zip(
                self.layers, self.weights, self.moments[case.pairs], strict=True
            ):
                layer.write(case.fit(layer, weights, one))
        with turned_back(self.model, self.layers, on=case.value_rope):
            losses = quality.losses(self.model, self.held)
            recall = asdict(quality.recall(self.model, self.tokenizer))
        for layer, weights in zip(self.layers, self.weights, strict=True):
            layer.write(weights)
        share = case.numbers / (2 * self.layers[0].geometry.head_dim)
        row = {"case": case.title, "cache": share, "plays": losses, "recall": recall}
        with self.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        mean = statistics.fmean(losses)
        print(f"{case.title:50} {share:.3f} {mean:7.3f} {quality.perplexity(mean):12.1f} {recall}",
              flush=True)  # fmt: skip


class turned_back:  # noqa: N801
    """RoPE on V, and its inverse on the output, while the block runs, if it is `on`."""

    def __init__(self, model: Any, layers: tuple[Layer, ...], *, on: bool) -> None:
        self.model, self.layers, self.on = model, layers, on
        self.hooks: list[Any] = []
        self.before = model.config._attn_implementation

    def __enter__(self) -> None:
        if not self.on:
            return
        rope: dict[Any, Any] = {}

        def note(module: Any, _: Any, kwargs: dict[str, Any]) -> None:
            rope[module] = kwargs["position_embeddings"]

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            cos, sin = (part[:, None] for part in rope[module])
            turned = value * cos + rotated_half(value) * sin
            output, weights = attention_forward(module, query, key, turned, mask, **kwargs)
            output = output.transpose(1, 2)
            output = output * cos - rotated_half(output) * sin
            return output.transpose(1, 2), weights

        AttentionInterface.register(TURNED_BACK, attend)
        AttentionMaskInterface.register(TURNED_BACK, eager_mask)
        self.hooks = [
            layer.attention.register_forward_pre_hook(note, with_kwargs=True)
            for layer in self.layers
        ]
        self.model.config._attn_implementation = TURNED_BACK

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        self.model.config._attn_implementation = self.before


def rotated_half(rows: Tensor) -> Tensor:
    """The other coordinate of each pair, with its sign."""
    first, second = rows.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def main() -> None:
    """Measure every case that the file does not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("tied_rope.jsonl"))
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--fit", type=int, default=4096, help="tokens of the fit")
    parser.add_argument("--held-out", type=int, default=1024, help="tokens that are measured")
    torch.set_num_threads(1)
    Benchmark(parser.parse_args()).run()


if __name__ == "__main__":
    main()
