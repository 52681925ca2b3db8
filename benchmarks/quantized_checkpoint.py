"""Costs of a cache in few bits for a pretrained checkpoint, and for what 'convert' makes of it.

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/quantized_checkpoint.py --folder converted --out FILE.jsonl
Size    SmolLM2-135M as it is and with each of four equations, fitted and not healed; ten forms of
        cached rows; windows of 512 tokens of Shakespeare's plays
Takes   about half an hour on two idle cores

The cache of transformers is filled with rows as few bits leave them (`qkvbench.model.quantization`
says which forms there are), so the model's own attention reads them. A converted folder that is
there is not made again, and neither is a line of the file.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from tying import texts

from qkvbench import hub
from qkvbench.backends.torch.models.quantized import fake_quantize, rotation
from qkvbench.hub.fit import quality, source
from qkvbench.model.quantization import GROUP, Quantization, parse_quantization

EQUATIONS = ("q,k,v", "q,k=v", "q,k,v/1", "q,k=v+ropevalue", "q,k=L(192),v=L(192)")
FORMS = (
    "int8",
    "int4",
    "int4:hadamard",
    "int4:late",
    "int4:channel",
    "int4:kivi",
    "int3",
    "int3:late",
    "int3:channel",
)


class FewBits(DynamicCache):
    """A cache whose rows are what few bits leave of them.

    With a scheme that waits, rows are quantized by `settle`, after those of a whole piece were
    read.
    """

    def __init__(self, how: Quantization | None, shared: set[int]) -> None:
        """`shared` are the layers with one tensor for K and V; their second one is positions."""
        super().__init__()
        self.how, self.shared = how, shared

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append rows, which are quantized now if the scheme does not wait."""
        if self.how and not self.how.waits:
            key_states = self._stored(key_states)
            if layer_idx not in self.shared:
                value_states = self._stored(value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def settle(self, rows: int) -> None:
        """Quantize the newest rows of every layer."""
        if not self.how or not self.how.waits:
            return
        for number, layer in enumerate(self.layers):
            own = number not in self.shared
            by_channel = self.how.scheme == "channel" or (self.how.scheme == "kivi" and own)
            layer.keys[:, :, -rows:] = self._stored(layer.keys[:, :, -rows:], by_channel=by_channel)
            if own:
                by_channel = self.how.scheme == "channel"
                layer.values[:, :, -rows:] = self._stored(
                    layer.values[:, :, -rows:], by_channel=by_channel
                )

    def _stored(self, rows: Tensor, *, by_channel: bool = False) -> Tensor:
        assert self.how is not None
        assert self.how.bits is not None
        if by_channel:
            return fake_quantize(rows.mT, self.how.bits).mT
        if self.how.scheme == "hadamard":
            turn = rotation(rows.shape[-1]).to(rows)
            return fake_quantize(rows @ turn, self.how.bits) @ turn.T
        return fake_quantize(rows, self.how.bits)


@torch.no_grad()
def loss(model: Any, window: Tensor, how: Quantization | None) -> float:
    """The mean loss in nats of one window, read in pieces over the cache."""
    plans = [getattr(layer.self_attn, "plan", None) for layer in model.model.layers]
    shared = {number for number, plan in enumerate(plans) if plan and len(plan.cached) == 1}
    cache, logits = FewBits(how, shared), []
    for piece in window.split(GROUP if how and how.waits else len(window)):
        logits.append(model(input_ids=piece[None], past_key_values=cache, use_cache=True).logits[0])
        cache.settle(len(piece))
    scores = torch.cat(logits)[:-1].float()
    return float(torch.nn.functional.cross_entropy(scores, window[1:]))


def main() -> None:
    """Convert what is missing, and measure every pair of an equation and a form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--folder", type=Path, default=Path("converted"))
    parser.add_argument("--out", type=Path, default=Path("quantized_checkpoint.jsonl"))
    parser.add_argument("--windows", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, found = source.find(args.model), {}
    if args.out.is_file():
        rows = map(json.loads, args.out.read_text().splitlines())
        found = {(row["equation"], row["form"]): row["losses"] for row in rows}
    text = texts()
    held = quality.windows(checkpoint.tokenizer(), text["plays"], 512, args.windows)
    for equation in EQUATIONS:
        if all((equation, form) in found for form in ("as it is", *FORMS)):
            continue
        model = load(args.model, equation, args.folder, text["fit"])
        for form in ("as it is", *FORMS):
            if (equation, form) not in found:
                how = None if form == "as it is" else parse_quantization(form)
                found[equation, form] = [loss(model, window, how) for window in held]
                row = {"equation": equation, "form": form, "losses": found[equation, form]}
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            print(line(equation, form, found), flush=True)


def load(name: str, equation: str, folder: Path, fit: str) -> Any:
    """The checkpoint with this equation; what 'convert' writes of it is kept in the folder."""
    if equation == "q,k,v":
        return source.find(name).model()
    place = folder / "".join(each if each.isalnum() else "-" for each in equation)
    if not place.exists():
        text = folder / "fit.txt"
        text.write_text(fit)
        words = ["convert", name, "--to", equation, "--text", str(text), "--out", str(place)]
        subprocess.run([sys.executable, "-m", "qkvbench", *words], check=True)
    hub.register()
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()


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
