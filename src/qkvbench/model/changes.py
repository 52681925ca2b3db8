"""Changes of a block besides Q, K and V, as an arm names them: ``q,k,v~rms~parallel``.

Each sets one field of every block, so an arm has at most one change for each field. The one that
is no block's ties the output matrix to the table of embeddings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qkvbench.model.parts import (
    AnyFeedForward,
    Bilinear,
    DynamicTanh,
    FeedForward,
    NoNorm,
    ReLU2,
    RMSNorm,
    SwiGLU,
)


@dataclass(frozen=True)
class Change:
    """The field of a block that is set, its value by that of before, what it is, its source.

    The field `TIED` is the decoder's.
    """

    field: str
    value: Callable[[Any], object]
    about: str
    source: str


def _always(value: object) -> Callable[[Any], object]:
    return lambda _: value


def _as_wide(make: Callable[[int], AnyFeedForward]) -> Callable[[Any], object]:
    """A feed-forward with as many hidden units; none where there is none."""

    def feed_forward(before: AnyFeedForward | None) -> AnyFeedForward | None:
        return before and make(before.width)

    return feed_forward


def _half(before: AnyFeedForward | None) -> AnyFeedForward | None:
    return before and replace(before, width=max(1, before.width // 2))


def _norm(value: object, about: str, source: str) -> Change:
    return Change("norm", _always(value), about, source)


def _place(value: str, about: str, source: str) -> Change:
    return Change("norm_place", _always(value), about, source)


def _hidden(value: Callable[[Any], object], about: str, source: str) -> Change:
    return Change("feed_forward", value, about, source)


TIED = "tied"

CHANGES: Mapping[str, Change] = {
    "rms": _norm(RMSNorm("rms"), "RMSNorm", "arXiv:1910.07467"),
    "rms-no-scale": _norm(
        RMSNorm("rms", scale=False), "RMSNorm without a learned scale", "arXiv:1910.07467"
    ),
    "dynamic-tanh": _norm(
        DynamicTanh("dynamic tanh"), "a tanh with a learned slope, no norm", "arXiv:2503.10622"
    ),
    "no-norm": _norm(NoNorm("none"), "no norm", "arXiv:2311.01906, section 4.4"),
    "post-norm": _place("sum", "the norm on the sum with the stream", "arXiv:1706.03762"),
    "output-norm": _place("output", "the norm on each part's output", "arXiv:2501.00656"),
    "both-norms": _place("both", "a norm on each part's input and output", "arXiv:2408.00118"),
    "parallel": Change(
        "residual",
        _always("parallel"),
        "attention and feed-forward read the same normed input",
        "arXiv:2204.02311",
    ),
    "no-skip": Change(
        "residual", _always("none"), "a part's output takes the stream's place", "arXiv:2302.10322"
    ),
    "swiglu": _hidden(
        _as_wide(lambda width: SwiGLU(width, "swiglu")),
        "SwiGLU: three matrices",
        "arXiv:2002.05202",
    ),
    "bilinear": _hidden(
        _as_wide(lambda width: Bilinear(width, "bilinear")),
        "a product of two matrices, no activation",
        "arXiv:2002.05202",
    ),
    "relu2": _hidden(
        _as_wide(lambda width: ReLU2(width, "relu2")), "a squared ReLU", "arXiv:2109.08668"
    ),
    "gelu": _hidden(_as_wide(FeedForward), "GELU between two matrices", "arXiv:1606.08415"),
    "half-ff": _hidden(_half, "a feed-forward of half the hidden units", "this bench"),
    "no-ff": _hidden(_always(None), "no feed-forward", "arXiv:2103.03404"),
    "shared-ff": Change(
        "shared_feed_forward",
        _always(value=True),
        "one feed-forward for all layers",
        "arXiv:2309.01826",
    ),
    "no-output-projection": Change(
        "output_projection",
        _always(value=False),
        "the heads, one beside the other, are added to the stream",
        "arXiv:2311.01906",
    ),
    "no-biases": Change(
        "biases", _always(value=False), "matrices without biases", "arXiv:2204.02311, section 2"
    ),
    "tied-embeddings": Change(
        TIED,
        _always(value=True),
        "the table of embeddings is the output matrix",
        "arXiv:1608.05859",
    ),
}


def ordered(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names in the table's order; ValueError if two set the same field."""
    by_field: dict[str, str] = {}
    for name in names:
        field = CHANGES[name].field
        if field in by_field:
            raise ValueError(
                f"~{by_field[field]} and ~{name} change the same part of a block; write one."
            )
        by_field[field] = name
    return tuple(name for name in CHANGES if name in names)
