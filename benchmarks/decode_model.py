"""A whole model decodes: ours by variant, against a Llama of that shape in transformers.

Run     pip install 'transformers>=5.3', then
        python benchmarks/decode_model.py [--contexts N ...] [--precisions P ...] [--seconds S]
Size    12 layers of width 768, 12 heads of 64, vocabulary 32,000, about 110M parameters; rotary

All are in one process and take turns, a step each, in rounds. A step reads one token over a cache
that holds random rows, and the token is then forgotten, so that each step is over the same context.
Both stacks have as many numbers in their feed-forward: the Llama's is three matrices of width
2,048, ours two of 3,072. The part of a step that is the cache's is what is left when the same
model's step over 16 tokens is taken off. On one thread the time is its own, so that other programs
do not count; on several it is the wall's.

At least must be read, each step: all weights but the table of tokens, and the cache once. `bound`
is the time that a plain copy's bandwidth would need for that; the share of it is printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from qkvbench.backends.torch import Decoding, prepare
from qkvbench.backends.torch.training.precision import COMPUTE_DTYPE
from qkvbench.cost.units import bytes_text
from qkvbench.experiment import PRECISIONS
from qkvbench.model import Decoder, Init, Model, Rotary, transformer
from qkvbench.variant import parse

LAYERS, WIDTH, HEADS, VOCABULARY = 12, 768, 12, 32_000
SHORT = 16
VARIANTS = ("q,k,v", "q,k=v", "q,k=v/1")


@dataclass
class Arm:
    """Something that decodes one token at a time, and what its cache takes."""

    step: Callable[[], object]
    cache_bytes: int
    weight_bytes: int


def ours(variant: str, precision: str, context: int) -> Arm:
    """This project's decoder."""
    model: Model = transformer(
        "decode-model",
        Decoder(VOCABULARY),
        layers=LAYERS,
        d_model=WIDTH,
        heads=HEADS,
        position=Rotary(),
        init=Init(embedding_std=0.02, position_std=0.02, weight_std=0.02),
    ).with_variant(parse(variant))
    work = Decoding(model, precision, context=context, batch=1)
    return Arm(work.step, work.cache_bytes, _read_bytes(work.network, work.network.embedding))


def llama(precision: str, context: int, *, static: bool) -> Arm:
    """The same shape in transformers, with one of its caches."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2 * context + SHORT,
        attn_implementation="sdpa",
    )
    kind = COMPUTE_DTYPE[precision]
    network = LlamaForCausalLM(config).to(kind).eval()
    size = context + 1
    cache = StaticCache(config, max_cache_len=size) if static else DynamicCache(config=config)
    with torch.inference_mode():
        for layer in range(LAYERS):
            rows = torch.randn(1, HEADS, context, WIDTH // HEADS, dtype=kind)
            cache.update(rows, rows.flip(2), layer)
    token = torch.zeros(1, 1, dtype=torch.long)
    place = torch.tensor([[context]])

    @torch.inference_mode()
    def step() -> None:
        network(token, past_key_values=cache, position_ids=place, use_cache=True).logits[0].argmax()
        if static:
            for layer in cache.layers:
                layer.cumulative_length.fill_(context)
        else:
            cache.crop(-1)

    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return Arm(step, sum(map(_bytes, held)), _read_bytes(network, network.model.embed_tokens))


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _read_bytes(network: nn.Module, table: nn.Module) -> int:
    """Of all weights those that a step reads: not the table of tokens."""
    unread = {id(weight) for weight in table.parameters()}
    return sum(each.nbytes for each in network.parameters() if id(each) not in unread)


def arms(precision: str, context: int) -> dict[str, Arm]:
    """Ours and theirs, each with a full cache."""
    made = {f"ours {variant}": ours(variant, precision, context) for variant in VARIANTS}
    made["llama, dynamic"] = llama(precision, context, static=False)
    made["llama, static"] = llama(precision, context, static=True)
    return made


def times(taking_turns: dict[str, Arm], seconds: float) -> dict[str, list[float]]:
    """Seconds of each step, in rounds of one of each."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for arm in taking_turns.values():
        arm.step()
    taken: dict[str, list[float]] = {name: [] for name in taking_turns}
    ends = time.perf_counter() + seconds
    while len(taken["ours q,k,v"]) < 5 or time.perf_counter() < ends:
        for name, arm in taking_turns.items():
            began = clock()
            arm.step()
            taken[name].append(clock() - began)
    return taken


def bandwidth() -> float:
    """Bytes a second that are read where a sum of far more than the caches hold is made."""
    rows = torch.ones(2**26)
    taken = []
    for _ in range(7):
        began = time.perf_counter()
        rows.sum()
        taken.append(time.perf_counter() - began)
    return rows.nbytes / min(taken)


def ratio(over: list[float], under: list[float]) -> float:
    """The median over rounds of the one's time over the other's."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def main() -> None:
    """Time all at each context and precision, and print what each is beside the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 8192, 32_768])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=PRECISIONS)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    prepare(words.threads)
    read_s = bandwidth()
    print(f"{words.threads} threads; a sum reads {read_s / 1e9:.1f} GB/s")
    for precision in words.precisions:
        short = times(arms(precision, SHORT), words.seconds / 4)
        for context in words.contexts:
            every = arms(precision, context)
            taken = times(every, words.seconds)
            print(
                f"\n{precision}, {context:,} tokens, {len(taken['ours q,k,v'])} rounds\n"
                f"{'':16} {'p50':>9} {'of the cache':>13} {'tokens/s':>9} {'cache':>9} "
                f"{'bound':>9} {'share':>6} {'/ q,k,v':>8} {'/ dynamic':>9} {'/ static':>9}"
            )
            for name, arm in every.items():
                step_s = statistics.median(taken[name])
                cache_s = step_s - statistics.median(short[name])
                bound_s = (arm.weight_bytes + arm.cache_bytes) / read_s
                against = (
                    ratio(taken[name], taken[other])
                    for other in ("ours q,k,v", "llama, dynamic", "llama, static")
                )
                cells = "".join(f"{each:9.3f}" for each in against)
                print(
                    f"{name:16} {1e3 * step_s:6.1f} ms {1e3 * cache_s:10.1f} ms "
                    f"{1 / step_s:9.1f} {bytes_text(arm.cache_bytes):>9} "
                    f"{1e3 * bound_s:6.1f} ms {bound_s / step_s:6.2f}{cells}",
                    flush=True,
                )
            del every


if __name__ == "__main__":
    main()
