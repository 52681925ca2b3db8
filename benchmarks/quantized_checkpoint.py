"""Costs of a cache in few bits for a pretrained checkpoint, as it is and with fitted ties.

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/quantized_checkpoint.py --out FILE.jsonl
        --models FOLDER ... are converted ones (`convert`, `healing.py --models`), in their place
Size    SmolLM2-135M as it is, with K tied to V and with one key/value head, fitted on film reviews
        (start whitened) and not healed; forms of cached rows; windows of 512 tokens of plays
Takes   about ten minutes on two idle cores

The cache of transformers is filled with rows as few bits leave them (`qkvbench.model.quantization`
says which forms there are), so the model's own attention reads them. Of a tie the root is stored,
and K is that with RoPE. The weights are the library's own, changed. A line of the file that is
there is not measured again. A converted model stores what its layers keep: a root, a latent, or K
and V.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from tying import texts, tie_layer

from qkvbench import hub
from qkvbench.backends.torch.models.quantized import fake_quantize, rotation
from qkvbench.hub.fit import quality, source
from qkvbench.hub.fit.moments import collect
from qkvbench.hub.fit.projections import layers_of
from qkvbench.hub.models import attention_layers
from qkvbench.model.quantization import GROUP, Quantization, parse_quantization

EQUATIONS = ("q,k,v", "q,k=v", "q,k,v/1")
FORMS = (
    "int8",
    "int4",
    "int4:late",
    "int4:channel",
    "int4:kivi",
    "int4:hadamard",
    "int3",
    "int3:late",
    "int3:channel",
)


class FewBits(DynamicCache):
    """A cache whose rows are what few bits leave of them.

    With a scheme that waits, rows are quantized by `settle`, after those of a whole piece were
    read.
    """

    def __init__(self, how: Quantization | None, model: Any, *, tied: bool) -> None:
        """For this model, in which V is the root of K if they are `tied`."""
        super().__init__()
        self.how, self.rotary, self.tied = how, model.model.rotary_emb, tied
        # Of a converted model, how many tensors each layer keeps: the second may be no rows.
        plans = [ours.plan for _, ours in attention_layers(model)]
        self.kept = [len(plan.cached) for plan in plans] or [2] * len(layers_of(model))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows, which are quantized now if the scheme does not wait."""
        if self.how and not self.how.waits:
            first = self.get_seq_length(layer_idx)
            key_states, value_states = self._stored(key_states, value_states, first, layer_idx)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def settle(self, rows: int) -> None:
        """Quantize the newest rows of every layer."""
        if not self.how or not self.how.waits:
            return
        for number, layer in enumerate(self.layers):
            first = layer.keys.shape[2] - rows
            newest = layer.keys[:, :, first:], layer.values[:, :, first:]
            kept = self._stored(*newest, first, number)
            layer.keys[:, :, first:], layer.values[:, :, first:] = kept

    def _stored(
        self, keys: Tensor, values: Tensor, first: int, number: int
    ) -> tuple[Tensor, Tensor]:
        assert self.how is not None
        scheme = self.how.scheme
        if self.kept[number] == 1:
            return self._rounded(keys, by_channel=scheme == "channel"), values
        values = self._rounded(values, by_channel=scheme == "channel")
        if not self.tied:
            return self._rounded(keys, by_channel=scheme in ("channel", "kivi")), values
        positions = torch.arange(first, first + values.shape[2])[None]
        return apply_rotary_pos_emb(values, values, *self.rotary(values, positions))[1], values

    def _rounded(self, rows: Tensor, *, by_channel: bool) -> Tensor:
        assert self.how is not None
        assert self.how.bits is not None
        if by_channel:
            return fake_quantize(rows.mT, self.how.bits).mT
        if self.how.scheme == "hadamard":
            turn = rotation(rows.shape[-1]).to(rows)
            return fake_quantize(rows @ turn, self.how.bits) @ turn.T
        return fake_quantize(rows, self.how.bits)


@torch.no_grad()
def loss(model: Any, window: Tensor, how: Quantization | None, *, tied: bool) -> float:
    """The mean loss in nats of one window, read in pieces over the cache."""
    cache, logits = FewBits(how, model, tied=tied), []
    for piece in window.split(GROUP if how and how.waits else len(window)):
        logits.append(model(input_ids=piece[None], cache=cache, use_cache=True).logits[0])
        cache.settle(len(piece))
    scores = torch.cat(logits)[:-1].float()
    return float(torch.nn.functional.cross_entropy(scores, window[1:]))


def main() -> None:
    """Measure every pair of an equation and a form that the file does not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("quantized_checkpoint.jsonl"))
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--models", nargs="+", default=[], help="folders of converted models")
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    if args.out.is_file():
        rows = map(json.loads, args.out.read_text().splitlines())
        found = {(row["equation"], row["form"]): row["losses"] for row in rows}
    checkpoint = source.find(args.model)
    tokenizer, model, text = checkpoint.tokenizer(), checkpoint.model(), texts()
    held = quality.windows(tokenizer, text["plays"], 512, args.windows)
    hub.register()
    for folder in map(Path, args.models):
        converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        measure(folder.name, converted, held, args, found, tied=False)
    if args.models:
        return
    layers = layers_of(model)
    weights = [layer.read() for layer in layers]
    fit = [{"input_ids": row[None]} for row in quality.windows(tokenizer, text["fit"], 512, 8)]
    moments = collect(model, fit).moments
    for equation in EQUATIONS:
        if equation != "q,k,v":
            tie = tie_layer(equation, "whitened")
            for layer, whole, one in zip(layers, weights, moments, strict=True):
                layer.write(tie(layer, whole, one))
        measure(equation, model, held, args, found, tied=equation == "q,k=v")


def measure(
    name: str,
    model: Any,
    held: Tensor,
    args: argparse.Namespace,
    found: dict[tuple[str, str], list[float]],
    *,
    tied: bool,
) -> None:
    """Measure every form of one model that was not found, and print all."""
    for form in ("as it is", *args.forms):
        if (name, form) not in found:
            how = None if form == "as it is" else parse_quantization(form)
            found[name, form] = [loss(model, window, how, tied=tied) for window in held]
            row = {"equation": name, "form": form, "losses": found[name, form]}
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(line(name, form, found), flush=True)


def line(equation: str, form: str, found: dict[tuple[str, str], list[float]]) -> str:
    """The loss, and what the form adds to it, with the standard error over windows."""
    own, base = found[equation, form], found[equation, "as it is"]
    added = [one - other for one, other in zip(own, base, strict=True)]
    error = statistics.stdev(added) / len(added) ** 0.5
    return (
        f"{equation:22} {form:14} {statistics.fmean(own):7.4f} nats, "
        f"{statistics.fmean(added):+.4f} ± {error:.4f}"
    )


if __name__ == "__main__":
    main()
