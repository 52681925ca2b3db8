"""A matrix times rows: few rows without a gradient by the native kernel, all else by torch.

A step of decoding multiplies every matrix with one row for each sequence, and waits for the weights
to come from memory; the kernel reads them as fast as they come.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.nn import functional

from qkvbench import native

# Bytes of weights below which asking for the kernel takes longer than it saves.
FEWEST = 2**17
# As it is called where operations are watched.
NAMED = "qkvbench::product"
KINDS: dict[torch.dtype, native.Kind] = {torch.float32: "fp32", torch.bfloat16: "bf16"}

Rows = Float[Tensor, "*places inputs"]
Made = Float[Tensor, "*places outputs"]


class Linear(nn.Linear):
    """Torch's layer, with `product` in it."""

    def forward(self, input: Rows) -> Made:
        """The same map at each place."""
        return product(input, self.weight, self.bias)


def product(
    x: Rows,
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Made:
    """Rows times the matrix, and the bias added."""
    if not _ours(x, weight, bias):
        return functional.linear(x, weight, bias)
    kind = KINDS[x.dtype]
    x = x.contiguous()
    outputs, inputs = weight.shape
    made = x.new_empty(*x.shape[:-1], outputs)
    with watched(f"{NAMED} ({kind} weights, {native.select_isa()})"):
        native.linear(
            kind,
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            x.data_ptr(),
            made.data_ptr(),
            rows=x.numel() // inputs,
            inputs=inputs,
            outputs=outputs,
            threads=torch.get_num_threads(),
        )
    return made


def watched(name: str) -> AbstractContextManager[object]:
    """A name for a profiler, where there is one: a kernel of ours is none of torch's operations."""
    # Torch's own way to ask, which has no stub; a name is wanted by a profiler alone.
    profiled = torch.autograd._profiler_enabled()  # pyright: ignore
    return record_function(name) if profiled else nullcontext()


def _ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel can do it, and nobody wants to see torch's operation."""
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and 0 < x.numel() <= native.MAX_ROWS * x.shape[-1]
        and x.dtype in KINDS
        and x.dtype == weight.dtype == (weight if bias is None else bias).dtype
        and weight.nbytes >= FEWEST
        and weight.is_contiguous()
        and not _seen_by_others(x, weight)
        and native.missing_requirement() is None
    )


def _seen_by_others(x: Tensor, weight: Tensor) -> bool:
    """Whether operations are traced, counted, transformed or made in another type: all by torch."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore
        or torch.is_autocast_enabled("cpu")
        # Modes that count or rewrite operations, and tensors that stand for others.
        or torch._C._len_torch_dispatch_stack() > 0  # pyright: ignore
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore
        or type(x) is not Tensor
        or type(weight) not in (Tensor, nn.Parameter)
    )
