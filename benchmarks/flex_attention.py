"""Exact and sparse attention by torch's own kernels: SDPA, and FlexAttention compiled for a CPU.

Run     python benchmarks/flex_attention.py [--lengths 512 ...] [--rounds N] [--threads N]
Needs   a C++ compiler, for torch.compile
Size    a forward of 4 heads of 64, one sequence, fp32; 8,192 tokens at most with a whole mask

FlexAttention leaves out blocks of scores that a mask hides. On a CPU it has no backward pass, and
so trains nothing. All take turns, round by round; a ratio is to SDPA's causal attention of the same
round, the median of the rounds. Each result is compared with masked SDPA first.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from qkvbench.backends.torch.attention.softmax import SoftmaxAttention
from qkvbench.variant import parse, resolve, sized

HEADS, WIDTH, BLOCK = 4, 64, 128
WINDOW, SINKS, STRIDE = 256, 4, 8
MOST_MASKED = 8192
EXACT = 1e-5

Seen = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def causal(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Every key before, and its own."""
    return row >= column


def window(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The nearest keys and the first ones: ``+window256+sinks4``."""
    return (row >= column) & ((row - column < WINDOW) | (column < SINKS))


def blocks(_batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Whole blocks, its own, the one before, and every eighth: ``+blocks128x8``."""
    here, there = row // BLOCK, column // BLOCK
    return (row >= column) & ((here - there < 2) | (there % STRIDE == 0))


@torch.no_grad()
def main() -> None:
    """Print a line for each kernel and length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("tokens  kernel                        seconds  of SDPA  scores seen")
    for length in args.lengths:
        kernels, shares = _kernels(length)
        taken: dict[str, list[float]] = {name: [] for name in kernels}
        for _ in range(args.rounds):
            for name, run in kernels.items():
                began = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - began)
        base = taken["SDPA, causal"]
        for name, seconds in taken.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
            middle = statistics.median(seconds)
            print(f"{length:6}  {name:28}  {middle:7.4f}  {ratio:6.2f}×  {shares[name]:.3f}")


def _kernels(length: int) -> tuple[dict[str, Callable[[], Tensor]], dict[str, float]]:
    """Each kernel at this length, checked, and the share of all scores that its mask shows."""
    # Each mask and length is compiled anew, and torch gives up after eight.
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, WIDTH, generator=generator) for _ in range(3))
    geometry = sized(HEADS * WIDTH, HEADS)
    flex = torch.compile(flex_attention, dynamic=False)
    own = {
        suffix: SoftmaxAttention(resolve(parse(f"q,k,v{suffix}"), geometry, causal=True))
        for suffix in (f"+window{WINDOW}+sinks{SINKS}", f"+blocks{BLOCK}x{STRIDE}")
    }
    found: dict[str, tuple[Callable[[], Tensor], Seen]] = {
        "SDPA, causal": (lambda: sdpa(q, k, v, is_causal=True), causal),
    }
    for (suffix, layer), seen in zip(own.items(), (window, blocks), strict=True):
        found[f"this bench, {suffix}"] = (lambda layer=layer: layer(q, k, v), seen)
    for name, seen in {"causal": causal, "window": window, "blocks": blocks}.items():
        mask = create_block_mask(seen, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK)
        found[f"FlexAttention, {name}"] = (
            lambda mask=mask: flex(q, k, v, block_mask=mask),
            seen,
        )
    # The last rows show what a mask hides; a whole mask would have the square of the length.
    rows, columns = torch.arange(length - min(length, 256), length), torch.arange(length)
    shares: dict[str, float] = {}
    none = torch.zeros((), dtype=torch.int64)
    for name, (run, seen) in found.items():
        mask = seen(none, none, rows[:, None], columns)
        expected = sdpa(q[:, :, rows], k, v, attn_mask=mask)
        error = (run()[:, :, rows] - expected).abs().max().item()
        if not error < EXACT:
            raise SystemExit(f"{name} at {length}: off by {error}")
        total = sum(
            int(seen(none, none, part[:, None], columns).sum())
            for part in torch.arange(length).split(256)
        )
        shares[name] = total / length**2
    kernels = {name: run for name, (run, _) in found.items()}
    if length <= MOST_MASKED:
        every = torch.arange(length)
        mask = window(none, none, every[:, None], every)
        kernels["SDPA, mask of a window"] = lambda: sdpa(q, k, v, attn_mask=mask)
        shares["SDPA, mask of a window"] = shares["FlexAttention, window"]
    return kernels, shares


if __name__ == "__main__":
    main()
