"""What was written for a GPU and has met none, on one: checks, speed, and one study.

Run     python benchmarks/gpu.py --out gpu.jsonl           on a machine with CUDA and Triton
        python benchmarks/gpu.py --dry-run                 small, on a CPU, in Triton's interpreter
        python benchmarks/gpu.py --parts kernel decode     some of its parts alone
Needs   ./qkv setup triton
Takes   not known: it has run as --dry-run only, in half a minute. Each part is printed, and added
        to the file, as soon as it is there

kernel  logits of prompts and steps by the Triton kernel, beside those by torch's operations
passes  logits of whole passes on the GPU, beside those on the CPU
decode  the kernel over a layer's cache from 8k to 128k tokens, beside torch's own attention and a
        plain read of as many bytes, taking turns; the shares of the read's rate
step    a training step in bf16, by variant, and the rate of its matrix products
quick   `qkvbench run quick`, one seed of each arm
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from train_step import BATCH, TOKENS, VOCABULARY, experiment, our_step

from qkvbench import cost
from qkvbench.backends.torch import Growing, build, decoder, prepare, start
from qkvbench.backends.torch.kernels import decode
from qkvbench.backends.torch.training.device import device
from qkvbench.data.batch import Batch
from qkvbench.model import PRESETS, Alibi, Rotary
from qkvbench.model.cycle import parse_cycle
from qkvbench.variant.catalogue import named

VARIANTS = ("q,k,v", "q,k=v", "q,k,v/1", "q,k=v/1", "q,k=v+qkvnorm", "q,k=R(q),v=R(q)")
POSITIONS = {"rotary": Rotary(), "half rotary": Rotary(share=1 / 2), "alibi": Alibi()}
ROWS = ("fp32", "bf16", "fp16", "int8")
# As in the laws of the kernels: sums in another order, and weights rounded to bf16.
CLOSE, ROUNDED = 3e-5, 0.05
# A GPU's products of fp32 may use fewer bits only if it is allowed to, which it is not here.
PASSES = 1e-4

DRY_RUN = "--dry-run" in sys.argv[1:]
LENGTHS = (64, 128) if DRY_RUN else (8192, 32768, 131072)
HEADS, HEAD_DIM = (2, 32) if DRY_RUN else (32, 128)
GROUPS = (1, 8)
BYTES = 2**16 if DRY_RUN else 2**30
ROUNDS = 2 if DRY_RUN else 30


def main() -> None:
    """Run the parts in turn; a part that fails does not stop the rest. Exit status 1 if one did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"kernel": kernel, "passes": passes, "decode": decoding, "step": step, "quick": quick}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--out", type=Path, help="a file of JSON lines, to which is added")
    parser.add_argument("--dry-run", action="store_true", help="small, on a CPU")
    args = parser.parse_args()
    if device().type != "cuda" and not args.dry_run:
        parser.error("there is no GPU that torch can use; --dry-run tries the script on a CPU")
    prepare(1)
    emit(args.out, {"part": "machine", **machine()})
    failed = False
    for name in args.parts:
        try:
            for row in parts[name]():
                failed |= row.get("passed") is False
                emit(args.out, {"part": name, **row})
        except Exception:
            failed = True
            emit(args.out, {"part": name, "error": traceback.format_exc(limit=-3)})
    sys.exit(failed)


def emit(out: Path | None, row: dict[str, Any]) -> None:
    """Print a result, and keep it."""
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def machine() -> dict[str, Any]:
    """What it ran on."""
    found = {"torch": torch.__version__, "dry_run": DRY_RUN, "device": "cpu"}
    if device().type == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {
            "device": about.name,
            "memory": about.total_memory,
            "processors": about.multi_processor_count,
            "capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def kernel() -> Iterator[dict[str, Any]]:
    """Every variant, position scheme and type of rows, over pages that grow."""
    use_triton()
    for variant in VARIANTS[:2] if DRY_RUN else VARIANTS:
        for position, scheme in POSITIONS.items():
            network = decoder(
                variant, vocabulary=13, layers=2, d_model=64, heads=4, position=scheme
            )
            network = network.eval().to(device())
            for rows in ROWS[::3] if DRY_RUN else ROWS:
                with torch.inference_mode():
                    by_kernel, by_torch = (steps(network, rows, kernels=each) for each in (1, 0))
                scale = max(1.0, by_torch.abs().max().item())
                found = (by_kernel - by_torch).abs().max().item() / scale
                limit = ROUNDED if rows == "bf16" else CLOSE
                yield {
                    "variant": variant,
                    "position": position,
                    "rows": rows,
                    "difference": found,
                    "passed": found < limit,
                }


def use_triton() -> None:
    """Also on a CPU, in the interpreter, which must be asked for before Triton is imported."""
    if device().type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from qkvbench.backends.torch.kernels.triton_decode import TritonDecodeKernel

    decode._kernel = lambda _keys, _plan: (TritonDecodeKernel, decode.GPU_FEATURES)


def steps(network: Any, rows: str, *, kernels: int) -> torch.Tensor:
    """Logits of three steps after prompts of three lengths."""
    rng = torch.Generator().manual_seed(0)
    padding = torch.tensor([0, 3, 7], device=device())
    prompts = torch.randint(13, (3, 90), generator=rng).to(device())
    further = torch.randint(13, (3, 3), generator=rng).to(device())
    cache = network.new_cache(3, 120, Growing(7), rows)
    network.prefill(prompts, cache, padding)
    for layer in cache.layers:
        if kernels:
            assert "Triton" in type(layer.decode_kernel).__name__, type(layer.decode_kernel)
        else:
            layer.decode_kernel = None
    return torch.stack([network.step(tokens, cache) for tokens in further])


def passes() -> Iterator[dict[str, Any]]:
    """Logits of `small-decoder` and their gradients' size, on both devices."""
    for variant in (*VARIANTS, "q,k=L(24),v=L(24)+ropehead8", "q=k,v-diag", "q,k,v+window8+sinks2"):
        model = PRESETS["small-decoder"]().with_variant(parse_cycle(variant, named))
        network = build(model).eval()
        start(network, model, 0)
        tokens = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(1))
        found = []
        for place in (torch.device("cpu"), device()):
            moved = network.to(place)
            moved.zero_grad(set_to_none=True)
            logits = moved(tokens.to(place))
            logits.square().mean().backward()
            norm = sum(p.grad.square().sum() for p in moved.parameters() if p.grad is not None)
            found.append((logits.detach().cpu(), float(norm) ** 0.5))
        (ours, ours_norm), (theirs, theirs_norm) = found
        difference = (ours - theirs).abs().max().item() / max(1.0, ours.abs().max().item())
        gradients = abs(ours_norm - theirs_norm) / ours_norm
        yield {
            "variant": variant,
            "difference": difference,
            "gradients": gradients,
            "passed": max(difference, gradients) < PASSES,
        }


