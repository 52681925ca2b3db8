"""Autocast and loss scaling of a precision; `common.precision` says what runs in which dtype."""

from contextlib import AbstractContextManager, nullcontext

import torch

from qkvbench.backends.common.precision import DTYPE_NAMES, needs_loss_scaling
from qkvbench.experiment import Precision

COMPUTE_DTYPE: dict[Precision, torch.dtype] = {
    precision: getattr(torch, name) for precision, name in DTYPE_NAMES.items()
}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs at `precision`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, COMPUTE_DTYPE[precision])


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling in fp16; a no-op in other precisions.

    The scale begins at 2^16, is halved at an overflow, and doubled after 2000 steps without one
    (arXiv:1710.03740, section 3.2).
    """
    return torch.amp.GradScaler(device.type, enabled=needs_loss_scaling(precision))
