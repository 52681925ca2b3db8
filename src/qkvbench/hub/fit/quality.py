"""The quality of a model on text: loss, recall, similarity of embeddings; its cache and speed."""

import inspect
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

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
    return [float(_loss(_logits(model, one[None], cache)[0], one)) for one in text]


def loss(model: Any, text: Windows) -> float:
    """The mean loss in nats per token."""
    return statistics.fmean(losses(model, text))


def perplexity(nats: float) -> float:
    """The exponential of a loss."""
    return math.exp(min(nats, 700.0))


@torch.no_grad()
def recall(model: Any, tokenizer: Any, seed: int = 0, cache: NewCache | None = None) -> Recall:
    """Recall of random words; chance is one part in the number of words."""
    words, rng = _words(tokenizer), torch.Generator().manual_seed(seed)
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
    """The cache after these tokens, and the median time of one more, of so many."""
    output = model(input_ids=tokens[None], use_cache=True, **_argument(model, cache))
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


def _argument(model: Any, cache: NewCache | None) -> dict[str, Any]:
    """An empty cache as the model's argument, if there is one."""
    if cache is None:
        return {}
    parameters = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache()}


def _logits(model: Any, ids: Int[Tensor, "_batch _time"], cache: NewCache | None) -> Tensor:
    given = _argument(model, cache)
    return model(input_ids=ids, **(given | {"use_cache": True} if given else {})).logits


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:-1].float(), tokens[1:])


def _hits(
    model: Any, sequences: list[list[int]], places: Sequence[int] | range, cache: NewCache | None
) -> float:
    """The share of these places whose token has the highest logit before it."""
    ids = torch.tensor(sequences)
    guesses = _logits(model, ids, cache).argmax(-1)
    return statistics.fmean(float((guesses[:, n - 1] == ids[:, n]).float().mean()) for n in places)


def _words(tokenizer: Any, count: int = 512) -> list[int]:
    """The first tokens that are a blank and a word in lower case; any tokens if there are few."""
    word = re.compile(" [a-z]{4,8}")
    found = []
    for token in range(len(tokenizer)):
        if word.fullmatch(tokenizer.decode([token])):
            found.append(token)
        if len(found) == count:
            return found
    return found if len(found) >= 2 * COPIED else list(range(3, len(tokenizer)))
