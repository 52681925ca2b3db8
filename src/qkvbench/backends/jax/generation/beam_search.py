"""Beam search: the likeliest text that a decoder would write, over one cache."""

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
from qkvbench.backends.jax.training.precision import as_computed
from qkvbench.data.batch import Search, Sequences
from qkvbench.experiment import Precision


class Beams(NamedTuple):
    """A search on its way: arrays by item, and by beam.

    ``likely`` is log P of what each beam has written; of a place without a beam it is -inf.
    ``best`` is the score of the best text that has ended, ``found`` that text, ``written`` its
    length without its end. ``left`` is how many beams have not ended.
    """

    cache: Cache
    logits: Float[Array, "sequences vocabulary"]
    likely: Float[Array, "items beams"]
    left: Int[Array, "items one"]
    texts: Int[Array, "items beams longest"]
    best: Float[Array, " items"]
    found: Int[Array, "items longest"]
    written: Int[Array, " items"]


class Searched:
    """What a network writes from a source; compiled once for each kind of batch and search."""

    def __init__(
        self, network: Network, precision: Precision, compiled: Callable[..., Compiled]
    ) -> None:
        """Searches with this network, whose weights are given each time."""
        self.compiled = compiled
        self.network = network
        self.precision: Precision = precision
        self._begun: dict[Search, Compiled] = {}
        self._gone_on: dict[Search, Compiled] = {}

    @property
    def seconds(self) -> float:
        """What compiling has taken so far."""
        return sum(each.seconds for each in (*self._begun.values(), *self._gone_on.values()))

    def __call__(
        self, weights: Weights, second: Sequences | None, search: Search
    ) -> list[Int[np.ndarray, " _tokens"]]:
        """For each source the text that scores best, without its end.

        TypeError where the network reads no source.
        """
        network = self.network
        if not isinstance(network, Decoder) or network.source is None or second is None:
            raise TypeError("Only a decoder that reads a source writes texts, and only from one.")
        if search not in self._begun:
            begun = partial(_begun, network, self.precision, search)
            gone_on = partial(_gone_on, network, self.precision, search)
            self._begun[search] = self.compiled(begun)
            self._gone_on[search] = self.compiled(gone_on, reused=(1,))
        inputs = second.inputs.astype(np.int32 if second.inputs.ndim == 2 else np.float32)
        lengths = None if second.lengths is None else second.lengths.astype(np.int32)
        beams = self._begun[search](weights, inputs, lengths)
        for time in range(1, search.longest + 1):
            beams, ended = self._gone_on[search](weights, beams, np.int32(time))
            if ended:
                break
        texts, written = np.array(beams.found), np.asarray(beams.written)
        return [text[:tokens] for text, tokens in zip(texts, written.tolist(), strict=True)]


def _begun(
    network: Decoder,
    precision: Precision,
    search: Search,
    weights: Weights,
    inputs: Array,
    lengths: Array | None,
) -> Beams:
    """All beams of an item look up the same rows of its source."""
    weights = as_computed(weights, precision)
    items, beams = len(inputs), search.beams
    cache = network.new_cache(weights, items, search.longest)
    cache = network.read_source(weights, inputs, lengths, cache)
    logits, cache = network.step(weights, jnp.full(items, search.begin), cache)
    texts = jnp.zeros((items, beams, search.longest), jnp.int32)
    return Beams(
        cache=cache.follow(jnp.repeat(jnp.arange(items), beams)),
        logits=jnp.repeat(logits, beams, axis=0),
        likely=jnp.full((items, beams), -jnp.inf).at[:, 0].set(0),
        left=jnp.full((items, 1), beams),
        texts=texts,
        best=jnp.full(items, -jnp.inf),
        found=texts[:, 0],
        written=jnp.zeros(items, jnp.int32),
    )


def _gone_on(
    network: Decoder,
    precision: Precision,
    search: Search,
    weights: Weights,
    at: Beams,
    time: Int[Array, ""],
) -> tuple[Beams, Bool[Array, ""]]:
    """The search with token number `time` of each beam, and whether it has ended."""
    weights = as_computed(weights, precision)
    items, beams = at.likely.shape
    own = jnp.broadcast_to(jnp.arange(beams), (items, beams))
    every = jnp.arange(items)
    steps = at.logits.astype(jnp.float32).reshape(items, beams, -1)
    totals = at.likely[:, :, None] + jax.nn.log_softmax(steps, axis=-1)
    likely, places = jax.lax.top_k(totals.reshape(items, -1), beams)
    likely = jnp.where(own >= at.left, -jnp.inf, likely)
    parents = jnp.where(likely > -jnp.inf, places // steps.shape[-1], own)
    tokens = places % steps.shape[-1]
    texts = jnp.take_along_axis(at.texts, parents[:, :, None], axis=1)
    texts = texts.at[:, :, time - 1].set(tokens)

    stopped = tokens == search.end
    ended = (likely > -jnp.inf) & (stopped | (time == search.longest))
    scores = jnp.where(ended, likely, -jnp.inf) / _length_penalty(time, search)
    which = scores.argmax(1)
    score = scores[every, which]
    better = score > at.best
    found = jnp.where(better[:, None], texts[every, which], at.found)
    written = jnp.where(better, time - stopped[every, which], at.written)
    best = jnp.maximum(at.best, score)

    left = at.left - ended.sum(1, keepdims=True)
    # log P only falls, so no beam can come to score more than this.
    bound = likely / _length_penalty(search.longest, search)
    likely = jnp.where(ended | (bound <= best[:, None]), -jnp.inf, likely)
    cache = at.cache.follow((every[:, None] * beams + parents).ravel())
    logits, cache = network.step(weights, tokens.ravel(), cache)
    went = Beams(cache, logits, likely, left, texts, best, found, written)
    return went, jnp.isneginf(likely).all()


def _length_penalty(tokens: Int[Array, ""] | int, search: Search) -> Float[Array, ""] | float:
    """What log P is divided by. arXiv:1609.08144, eq. 14."""
    return ((5 + tokens) / 6) ** search.penalty
