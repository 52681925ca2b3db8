"""What a slim cache takes and how long a token takes with it, beside transformers' own cache.

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/hub_caches.py [--contexts N ...] [--rounds N] [--batch N]
        .venv/bin/python benchmarks/hub_caches.py --conditions FOLDER
Models  gemma-4: the attention of Gemma4TextConfig as transformers has it by default (8 heads of 512
        in layers that look at the whole text, a quarter of each turned; window 512), with two K/V
        heads there as in 26B-A4B; 12 layers of which 2 are whole, and a small feed-forward
        gemma-256: the same with heads of 256 in those layers, which the native kernel reads
        gpt-2: GPT2Config as it is by default, 12 layers of width 768

Weights are random. Caches are filled with random rows, without a prompt being read. A step reads
one token, which is then forgotten; both caches take turns, a step each, on one thread. Seconds are
the processor's, so that other processes cost them little. The ratio is the median of the ratios of
neighbouring steps, with the middle half of them in brackets. ``--conditions`` prints how well V can
be made from K in each layer of a checkpoint, and its error for random inputs.
"""

import argparse
import copy
import statistics
import time
from functools import partial

import torch
from transformers import (
    DynamicCache,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from qkvbench import hub
from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.hub.families import ENCODERS, LINEAR
from qkvbench.hub.key_only import ValueFromKey
from qkvbench.hub.linear_attention import linear_attentions, weights_of
from qkvbench.hub.shared_root import keys_from_roots
from qkvbench.hub.slim_cache import SlimCache, SlimLayer, storage_bytes


def gemma(head_dim: int = 512) -> PreTrainedModel:
    """A Gemma 4 with its attention at full size and little else."""
    config = Gemma4TextConfig(
        vocab_size=1000,
        vocab_size_per_layer_input=1000,
        hidden_size_per_layer_input=0,
        intermediate_size=1024,
        num_hidden_layers=12,
        attention_k_eq_v=True,
        num_global_key_value_heads=2,
        global_head_dim=head_dim,
    )
    return Gemma4ForCausalLM(config).eval()


def gpt2() -> PreTrainedModel:
    """GPT-2 of its default size."""
    return GPT2LMHeadModel(GPT2Config()).eval()


MODELS = {"gemma-4": gemma, "gemma-256": partial(gemma, 256), "gpt-2": gpt2}


@torch.inference_mode()
def fill(
    model: PreTrainedModel, caches: tuple[DynamicCache, SlimCache], tokens: int, batch: int
) -> None:
    """Fill both caches with the same rows, random or made of a random input.

    V of a layer without RoPE is made from K again, so both are of one input there.
    """
    config = model.config
    roots = keys_from_roots(model)
    linear = {number: weights_of(attention) for number, attention in linear_attentions(model)}
    places = torch.arange(tokens)[None]
    for layer, settings in enumerate(config.per_layer_config):
        heads = getattr(settings, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(settings, "head_dim", None) or config.hidden_size // heads
        value = torch.randn(batch, heads, tokens, width)
        key = torch.randn(batch, heads, tokens, width)
        if layer in roots:
            key = roots[layer].keys(value, places[..., None, None].transpose(1, 2).float())
        if layer in linear:
            weights = linear[layer]
            x = torch.randn(batch, tokens, len(weights.key))
            key, value = (
                (x @ matrix + (0 if bias is None else bias))
                .unflatten(-1, (heads, width))
                .transpose(1, 2)
                for matrix, bias in (
                    (weights.key, weights.key_bias),
                    (weights.value, weights.value_bias),
                )
            )
        for cache in caches:
            cache.update(key, value, layer, kwargs={"position_ids": places})


@torch.inference_mode()
def compare(name: str, model: PreTrainedModel, tokens: int, batch: int, rounds: int) -> None:
    """Print what both caches take, and a token with each."""
    slim = hub.slim(copy.deepcopy(model))
    caches = DynamicCache(config=model.config), SlimCache(slim)
    # Sliding layers keep what a token taken back would have seen.
    for cache in caches:
        cache.activate_past_recording()
    fill(slim, caches, tokens, batch)
    token, places = torch.ones(batch, 1, dtype=torch.long), torch.full((batch, 1), tokens)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for arm, cache, taken in zip((model, slim), caches, times, strict=True):
            begin = time.thread_time()
            arm(token, position_ids=places, cache=cache)
            taken.append(time.thread_time() - begin)
            cache.crop(-1)
    library, ours = (taken[2:] for taken in times)
    pairs = list(zip(*(cache.layers for cache in caches), strict=True))
    kept = [layer for layer, other in pairs if isinstance(other, SlimLayer)]
    before = storage_bytes([tensor for layer in kept for tensor in (layer.keys, layer.values)])
    after = sum(layer.bytes for layer in caches[1].slim_layers)
    recipes = [layer.recipe for layer in caches[1].slim_layers]
    maps = [each.value_map for each in recipes if isinstance(each, ValueFromKey)]
    low, middle, high = statistics.quantiles(
        [b / a for a, b in zip(library, ours, strict=True)], n=4
    )
    print(
        f"{name:9} batch {batch} {tokens:6} tokens  library {bytes_text(before):>9} "
        f"{seconds_text(statistics.median(library)):>8}  slim {bytes_text(after):>9} "
        f"({after / before:.3f}) {seconds_text(statistics.median(ours)):>8}  time x{middle:.2f} "
        f"[{low:.2f}, {high:.2f}]  maps {bytes_text(storage_bytes(maps))}",
        flush=True,
    )


@torch.no_grad()
def print_conditions(folder: str) -> None:
    """Print the condition of each layer, and the error of V made from K."""
    model = hub.load(folder, auto="AutoModel", dtype=torch.float32)
    known = {**LINEAR, **ENCODERS}
    layers = [
        weights_of(part, known[type(part).__name__]) for _, part in linear_attentions(model, known)
    ]
    for condition, weights in zip(hub.conditions(model), layers, strict=True):
        x = torch.randn(1000, len(weights.key))
        key, value = x @ weights.key, x @ weights.value
        value_map = torch.linalg.solve(weights.key.double(), weights.value.double()).float()
        error = ((key @ value_map - value).norm() / value.norm()).item()
        verdict = "fits" if condition.fits else "refused"
        print(
            f"layer {condition.layer:2}  condition {condition.number:10.3g}  bound "
            f"{condition.error_bound:.2g}  error {error:.2g}  {verdict}"
        )


def main() -> None:
    """Compare at each context."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    words.add_argument("--rounds", type=int, default=15)
    words.add_argument("--batch", type=int, default=1)
    words.add_argument("--models", nargs="+", choices=MODELS)
    words.add_argument("--conditions", metavar="FOLDER")
    asked = words.parse_args()
    if asked.conditions:
        print_conditions(asked.conditions)
        return
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, made in MODELS.items():
        if asked.models and name not in asked.models:
            continue
        model = made()
        for tokens in asked.contexts:
            if tokens < model.config.max_position_embeddings:
                compare(name, model, tokens, asked.batch, asked.rounds)


if __name__ == "__main__":
    main()
