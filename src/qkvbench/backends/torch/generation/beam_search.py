"""Beam search: the likeliest text that a decoder would write, over one cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from qkvbench.backends.torch.cache.kv_cache import Cache
from qkvbench.backends.torch.cache.page_table import Growing
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.data.batch import Search

# Beams part every few tokens, and a page is copied where they do: pages are small.
PAGED = Growing(16)


@dataclass(frozen=True)
class Beams:
    """The likeliest text that so many `beams` find; texts are compared by log P / lp (`Search`)."""

    beams: int = 4
    penalty: float = 0.6

    def __post_init__(self) -> None:
        """Refuse a search without a beam, and a penalty that is a reward."""
        if self.beams < 1 or self.penalty < 0:
            raise ValueError(
                f"A search needs 1 beam or more and a penalty of 0 or more; here are {self.beams} "
                f"and {self.penalty:g}."
            )


def searched(
    network: Decoder,
    second: Num[Tensor, "items second_time *second_features"],
    second_lengths: Int[Tensor, " items"] | None,
    search: Search,
) -> list[Int[Tensor, " _tokens"]]:
    """For each source the text that scores best, without its end.

    All beams of an item look up the same rows of its source.
    """
    items = len(second)
    cache = network.new_cache(items, search.longest, PAGED)
    network.read_source(second, second_lengths, cache)
    begin = torch.full((items,), search.begin, device=second.device)
    how = Beams(search.beams, search.penalty)
    logits = network.step(begin, cache)
    return likeliest(network, logits, cache, how, longest=search.longest, ends=[search.end])


def likeliest(
    network: Decoder,
    logits: Float[Tensor, "items vocabulary"],
    cache: Cache,
    how: Beams,
    *,
    longest: int,
    ends: Sequence[int],
) -> list[Int[Tensor, " _tokens"]]:
    """What best goes on after the texts in the cache, which `logits` follow: without its end.

    A text ends with any of `ends`, or after `longest` tokens. A beam that has ended leaves its
    place empty, so one beam is greedy. What beams have in common lies in the cache once.
    """
    items, beams, device = len(logits), how.beams, logits.device
    every = torch.arange(items, device=device)
    own = torch.arange(beams, device=device).expand(items, beams)
    cache.reorder(every.repeat_interleave(beams))
    logits = logits.repeat_interleave(beams, dim=0)

    # log P of what each beam has written; of a place without a beam it is -inf.
    likely = torch.full((items, beams), -torch.inf, device=device)
    likely[:, 0] = 0
    left = torch.full((items, 1), beams, device=device)
    stops = torch.tensor(ends, dtype=torch.long, device=device)
    texts = torch.zeros((items, beams, longest), dtype=torch.long, device=device)
    best = torch.full((items,), -torch.inf, device=device)
    found, written = texts[:, 0], torch.zeros(items, dtype=torch.long, device=device)

    for time in range(1, longest + 1):
        steps = logits.float().view(items, beams, -1).log_softmax(-1)
        totals = likely[:, :, None] + steps
        likely, places = totals.flatten(1).topk(beams)
        likely = likely.masked_fill(own >= left, -torch.inf)
        parents = torch.where(likely > -torch.inf, places // steps.shape[-1], own)
        tokens = places % steps.shape[-1]
        texts = texts.gather(1, parents[:, :, None].expand_as(texts))
        texts[:, :, time - 1] = tokens

        stopped = torch.isin(tokens, stops)
        ended = (likely > -torch.inf) & (stopped | (time == longest))
        scores = likely.masked_fill(~ended, -torch.inf) / _length_penalty(time, how)
        score, which = scores.max(1)
        better = score > best
        found = torch.where(better[:, None], texts[every, which], found)
        written = torch.where(better, time - stopped[every, which].long(), written)
        best = torch.maximum(best, score)

        left = left - ended.sum(1, keepdim=True)
        # log P only falls, so no beam can come to score more than this.
        bound = likely / _length_penalty(longest, how)
        likely = likely.masked_fill(ended | (bound <= best[:, None]), -torch.inf)
        if likely.isneginf().all():
            break
        cache.reorder((every[:, None] * beams + parents).flatten())
        logits = network.step(tokens.flatten(), cache)
    return [text[:tokens] for text, tokens in zip(found, written.tolist(), strict=True)]


def _length_penalty(tokens: int, how: Beams) -> float:
    """What log P is divided by. arXiv:1609.08144, eq. 14."""
    return ((5 + tokens) / 6) ** how.penalty
