"""How a row of a head is stored in a cache: in a type of its own, or as bytes with a scale."""

import torch
from jaxtyping import Float
from torch import Tensor

from qkvbench.cost import CACHE_FORMATS, CacheDtype, CacheFormat

# `_` is checked for nothing: kept tensors of one plan may differ in heads.
Heads = Float[Tensor, "_batch _heads _time head_dim"]

DTYPES: dict[CacheDtype, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
# The largest byte: the step of a row is its largest number over this.
INT8_MAX = 127


def cache_format(kind: torch.dtype) -> CacheFormat:
    """The row type of tensors of this type."""
    return next(CACHE_FORMATS[name] for name, each in DTYPES.items() if each == kind)


def rounding_error(kind: CacheFormat) -> float:
    """By what share of a row's largest number one of its numbers is off, at most."""
    return 0.5 / INT8_MAX if kind.scale_bytes else torch.finfo(DTYPES[kind.name]).eps / 2


def quantize(rows: Heads, kind: CacheFormat) -> tuple[Tensor, Tensor | None]:
    """The rows as they are stored, and the scale of each where there is one.

    Numbers that fp16 cannot hold become infinite, as everywhere in torch.
    """
    if not kind.scale_bytes:
        return rows.to(DTYPES[kind.name]), None
    scales = (rows.abs().amax(-1) / INT8_MAX).float()
    # A row of zeros has no step, and stays zero with any.
    steps = torch.where(scales > 0, scales, 1).to(rows.dtype)[..., None]
    numbers = (rows / steps).round().clamp(-INT8_MAX, INT8_MAX)
    return numbers.to(torch.int8), scales


def dequantize(rows: Tensor, scales: Tensor | None, kind: torch.dtype) -> Heads:
    """The rows to compute with, in the type `kind`; a copy only where they are stored otherwise."""
    if scales is None:
        return rows.to(kind)
    exact = torch.promote_types(kind, torch.float32)
    return (rows.to(exact) * scales.to(exact)[..., None]).to(kind)
