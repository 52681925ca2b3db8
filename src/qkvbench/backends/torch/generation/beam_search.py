"""Beam search: the most probable text that a decoder finds with a few beams over one cache.

Axes: items are sources or prompts, beams the candidates of an item; sequences = items · beams.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from qkvbench.backends.torch.cache.kv_cache import Cache
from qkvbench.backends.torch.cache.page_table import Growing
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.data.batch import Search

# Beams diverge every few tokens, and each time a page is copied: small pages copy less.
PAGED = Growing(16)


@dataclass(frozen=True)
class Beams:
    """Beam search with `beams` beams; texts are compared by log P / lp (see `Search`)."""

    beams: int = 4
    penalty: float = 0.6

    def __post_init__(self) -> None:
        """Refuse a search without a beam, and a penalty that is a reward."""
        if self.beams < 1 or self.penalty < 0:
            raise ValueError(
                f"A search needs 1 beam or more and a penalty of 0 or more; here are {self.beams} "
                f"and {self.penalty:g}."
            )


def beam_search(
    network: Decoder,
    second: Num[Tensor, "items second_time *second_features"],
    second_lengths: Int[Tensor, " items"] | None,
    search: Search,
) -> list[Int[Tensor, " _tokens"]]:
    """The best text for each source, without its end token."""
    items = len(second)
    cache = network.new_cache(items, search.longest, PAGED)
    # All beams of an item attend to the same cached rows of its source.
    network.read_source(second, second_lengths, cache)
    begin = torch.full((items,), search.begin, device=second.device)
    beams = Beams(search.beams, search.penalty)
    logits = network.step(begin, cache)
    return top_continuations(
        network, logits, cache, beams, longest=search.longest, stop=[search.end]
    )


def top_continuations(
    network: Decoder,
    logits: Float[Tensor, "items vocabulary"],
    cache: Cache,
    search: Beams,
    *,
    longest: int,
    stop: Sequence[int],
) -> list[Int[Tensor, " _tokens"]]:
    """The best continuation of each text in the cache, without its stop token.

    `logits` are those after the cached texts. A continuation ends with a token of `stop`, or after
    `longest` tokens. A beam that has ended is not replaced, so one beam is greedy decoding. Beams
    share the pages of their common prefix.
    """
    items, beams, device = len(logits), search.beams, logits.device
    item = torch.arange(items, device=device)
    beam = torch.arange(beams, device=device).expand(items, beams)
    cache.reorder(item.repeat_interleave(beams))
    logits = logits.repeat_interleave(beams, dim=0)  # (sequences, vocabulary)

    # log P of the text of each beam; -inf for a beam that has ended or been dropped.
    log_probs = torch.full((items, beams), -torch.inf, device=device)
    log_probs[:, 0] = 0
    live = torch.full((items, 1), beams, device=device)
    stops = torch.tensor(stop, dtype=torch.long, device=device)
    texts = torch.zeros((items, beams, longest), dtype=torch.long, device=device)
    best_score = torch.full((items,), -torch.inf, device=device)
    best_text, best_length = texts[:, 0], torch.zeros(items, dtype=torch.long, device=device)

    for time in range(1, longest + 1):
        steps = logits.float().view(items, beams, -1).log_softmax(-1)  # (items, beams, vocabulary)
        totals = log_probs[:, :, None] + steps
        log_probs, top = totals.flatten(1).topk(beams)  # (items, beams)
        log_probs = log_probs.masked_fill(beam >= live, -torch.inf)
        parents = torch.where(log_probs > -torch.inf, top // steps.shape[-1], beam)
        tokens = top % steps.shape[-1]
        texts = texts.gather(1, parents[:, :, None].expand_as(texts))
        texts[:, :, time - 1] = tokens

        stopped = torch.isin(tokens, stops)
        ended = (log_probs > -torch.inf) & (stopped | (time == longest))
        scores = log_probs.masked_fill(~ended, -torch.inf) / _length_penalty(time, search)
        score, winner = scores.max(1)  # (items,)
        better = score > best_score
        best_text = torch.where(better[:, None], texts[item, winner], best_text)
        best_length = torch.where(better, time - stopped[item, winner].long(), best_length)
        best_score = torch.maximum(best_score, score)

        live = live - ended.sum(1, keepdim=True)
        # log P only falls, so this is an upper bound of the score a beam can still reach.
        bound = log_probs / _length_penalty(longest, search)
        log_probs = log_probs.masked_fill(ended | (bound <= best_score[:, None]), -torch.inf)
        if log_probs.isneginf().all():
            break
        cache.reorder((item[:, None] * beams + parents).flatten())
        logits = network.step(tokens.flatten(), cache)
    return [text[:tokens] for text, tokens in zip(best_text, best_length.tolist(), strict=True)]


def _length_penalty(tokens: int, search: Beams) -> float:
    """The divisor of log P. arXiv:1609.08144, eq. 14."""
    return ((5 + tokens) / 6) ** search.penalty
