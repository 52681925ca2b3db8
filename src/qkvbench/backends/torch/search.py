"""Beam search: the likeliest text that a decoder with a source would write, over one cache."""

import torch
from jaxtyping import Int, Num
from torch import Tensor

from qkvbench.backends.torch.causal import Decoder
from qkvbench.data.batch import Search


def searched(
    network: Decoder,
    second: Num[Tensor, "items second_time *second_features"],
    second_lengths: Int[Tensor, " items"] | None,
    search: Search,
) -> list[Int[Tensor, " _tokens"]]:
    """For each source the text that scores best, without its end.

    A beam that has ended leaves its place empty, so one beam is greedy. All beams of an item look
    up the same rows of its source; their own rows are copied only where one follows another.
    """
    items, beams = len(second), search.beams
    cache = network.new_cache(items * beams, search.longest)
    network.read_source(second, second_lengths, cache)
    every = torch.arange(items, device=second.device)
    own = torch.arange(beams, device=second.device).expand(items, beams)

    # log P of what each beam has written; of a place without a beam it is -inf.
    likely = torch.full((items, beams), -torch.inf, device=second.device)
    likely[:, 0] = 0
    left = torch.full((items, 1), beams, device=second.device)
    tokens = torch.full((items, beams), search.begin, device=second.device)
    texts = torch.full((items, beams, search.longest), search.end, device=second.device)
    best = torch.full((items,), -torch.inf, device=second.device)
    found = texts[:, 0]

    for time in range(1, search.longest + 1):
        logits = network.step(tokens.flatten(), cache).float().view(items, beams, -1)
        totals = likely[:, :, None] + logits.log_softmax(-1)
        likely, places = totals.flatten(1).topk(beams)
        likely = likely.masked_fill(own >= left, -torch.inf)
        parents = torch.where(likely > -torch.inf, places // logits.shape[-1], own)
        tokens = places % logits.shape[-1]
        texts = texts.gather(1, parents[:, :, None].expand_as(texts))
        texts[:, :, time - 1] = tokens

        ended = (likely > -torch.inf) & ((tokens == search.end) | (time == search.longest))
        scores = likely.masked_fill(~ended, -torch.inf) / _length_penalty(time, search)
        score, which = scores.max(1)
        found = torch.where((score > best)[:, None], texts[every, which], found)
        best = torch.maximum(best, score)

        left = left - ended.sum(1, keepdim=True)
        # log P only falls, so no beam can come to score more than this.
        bound = likely / _length_penalty(search.longest, search)
        likely = likely.masked_fill(ended | (bound <= best[:, None]), -torch.inf)
        if likely.isneginf().all():
            break
        cache.follow((every[:, None] * beams + parents).flatten())
    return [text[: _written(text, search)] for text in found]


def _length_penalty(tokens: int, search: Search) -> float:
    """What log P is divided by. arXiv:1609.08144, eq. 14."""
    return ((5 + tokens) / 6) ** search.penalty


def _written(text: Int[Tensor, " longest"], search: Search) -> int:
    """How many tokens come before the first end."""
    ends = (text == search.end).nonzero()
    return int(ends[0]) if len(ends) else len(text)
