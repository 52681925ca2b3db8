"""A step of decoding and the live cache of a checkpoint and of its conversions, in transformers.

Run     .venv/bin/python benchmarks/converted_decoding.py smollm2-135m FOLDER ... [--contexts N ...]
        for folders that 'qkvbench convert' wrote

All models are in one process and take turns, a token each, one thread. Times are of the processor,
so that other programs count only by the memory they read.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from qkvbench import hub
from qkvbench.cost.units import bytes_text
from qkvbench.data import plays
from qkvbench.hub.fit import quality
from qkvbench.hub.fit.source import find

ROUNDS = 24


class Decoding:
    """One model after a context, and the times of its steps."""

    def __init__(self, model: Any, context: torch.Tensor) -> None:
        self.model = model
        output = model(input_ids=context[None], use_cache=True, logits_to_keep=1)
        self.cache = output.get("cache") or output.past_key_values
        self.bytes = quality.cache_bytes(self.cache)
        self.token = output.logits[:, -1:].argmax(-1)
        # The name of the argument before transformers 5.24.
        self.name = "cache" if "cache" in output else "past_key_values"
        self.times: list[float] = []

    def step(self) -> None:
        """Decode one token."""
        began = time.process_time()
        output = self.model(input_ids=self.token, use_cache=True, **{self.name: self.cache})
        self.times.append(time.process_time() - began)
        self.token = output.logits[:, -1:].argmax(-1)


@torch.no_grad()
def main() -> None:
    """A line for each context and model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048])
    request = parser.parse_args()
    torch.set_num_threads(1)
    hub.register()
    checkpoint = find(request.source)
    models = {request.source: checkpoint.model()}
    for folder in request.folders:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        models[folder.name] = model.eval()
    text = "\n\n".join(plays.texts()["test"].values())
    tokens = quality.windows(checkpoint.tokenizer(), text, max(request.contexts), 1)[0]
    for context in request.contexts:
        every = {name: Decoding(model, tokens[:context]) for name, model in models.items()}
        for _ in range(ROUNDS):
            for one in every.values():
                one.step()
        for name, one in every.items():
            step_ms = 1e3 * statistics.median(one.times)
            print(f"{context:6,} tokens  {name:20} {bytes_text(one.bytes):>9}  {step_ms:6.1f} ms")


if __name__ == "__main__":
    main()
