"""How near decoding comes to its bounds: bytes that are read, and multiply-adds that are made.

Run     python benchmarks/decode_attention.py [--tokens N ...] [--threads N ...] [--mebibytes N]
Size    a cache of one root of 8192, 32768 and 131072 tokens, for as many roots as fill 256 MiB

All ways take turns in one run. `read` adds up the same bytes and does nothing else: what no way can
beat where memory is waited for. `multiply` is the rate of fused multiply-adds without any memory:
what no way can beat where 8 query heads share a root. On one thread the time is its own, so that
other programs do not count; on several it is the wall's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qkvbench import native
from qkvbench.cost.units import bytes_text
from qkvbench.native import library

TYPES: dict[native.Kind, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
# Numbers that one instruction of a target multiplies and adds; then of bf16, where that differs.
BY_INSTRUCTION = {"avx512-bf16": 16, "avx512": 16, "avx2": 8, "portable": 4, "neon": 4}
BY_INSTRUCTION_OF_BF16 = {"avx512-bf16": 32}
BASE = 10_000.0
ROUNDS_OF_PRODUCTS = 400_000
CHAINS = 12


@dataclass(frozen=True)
class Way:
    """Something that is timed: what it does, the bytes that it must read, its instructions."""

    name: str
    run: Callable[[], object]
    bytes: int
    products: float = 0.0


def main() -> None:
    """Print, for each number of threads and tokens, every way beside its bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--kinds", nargs="+", default=[*TYPES])
    parser.add_argument("--rounds", type=int, default=7)
    words = parser.parse_args()
    print(f"native ISA {native.select_isa()}")
    for threads in words.threads:
        torch.set_num_threads(threads)
        for tokens in words.tokens:
            for kind in words.kinds:
                cache = Cache(kind, tokens, words.head_dim, words.mebibytes * 2**20)
                for group in words.groups:
                    print(
                        f"\n{threads} threads, {tokens} tokens, {kind}, head_dim {words.head_dim}, "
                        f"{cache.roots} roots, {group} query heads each: "
                        f"{bytes_text(cache.bytes)} a root tensor"
                    )
                    report(cache, ways(cache, group, threads), words.rounds, threads)


class Cache:
    """Two root tensors in memory, of which `q,k=v` reads one: (roots, tokens, head_dim)."""

    def __init__(self, kind: native.Kind, tokens: int, head_dim: int, size: int) -> None:
        """Tensors of about `size` bytes each."""
        self.kind, self.tokens, self.head_dim = kind, tokens, head_dim
        self.roots = max(1, size // (tokens * head_dim * TYPES[kind].itemsize))
        shape = (self.roots, tokens, head_dim)
        if kind == "int8":
            self.tensors = [torch.randint(-127, 128, shape, dtype=torch.int8) for _ in "kv"]
        else:
            self.tensors = [torch.randn(shape).to(TYPES[kind]) for _ in "kv"]
        self.scales = [torch.full((self.roots, tokens), 0.01) for _ in "kv"]
        scales = self.scales[0].nbytes if kind == "int8" else 0
        self.bytes = self.tensors[0].nbytes + scales

    def rows(self, which: int) -> native.PagedRows:
        """One of the tensors, as one page."""
        scaled = self.kind == "int8"
        return native.PagedRows(
            np.array([[self.tensors[which].data_ptr()]], np.uint64),
            self.tokens * self.head_dim,
            self.head_dim,
            np.array([[self.scales[which].data_ptr()]], np.uint64) if scaled else None,
            self.tokens if scaled else 0,
        )


def ways(cache: Cache, group: int, threads: int) -> list[Way]:
    """The bounds, then all ways to attend over this cache."""
    lib, number = library.library(), native.supported_isas()[native.select_isa()]
    first, second = cache.tensors
    lines = first.nbytes // 64
    query = torch.randn(cache.roots, group, cache.head_dim) / cache.head_dim**0.5
    found = [
        Way(
            "read",
            partial(lib.qkv_read, number, first.data_ptr(), lines, threads),
            first.nbytes,
        ),
        Way(
            "multiply",
            partial(lib.qkv_multiply, number, ROUNDS_OF_PRODUCTS),
            0,
            ROUNDS_OF_PRODUCTS * CHAINS,
        ),
    ]
    width = BY_INSTRUCTION[native.select_isa()]
    if cache.kind == "bf16":
        width = BY_INSTRUCTION_OF_BF16.get(native.select_isa(), width)
    work = cache.roots * cache.tokens * group * cache.head_dim * 2 / width
    if cache.kind != "int8":
        given = query.to(first.dtype)
        for name, values, size in (("q,k,v", second, 2), ("q,k=v", first, 1)):
            found += [
                Way(f"torch SDPA {name}", partial(fused, given, first, values), size * cache.bytes),
                Way(
                    f"torch matmul {name}",
                    partial(products, given, first, values),
                    size * cache.bytes,
                ),
            ]
    for name, shared, turned in (
        ("q,k,v", False, False),
        ("q,k=v", True, False),
        ("q,k=v turned on read", True, True),
    ):
        run = ours(cache, query, shared=shared, turned=turned, threads=threads)
        found.append(Way(f"ours {name}", run, cache.bytes * (1 if shared else 2), work))
    return found


def fused(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The framework's own kernel; query heads of a group stand where positions do."""
    return scaled_dot_product_attention(query[None], keys[None], values[None], scale=1.0)


def products(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Two matrix products and a softmax between them."""
    return (query @ keys.mT).softmax(-1) @ values


def ours(
    cache: Cache, query: Tensor, *, shared: bool, turned: bool, threads: int
) -> Callable[[], None]:
    """The native kernel over this cache."""
    half = cache.head_dim // 2
    rope = native.RopeTable(BASE ** (-np.arange(half) / half), cache.tokens) if on_read else None
    decoding = native.Decoding(
        cache.kind,
        cache.rows(0),
        None if shared else cache.rows(1),
        head_dim=cache.head_dim,
        roots=cache.roots,
        group=query.shape[1],
        page_rows=cache.tokens,
        rope=rope,
        threads=threads,
    )
    decoding.length[:] = cache.tokens
    query, out = query.contiguous(), torch.empty_like(query)

    def run() -> None:
        decoding(query.data_ptr(), out.data_ptr())

    return run


def report(cache: Cache, found: list[Way], rounds: int, threads: int) -> None:
    """Time all ways in turn, and print each beside its bounds and beside our own `q,k,v`."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {way.name: [] for way in found}
    for turn in range(rounds + 1):
        for way in found:
            before = clock()
            way.run()
            if turn:
                times[way.name].append(clock() - before)
    p50 = {name: statistics.median(taken) for name, taken in times.items()}
    by_name = {way.name: way for way in found}
    most_bytes = by_name["read"].bytes / p50["read"]
    most_products = threads * by_name["multiply"].products / p50["multiply"]
    for way in found:
        line = f"{way.name:26} {1e3 * p50[way.name]:8.2f} ms"
        if way.bytes:
            rate = way.bytes / p50[way.name]
            line += f" {rate / 1e9:6.1f} GB/s  {rate / most_bytes:5.2f} of read"
        if way.products:
            rate = way.products / p50[way.name]
            line += f"  {rate / most_products:5.2f} of {most_products / 1e9:.1f} G products/s"
        if way.name.startswith(("ours", "torch")):
            ratios = [
                base / taken
                for base, taken in zip(times["ours q,k,v"], times[way.name], strict=True)
            ]
            line += f"  {statistics.median(ratios):5.2f} times as fast as our q,k,v"
        print(line, flush=True)


if __name__ == "__main__":
    main()
