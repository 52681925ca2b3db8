"""Beam search: the most probable text that a decoder finds with a few beams over one cache.

Axes: items are sources, beams the candidates of an item; sequences = items · beams.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from qkvbench.backends.jax.cache.kv_cache import Cache
from qkvbench.backends.jax.models.build import Network
from qkvbench.backends.jax.models.decoder import Decoder
from qkvbench.backends.jax.models.weights import Weights
from qkvbench.backends.jax.training.compilation import Compiled
from qkvbench.backends.jax.training.precision import compute_weights
from qkvbench.data.batch import Search, Sequences
from qkvbench.experiment import Precision


class Beams(NamedTuple):
    """The state of a search.

    ``log_probs`` is log P of the text of each beam; -inf for one that has ended or been dropped.
    ``live`` is the number of beams that have not ended. ``best_text`` is the best text that has
    ended, ``best_length`` its length without the end token, ``best_score`` its score.
    """

    cache: Cache
    logits: Float[Array, "sequences vocabulary"]
    log_probs: Float[Array, "items beams"]
    live: Int[Array, "items one"]
    texts: Int[Array, "items beams longest"]
    best_score: Float[Array, " items"]
    best_text: Int[Array, "items longest"]
    best_length: Int[Array, " items"]


class BeamSearch:
    """Beam search with one network; compiled once for each shape of a batch and each `Search`."""

    def __init__(
        self, network: Network, precision: Precision, compiled: Callable[..., Compiled]
    ) -> None:
        """The network without its weights; `compiled` compiles a function of arrays."""
        self.compiled = compiled
        self.network = network
        self.precision: Precision = precision
        self._init: dict[Search, Compiled] = {}
        self._step: dict[Search, Compiled] = {}

    @property
    def seconds(self) -> float:
        """Seconds spent compiling so far."""
        return sum(each.seconds for each in (*self._init.values(), *self._step.values()))

    def __call__(
        self, weights: Weights, second: Sequences | None, search: Search
    ) -> list[Int[np.ndarray, " _tokens"]]:
        """The best text for each source, without its end token.

        TypeError if the network reads no source.
        """
        network = self.network
        if not isinstance(network, Decoder) or network.source is None or second is None:
            raise TypeError("Only a decoder that reads a source writes texts, and only from one.")
        if search not in self._init:
            init = partial(init_beams, network, self.precision, search)
            step = partial(beam_step, network, self.precision, search)
            self._init[search] = self.compiled(init)
            self._step[search] = self.compiled(step, donated=(1,))
        inputs = second.inputs.astype(np.int32 if second.inputs.ndim == 2 else np.float32)
        lengths = None if second.lengths is None else second.lengths.astype(np.int32)
        beams = self._init[search](weights, inputs, lengths)
        for time in range(1, search.longest + 1):
            beams, ended = self._step[search](weights, beams, np.int32(time))
            if ended:
                break
        texts, lengths = np.array(beams.best_text), np.asarray(beams.best_length)
        return [text[:tokens] for text, tokens in zip(texts, lengths.tolist(), strict=True)]


def init_beams(
    network: Decoder,
    precision: Precision,
    search: Search,
    weights: Weights,
    inputs: Array,
    lengths: Array | None,
) -> Beams:
    """The state before the first token: one beam for each item, the others empty."""
    weights = compute_weights(weights, network.parameters, precision)
    items, beams = len(inputs), search.beams
    cache = network.new_cache(weights, items, search.longest)
    # All beams of an item attend to the same cached rows of its source.
    cache = network.read_source(weights, inputs, lengths, cache)
    logits, cache = network.step(weights, jnp.full(items, search.begin), cache)
    texts = jnp.zeros((items, beams, search.longest), jnp.int32)
    return Beams(
        cache=cache.reorder(jnp.repeat(jnp.arange(items), beams)),
        logits=jnp.repeat(logits, beams, axis=0),  # (sequences, vocabulary)
        log_probs=jnp.full((items, beams), -jnp.inf).at[:, 0].set(0),
        live=jnp.full((items, 1), beams),
        texts=texts,
        best_score=jnp.full(items, -jnp.inf),
        best_text=texts[:, 0],
        best_length=jnp.zeros(items, jnp.int32),
    )


def beam_step(
    network: Decoder,
    precision: Precision,
    search: Search,
    weights: Weights,
    state: Beams,
    time: Int[Array, ""],
) -> tuple[Beams, Bool[Array, ""]]:
    """The state after token number `time` of each beam, and whether the search has ended."""
    weights = compute_weights(weights, network.parameters, precision)
    items, beams = state.log_probs.shape
    beam = jnp.broadcast_to(jnp.arange(beams), (items, beams))
    item = jnp.arange(items)
    steps = state.logits.astype(jnp.float32).reshape(items, beams, -1)  # (items, beams, vocabulary)
    totals = state.log_probs[:, :, None] + jax.nn.log_softmax(steps, axis=-1)
    log_probs, top = jax.lax.top_k(totals.reshape(items, -1), beams)  # (items, beams)
    log_probs = jnp.where(beam >= state.live, -jnp.inf, log_probs)
    parents = jnp.where(log_probs > -jnp.inf, top // steps.shape[-1], beam)
    tokens = top % steps.shape[-1]
    texts = jnp.take_along_axis(state.texts, parents[:, :, None], axis=1)
    texts = texts.at[:, :, time - 1].set(tokens)

    stopped = tokens == search.end
    ended = (log_probs > -jnp.inf) & (stopped | (time == search.longest))
    scores = jnp.where(ended, log_probs, -jnp.inf) / _length_penalty(time, search)
    winner = scores.argmax(1)  # (items,)
    score = scores[item, winner]
    better = score > state.best_score
    best_text = jnp.where(better[:, None], texts[item, winner], state.best_text)
    best_length = jnp.where(better, time - stopped[item, winner], state.best_length)
    best_score = jnp.maximum(state.best_score, score)

    live = state.live - ended.sum(1, keepdims=True)
    # log P only falls, so this is an upper bound of the score a beam can still reach.
    bound = log_probs / _length_penalty(search.longest, search)
    log_probs = jnp.where(ended | (bound <= best_score[:, None]), -jnp.inf, log_probs)
    cache = state.cache.reorder((item[:, None] * beams + parents).ravel())
    logits, cache = network.step(weights, tokens.ravel(), cache)
    after = Beams(cache, logits, log_probs, live, texts, best_score, best_text, best_length)
    return after, jnp.isneginf(log_probs).all()


def _length_penalty(tokens: Int[Array, ""] | int, search: Search) -> Float[Array, ""] | float:
    """The divisor of log P. arXiv:1609.08144, eq. 14."""
    return ((5 + tokens) / 6) ** search.penalty
