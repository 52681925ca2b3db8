"""What runs in which type: a precision is one value, and this the only place that reads it."""

from contextlib import AbstractContextManager, nullcontext

import torch

from qkvbench.experiment import Precision

# Weights, optimizer state, softmax, loss and learned rotations stay in fp32; matrix products run
# in the type named here, by autocast.
PRODUCTS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs at `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRODUCTS[precision])
