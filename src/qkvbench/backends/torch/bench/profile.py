"""Which kernels compute attention: the operations of one step, from torch's profiler.

The kernel of `scaled_dot_product_attention` depends on device, dtype, shapes and masks, and torch
falls back to the math implementation silently. So a step is profiled instead of assumed.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler import profile

from qkvbench.backends.common.bench import best_seconds
from qkvbench.backends.torch.kernels import linear
from qkvbench.backends.torch.kernels.contract import PROFILER_NAME
from qkvbench.backends.torch.models.build import build
from qkvbench.backends.torch.models.weights import start
from qkvbench.backends.torch.training.device import device
from qkvbench.backends.torch.training.precision import COMPUTE_DTYPE, autocast
from qkvbench.experiment import Precision
from qkvbench.model import Model

FUSED = "aten::_scaled_dot_product_"
MATH_FALLBACK = "aten::_scaled_dot_product_attention_math"
# Attention's products are batched; other products between them compute additions to the scores.
BATCHED_PRODUCTS = ("aten::bmm", "aten::baddbmm")
SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")


@dataclass(frozen=True)
class Operation:
    """One operation of a step, with the shapes of its inputs and its own time."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    own_us: float


def attention_kernel(step: Callable[[], object]) -> str:
    """The operations that compute attention in one step, then our product kernel if it ran."""
    operations = profiled_operations(step)
    products = dict.fromkeys(each.name for each in operations if each.name.startswith(linear.NAMED))
    return ", ".join([attention_name(operations), *products])


def profiled_operations(step: Callable[[], object]) -> list[Operation]:
    """The operations of one step, in the order in which they began."""
    # Kineto would write its own log to the terminal.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    on_device = "cuda" if device().type == "cuda" else None
    # `torch.profiler` is built on this profiler, and would import a compiler first.
    profiler = profile(use_device=on_device, record_shapes=True)
    with profiler:
        step()
    events: list[Any] = list(profiler.function_events or ())
    return [
        Operation(
            event.name,
            tuple(tuple(shape) for shape in event.input_shapes or ()),
            event.self_cpu_time_total + event.self_device_time_total,
        )
        for event in sorted(events, key=lambda event: event.time_range.start)
    ]


def attention_name(operations: Iterable[Operation]) -> str:
    """The attention among these operations.

    Our own kernels by name; else each `aten::_scaled_dot_product_…` by name, with a remark if it is
    the math fallback; else the products around each softmax; else the slowest operation.
    """
    operations = list(operations)
    own = dict.fromkeys(each.name for each in operations if each.name.startswith(PROFILER_NAME))
    if own:
        return ", ".join(own)
    fused = dict.fromkeys(
        each.name
        for each in operations
        if each.name.startswith(FUSED) and not each.name.endswith("_backward")
    )
    if fused:
        return ", ".join(
            f"{name} (math fallback)" if name.startswith(MATH_FALLBACK) else name for name in fused
        )
    if any(each.name in SOFTMAX for each in operations):
        return _around_softmax(operations)
    times: dict[str, float] = defaultdict(float)
    for each in operations:
        times[each.name] += each.own_us
    most = max(times, key=lambda name: times[name], default=None)
    return f"no attention known by name; most time in {most}" if most else "nothing was seen"


def _around_softmax(operations: list[Operation]) -> str:
    """Matmul, softmax, matmul: their names, and whether RoPE was applied to cached keys."""
    indices = [index for index, each in enumerate(operations) if each.name in SOFTMAX]
    before, after = set[str](), set[str]()
    for index in indices:
        before |= set(_nearest(reversed(operations[:index])))
        after |= set(_nearest(operations[index + 1 :]))
    names = [*sorted(before), operations[indices[0]].name, *sorted(after)]
    score_shapes = operations[indices[0]].shapes[:1]
    many_queries = bool(score_shapes) and len(score_shapes[0]) > 1 and score_shapes[0][-2] > 1
    over = "by rows of queries" if many_queries else "over cached roots"
    text = f"matmul-softmax-matmul {over} ({', '.join(dict.fromkeys(names))})"
    if many_queries:
        return text
    # RoPE on (batch, heads, rows, half): one row is the new token's, more are the cache's.
    rotations = [
        each
        for each in operations
        if each.name == "aten::addcmul" and len(each.shapes[0]) == 4 and each.shapes[0][2] > 1
    ]
    if not rotations:
        return text
    tile = max(each.shapes[0][2] for each in rotations)
    return f"{text}, RoPE on K when it is read, {tile} rows at a time (aten::addcmul)"


def _nearest(operations: Iterable[Operation]) -> list[str]:
    """The first batched product among these, if there is one."""
    return next(([each.name] for each in operations if each.name in BATCHED_PRODUCTS), [])


def training_kernel(model: Model, precision: Precision, *, time: int) -> str:
    """The kernels that compute attention in a training step, forward and backward."""
    network = build(model).to(device())
    start(network, model, seed=0)
    tokens = torch.zeros(2, time, dtype=torch.long, device=device())

    def step() -> None:
        with autocast(precision, device()):
            loss = network(tokens).float().square().mean()
        loss.backward()

    return attention_kernel(step)


def matmul_seconds(precision: Precision, size: int) -> float:
    """Seconds of one product of two square matrices: the best of several."""
    rng = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(size, size, generator=rng).to(device(), COMPUTE_DTYPE[precision])
        for _ in range(2)
    )
    return best_seconds(lambda: (a @ b)[0, 0].item())


def threads() -> tuple[int, int]:
    """Threads within one operation, and operations that may run at a time."""
    return torch.get_num_threads(), torch.get_num_interop_threads()
