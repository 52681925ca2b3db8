"""Timed workloads: decoding, prefill and a forward pass, without gradients.

Weights and cache are entirely in the dtype of the precision, as in serving. Everything is compiled
when a workload is built, so that no step includes compiling.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from qkvbench.backends import Kind, Workload
from qkvbench.backends.common.bench import check_context, no_cache_error, random_inputs
from qkvbench.backends.jax.attention.linear_attention import MEMORY
from qkvbench.backends.jax.bench.profile import attention_kernel
from qkvbench.backends.jax.cache.kv_cache import Cache
from qkvbench.backends.jax.models.build import Network, build
from qkvbench.backends.jax.models.decoder import Decoder
from qkvbench.backends.jax.models.weights import Weights, start
from qkvbench.backends.jax.training.compilation import Compiled
from qkvbench.backends.jax.training.learner import Learner
from qkvbench.backends.jax.training.precision import COMPUTE_DTYPE
from qkvbench.cost import CacheDtype
from qkvbench.data.batch import Batch
from qkvbench.experiment import Experiment, Precision, Training
from qkvbench.model import PRESETS, Model
from qkvbench.task_ref import TaskRef


class Decoding:
    """One decode step over `context` cached tokens of `batch` sequences.

    The cache is filled with random roots, so no prefill is needed.
    """

    def __init__(self, model: Model, precision: Precision, *, context: int, batch: int) -> None:
        """The decoder and its filled cache."""
        network, self.weights = _decoder(model, precision)
        self.context = context
        self.tokens = batch
        empty = network.new_cache(self.weights, batch, context + 1)
        self.cache = empty.filled_randomly(context, seed=0)
        self.cache_bytes = self.cache.bytes
        self.last = jnp.zeros(batch, jnp.int32)

        def decode(weights: Weights, last: Array, cache: Cache) -> tuple[Array, Cache]:
            logits, after = network.step(weights, last, cache)
            # The count is rolled back: the next step overwrites the row. A state is as before.
            layers = tuple(
                replace(now, rows=before.rows) if MEMORY in now.rows else now
                for now, before in zip(after.layers, cache.layers, strict=True)
            )
            return logits.argmax(-1), Cache(layers, cache.count, cache.capacity)

        self._decode = Compiled(decode, donated=(2,))
        self._program = self._decode.compile(self.weights, self.last, self.cache).as_text()

    def step(self) -> None:
        """Decode one token of each sequence, wait for the result, and roll the cache back."""
        tokens, self.cache = self._decode(self.weights, self.last, self.cache)
        tokens.block_until_ready()

    def move(self) -> None:
        """Move weights and cache to other memory."""
        self.weights, self.cache = _moved((self.weights, self.cache))

    def kernel(self) -> str:
        """The kernels that compute attention in a step."""
        return attention_kernel(self._program)


class Prefill:
    """Prefill: prompts of `context` tokens of `batch` sequences into an empty cache."""

    def __init__(self, model: Model, precision: Precision, *, context: int, batch: int) -> None:
        """The decoder, its empty cache and the prompts."""
        network, self.weights = _decoder(model, precision)
        self.tokens = batch * context
        self.cache = network.new_cache(self.weights, batch, context)
        self.cache_bytes = self.cache.bytes
        self.prompts = _inputs(model, precision, batch, context)

        def prefill(weights: Weights, prompts: Array, cache: Cache) -> tuple[Array, Cache]:
            logits, filled = network.prefill(weights, prompts, cache)
            return logits.argmax(-1), Cache(filled.layers, cache.count, cache.capacity)

        self._prefill = Compiled(prefill, donated=(2,))
        self._program = self._prefill.compile(self.weights, self.prompts, self.cache).as_text()

    def step(self) -> None:
        """Read the prompts, wait for the logits after their last tokens, clear the cache."""
        tokens, self.cache = self._prefill(self.weights, self.prompts, self.cache)
        tokens.block_until_ready()

    def move(self) -> None:
        """Move weights and cache to other memory."""
        self.weights, self.cache = _moved((self.weights, self.cache))

    def kernel(self) -> str:
        """The kernels that compute attention in a step."""
        return attention_kernel(self._program)


class Forward:
    """One pass over `batch` whole sequences of `context` inputs, with all logits."""

    cache_bytes = None

    def __init__(self, model: Model, precision: Precision, *, context: int, batch: int) -> None:
        """The network and the sequences."""
        check_context(model, context)
        network, self.weights = _network(model, precision)
        self.tokens = batch * context
        self.inputs = _inputs(model, precision, batch, context)

        def forward(weights: Weights, inputs: Array) -> tuple[Array, Array]:
            logits = network.head(weights, network.hidden(weights, inputs))
            return logits, logits[:, -1].argmax(-1)

        self._forward = Compiled(forward)
        self._program = self._forward.compile(self.weights, self.inputs).as_text()

    def step(self) -> None:
        """Compute the logits at every position, and wait for them."""
        jax.block_until_ready(self._forward(self.weights, self.inputs))

    def move(self) -> None:
        """Move weights and cache to other memory."""
        self.weights = _moved(self.weights)

    def kernel(self) -> str:
        """The kernels that compute attention in a step."""
        return attention_kernel(self._program)


def workload(
    kind: Kind,
    model: Model,
    precision: Precision,
    *,
    context: int,
    batch: int,
    rows: CacheDtype | None = None,
) -> Workload:
    """A workload; ValueError if the context is too long, TypeError if the model has no cache.

    Cached rows are in the compute dtype: ValueError if `rows` is another.
    """
    if rows is not None and rows != precision:
        raise ValueError(
            f"JAX caches rows in the compute dtype, here {precision}, and not in {rows}; "
            "leave out --cache."
        )
    match kind:
        case "decode":
            return Decoding(model, precision, context=context, batch=batch)
        case "prefill":
            return Prefill(model, precision, context=context, batch=batch)
        case "forward":
            return Forward(model, precision, context=context, batch=batch)


def attention_kernels(precision: Precision) -> dict[str, str]:
    """The kernels that compute attention in training and decoding of a small model."""
    model = PRESETS["small-decoder"]()
    training = Training(steps=1, batch=2, learning_rate=1e-3, warmup=0)
    learner = Learner(Experiment(model, TaskRef("none"), 0, training, seed=0, precision=precision))
    tokens = np.zeros((2, 64), np.int64)
    return {
        "training": attention_kernel(learner.program(Batch(tokens, tokens))),
        "decoding": Decoding(model, precision, context=64, batch=2).kernel(),
    }


def _network(model: Model, precision: Precision) -> tuple[Network, Weights]:
    network, dtype = build(model), COMPUTE_DTYPE[precision]
    weights = start(network.parameters, model, seed=0)
    return network, {name: value.astype(dtype) for name, value in weights.items()}


def _decoder(model: Model, precision: Precision) -> tuple[Decoder, Weights]:
    network, weights = _network(model, precision)
    if not isinstance(network, Decoder):
        raise no_cache_error(model)
    return network, weights


def _inputs(
    model: Model, precision: Precision, batch: int, time: int
) -> Int[Array, "batch time"] | Float[Array, "batch time features"]:
    inputs = random_inputs(model, batch, time)
    dtype = COMPUTE_DTYPE[precision] if np.issubdtype(inputs.dtype, np.floating) else jnp.int32
    return jnp.asarray(inputs, dtype)


def _moved(arrays: Any) -> Any:
    return jax.tree.map(lambda each: each.copy(), arrays)
