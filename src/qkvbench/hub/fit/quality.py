"""The quality of a model on text: loss, recall, similarity of embeddings; its cache and speed."""

import inspect
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from qkvbench.hub.families import family_of
from qkvbench.hub.few_bits import FewBits, FewBitsCache
from qkvbench.hub.fit.roots import DEFAULT_ROWS

Windows = Int[Tensor, "_windows time"]

# An empty cache, if another than the library's is to be measured.
NewCache = Callable[[], Any]
# Sequences of a recall test, tokens to copy, and pairs to look up.
SEQUENCES, COPIED, PAIRS = 8, 24, 8


@dataclass(frozen=True)
class Recall:
    """Shares of tokens that are predicted rightly.

    ``copy``: of the second copy of random words. ``lookup``: of values whose keys were given with
    them before.
    """

    copy: float
    lookup: float


@dataclass(frozen=True)
class Decoding:
    """Live bytes of the cache after `context` tokens, and the median time of the next ones.

    The time is None if it was not measured.
    """

    context: int
    cache_bytes: int
    step_s: float | None


def windows(
    tokenizer: Any, text: str, length: int, count: int, skip: int = 0, name: str = "The text"
) -> Windows:
    """Windows of a text that follow each other, after `skip` tokens; ValueError if it is short."""
    # Enough text for the tokens: a token is rarely longer than 16 characters.
    wanted = skip + length * count
    ids = tokenizer(text[: 16 * wanted], verbose=False, add_special_tokens=False)["input_ids"]
    most = (len(ids) - skip) // length
    if most < 1:
        raise ValueError(
            f"{name} has {len(ids)} tokens; at least {skip + length} are needed.\n"
            "Give a longer text, or shorter windows with --window N."
        )
    taken = ids[skip : skip + length * min(most, count)]
    return torch.tensor(taken).view(-1, length)


@torch.no_grad()
def losses(
    model: Any, text: Iterable[Int[Tensor, " time"]], cache: NewCache | None = None
) -> list[float]:
    """The mean loss of each window, in nats per token."""
    return [float(cross_entropy(logits(model, one[None], cache)[0], one)) for one in text]


def loss(model: Any, text: Windows) -> float:
    """The mean loss in nats per token."""
    return statistics.fmean(losses(model, text))


def perplexity(nats: float) -> float:
    """The exponential of a loss."""
    return math.exp(min(nats, 700.0))


@torch.no_grad()
def recall(model: Any, tokenizer: Any, seed: int = 0, cache: NewCache | None = None) -> Recall:
    """Recall of random words; chance is one part in the number of words."""
    words = _words(tokenizer, model.get_input_embeddings().weight.shape[0])
    rng = torch.Generator().manual_seed(seed)
    newline, equals = (tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in "\n=")
    copies, lookups, places = [], [], []
    for _ in range(SEQUENCES):
        order = torch.randperm(len(words), generator=rng)[:COPIED]
        part = [words[place] for place in order]
        copies.append([*part, *newline, *part])
        order = torch.randperm(len(words), generator=rng)[: 2 * PAIRS]
        pairs = [(words[k], words[v]) for k, v in order.view(-1, 2)]
        again = [pairs[place] for place in torch.randperm(PAIRS, generator=rng)]
        tokens, places = [], []
        for key, value in [*pairs, *again]:
            tokens += [key, *equals, value, *newline]
            places.append(len(tokens) - len(newline) - 1)
        lookups.append(tokens)
    copied = _hits(model, copies, range(1 - COPIED, 0), cache)
    return Recall(copied, _hits(model, lookups, places[PAIRS:], cache))


@torch.no_grad()
def embeddings(
    model: Any, text: Iterable[Int[Tensor, " time"]]
) -> Float[Tensor, "windows d_model"]:
    """The mean of the last hidden states of each window, of length one."""
    body = model.base_model
    found = [body(input_ids=one[None]).last_hidden_state.mean(1) for one in text]
    return functional.normalize(torch.cat(found), dim=-1)


def similarity(one: Tensor, other: Tensor) -> float:
    """The mean cosine of the embeddings of the same windows by two models."""
    return float((one * other).sum(-1).mean())


@torch.no_grad()
def decoding(
    model: Any, tokens: Int[Tensor, " context"], steps: int, cache: NewCache | None = None
) -> Decoding:
    """The cache after these tokens, and the median time of one more, of so many.

    Tokens are left out at the end if the model has no positions for the steps.
    """
    if (most := positions(model.config)) is not None:
        tokens = tokens[: max(1, most - steps)]
    given = {} if cache is None else cache_argument(model, cache())
    output = model(input_ids=tokens[None], use_cache=True, **given)
    filled = output.get("cache") or output.past_key_values
    live = cache_bytes(filled)
    times = []
    next_one = output.logits[:, -1:].argmax(-1)
    for _ in range(steps):
        began = time.perf_counter()
        output = model(input_ids=next_one, **{cache_name(output): filled}, use_cache=True)
        next_one = output.logits[:, -1:].argmax(-1)
        times.append(time.perf_counter() - began)
    return Decoding(len(tokens), live, statistics.median(times) if times else None)


def positions(config: Any) -> int | None:
    """The length of a model's table of positions; None if it has none, or is not bounded."""
    return None if family_of(config).rotary else getattr(config, "max_position_embeddings", None)


def cache_of(model: Any, rows: str) -> NewCache | None:
    """A maker of empty caches of such rows; None if the library's own stores them."""
    return None if rows == DEFAULT_ROWS else partial(FewBitsCache, model, cast(FewBits, rows))


def cache_bytes(cache: Any) -> int:
    """Bytes of all storages of a cache, each counted once."""
    if (own := getattr(cache, "bytes", None)) is not None:
        return own
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    }
    return sum(storages.values())


def cache_name(output: Any) -> str:
    """The name of the cache in an output and among arguments: another before 5.24."""
    return "cache" if "cache" in output else "past_key_values"


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """A cache as an argument of the model's forward."""
    parameters = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache}


def logits(model: Any, ids: Int[Tensor, "_batch _time"], cache: NewCache | None) -> Tensor:
    """The predictions of a model, over an empty cache if one is given."""
    given = {} if cache is None else cache_argument(model, cache()) | {"use_cache": True}
    return model(input_ids=ids, **given).logits


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """The mean loss of one sequence, in nats per token."""
    return functional.cross_entropy(logits[:-1].float(), tokens[1:])


def _hits(
    model: Any, sequences: list[list[int]], places: Sequence[int] | range, cache: NewCache | None
) -> float:
    """The share of these places whose token has the highest logit before it."""
    ids = torch.tensor(sequences)
    guesses = logits(model, ids, cache).argmax(-1)
    return statistics.fmean(float((guesses[:, n - 1] == ids[:, n]).float().mean()) for n in places)


def _words(tokenizer: Any, most: int, count: int = 512) -> list[int]:
    """The first tokens, of so many, that are a blank and a word in lower case.

    Any tokens if there are few. A word is read behind another token, since decoders leave out the
    blank at the beginning of a text.
    """
    known = min(len(tokenizer), most)
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    start = tokenizer.decode([before])
    word = re.compile(re.escape(start) + " [a-z]{4,8}")
    found = []
    for token in range(known):
        if word.fullmatch(tokenizer.decode([before, token])):
            found.append(token)
        if len(found) == count:
            return found
    return found if len(found) >= 2 * COPIED else list(range(3, known))
