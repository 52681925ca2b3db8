"""Slim cross-attention against the library's: bytes of both caches, and the time of a step.

Run     OMP_NUM_THREADS=1 python benchmarks/hub_encoders.py
Reads   nothing: weights are random; nothing is downloaded
Expect  a line for each model; processor time, steps of both caches in turn
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from qkvbench import hub
from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.hub.slim_cache import storage_bytes

D_MODEL, STEPS = 384, 20
# The decoder of whisper-tiny, with fewer words.
SIZES = {
    "d_model": D_MODEL,
    "encoder_layers": 1,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "vocab_size": 1000,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# A model, its tokens, and the rows of its encoder's output.
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], int, int]] = {
    "whisper": (lambda: WhisperForConditionalGeneration(WhisperConfig(**SIZES)), 64, 1500),
    "bart": (lambda: BartForConditionalGeneration(BartConfig(**SIZES)), 512, 1024),
}


@torch.no_grad()
def compare(name: str) -> None:
    """Print the bytes and the median time of a step with both caches."""
    torch.manual_seed(0)
    make, tokens, rows = MODELS[name]
    model = make().eval()
    slim = hub.slim(copy.deepcopy(model))
    config = model.config.get_text_config(decoder=True)
    library = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    caches: list[Any] = [library, hub.SlimEncoderDecoderCache(slim)]
    decoders: list[Any] = [model.get_decoder(), slim.get_decoder()]
    states = torch.randn(1, rows, D_MODEL)
    times: list[list[float]] = [[], []]
    for step in range(STEPS + 1):
        ids = torch.randint(3, 1000, (1, 1 if step else tokens))
        for decoder, cache, seconds in zip(decoders, caches, times, strict=True):
            start = time.process_time()
            decoder(ids, encoder_hidden_states=states, cache=cache, use_cache=True)
            seconds.append(time.process_time() - start)
    parts = (library.self_attention_cache, library.cross_attention_cache)
    layers = [layer for part in parts for layer in part.layers]
    before = storage_bytes([tensor for layer in layers for tensor in (layer.keys, layer.values)])
    # Without the prompt.
    medians = [statistics.median(seconds[1:]) for seconds in times]
    after = caches[1].bytes
    print(
        f"{name:8} {tokens} tokens, {rows} rows  library {bytes_text(before)} "
        f"{seconds_text(medians[0])}  slim {bytes_text(after)} ({after / before:.3f}) "
        f"{seconds_text(medians[1])}  time x{medians[1] / medians[0]:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    for each in MODELS:
        compare(each)
