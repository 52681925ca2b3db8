"""What really computes attention here: one step under torch's profiler, and the names it saw.

Which kernel `scaled_dot_product_attention` takes depends on device, type, shapes and masks, and it
falls back to plain arithmetic without a word. So nothing is assumed: a step is watched.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.profiler import profile

from qkvbench.backends.torch.kernels import linear
from qkvbench.backends.torch.kernels.contract import PROFILER_NAME
from qkvbench.backends.torch.models.build import build
from qkvbench.backends.torch.models.weights import start
from qkvbench.backends.torch.training.learner import device
from qkvbench.backends.torch.training.precision import PRODUCTS, autocast
from qkvbench.experiment import Precision
from qkvbench.model import Model

FUSED = "aten::_scaled_dot_product_"
FALLBACK = "aten::_scaled_dot_product_attention_math"
# Attention's products are of a batch; others between them belong to what is added to scores.
PRODUCTS_OF_ROWS = ("aten::bmm", "aten::baddbmm")
SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")


@dataclass(frozen=True)
class Seen:
    """One operation of a step, with the shapes of what it read and the time it took itself."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    own_us: float


def attention_kernel(step: Callable[[], object]) -> str:
    """What did attention in one step: names of torch's operations, and what was done by them.

    Behind it the kernel that multiplied weights, where that was ours and not torch's.
    """
    seen = watched(step)
    products = dict.fromkeys(one.name for one in seen if one.name.startswith(linear.NAMED))
    return ", ".join([named(seen), *products])


def watched(step: Callable[[], object]) -> list[Seen]:
    """The operations of one step, in the order in which they began."""
    # Kineto has its own log, which tells a person nothing here.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    on_device = "cuda" if device().type == "cuda" else None
    # The profiler below `torch.profiler`, which would import a compiler first.
    profiled = profile(use_device=on_device, record_shapes=True)
    with profiled:
        step()
    found: list[Any] = list(profiled.function_events or ())
    events = sorted(found, key=lambda event: event.time_range.start)
    return [
        Seen(
            event.name,
            tuple(tuple(shape) for shape in event.input_shapes or ()),
            event.self_cpu_time_total + event.self_device_time_total,
        )
        for event in events
    ]


def named(seen: Iterable[Seen]) -> str:
    """What did attention among these operations.

    Every `aten::_scaled_dot_product_…` by its name, with a word where it is the fallback; else the
    products around each softmax; else the operation that took the most time.
    """
    operations = list(seen)
    own = dict.fromkeys(one.name for one in operations if one.name.startswith(PROFILER_NAME))
    if own:
        return ", ".join(own)
    fused = dict.fromkeys(
        one.name
        for one in operations
        if one.name.startswith(FUSED) and not one.name.endswith("_backward")
    )
    if fused:
        return ", ".join(
            f"{name} (math fallback)" if name.startswith(FALLBACK) else name for name in fused
        )
    if any(one.name in SOFTMAX for one in operations):
        return _around_softmax(operations)
    times: dict[str, float] = defaultdict(float)
    for one in operations:
        times[one.name] += one.own_us
    most = max(times, key=lambda name: times[name], default=None)
    return f"no attention known by name; most time in {most}" if most else "nothing was seen"


def _around_softmax(operations: list[Seen]) -> str:
    """Matmul, softmax, matmul: by which operations, and what was turned when it was read."""
    places = [index for index, one in enumerate(operations) if one.name in SOFTMAX]
    before, after = set[str](), set[str]()
    for place in places:
        before |= set(_nearest(reversed(operations[:place])))
        after |= set(_nearest(operations[place + 1 :]))
    names = [*sorted(before), operations[places[0]].name, *sorted(after)]
    scored = operations[places[0]].shapes[:1]
    whole = bool(scored) and len(scored[0]) > 1 and scored[0][-2] > 1
    over = "by rows of queries" if whole else "over kept roots"
    text = f"matmul-softmax-matmul {over} ({', '.join(dict.fromkeys(names))})"
    if whole:
        return text
    # A new token's own row is turned once; more than one row is the cache, turned to be read.
    turned = [
        one
        for one in operations
        if one.name == "aten::addcmul" and len(one.shapes[0]) == 4 and one.shapes[0][2] > 1
    ]
    if not turned:
        return text
    tile = max(one.shapes[0][2] for one in turned)
    return f"{text}, K turned when read, {tile} rows at a time (aten::addcmul)"


def _nearest(operations: Iterable[Seen]) -> list[str]:
    """The first product of rows among these, if there is one."""
    return next(([one.name] for one in operations if one.name in PRODUCTS_OF_ROWS), [])


def training_kernel(model: Model, precision: Precision, *, time: int) -> str:
    """What does attention in a training step of `model`, forward and backward."""
    network = build(model).to(device())
    start(network, model, seed=0)
    tokens = torch.zeros(2, time, dtype=torch.long, device=device())

    def step() -> None:
        with autocast(precision, device()):
            loss = network(tokens).float().square().mean()
        loss.backward()

    return attention_kernel(step)


def matmul_seconds(precision: Precision, size: int) -> float:
    """Seconds that one product of two square matrices takes: the best of five in half a second."""
    rng = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(size, size, generator=rng).to(device(), PRODUCTS[precision]) for _ in range(2)
    )
    times: list[float] = []
    while len(times) < 6 and sum(times) < 0.5:
        began = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - began)
    return min(times)


def threads() -> tuple[int, int]:
    """How many threads share one operation, and how many operations run at a time."""
    return torch.get_num_threads(), torch.get_num_interop_threads()
