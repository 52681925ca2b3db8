"""How a row of a head is stored in a cache: in a dtype of its own, or as integers with scales."""

import torch
from jaxtyping import Float
from torch import Tensor

from qkvbench.cost import CACHE_FORMATS, CacheDtype, CacheFormat

# `_` is checked for nothing: cached tensors of one plan may differ in heads.
Heads = Float[Tensor, "_batch _heads _time head_dim"]

DTYPES: dict[CacheDtype, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
INT8_MAX = 127


def cache_format(dtype: torch.dtype) -> CacheFormat:
    """The format of rows of this dtype."""
    return next(CACHE_FORMATS[name] for name, each in DTYPES.items() if each == dtype)


def quantize(rows: Heads, format: CacheFormat) -> tuple[Tensor, Tensor | None]:
    """The rows as they are stored, and the scale of each (None if the format has none).

    Numbers that fp16 cannot hold become infinite, as everywhere in torch.
    """
    if not format.is_quantized:
        return rows.to(DTYPES[format.name]), None
    scales = (rows.abs().amax(-1) / INT8_MAX).float()
    # Any scale serves a row of zeros.
    steps = torch.where(scales > 0, scales, 1).to(rows.dtype)[..., None]
    numbers = (rows / steps).round().clamp(-INT8_MAX, INT8_MAX)
    return numbers.to(torch.int8), scales


def dequantize(rows: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Heads:
    """The rows in `dtype`, for computing; a copy only if they are stored otherwise."""
    if scales is None:
        return rows.to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    return (rows.to(exact) * scales.to(exact)[..., None]).to(dtype)
