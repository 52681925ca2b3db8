"""How a row of a head is stored in a cache: in a dtype of its own, or as integers with scales."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from qkvbench.cost import CACHE_FORMATS, CacheDtype, CacheFormat

# `_` is checked for nothing: cached tensors of one plan may differ in heads.
Heads = Float[Tensor, "_batch _heads _time head_dim"]

DTYPES: dict[CacheDtype, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    # Two numbers in each byte, the first in its low bits, as two's complement.
    "int4": torch.uint8,
}


def cache_format(dtype: torch.dtype) -> CacheFormat:
    """The format of rows of this dtype."""
    return next(CACHE_FORMATS[name] for name, each in DTYPES.items() if each == dtype)


def stored_shapes(format: CacheFormat, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The last axes of stored numbers and of scales, for rows of `width` numbers."""
    groups = (format.groups(width),) if format.group else ()
    return (-(-width * format.bits // 8) if format.bits < 8 else width,), groups


def quantize(rows: Heads, format: CacheFormat) -> tuple[Tensor, Tensor | None]:
    """The rows as they are stored, and the scale of each group (None if the format has none).

    Numbers that fp16 cannot hold become infinite, as everywhere in torch.
    """
    if not format.is_quantized:
        return rows.to(DTYPES[format.name]), None
    largest = 2 ** (format.bits - 1) - 1
    width = rows.shape[-1]
    # In fp32 at least: a scale of fp16 can be zero where its rows are not.
    grouped = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if format.group:
        # (..., width) -> (..., groups, group); the last group is filled up with zeros.
        missing = format.groups(width) * format.group - width
        grouped = functional.pad(grouped, (0, missing)).unflatten(-1, (-1, format.group))
    scales = (grouped.abs().amax(-1) / largest).float()
    # Any scale serves a group of zeros.
    steps = torch.where(scales > 0, scales, 1)[..., None]
    numbers = (grouped / steps).round().clamp(-largest, largest).to(torch.int8)
    return (pack_int4(numbers.flatten(-2)[..., :width]) if format.group else numbers), scales


def dequantize(
    rows: Tensor, scales: Tensor | None, dtype: torch.dtype, format: CacheFormat, width: int
) -> Heads:
    """The rows of `width` numbers in `dtype`; a copy only if they are stored otherwise."""
    if scales is None:
        return rows.to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    if format.group:
        rows = _unpack(rows)[..., :width]
        scales = scales.repeat_interleave(format.group, dim=-1)[..., :width]
    else:
        scales = scales[..., None]
    return (rows.to(exact) * scales.to(exact)).to(dtype)


def pack_int4(numbers: Tensor) -> Tensor:
    """Pairs of 4-bit numbers as bytes: (..., width) -> (..., ceil(width / 2))."""
    bits = functional.pad(numbers, (0, numbers.shape[-1] % 2)).to(torch.uint8) & 15
    return bits[..., ::2] | bits[..., 1::2] << 4


def _unpack(packed: Tensor) -> Tensor:
    """The 4-bit numbers of bytes, signed: (..., bytes) -> (..., 2 * bytes)."""
    bits = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).to(torch.int8)
    return (bits ^ 8) - 8
