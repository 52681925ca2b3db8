"""Decode attention against its bounds: memory bandwidth and the rate of multiply-adds.

Run     python benchmarks/decode_attention.py [--tokens N ...] [--threads N ...] [--mebibytes N]
Size    a cache of one root of 8192, 32768 and 131072 tokens, for as many roots as fill 256 MiB

All methods run interleaved. `read` only adds up the same bytes: the bound if memory is the
bottleneck. `multiply` runs fused multiply-adds on registers: the bound if 8 query heads share a
root. With one thread, times are CPU times of the thread, so that other programs do not count; with
several threads they are wall-clock times.
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
from qkvbench.native import ceilings, library

TYPES: dict[native.Kind, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
BASE = 10_000.0
MULTIPLY_ROUNDS = 400_000


@dataclass(frozen=True)
class Method:
    """A timed function, the bytes that it must read, and its multiply-add instructions."""

    name: str
    run: Callable[[], object]
    bytes: int
    multiply_adds: float = 0.0


def main() -> None:
    """Print, for each number of threads and tokens, every method and its bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--kinds", nargs="+", default=[*TYPES])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"native ISA {native.select_isa()}")
    for threads in args.threads:
        torch.set_num_threads(threads)
        for tokens in args.tokens:
            for kind in args.kinds:
                cache = Cache(kind, tokens, args.head_dim, args.mebibytes * 2**20)
                for group in args.groups:
                    print(
                        f"\n{threads} threads, {tokens} tokens, {kind}, head_dim {args.head_dim}, "
                        f"{cache.roots} roots, {group} query heads each: "
                        f"{bytes_text(cache.bytes)} a root tensor"
                    )
                    report(cache, attention_methods(cache, group, threads), args.rounds, threads)


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


def attention_methods(cache: Cache, group: int, threads: int) -> list[Method]:
    """The bounds, then all methods of attention over this cache."""
    lib, number = library.library(), native.supported_isas()[native.select_isa()]
    first, second = cache.tensors
    lines = first.nbytes // 64
    query = torch.randn(cache.roots, group, cache.head_dim) / cache.head_dim**0.5
    methods = [
        Method(
            "read",
            partial(lib.qkv_read, number, first.data_ptr(), lines, threads),
            first.nbytes,
        ),
        Method(
            "multiply",
            partial(ceilings.multiply, MULTIPLY_ROUNDS),
            0,
            MULTIPLY_ROUNDS * ceilings.CHAINS,
        ),
    ]
    width = ceilings.MULTIPLY_ADDS[native.select_isa()]
    if cache.kind == "bf16":
        width = ceilings.BF16_MULTIPLY_ADDS.get(native.select_isa(), width)
    work = cache.roots * cache.tokens * group * cache.head_dim * 2 / width
    if cache.kind != "int8":
        typed = query.to(first.dtype)
        for name, values, size in (("q,k,v", second, 2), ("q,k=v", first, 1)):
            methods += [
                Method(
                    f"torch SDPA {name}", partial(sdpa, typed, first, values), size * cache.bytes
                ),
                Method(
                    f"torch matmul {name}",
                    partial(matmul_softmax, typed, first, values),
                    size * cache.bytes,
                ),
            ]
    for name, shared, rope_on_read in (
        ("q,k,v", False, False),
        ("q,k=v", True, False),
        ("q,k=v RoPE on read", True, True),
    ):
        run = native_kernel(cache, query, shared=shared, rope_on_read=rope_on_read, threads=threads)
        methods.append(Method(f"native {name}", run, cache.bytes * (1 if shared else 2), work))
    return methods


def sdpa(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Torch's own kernel; the query heads of a group are passed as positions."""
    return scaled_dot_product_attention(query[None], keys[None], values[None], scale=1.0)


def matmul_softmax(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Two matrix products with a softmax in between."""
    return (query @ keys.mT).softmax(-1) @ values


def native_kernel(
    cache: Cache, query: Tensor, *, shared: bool, rope_on_read: bool, threads: int
) -> Callable[[], None]:
    """The native kernel over this cache."""
    half = cache.head_dim // 2
    rope = (
        native.RopeTable(BASE ** (-np.arange(half) / half), cache.tokens) if rope_on_read else None
    )
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


def report(cache: Cache, methods: list[Method], rounds: int, threads: int) -> None:
    """Time all methods in turn; print each with its bounds and its speed relative to `q,k,v`."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {method.name: [] for method in methods}
    for round_ in range(rounds + 1):
        for method in methods:
            before = clock()
            method.run()
            if round_:  # the first is a warm-up
                times[method.name].append(clock() - before)
    p50 = {name: statistics.median(seconds) for name, seconds in times.items()}
    by_name = {method.name: method for method in methods}
    max_bytes_per_s = by_name["read"].bytes / p50["read"]
    max_multiply_adds_per_s = threads * by_name["multiply"].multiply_adds / p50["multiply"]
    for method in methods:
        line = f"{method.name:26} {1e3 * p50[method.name]:8.2f} ms"
        if method.bytes:
            rate = method.bytes / p50[method.name]
            line += f" {rate / 1e9:6.1f} GB/s  {rate / max_bytes_per_s:5.2f} of read"
        if method.multiply_adds:
            rate = method.multiply_adds / p50[method.name]
            line += f"  {rate / max_multiply_adds_per_s:5.2f} of multiply"
        if method.name.startswith(("native", "torch")):
            ratios = [
                base / seconds
                for base, seconds in zip(times["native q,k,v"], times[method.name], strict=True)
            ]
            line += f"  {statistics.median(ratios):5.2f} times as fast as native q,k,v"
        print(line, flush=True)


if __name__ == "__main__":
    main()
