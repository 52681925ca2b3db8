"""What matrices in int8 and int4 gain and cost: products of few rows, and the loss of SmolLM2-135M.

Run     ./qkv setup hf, then .venv/bin/python benchmarks/few_bit_weights.py
Size    one and eight rows times 49,152 x 576; four windows of 512 tokens of each text
Takes   about three minutes on an idle core

Products are of one thread, in turn, the least of its processor times. A matrix is rounded as in the
file of the program without Python: row by row, each with a scale in fp32, or in int4 with one for
32 numbers.
"""

import time
from statistics import fmean

import torch
import transformers
from torch.nn.functional import cross_entropy
from tying import texts

from qkvbench import native
from qkvbench.backends.torch import Decoder, named_weights
from qkvbench.backends.torch.cache.quantize import dequantize
from qkvbench.cost import CACHE_FORMATS
from qkvbench.export import checkpoint, edge
from qkvbench.hub.fit.source import packaged_folder

MODEL, INPUTS, OUTPUTS, ROUNDS = "smollm2-135m", 576, 49_152, 12
WINDOWS, WINDOW = 4, 512
# Of a number, with its part of a scale.
BYTES = {"fp32": 4, "bf16": 2, "int8": 1, "int4": 5 / 8}


def main() -> None:
    """Print both."""
    torch.set_num_threads(1)
    for rows in (1, 8):
        for kind, seconds in products(rows).items():
            size = OUTPUTS * INPUTS * BYTES[kind]
            print(f"{rows} rows, {kind}: {1e3 * seconds:.2f} ms, {size / seconds / 1e9:.1f} GB/s")
    folder = packaged_folder(MODEL)
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
    matrices = [weight for weight in named_weights(network).values() if weight.dim() == 2]
    kept = [weight.detach().clone() for weight in matrices]
    for kind in ("int8", "int4"):
        with torch.no_grad():
            for weight, own in zip(matrices, kept, strict=True):
                weight.copy_(rounded(own, kind))
        for name, each in windows.items():
            print(f"{name}: {before[name]:.4f} nats in fp32, {loss(network, each):.4f} in {kind}")


def rounded(matrix: torch.Tensor, kind: edge.FewBits) -> torch.Tensor:
    """The matrix as the program reads it."""
    numbers, scales = edge.in_few_bits(matrix, kind)
    return dequantize(numbers, scales, torch.float32, CACHE_FORMATS[kind], matrix.shape[1])


@torch.inference_mode()
def loss(network: Decoder, windows: torch.Tensor) -> float:
    """The mean cross-entropy of the next token, in nats."""
    found = [cross_entropy(network(each[None])[0, :-1], each[1:]).item() for each in windows]
    return fmean(found)


def products(rows: int) -> dict[str, float]:
    """The seconds of one product of each kind."""
    weight, x = torch.randn(OUTPUTS, INPUTS), torch.randn(rows, INPUTS)
    numbers, scales = edge.in_few_bits(weight, "int8")
    packed, groups = edge.in_few_bits(weight, "int4")
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
            )
            least[kind] = min(least[kind], time.thread_time() - before)
    return least


if __name__ == "__main__":
    main()
