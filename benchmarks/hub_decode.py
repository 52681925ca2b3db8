"""A step of decoding in transformers with `qkv_mode`: the native kernel, torch, and the library.

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/hub_decode.py [--contexts N ...] [--rounds N] [--batch N]
        [--dtype bf16] [--static SLOTS] [--rows int8 int4] [--no-memory]
Model   a Llama of SmolLM2-135M's shape with random weights: 30 layers of width 576, 9 heads of 64,
        3 K/V heads
Arms    the library's class and cache, with 3 K/V heads and with 1; then each mode with the kernel,
        and with torch's operations over the library's own cache (QKVBENCH_NATIVE=none)

Caches are filled with random rows, without a prompt being read. A step reads one token, which is
then forgotten; all arms take turns, a step each, on one thread. Times are the processor's, medians;
the ratio is the median of the ratios of a round's steps, with the middle half of them in brackets.
The memory of a step is how far resident memory rises above the process with the model alone, at
its highest; a process for each arm, whose malloc returns every large block (Linux only). With
``--static`` the context is in the first slots of a StaticCache of so many. ``--rows`` adds arms of
the kernel over a `FewBitsCache`.
"""

import argparse
import contextlib
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.hub.families import rope_on_read
from qkvbench.hub.few_bits import FewBits, FewBitsCache
from qkvbench.hub.models import layer_plans, register
from qkvbench.hub.slim_cache import storage_bytes
from qkvbench.native.library import NONE, VARIABLE

SIZES = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 1 << 17,
    "tie_word_embeddings": True,
}
MODES = ("q,k,v", "q,k=v", "q,k=v+ropevalue", "q,k=v/1")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Steps that are not counted: the first one moves the rows to a tensor that grows.
WARM = 3


@dataclass
class Arm:
    """One model with one way to attend, and what it took."""

    name: str
    model: Any
    torch_only: bool = False
    rows: Any = None

    def __post_init__(self) -> None:
        """No steps yet."""
        self.cache: Any = None
        self.times: list[float] = []

    @contextlib.contextmanager
    def kernels(self) -> Iterator[None]:
        """The kernels of this arm: all, or none."""
        before = os.environ.pop(VARIABLE, None)
        if self.torch_only:
            os.environ[VARIABLE] = NONE
        try:
            yield
        finally:
            os.environ.pop(VARIABLE, None)
            if before is not None:
                os.environ[VARIABLE] = before

    @torch.inference_mode()
    def fill(self, tokens: int, batch: int, static: int) -> None:
        """Fill a cache with random rows."""
        config, dtype = self.model.config, self.model.dtype
        if self.rows is None:
            self.cache = StaticCache(config, max_cache_len=static) if static else DynamicCache()
        else:
            self.cache = FewBitsCache(self.model, self.rows)
        mode = getattr(config, "qkv_mode", None)
        plans = layer_plans(config) if mode else [None] * config.num_hidden_layers
        places = torch.arange(tokens, dtype=torch.int32)
        for layer, plan in enumerate(plans):
            heads = plan.cached_key.heads if plan else config.num_key_value_heads
            rows = torch.randn(batch, heads, tokens, 64, dtype=dtype)
            if plan is None or len(plan.cached) == 2:
                second = torch.randn_like(rows)
            elif rope_on_read(plan):
                second = places[:, None].expand(batch, heads if static else 1, tokens, 1)
            else:
                second = rows[..., :0]
            self.cache.update(rows, second, layer)

    @torch.inference_mode()
    def step(self, tokens: int, batch: int) -> float:
        """Seconds of one token behind so many, which is then forgotten."""
        token = torch.ones(batch, 1, dtype=torch.long)
        places = torch.full((batch, 1), tokens)
        with self.kernels():
            begin = time.thread_time()
            self.model(token, position_ids=places, cache=self.cache, use_cache=True)
            taken = time.thread_time() - begin
        self.cache.crop(-1)
        return taken

    @property
    def bytes(self) -> int:
        """Live bytes of the cache."""
        if self.rows is not None:
            return self.cache.bytes
        return storage_bytes([t for layer in self.cache.layers for t in (layer.keys, layer.values)])


