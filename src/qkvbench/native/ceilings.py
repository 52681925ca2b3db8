"""The limits of this processor: how fast bytes are read, and how fast numbers are multiplied."""

import time
from collections.abc import Callable

import numpy as np

from qkvbench.native.library import library, select_isa, supported_isas

# Multiply-adds of one instruction of an ISA; then those of bf16, if they differ.
MULTIPLY_ADDS = {"avx512-bf16": 16, "avx512": 16, "avx2": 8, "portable": 4, "neon": 4}
BF16_MULTIPLY_ADDS = {"avx512-bf16": 32}
# Independent chains of instructions in one round of `multiply`.
CHAINS = 12
LINE_BYTES = 64


def add_up(data: np.ndarray, threads: int) -> None:
    """Read an array of numbers once and add them up, which memory alone limits."""
    number = supported_isas()[select_isa()]
    library().qkv_read(number, data.ctypes.data, data.nbytes // LINE_BYTES, threads)


def multiply(rounds: int) -> None:
    """`rounds` of CHAINS multiply-add instructions on registers, one thread."""
    library().qkv_multiply(supported_isas()[select_isa()], rounds)


def read_bytes_per_s(bytes_count: int, threads: int, seconds: float = 1.0) -> float:
    """The fastest of the reads of so many bytes that fit into `seconds`."""
    data = np.ones(bytes_count // 4, np.float32)
    return data.nbytes / _shortest_s(lambda: add_up(data, threads), seconds, threads)


def multiplied_flops_per_s(seconds: float = 0.3) -> float:
    """Operations per second of fp32 multiply-adds on registers, one thread."""
    rounds = 200_000
    lanes = MULTIPLY_ADDS[select_isa()]
    return 2 * rounds * CHAINS * lanes / _shortest_s(lambda: multiply(rounds), seconds)


def _shortest_s(call: Callable[[], None], seconds: float, threads: int = 1) -> float:
    # Processor time is the undisturbed time only if one thread does all the work.
    clock = time.process_time if threads == 1 else time.perf_counter
    call()
    times: list[float] = []
    while sum(times) < seconds:
        began = clock()
        call()
        times.append(clock() - began)
    return min(times)
