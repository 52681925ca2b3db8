"""Text that a decoder writes: a prompt is read at once, then one token after the other."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qkvbench.backends.torch.cache.kv_cache import Cache, free_bytes
from qkvbench.backends.torch.cache.page_table import Growing, Reserved, Storage
from qkvbench.backends.torch.cache.quantize import cache_format
from qkvbench.backends.torch.generation.beam_search import PAGED, Beams, likeliest
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.cost import CACHE_FORMATS, CacheDtype, cache_bytes
from qkvbench.cost.units import bytes_text
from qkvbench.model.rng import generator


@dataclass(frozen=True)
class Greedy:
    """The likeliest token each time; of several the first."""


@dataclass(frozen=True)
class Sampling:
    """A token drawn each time from softmax(logits / temperature), or from its likeliest part.

    ``top_k`` leaves that many tokens, ``top_p`` the fewest that are together at least so likely
    (arXiv:1904.09751, section 3.1); of both, what both leave. Draws depend on the seed and on the
    number of the sequence, not on what else is in the batch.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to be drawn."""
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"A temperature of {self.temperature:g} divides nothing; take a number above 0, or "
                "Greedy() for the likeliest token each time."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} leaves no token; take 1 or more, or None.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is above 0 and at most 1, not {self.top_p:g}; None is all.")


How = Greedy | Sampling | Beams


@torch.inference_mode()
def generate(
    network: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    how: How = Greedy(),
    stop: Collection[int] = (),
    told: Callable[[int, int], None] | None = None,
    rows: CacheDtype | None = None,
    cache: Cache | None = None,
) -> list[list[int]]:
    """What the network writes after each prompt: at most `tokens`, and up to one of `stop`.

    ``told`` is called with the number of the prompt and the token, as soon as there is one; beams
    are known at their end, and tell nobody. ``rows`` is the type of what the cache keeps; None is
    the weights' own. ``cache`` is an empty one of this network, to be looked at afterwards. Dropout
    is off. ValueError or MemoryError where it cannot be, before anything is allocated.
    """
    _check(network, prompts, tokens, stop)
    if isinstance(how, Beams) and told is not None:
        raise ValueError(
            "Which beam is best is known at the end only, so none can be told token by token; "
            "leave out told, or take Greedy() or Sampling()."
        )
    reads = max(map(len, prompts)) + tokens - 1
    if cache is None:
        storage = _storage(network, how)
        _check_memory(network, reads, len(prompts), how, storage, rows)
        cache = network.new_cache(len(prompts), reads, storage, rows)
    else:
        _check_cache(network, cache, len(prompts), reads)
    trained = network.training
    network.eval()
    try:
        read, padding = _padded(prompts, network.embedding.table.device)
        logits = network.prefill(read, cache, padding)
        if isinstance(how, Beams):
            found = likeliest(network, logits, cache, how, longest=tokens, ends=sorted(stop))
            return [text.tolist() for text in found]
        return _step_by_step(network, logits, cache, how, tokens, stop, told or _nobody)
    finally:
        network.train(trained)


def drawn(
    logits: Float[Tensor, "batch vocabulary"], how: Sampling, rng: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """The tokens at which the draws, in [0, 1), fall among the shares, the likeliest first."""
    scores = logits.double() / how.temperature
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    if how.top_k is not None:
        scores[:, how.top_k :] = -torch.inf
    shares = scores.softmax(-1)
    if how.top_p is not None:
        shares = shares.masked_fill(shares.cumsum(-1) - shares >= how.top_p, 0)
    reached = shares.cumsum(-1)
    place = (reached <= rng[:, None] * reached[:, -1:]).sum(-1)
    # A draw next to 1 may be rounded to it.
    place = torch.minimum(place, (shares > 0).sum(-1) - 1)
    return order.gather(-1, place[:, None])[:, 0]


def _step_by_step(
    network: Decoder,
    logits: Float[Tensor, "batch vocabulary"],
    cache: Cache,
    how: Greedy | Sampling,
    tokens: int,
    stop: Collection[int],
    told: Callable[[int, int], None],
) -> list[list[int]]:
    """The texts, each up to its first stop; one that has stopped is stepped with the rest."""
    texts: list[list[int]] = [[] for _ in logits]
    going = set(range(len(texts)))
    choose = _chooser(how, len(texts), tokens, logits.device)
    for time in range(tokens):
        chosen = choose(logits, time)
        for sequence, token in enumerate(chosen.tolist()):
            if sequence in going and token in stop:
                going.remove(sequence)
            elif sequence in going:
                texts[sequence].append(token)
                told(sequence, token)
        if not going or time == tokens - 1:
            break
        logits = network.step(chosen, cache)
    return texts


def _chooser(
    how: Greedy | Sampling, batch: int, tokens: int, device: torch.device
) -> Callable[[Tensor, int], Tensor]:
    """The token of each sequence, from its logits and the number of the step."""
    match how:
        case Greedy():
            return lambda logits, _: logits.argmax(-1)
        case Sampling(seed=seed):
            named = [generator(seed, "generate", str(n)).random(tokens) for n in range(batch)]
            rng = torch.from_numpy(np.stack(named)).to(device)
            return lambda logits, time: drawn(logits, how, rng[:, time])


def _padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, " batch"] | None]:
    """The prompts with padding on their left, and how much; None where all are of one length."""
    time = max(map(len, prompts))
    padding = [time - len(prompt) for prompt in prompts]
    rows = [[0] * more + list(prompt) for more, prompt in zip(padding, prompts, strict=True)]
    counts = torch.tensor(padding, device=device) if any(padding) else None
    return torch.tensor(rows, device=device), counts


def _storage(network: Decoder, how: How) -> Storage:
    """Where the rows lie: pages where beams share them or a window gives them back."""
    if isinstance(how, Beams):
        return PAGED
    windowed = any(plan and plan.mask.window for plan in network.made_for.plans)
    return Growing() if windowed else Reserved()


def _check(
    network: Decoder, prompts: Sequence[Sequence[int]], tokens: int, stop: Collection[int]
) -> None:
    """Refuse what cannot be written, with the reason."""
    if network.source is not None:
        raise ValueError(
            "This decoder writes from a source, not after a prompt; a learner's write does that."
        )
    if not prompts or tokens < 1:
        raise ValueError(
            f"{tokens} new tokens after {len(prompts)} prompts are no text; take 1 or more of each."
        )
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"Prompt {number} is empty, and a decoder needs something to go on from; give it "
                "one token at least, such as the one that texts begin with."
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
    """Refuse a cache in which this text has no place."""
    network.accept(cache)
    if cache.longest or cache.batch != batch or cache.capacity < reads:
        raise ValueError(
            f"These prompts need an empty cache for {batch} sequences of {reads} tokens; this one "
            f"is for {cache.batch} of {cache.capacity}, and {cache.longest} tokens are in it."
        )


def _check_memory(
    network: Decoder, reads: int, prompts: int, how: How, storage: Storage, rows: CacheDtype | None
) -> None:
    """Refuse a cache that will not fit; its bytes are computed, the rest of the work is not."""
    like = network.embedding.table
    kind = CACHE_FORMATS[rows] if rows else cache_format(like.dtype)
    sequences = prompts * (how.beams if isinstance(how, Beams) else 1)
    page = storage.page
    needed, free = cache_bytes(network.model, reads, sequences, kind, page), free_bytes(like.device)
    if needed > free:
        raise MemoryError(
            f"The cache of {sequences} sequences of {reads} tokens takes {bytes_text(needed)}, and "
            f"{bytes_text(free)} are free. Take fewer prompts or tokens, or smaller rows, such as "
            'rows="int8".'
        )


def _nobody(_sequence: int, _token: int) -> None:
    """Nobody listens."""
