"""How many rows of a shared root to turn at a time when it is read as K, interleaved in one run.

Run     python benchmarks/decode_tile.py [--rounds N]
Size    the small decoder, 4096 cached tokens of 4 sequences, fp32, one thread
"""

import argparse
import statistics
import time

from qkvbench.backends.torch import Decoding, prepare
from qkvbench.backends.torch.cache import paged_tensor
from qkvbench.model import PRESETS
from qkvbench.variant import parse

TILES = (64, 128, 256, 512, 1024, 4096)


def main() -> None:
    """Time a decode step of `q,k=v` at each tile, and of the baseline, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    words = parser.parse_args()
    prepare(1)
    base = PRESETS["small-decoder"]()
    arms = {
        text: Decoding(base.with_variant(parse(text)), "fp32", context=4096, batch=4)
        for text in ("q,k,v", "q,k=v")
    }
    steps = [("q,k,v", 0), *(("q,k=v", tile) for tile in TILES)]
    times: dict[tuple[str, int], list[float]] = {step: [] for step in steps}
    for turn in range(words.rounds + 3):
        for text, tile in steps:
            paged_tensor.TILE = tile
            before = time.perf_counter()
            arms[text].step()
            if turn >= 3:
                times[text, tile].append(time.perf_counter() - before)
    for (text, tile), seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["q,k,v", 0], strict=True)]
        at = f"tile {tile}" if tile else ""
        print(
            f"{text:6} {at:10} p50 {1e3 * statistics.median(seconds):6.2f} ms   "
            f"time / q,k,v's {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
