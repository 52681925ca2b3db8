"""Work to be timed: decoding, prefill and a forward pass, without a gradient.

Weights and cache are in the precision's own type throughout, as a served model's are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from qkvbench.backends import Kind, Workload
from qkvbench.backends.jax.bench.profile import attention_kernel
from qkvbench.backends.jax.cache.kv_cache import Cache
from qkvbench.backends.jax.models.build import Network, build
from qkvbench.backends.jax.models.decoder import Decoder
from qkvbench.backends.jax.models.weights import Weights, start
from qkvbench.backends.jax.training.compilation import Compiled
from qkvbench.backends.jax.training.learner import Learner
from qkvbench.backends.jax.training.precision import PRODUCTS
from qkvbench.cost import CacheDtype
from qkvbench.data.batch import Batch
from qkvbench.experiment import Experiment, Precision, Training
from qkvbench.model import PRESETS, Model, Tokens, Vectors
from qkvbench.task_ref import TaskRef


class Decoding:
    """One decode step over `context` cached tokens of `batch` sequences, again and again.

    The cache holds random roots, as if they had been read: no prefill is needed.
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

        def stepped(weights: Weights, last: Array, cache: Cache) -> tuple[Array, Cache]:
            logits, cache = network.step(weights, last, cache)
            # Forgotten again: the next step writes over the row.
            return logits.argmax(-1), Cache(cache.layers, cache.count - 1, cache.capacity)

        # Compiled where it is built: no step, not even the first, has to wait for that.
        self._stepped = Compiled(stepped, reused=(2,))
        self._program = self._stepped.made_for(self.weights, self.last, self.cache).as_text()

    def step(self) -> None:
        """Decode one token of each sequence, wait for the result, and forget it again."""
        found, self.cache = self._stepped(self.weights, self.last, self.cache)
        found.block_until_ready()

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        self.weights, self.cache = _elsewhere((self.weights, self.cache))

    def kernel(self) -> str:
        """What does attention in a step."""
        return attention_kernel(self._program)


class Prefill:
    """A prompt of `context` tokens of each of `batch` sequences into an empty cache."""

    def __init__(self, model: Model, precision: Precision, *, context: int, batch: int) -> None:
        """The decoder, its empty cache and the prompts."""
        network, self.weights = _decoder(model, precision)
        self.tokens = batch * context
        self.cache = network.new_cache(self.weights, batch, context)
        self.cache_bytes = self.cache.bytes
        self.prompts = _inputs(model, precision, batch, context)

        def read(weights: Weights, prompts: Array, cache: Cache) -> tuple[Array, Cache]:
            logits, filled = network.prefill(weights, prompts, cache)
            return logits.argmax(-1), Cache(filled.layers, cache.count, cache.capacity)

        self._read = Compiled(read, reused=(2,))
        self._program = self._read.made_for(self.weights, self.prompts, self.cache).as_text()

    def step(self) -> None:
        """Read the prompts, wait for the logits after their last tokens, empty the cache."""
        found, self.cache = self._read(self.weights, self.prompts, self.cache)
        found.block_until_ready()

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        self.weights, self.cache = _elsewhere((self.weights, self.cache))

    def kernel(self) -> str:
        """What does attention in a step."""
        return attention_kernel(self._program)


class Forward:
    """One pass over `batch` whole sequences of `context` inputs, with all logits."""

    cache_bytes = None

    def __init__(self, model: Model, precision: Precision, *, context: int, batch: int) -> None:
        """The network and the sequences."""
        if model.longest is not None and context > model.longest:
            raise ValueError(
                f"This model reads at most {model.longest} tokens, fewer than {context}."
            )
        network, self.weights = _network(model, precision)
        self.tokens = batch * context
        self.inputs = _inputs(model, precision, batch, context)

        def passed(weights: Weights, inputs: Array) -> tuple[Array, Array]:
            logits = network.head(weights, network.hidden(weights, inputs))
            return logits, logits[:, -1].argmax(-1)

        self._passed = Compiled(passed)
        self._program = self._passed.made_for(self.weights, self.inputs).as_text()

    def step(self) -> None:
        """Make the logits at every position, and wait for them."""
        jax.block_until_ready(self._passed(self.weights, self.inputs))

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        self.weights = _elsewhere(self.weights)

    def kernel(self) -> str:
        """What does attention in a step."""
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
    """Work of this kind; ValueError where the model reads less, TypeError where it has no cache.

    Cached rows are in the type of the products, so ValueError where they are to be in another.
    """
    if rows is not None and rows != precision:
        raise ValueError(
            f"JAX keeps cached rows in the type of its products, here {precision}, and not in "
            f"{rows}; leave out --cache."
        )
    match kind:
        case "decode":
            return Decoding(model, precision, context=context, batch=batch)
        case "prefill":
            return Prefill(model, precision, context=context, batch=batch)
        case "forward":
            return Forward(model, precision, context=context, batch=batch)


def attention_kernels(precision: Precision) -> dict[str, str]:
    """What does attention in training and in decoding of a small model at this precision."""
    model = PRESETS["small-decoder"]()
    training = Training(steps=1, batch=2, learning_rate=1e-3, warmup=0)
    learner = Learner(Experiment(model, TaskRef("none"), 0, training, seed=0, precision=precision))
    tokens = np.zeros((2, 64), np.int64)
    return {
        "training": attention_kernel(learner.program(Batch(tokens, tokens))),
        "decoding": Decoding(model, precision, context=64, batch=2).kernel(),
    }


def _network(model: Model, precision: Precision) -> tuple[Network, Weights]:
    network, kind = build(model), PRODUCTS[precision]
    weights = start(network.shapes(), model, seed=0)
    return network, {name: value.astype(kind) for name, value in weights.items()}


def _decoder(model: Model, precision: Precision) -> tuple[Decoder, Weights]:
    network, weights = _network(model, precision)
    if not isinstance(network, Decoder):
        raise TypeError(f"{model.name} is no decoder: it has no cache to fill or to read.")
    return network, weights


def _inputs(
    model: Model, precision: Precision, batch: int, time: int
) -> Int[Array, "batch time"] | Float[Array, "batch time features"]:
    """Random inputs of the kind that the model reads."""
    rng = np.random.default_rng(0)
    match model.inputs:
        case Tokens(vocabulary):
            return jnp.asarray(rng.integers(vocabulary, size=(batch, time)), jnp.int32)
        case Vectors(features):
            return jnp.asarray(rng.normal(size=(batch, time, features)), PRODUCTS[precision])


def _elsewhere(arrays: Any) -> Any:
    return jax.tree.map(lambda each: each.copy(), arrays)
