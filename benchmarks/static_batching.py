"""More requests per server: how many sequences fit into a memory, and the tokens a second then.

Run     python benchmarks/static_batching.py [--context N] [--gibibytes G] [--batches N ...]
        [--seconds S] [--precision P]
Size    4 layers of width 512, 8 heads of 64, vocabulary 4,096, rotary
Takes   about three minutes

Sequences are decoded together, one token of each a step, over caches that hold random rows. How
many fit is computed: the memory, less the weights, by what a sequence keeps. All arms of a batch
are in one process and take turns, a step each; an arm whose batch does not fit is left out of it.
Seconds are of the processor, in one thread: others on the machine do not count, but for the memory
they read.
"""

import argparse
import statistics
import time

from qkvbench import cost
from qkvbench.backends.torch import Decoding, prepare
from qkvbench.backends.torch.training.precision import COMPUTE_DTYPE
from qkvbench.cost import CACHE_FORMATS
from qkvbench.cost.units import bytes_text
from qkvbench.experiment import PRECISIONS, Precision
from qkvbench.model import Decoder, Init, Model, Rotary, transformer
from qkvbench.variant import parse

VARIANTS = ("q,k,v", "q,k=v", "q,k,v/1", "q,k=v/1", "q,k=L(128),v=L(128)")
FEWEST_ROUNDS = 3


def model_of(variant: str) -> Model:
    """The decoder of an arm."""
    return transformer(
        "static-batching",
        Decoder(4096),
        layers=4,
        d_model=512,
        heads=8,
        position=Rotary(),
        init=Init(embedding_std=0.02, position_std=0.02, weight_std=0.02),
    ).with_variant(parse(variant))


def sequence_bytes(variant: str, precision: Precision, context: int) -> int:
    """What a sequence keeps, with the token that a step adds."""
    kind = CACHE_FORMATS[precision]
    return cost.cache_bytes(model_of(variant), context + 1, 1, kind)


def fitting(variant: str, precision: Precision, context: int, memory: float) -> int:
    """How many sequences fit beside the weights."""
    weights = COMPUTE_DTYPE[precision].itemsize * cost.parameters(model_of(variant)).total
    return int((memory - weights) // sequence_bytes(variant, precision, context))


def rates(works: dict[str, Decoding], seconds: float) -> dict[str, float]:
    """Tokens a second of each arm: its batch over its median step, in rounds of one of each."""
    for work in works.values():
        work.step()
    taken: dict[str, list[float]] = {variant: [] for variant in works}
    ends, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < ends or rounds < FEWEST_ROUNDS:
        for variant, work in works.items():
            began = time.process_time()
            work.step()
            taken[variant].append(time.process_time() - began)
        rounds += 1
    return {name: works[name].tokens / statistics.median(each) for name, each in taken.items()}


def main() -> None:
    """Print what fits, then the tokens a second at growing batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--gibibytes", type=float, default=1.0, help="of weights and caches")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 32, 64, 128])
    parser.add_argument("--seconds", type=float, default=12.0, help="of rounds, at each batch")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    words = parser.parse_args()
    prepare(threads=1)
    memory, precision, context = words.gibibytes * 2**30, words.precision, words.context
    most = {variant: fitting(variant, precision, context, memory) for variant in VARIANTS}
    print(f"{bytes_text(memory)} of memory, {context:,} tokens, {precision}, one thread")
    for variant, count in most.items():
        kept = bytes_text(sequence_bytes(variant, precision, context))
        print(f"{variant:20} {kept:>9} a sequence, {count:5} fit")
    print("\nbatch    " + " ".join(f"{variant:>20}" for variant in VARIANTS) + "   (tokens/s)")
    for batch in words.batches:
        works = {
            variant: Decoding(model_of(variant), precision, context=context, batch=batch)
            for variant in VARIANTS
            if batch <= most[variant]
        }
        found = rates(works, words.seconds) if works else {}
        cells = (
            f"{found[variant]:20.1f}" if variant in found else f"{'–':>20}" for variant in VARIANTS
        )
        print(f"{batch:5}    " + " ".join(cells), flush=True)


if __name__ == "__main__":
    main()
