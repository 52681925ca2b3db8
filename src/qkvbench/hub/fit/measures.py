"""Measures of a model before and after a conversion, and their table."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.hub.fit import quality
from qkvbench.hub.fit.progress import Progress, counted
from qkvbench.hub.fit.quality import Windows

# Tokens that are decoded to time one.
DECODED = 12


@dataclass(frozen=True, eq=False)
class Measures:
    """Losses, recall and speed of a model, or its embeddings; None if not measured."""

    losses: list[float] | None = None
    recall: quality.Recall | None = None
    decoding: quality.Decoding | None = None
    embeddings: Tensor | None = None
    # The same with a cache in few bits.
    stored: "Measures | None" = None


def measure(
    model: Any,
    tokenizer: Any,
    held: Windows,
    progress: Progress,
    when: str,
    rows_stored: str,
    *,
    timed: bool,
) -> Measures:
    """The measures of a model on these windows, also with a cache that stores such rows."""
    progress(f"measuring {held.numel():,} held-out tokens {when}")
    rows = counted(list(held), "windows", progress)
    if model.get_output_embeddings() is None or not is_causal(model):
        return Measures(embeddings=quality.embeddings(model, rows))
    steps, stored = DECODED if timed else 0, None
    if (cache := quality.cache_of(model, rows_stored)) is not None:
        progress(f"measuring them with a cache in {rows_stored}")
        stored = Measures(
            quality.losses(model, counted(list(held), "windows", progress), cache),
            quality.recall(model, tokenizer, cache=cache),
            quality.decoding(model, held[0], steps, cache),
        )
    return Measures(
        quality.losses(model, rows),
        quality.recall(model, tokenizer),
        quality.decoding(model, held[0], steps),
        stored=stored,
    )


def is_causal(model: Any) -> bool:
    """Whether a model predicts next tokens."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def table(
    before: Measures, tied: Measures, after: Measures, rows_stored: str, *, healed: bool
) -> list[tuple[str, str, str]]:
    """The table of the card: a title, before, after; last, with a cache of such rows."""
    rows = []
    for measures, title in ((tied, ", after tying") if healed else (None, ""), (after, "")):
        cosine = _cosine(before, measures)
        if cosine is not None:
            name = f"cosine of embeddings with the original's{title}"
            rows.append((name, "1", f"{cosine:.4f}"))
    for measures, title in ((tied, "after tying") if healed else (None, ""), (after, "")):
        if measures is None or measures.losses is None or before.losses is None:
            continue
        mean, original = statistics.fmean(measures.losses), statistics.fmean(before.losses)
        name = f"held-out loss, nats a token{', ' + title if title else ''}"
        rows.append((name, f"{original:.3f}", f"{mean:.3f} ({mean - original:+.3f})"))
        name = f"held-out perplexity{', ' + title if title else ''}"
        rows.append(
            (name, f"{quality.perplexity(original):.1f}", f"{quality.perplexity(mean):.1f}")
        )
    rows += _recall_and_decoding(before, after)
    if (less := after.stored) is not None:
        found = table(before, less, less, rows_stored, healed=False)
        rows += [(f"{title}, in {rows_stored}", one, other) for title, one, other in found]
    return rows


def _recall_and_decoding(before: Measures, after: Measures) -> list[tuple[str, str, str]]:
    rows = []
    if before.recall is not None and after.recall is not None:
        rows.append(("copying", f"{before.recall.copy:.2f}", f"{after.recall.copy:.2f}"))
        rows.append(("look-up", f"{before.recall.lookup:.2f}", f"{after.recall.lookup:.2f}"))
    if before.decoding is not None and after.decoding is not None:
        one, other = before.decoding, after.decoding
        title = f"cache after {one.context} tokens, live bytes"
        rows.append((title, bytes_text(one.cache_bytes), bytes_text(other.cache_bytes)))
        if one.step_s is not None and other.step_s is not None:
            rows.append(("time of a token", seconds_text(one.step_s), seconds_text(other.step_s)))
    return rows


def _cosine(before: Measures, after: Measures | None) -> float | None:
    """The similarity of the embeddings of the same windows; None if there are none."""
    if after is None or before.embeddings is None or after.embeddings is None:
        return None
    return quality.similarity(before.embeddings, after.embeddings)


def numbers_of(before: Measures, measures: Measures) -> dict[str, object]:
    """The measured numbers as JSON values."""
    found: dict[str, object] = {}
    if (cosine := _cosine(before, measures)) is not None:
        found["similarity"] = cosine
    if measures.losses is not None:
        found["losses"] = measures.losses
    for name in ("recall", "decoding"):
        value = getattr(measures, name)
        if value is not None:
            found[name] = asdict(value)
    if measures.stored is not None:
        found["stored"] = numbers_of(before, measures.stored)
    return found
