"""Parts of timed workloads that do not depend on a framework."""

import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Num

from qkvbench.model import Model, Tokens, Vectors


def random_inputs(model: Model, batch: int, time: int) -> Num[np.ndarray, "batch time *features"]:
    """Random inputs that the model can read: token ids, or vectors in fp32."""
    rng = np.random.default_rng(0)
    match model.inputs:
        case Tokens(vocabulary):
            return rng.integers(vocabulary, size=(batch, time))
        case Vectors(features):
            return rng.normal(size=(batch, time, features)).astype(np.float32)


def check_context(model: Model, context: int) -> None:
    """ValueError if the model reads fewer tokens."""
    if model.longest is not None and context > model.longest:
        raise ValueError(f"This model reads at most {model.longest} tokens, fewer than {context}.")


def no_cache_error(model: Model) -> TypeError:
    """The error for a model that is not a decoder."""
    return TypeError(f"{model.name} is no decoder: it has no cache to fill or to read.")


def best_seconds(function: Callable[[], object]) -> float:
    """The shortest of up to six calls in half a second; a call must wait for its result."""
    times: list[float] = []
    while len(times) < 6 and sum(times) < 0.5:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)
