"""What matrices in int8 and int4 gain and cost: products of few rows, and the loss of SmolLM2-135M.

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/few_bit_weights.py [--model FOLDER] [--isa avx2]
Size    one and eight rows times 49,152 x 576; four windows of 512 tokens of each text
Takes   about three minutes on an idle core

Products are of one thread, in turn, the least of its processor times. Matrices are rounded as in
the file of the program without Python: row by row, each with a scale in fp32; those of the blocks
that do not make K and V at once in int4 with one for 32 numbers, plainly (by the largest of a
group), fitted to the numbers, or to those that meet large inputs in 4,096 tokens of other reviews.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
import transformers
from torch.nn.functional import cross_entropy
from tying import texts

from qkvbench import native
from qkvbench.backends.torch import Decoder, named_weights
from qkvbench.backends.torch.cache.quantize import dequantize, quantize
from qkvbench.cost import CACHE_FORMATS
from qkvbench.export import checkpoint, edge, rounding
from qkvbench.export.rounding import inputs_of
from qkvbench.hub.fit import quality
from qkvbench.hub.fit.source import packaged_folder

MODEL, INPUTS, OUTPUTS, ROUNDS = "smollm2-135m", 576, 49_152, 12
WINDOWS, WINDOW = 4, 512
# Of a number, with its part of a scale.
BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 5 / 8}


def main() -> None:
    """Print both; of another model, such as one that `convert` wrote, the loss alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of another decoder with a tokenizer")
    parser.add_argument("--isa", help="the products alone, with these instructions, such as avx2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for rows in (1, 8) if args.model is None else ():
        for kind, seconds in products(rows, args.isa).items():
            size = OUTPUTS * INPUTS * BYTES[kind]
            print(f"{rows} rows, {kind}: {1e3 * seconds:.2f} ms, {size / seconds / 1e9:.1f} GB/s")
    if args.isa:
        return
    folder = args.model or packaged_folder(MODEL)
    network = checkpoint.read(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    windows = {
        name: tokenizer(text[:20_000], return_tensors="pt")["input_ids"][
            0, : WINDOWS * WINDOW
        ].view(WINDOWS, WINDOW)
        for name, text in texts().items()
        if name != "fit"
    }
    before = {name: loss(network, each) for name, each in windows.items()}
    matrices = {name: each for name, each in named_weights(network).items() if each.dim() == 2}
    kept = {name: each.detach().clone() for name, each in matrices.items()}
    read = quality.windows(tokenizer, texts()["fit"], WINDOW, 8)
    inputs = inputs_of(network, read)
    ways: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
        "int8": lambda _, own: rounded(own, "int8"),
        "int4, plainly": lambda _, own: plain(own),
        "int4, fitted": lambda _, own: rounded(own, "int4"),
        "int4, fitted to a text": lambda name, own: rounded(own, "int4", inputs[name]),
    }
    for way, make in ways.items():
        with torch.no_grad():
            for name, weight in matrices.items():
                own = name.startswith("blocks.") and name not in edge.tied_matrices(network)
                made = make if own else ways["int8"]
                weight.copy_(made(name, kept[name]))
        for name, each in windows.items():
            print(f"{name}: {before[name]:.4f} nats in fp32, {loss(network, each):.4f} in {way}")


def rounded(
    matrix: torch.Tensor, kind: rounding.FewBits, known: rounding.Inputs | None = None
) -> torch.Tensor:
    """The matrix as the program reads it."""
    numbers, scales = rounding.rounded(matrix, kind, known)
    return dequantize(numbers, scales, torch.float32, CACHE_FORMATS[kind], matrix.shape[1])


def plain(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix as cached rows in int4 are rounded."""
    numbers, scales = quantize(matrix[None, None], CACHE_FORMATS["int4"])
    found = dequantize(numbers, scales, torch.float32, CACHE_FORMATS["int4"], matrix.shape[1])
    return found[0, 0]


@torch.inference_mode()
def loss(network: Decoder, windows: torch.Tensor) -> float:
    """The mean cross-entropy of the next token, in nats."""
    found = [cross_entropy(network(each[None])[0, :-1], each[1:]).item() for each in windows]
    return fmean(found)


def products(rows: int, isa: str | None) -> dict[str, float]:
    """The seconds of one product of each kind."""
    weight, x = torch.randn(OUTPUTS, INPUTS), torch.randn(rows, INPUTS)
    numbers, scales = rounding.rounded(weight, "int8")
    packed, groups = rounding.rounded(weight, "int4")
    calls = {
        "fp32": (weight, x, None),
        "bf16": (weight.bfloat16(), x.bfloat16(), None),
        "int8": (numbers, x, scales),
        "int4": (packed, x, groups),
    }
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for kind, (matrix, row, each_scale) in calls.items():
            out = torch.empty(rows, OUTPUTS, dtype=row.dtype)
            before = time.thread_time()
            native.linear(
                kind,
                matrix.data_ptr(),
                None,
                row.data_ptr(),
                out.data_ptr(),
                rows=rows,
                inputs=INPUTS,
                outputs=OUTPUTS,
                scales=None if each_scale is None else each_scale.data_ptr(),
                isa=isa,
            )
            least[kind] = min(least[kind], time.thread_time() - before)
    return least


if __name__ == "__main__":
    main()