def model_of(mode: str | None, kv_heads: int, dtype: torch.dtype) -> Any:
    """A model with random weights: the library's own without a mode."""
    torch.manual_seed(0)
    settings = {**SIZES, "num_key_value_heads": kv_heads}
    kind = "llama"
    if mode is not None:
        kind, settings["qkv_mode"] = "qkv_llama", mode
    config = AutoConfig.for_model(kind, **settings)
    model: Any = AutoModelForCausalLM.from_config(config)
    return model.to(dtype).eval()


def arms(modes: Sequence[str], dtype: torch.dtype, rows: Sequence[str]) -> Iterator[Arm]:
    """The library's two, and two for each mode, with one more for each kind of rows."""
    yield from library_arms(dtype)
    yield from mode_arms(modes, dtype, rows)


def library_arms(dtype: torch.dtype) -> Iterator[Arm]:
    """With as many K/V heads as the shape has, and with one."""
    for heads in (3, 1):
        yield Arm(f"library, {heads} K/V heads", model_of(None, heads, dtype))


def mode_arms(modes: Sequence[str], dtype: torch.dtype, rows: Sequence[str] = ()) -> Iterator[Arm]:
    """Each mode with the kernel and without, and with the kernel over few bits."""
    for mode in modes:
        model = model_of(mode, 3, dtype)
        yield Arm(f"{mode}, kernel", model)
        # Other modules, so that each has its own kernel, over the same weights.
        twin = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        yield Arm(f"{mode}, torch", twin, torch_only=True)
        for kind in rows:
            other = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
            yield Arm(f"{mode}, {kind}", other, rows=kind)


def resident(field: str) -> int:
    """Bytes of resident memory of this process: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def print_peak(name: str, dtype: str, tokens: int, batch: int, static: int) -> None:
    """Print how far resident memory rises within a step above the model alone."""
    torch.set_num_threads(1)
    mode, _, _ = name.rpartition(",")
    every = library_arms if mode == "library" else partial(mode_arms, (mode,))
    if mode != "library":
        every = partial(every, rows=get_args(FewBits))
    arm = next(arm for arm in every(dtype=DTYPES[dtype]) if arm.name == name)
    warm = Arm(arm.name, arm.model, arm.torch_only, arm.rows)
    warm.fill(8, batch, 16 if static else 0)
    for _ in range(WARM):
        warm.step(8, batch)
    del warm
    before = resident("VmRSS")
    arm.fill(tokens, batch, static)
    for _ in range(WARM):
        arm.step(tokens, batch)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    arm.step(tokens, batch)
    print(resident("VmHWM") - before)


def peak(arm: Arm, request: argparse.Namespace, tokens: int) -> str:
    """The highest memory of a step, measured in a process of its own."""
    words = [sys.executable, __file__, "--peak", arm.name, "--dtype", request.dtype]
    words += ["--contexts", str(tokens), "--batch", str(request.batch)]
    words += ["--static", str(request.static)]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )
    return bytes_text(int(done.stdout))


def main() -> None:
    """A line for each context and arm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--static", type=int, default=0, metavar="SLOTS")
    parser.add_argument("--rows", choices=get_args(FewBits), nargs="+", default=[])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    request = parser.parse_args()
    register()
    if request.peak:
        tokens = request.contexts[0]
        print_peak(request.peak, request.dtype, tokens, request.batch, request.static)
        return
    torch.set_num_threads(1)
    every = list(arms(request.modes, DTYPES[request.dtype], request.rows))
    for tokens in request.contexts:
        for arm in every:
            arm.fill(tokens, request.batch, request.static)
            arm.times = []
        for number in range(request.rounds + WARM):
            for arm in every:
                taken = arm.step(tokens, request.batch)
                if number >= WARM:
                    arm.times.append(taken)
        for arm in every:
            ratios = [a / b for a, b in zip(arm.times, every[0].times, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            step, live = seconds_text(statistics.median(arm.times)), bytes_text(arm.bytes)
            highest = "" if request.no_memory else f", in a step {peak(arm, request, tokens):>9}"
            print(
                f"{tokens:6,} tokens  {arm.name:24} {step:>8} x{middle:.2f} [{low:.2f}, {high:.2f}]"
                f"  cache {live:>9}{highest}",
                flush=True,
            )


if __name__ == "__main__":
    main()
