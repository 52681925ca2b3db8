"""The time of a decoding step of a checkpoint, and of the same model with an equation instead.

Measured in transformers, with its cache, behind a context. Times depend on shapes and not on
numbers, so the weights of an equation are random.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from qkvbench.hub.families import family_of
from qkvbench.hub.fit.progress import Progress, counted
from qkvbench.hub.fit.quality import cache_name
from qkvbench.hub.models import model_classes, with_mode

# Tokens that each model decodes in turn, and those before that are not counted.
ROUNDS, WARM_UP = 16, 2
STEPS = ROUNDS + WARM_UP
# The share of rounds in which an equation must be faster to count as faster.
FASTER = 0.75
# Tokens that a model reads at once to fill its cache.
CHUNK = 512


@dataclass(frozen=True)
class Steps:
    """The times of decoding steps, in seconds, of the models that took turns."""

    context: int
    original_s: tuple[float, ...]
    changed_s: Mapping[str, tuple[float, ...]]

    @property
    def step_s(self) -> float:
        """The median step of the original."""
        return median(self.original_s)

    def saving_s(self, equation: str) -> float:
        """The median of what a step of this equation is shorter by, in the same round."""
        pairs = zip(self.original_s, self.changed_s[equation], strict=True)
        return median(before - after for before, after in pairs)

    def is_faster(self, equation: str) -> bool:
        """Whether it was faster in most rounds."""
        pairs = zip(self.original_s, self.changed_s[equation], strict=True)
        return fmean(after < before for before, after in pairs) >= FASTER


@dataclass(eq=False)
class _Decoder:
    model: Any
    cache: Any = None
    token: Tensor = field(default_factory=lambda: torch.zeros(1, 1, dtype=torch.long))
    times_s: list[float] = field(default_factory=list)

    def read(self, tokens: Tensor) -> None:
        """Fill the cache."""
        for chunk in tokens.split(CHUNK):
            self._forward(chunk[None])

    def step(self) -> None:
        """Decode one token."""
        began = time.perf_counter()
        self._forward(self.token)
        self.times_s.append(time.perf_counter() - began)

    def _forward(self, tokens: Tensor) -> None:
        cached = {} if self.cache is None else {self.name: self.cache}
        output = self.model(input_ids=tokens, use_cache=True, logits_to_keep=1, **cached)
        self.name = cache_name(output)
        self.cache = output[self.name]
        self.token = output.logits[:, -1:].argmax(-1)


@torch.no_grad()
def steps(
    model: Any,
    equations: Sequence[str],
    tokens: Int[Tensor, " context"],
    progress: Progress = lambda line: None,
) -> Steps:
    """Steps of the model and of each equation in all its layers, in turn, after these tokens."""
    family = family_of(model.config)
    original, changed = _Decoder(model), {}
    for equation in equations:
        config = with_mode(model.config, equation)
        other: Any = model_classes(family)["AutoModelForCausalLM"](config)
        changed[equation] = _Decoder(other.to(model.dtype).eval())
    every = {"the original": original, **changed}
    for name, one in every.items():
        progress(f"reading {len(tokens):,} tokens with {name}")
        one.read(tokens)
    for _ in counted(range(STEPS), "steps", progress):
        for one in every.values():
            one.step()
    return Steps(
        len(tokens),
        tuple(original.times_s[WARM_UP:]),
        {equation: tuple(one.times_s[WARM_UP:]) for equation, one in changed.items()},
    )