def decoding() -> Iterator[dict[str, Any]]:
    """One layer's kernel over random rows; a tie reads one tensor, and no RoPE when it reads."""
    use_triton()
    for rows in ("fp32",) if DRY_RUN else ("bf16", "int8", "fp32"):
        for tokens in LENGTHS:
            for group in GROUPS[: 1 if DRY_RUN else None]:
                yield from over(rows, tokens, group)


@torch.inference_mode()
def over(rows: str, tokens: int, group: int) -> Iterator[dict[str, Any]]:
    """The methods over caches of about `BYTES`, in turn."""
    roots = HEADS // group
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[rows]
    batch = max(1, BYTES // (tokens * roots * HEAD_DIM * kind.itemsize))
    methods: dict[str, tuple[Callable[[], object], int]] = {}
    for name in ("q,k,v", "q,k=v"):
        variant = name if group == 1 else f"{name}/{roots}"
        network = decoder(
            variant,
            vocabulary=16,
            layers=1,
            d_model=HEADS * HEAD_DIM,
            heads=HEADS,
            position=Alibi(),
        )
        cache = network.eval().to(device()).new_cache(batch, tokens, rows=rows)
        cache.fill_randomly(tokens, seed=0)
        query = torch.randn(batch, roots, group, HEAD_DIM, device=device())
        run = cache.layers[0].decode_kernel
        assert run is not None, variant
        methods[f"kernel {name}"] = (
            lambda run=run, query=query: run(query, 0, tokens),
            cache.bytes,
        )
    keys, values = torch.randn(2, batch, roots, tokens, HEAD_DIM, device=device()).to(kind)
    methods["read"] = (lambda: keys.view(torch.int32).sum(), keys.nbytes)
    if rows != "int8":
        query = torch.randn(batch, roots, group, HEAD_DIM, device=device()).to(kind)
        methods["torch q,k,v"] = (
            lambda: scaled_dot_product_attention(query, keys, values),
            2 * keys.nbytes,
        )
    seconds = in_turn({name: run for name, (run, _) in methods.items()}, ROUNDS)
    rates = {name: size / seconds[name] for name, (_, size) in methods.items()}
    for name in methods:
        yield {
            "rows": rows,
            "tokens": tokens,
            "queries_per_root": group,
            "sequences": batch,
            "method": name,
            "ms": round(1e3 * seconds[name], 4),
            "gb_per_s": round(rates[name] / 1e9, 1),
            "of_read": round(rates[name] / rates["read"], 3),
            "times_kernel_q,k,v": round(seconds["kernel q,k,v"] / seconds[name], 3),
        }


def in_turn(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name, run in methods.items():
            seconds = timed(run)
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(each) for name, each in times.items()}


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call, until the device has ended."""
    if device().type == "cpu":
        before = time.perf_counter()
        run()
        return time.perf_counter() - before
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def step() -> Iterator[dict[str, Any]]:
    """The network of train_step.py, and beside its time the operations that it needs."""
    rng = np.random.default_rng(0)
    batch = Batch(*(rng.integers(0, VOCABULARY, (BATCH, TOKENS)) for _ in range(2)))
    arms = {name: our_step(name, "bf16", batch) for name in ("q,k,v", "q,k=v", "q,k,v/1")}
    # The first step of each prepares it.
    for run in arms.values():
        run()
    seconds = in_turn(arms, 1 if DRY_RUN else ROUNDS)
    for name in arms:
        operations = 3 * BATCH * cost.flops(experiment(name, "bf16").model, TOKENS)
        yield {
            "variant": name,
            "ms": round(1e3 * seconds[name], 3),
            "tflop_per_s": round(operations / seconds[name] / 1e12, 3),
            "time_of_q,k,v": round(seconds[name] / seconds["q,k,v"], 3),
        }


def quick() -> Iterator[dict[str, Any]]:
    """The study, with `--smoke` in a dry run."""
    out = "results/quick-gpu" + ("-dry" if DRY_RUN else "")
    words = ["run", "quick", "--seeds", "1", "--jobs", "1", "--out", out]
    if DRY_RUN:
        words = ["run", "quick", "--dry-run"]
    before = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "qkvbench", *words], capture_output=True, text=True
    )
    yield {
        "command": " ".join(["qkvbench", *words]),
        "seconds": round(time.perf_counter() - before, 1),
        "passed": done.returncode == 0,
        "said": (done.stdout or done.stderr)[-2000:],
    }


if __name__ == "__main__":
    main()
