"""Matrix products: few rows without a gradient by the native kernel, everything else by torch.

A decode step multiplies each matrix by one row per sequence, and is limited by reading the weights
from memory; the native kernel reads them at full bandwidth.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.nn import functional

from qkvbench import native

# Below this size of a weight, calling the kernel takes longer than it saves.
MIN_WEIGHT_BYTES = 2**17
# The kernel's name in a profile.
NAMED = "qkvbench::product"
KINDS: dict[torch.dtype, native.Kind] = {torch.float32: "fp32", torch.bfloat16: "bf16"}

Rows = Float[Tensor, "*places inputs"]
Outputs = Float[Tensor, "*places outputs"]


class Linear(nn.Linear):
    """`nn.Linear`, computed by `product`."""

    def forward(self, input: Rows) -> Outputs:
        """The same map at each position."""
        return product(input, self.weight, self.bias)


def product(
    x: Rows,
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Outputs:
    """Rows times the transposed weight, plus the bias."""
    if not _kernel_applies(x, weight, bias):
        return functional.linear(x, weight, bias)
    kind = KINDS[x.dtype]
    x = x.contiguous()
    outputs, inputs = weight.shape
    out = x.new_empty(*x.shape[:-1], outputs)
    with profiler_range(f"{NAMED} ({kind} weights, {native.select_isa()})"):
        native.linear(
            kind,
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            x.data_ptr(),
            out.data_ptr(),
            rows=x.numel() // inputs,
            inputs=inputs,
            outputs=outputs,
            threads=torch.get_num_threads(),
        )
    return out


def profiler_range(name: str) -> AbstractContextManager[object]:
    """A named range in a profile; a no-op, and free, if no profiler is active."""
    # torch has no public way to ask this.
    profiled = torch.autograd._profiler_enabled()  # pyright: ignore
    return record_function(name) if profiled else nullcontext()


def _kernel_applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the native kernel can compute this product and pays."""
    return (
        not torch.is_grad_enabled()
        # First, since a program that is traced keeps every size that is compared below.
        and not _torch_must_compute(x, weight)
        and x.device.type == "cpu"
        and 0 < x.numel() <= native.MAX_ROWS * x.shape[-1]
        and x.dtype in KINDS
        and x.dtype == weight.dtype == (weight if bias is None else bias).dtype
        # The kernel trusts its sizes; torch refuses what does not fit.
        and x.shape[-1] == weight.shape[-1]
        and weight.device == x.device
        and (bias is None or (bias.is_contiguous() and len(bias) == len(weight)))
        and weight.nbytes >= MIN_WEIGHT_BYTES
        and weight.is_contiguous()
        and native.missing_requirement() is None
    )


def _torch_must_compute(x: Tensor, weight: Tensor) -> bool:
    """True if tracing, a dispatch mode, functorch or autocast is active, or for a subclass."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore
        or torch.is_autocast_enabled("cpu")
        # Modes that count or rewrite operations, such as FlopCounterMode.
        or torch._C._len_torch_dispatch_stack() > 0  # pyright: ignore
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore
        or type(x) is not Tensor
        or type(weight) not in (Tensor, nn.Parameter)
    )
