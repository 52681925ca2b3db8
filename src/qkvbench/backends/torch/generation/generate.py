"""Text generation: prefill the prompts at once, then decode one token at a time."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qkvbench.backends.torch.cache.kv_cache import Cache, free_bytes_of
from qkvbench.backends.torch.cache.page_table import Growing, Reserved, Storage
from qkvbench.backends.torch.cache.quantize import cache_format
from qkvbench.backends.torch.generation.beam_search import PAGED, Beams, top_continuations
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.cost import CACHE_FORMATS, CacheDtype, cache_bytes
from qkvbench.cost.units import bytes_text
from qkvbench.model.rng import generator


@dataclass(frozen=True)
class Greedy:
    """The most probable token at each step; the first of several."""


@dataclass(frozen=True)
class Sampling:
    """A token drawn at each step from softmax(logits / temperature), or from its top part.

    ``top_k`` keeps that many tokens, ``top_p`` the fewest whose probabilities sum to at least that
    (arXiv:1904.09751, section 3.1); with both, the tokens that both keep. Draws depend on the seed
    and on the number of the sequence, not on the rest of the batch.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that leave no token to draw."""
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"A temperature of {self.temperature:g} divides nothing; take a number above 0, or "
                "Greedy() for the most probable token each time."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} leaves no token; take 1 or more, or None.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is above 0 and at most 1, not {self.top_p:g}; None is all.")


Strategy = Greedy | Sampling | Beams


@torch.inference_mode()
def generate(
    network: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    strategy: Strategy = Greedy(),
    stop: Collection[int] = (),
    on_token: Callable[[int, int], None] | None = None,
    rows: CacheDtype | None = None,
    cache: Cache | None = None,
) -> list[list[int]]:
    """The continuation of each prompt: at most `tokens` tokens, up to the first one of `stop`.

    ``on_token`` is called with the number of the prompt and each new token; beam search cannot
    call it, because the best beam is known only at the end. ``rows`` is the dtype of cached rows;
    None is that of the weights. ``cache`` is an empty cache of this network, if the caller wants to
    inspect it afterwards. Dropout is off. ValueError or MemoryError, before anything is allocated,
    if the request cannot be met.
    """
    _check(network, prompts, tokens, stop)
    if isinstance(strategy, Beams) and on_token is not None:
        raise ValueError(
            "The best beam is known only at the end, so tokens cannot be streamed; leave out "
            "on_token, or take Greedy() or Sampling()."
        )
    reads = max(map(len, prompts)) + tokens - 1
    if cache is None:
        storage = _storage(network, strategy)
        _check_memory(network, reads, len(prompts), strategy, storage, rows)
        cache = network.new_cache(len(prompts), reads, storage, rows)
    else:
        _check_cache(network, cache, len(prompts), reads)
    trained = network.training
    network.eval()
    try:
        read, padding = _padded(prompts, network.embedding.table.device)
        logits = network.prefill(read, cache, padding)
        if isinstance(strategy, Beams):
            texts = top_continuations(
                network, logits, cache, strategy, longest=tokens, stop=sorted(stop)
            )
            return [text.tolist() for text in texts]
        return _decode(network, logits, cache, strategy, tokens, stop, on_token or _no_op)
    finally:
        network.train(trained)


def sample(
    logits: Float[Tensor, "batch vocabulary"], sampling: Sampling, uniform: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """Inverse-CDF sampling of one token per sequence by uniform numbers in [0, 1)."""
    # Below 0, so that no temperature makes one infinite.
    wide = logits.double()
    scores = (wide - wide.amax(-1, keepdim=True)) / sampling.temperature
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        scores[:, sampling.top_k :] = -torch.inf
    probs = scores.softmax(-1)  # (batch, vocabulary), in descending order
    if sampling.top_p is not None:
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= sampling.top_p, 0)
    cdf = probs.cumsum(-1)
    index = (cdf <= uniform[:, None] * cdf[:, -1:]).sum(-1)
    # The product may round up to the last value of the CDF.
    index = torch.minimum(index, (probs > 0).sum(-1) - 1)
    return order.gather(-1, index[:, None])[:, 0]


def _decode(
    network: Decoder,
    logits: Float[Tensor, "batch vocabulary"],
    cache: Cache,
    strategy: Greedy | Sampling,
    tokens: int,
    stop: Collection[int],
    on_token: Callable[[int, int], None],
) -> list[list[int]]:
    """The texts, each up to its first stop token; stopped sequences stay in the batch."""
    texts: list[list[int]] = [[] for _ in logits]
    running = set(range(len(texts)))
    choose = _chooser(strategy, len(texts), tokens, logits.device)
    for time in range(tokens):
        chosen = choose(logits, time)
        for sequence, token in enumerate(chosen.tolist()):
            if sequence in running and token in stop:
                running.remove(sequence)
            elif sequence in running:
                texts[sequence].append(token)
                on_token(sequence, token)
        if not running or time == tokens - 1:
            break
        logits = network.step(chosen, cache)
    return texts


def _chooser(
    strategy: Greedy | Sampling, batch: int, tokens: int, device: torch.device
) -> Callable[[Tensor, int], Tensor]:
    """A function from logits and the number of the step to the next token of each sequence."""
    match strategy:
        case Greedy():
            return lambda logits, _: logits.argmax(-1)
        case Sampling(seed=seed):
            rows = [generator(seed, "generate", str(n)).random(tokens) for n in range(batch)]
            uniform = torch.from_numpy(np.stack(rows)).to(device)  # (batch, tokens)
            return lambda logits, time: sample(logits, strategy, uniform[:, time])


def _padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, " batch"] | None]:
    """Left-padded prompts, and the padding of each; None if all have the same length."""
    time = max(map(len, prompts))
    padding = [time - len(prompt) for prompt in prompts]
    rows = [[0] * more + list(prompt) for more, prompt in zip(padding, prompts, strict=True)]
    counts = torch.tensor(padding, device=device) if any(padding) else None
    return torch.tensor(rows, device=device), counts


def _storage(network: Decoder, strategy: Strategy) -> Storage:
    """Pages if beams share them or a mask frees them; else one contiguous tensor."""
    if isinstance(strategy, Beams):
        return PAGED
    windowed = any(plan and plan.mask.local for plan in network.made_for.plans)
    return Growing() if windowed else Reserved()


def _check(
    network: Decoder, prompts: Sequence[Sequence[int]], tokens: int, stop: Collection[int]
) -> None:
    """Refuse a request that this network cannot meet."""
    if network.source is not None:
        raise ValueError(
            "This decoder writes from a source, not after a prompt; use a learner's write."
        )
    if not prompts or tokens < 1:
        raise ValueError(
            f"{tokens} new tokens after {len(prompts)} prompts are no text; take 1 or more of each."
        )
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"Prompt {number} is empty, and a decoder needs at least one token; give it the "
                "one that texts begin with."
            )
    beyond = {token for text in (*prompts, stop) for token in text} - set(range(network.classes))
    if beyond:
        raise ValueError(
            f"{min(beyond)} is no token of this model, which has those from 0 to "
            f"{network.classes - 1}."
        )
    longest = max(map(len, prompts))
    if network.longest is not None and longest + tokens - 1 > network.longest:
        most = max(network.longest - longest + 1, 0)
        raise ValueError(
            f"A prompt of {longest} tokens and {tokens} new ones are more than this model reads, "
            f"{network.longest}. After that prompt it writes {most} at most."
        )


def _check_cache(network: Decoder, cache: Cache, batch: int, reads: int) -> None:
    """Refuse a cache that is in use or too small."""
    network.accept(cache)
    if cache.longest or cache.batch != batch or cache.capacity < reads:
        raise ValueError(
            f"These prompts need an empty cache for {batch} sequences of {reads} tokens; this one "
            f"is for {cache.batch} of {cache.capacity}, and {cache.longest} tokens are in it."
        )


def _check_memory(
    network: Decoder,
    reads: int,
    prompts: int,
    strategy: Strategy,
    storage: Storage,
    rows: CacheDtype | None,
) -> None:
    """Refuse a cache that does not fit into free memory; activations are not counted."""
    like = network.embedding.table
    kind = CACHE_FORMATS[rows] if rows else cache_format(like.dtype)
    sequences = prompts * (strategy.beams if isinstance(strategy, Beams) else 1)
    page = storage.page
    needed = cache_bytes(network.model, reads, sequences, kind, page)
    free = free_bytes_of(like.device)
    if needed > free:
        raise MemoryError(
            f"The cache of {sequences} sequences of {reads} tokens takes {bytes_text(needed)}, and "
            f"{bytes_text(free)} are free. Take fewer prompts or tokens, or smaller rows, such as "
            'rows="int8".'
        )


def _no_op(_sequence: int, _token: int) -> None:
    """No-op."""
