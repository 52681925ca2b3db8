"""The cost of a model, computed: parameters, multiply-accumulates, cache bytes. Never observed."""

from qkvbench.cost.cache import (
    CACHE_DTYPES,
    CACHE_FORMATS,
    CacheDtype,
    CacheFormat,
    cache_bytes,
    cache_bytes_per_token,
    cache_tensors,
    cached_bytes,
    cached_values,
    held_rows,
    source_bytes_per_token,
    state_bytes,
)
from qkvbench.cost.memory import StepMemory, step_memory
from qkvbench.cost.operations import attention_macs, flops, macs, study_flops
from qkvbench.cost.parameters import Parameters, attention_parameters, parameters

__all__ = [
    "CACHE_DTYPES",
    "CACHE_FORMATS",
    "CacheDtype",
    "CacheFormat",
    "Parameters",
    "StepMemory",
    "attention_macs",
    "attention_parameters",
    "cache_bytes",
    "cache_bytes_per_token",
    "cache_tensors",
    "cached_bytes",
    "cached_values",
    "flops",
    "held_rows",
    "macs",
    "parameters",
    "source_bytes_per_token",
    "state_bytes",
    "step_memory",
    "study_flops",
]
