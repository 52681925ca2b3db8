"""A plan: which layers get which equation, for a cache of a given size.

The damage of a layer is measured by changing it alone. Damages are taken as additive, and the
choice is then exact: a knapsack with one item of each layer, solved by mixed-integer programming.
Whether they add is measured afterwards, on pairs and on the whole plan.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkvbench.cost import budget as choices
from qkvbench.cost.budget import Spread, changed_layers, least_damage
from qkvbench.hub.fit.attentions import UNCHANGED, Attentions
from qkvbench.hub.fit.calls import Call, recording_calls
from qkvbench.hub.fit.counting import Count, cached_values
from qkvbench.hub.fit.moments import Calibration
from qkvbench.hub.fit.progress import Progress
from qkvbench.hub.fit.projections import Layer, Weights, block_of, layers_of
from qkvbench.hub.fit.quality import Windows, cache_argument
from qkvbench.hub.fit.tying import Change, check_change, fits
from qkvbench.variant import parse, write


@dataclass(frozen=True)
class Option:
    """One equation in one layer.

    ``values`` is what a budget counts of the layer: numbers cached for a token, parameters, or
    nanoseconds of a step. ``divergence`` is by how much the mean KL divergence of the model's
    predictions from the original's grows, in nats, ``loss`` by how much its loss does, ``distance``
    the squared error of the layer's output as a share of its square.
    """

    layer: int
    equation: str
    values: int
    divergence: float = 0.0
    loss: float = 0.0
    distance: float = 0.0


Plan = tuple[Option, ...]


@dataclass(frozen=True)
class Effect:
    """A plan's divergence and change of loss: measured, and the sum over its layers.

    The sum begins with the divergence of the unchanged model, which is one if its cache is rounded.
    """

    divergence: float
    loss: float
    predicted: float


def options_of(model: Any, equations: Sequence[str]) -> dict[str, Change]:
    """The changes of these equations; ValueError if one cannot be fitted."""
    first = layers_of(model)[0]
    found = {}
    for equation in equations:
        change = check_change(first, parse(equation))
        if change is not None:
            found[write(parse(equation))] = change
    return found


def every_fit(
    model: Any,
    allowed: Mapping[str, Change],
    text: Calibration,
    start: str,
    progress: Progress = lambda line: None,
) -> dict[tuple[int, str], Weights]:
    """The weights of every equation in every layer."""
    layers = range(len(layers_of(model)))
    each = [replace(change, layer=layer) for layer in layers for change in allowed.values()]
    return fits(model, each, text, start, progress)


class Trial:
    """A model whose layers are replaced for a while, and its original predictions on a text."""

    def __init__(
        self, model: Any, text: Windows, attentions: Attentions, count: Count = cached_values
    ) -> None:
        """Run the original once; the text is held in memory as hidden states of each block."""
        self.model, self.text, self.attentions = model, text, attentions
        self.count, self.layers = count, attentions.layers
        self._blocks = [block_of(model, layer.name) for layer in self.layers]
        self._calls: Mapping[int, list[Call]] = {}
        self._outputs: list[Any] = [None] * len(self.layers)
        with recording_calls(self.layers) as self._calls, self._recording_blocks():
            self._expected = self._logits()
        self._total = self._expected.logsumexp(-1)
        self._p = (self._expected - self._total[..., None]).exp()
        self.loss = self._cross_entropy(self._expected, self._total)
        # What a cache in few bits costs the original.
        self.unchanged_effect = Effect(0.0, 0.0, 0.0)
        if attentions.few_bits:
            with attentions.in_place([]), self._recording_blocks():
                divergence, loss = self._compare(self._logits(attentions.new_cache()))
            self.unchanged_effect = Effect(divergence, loss, divergence)

    def option(self, layer: int, change: Change) -> Option:
        """The effect of one change alone."""
        part, equation = self.layers[layer], write(change.variant)
        before = self.unchanged_effect
        with self._changed([(layer, equation)]):
            distance = self._distance(part, self.attentions.made[layer, equation])
            divergence, loss = self._compare(self._logits(self.attentions.new_cache()))
        return Option(
            layer,
            equation,
            self.count(part, change),
            divergence - before.divergence,
            loss - before.loss,
            distance,
        )

    def unchanged(self, layer: int) -> Option:
        """The option of leaving a layer as it is."""
        return Option(layer, UNCHANGED, self.count(self.layers[layer], None))

    def effect(self, plan: Plan) -> Effect:
        """The measured effect of a whole plan."""
        changed = [(o.layer, o.equation) for o in plan if o.equation != UNCHANGED]
        with self._changed(changed):
            divergence, loss = self._compare(self._logits(self.attentions.new_cache()))
        return Effect(divergence, loss, self.unchanged_effect.divergence + damage(plan))

    @contextmanager
    def _changed(self, changes: Sequence[tuple[int, str]]) -> Iterator[None]:
        """Layers with these equations while the block runs; blocks before them are not run."""
        first = min((layer for layer, _ in changes), default=len(self.layers) - 1)
        with self.attentions.in_place(changes), self._skipping(first):
            yield

    @torch.no_grad()
    def _logits(self, cache: Any = None) -> Tensor:
        given = {} if cache is None else cache_argument(self.model, cache)
        output = self.model(input_ids=self.text, use_cache=cache is not None, **given)
        return output.logits[:, :-1].float()

    def _compare(self, logits: Tensor) -> tuple[float, float]:
        """The divergence from the original's predictions, and the change of loss."""
        # Σ p (log p − log q), with both logarithms as logits less their totals: few passes over
        # the vocabulary, and small differences stay exact.
        total = logits.logsumexp(-1)
        moved = torch.linalg.vecdot(self._p, logits - self._expected)
        divergence = (total - self._total - moved).mean()
        return float(divergence), self._cross_entropy(logits, total) - self.loss

    def _cross_entropy(self, logits: Tensor, total: Tensor) -> float:
        return float((total - logits.gather(-1, self.text[:, 1:, None])[..., 0]).mean())

    @torch.no_grad()
    def _distance(self, layer: Layer, attention: Any) -> float:
        """The squared error of the layer's output on the original's inputs, as a share."""
        [call] = self._calls[layer.number]
        found = layer.finished(call.again(attention, self.attentions.new_cache()))
        return float((found - call.output).square().sum() / call.output.square().sum())

    @contextmanager
    def _recording_blocks(self) -> Iterator[None]:
        """Keep the output of every block while the block of code runs."""

        def keep(number: int) -> Any:
            def hook(_: Any, __: Any, output: Any) -> None:
                self._outputs[number] = output

            return hook

        hooks = [one.register_forward_hook(keep(n)) for n, one in enumerate(self._blocks)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _skipping(self, first: int) -> Iterator[None]:
        """Blocks before this layer return what they did when no layer was changed."""
        skipped = self._blocks[:first]
        for one, output in zip(skipped, self._outputs, strict=False):
            one.forward = lambda *_, output=output, **__: output
        try:
            yield
        finally:
            for one in skipped:
                del one.forward


def damage(plan: Iterable[Option]) -> float:
    """The sum of the divergences that a plan's layers add."""
    return sum(option.divergence for option in plan)


def total(plan: Iterable[Option]) -> int:
    """The sum of a plan's layers that a budget limits."""
    return sum(option.values for option in plan)


def whole_limit(share: float, full: int, rest: int) -> int:
    """The most that the layers of a plan may cost: a share of all, without what is no layer's.

    Costs are whole; a share of them may be off by a rounding.
    """
    return math.floor(share * (full + rest) + 1e-6) - rest


def best_plan(options: Sequence[Option], budget: int) -> Plan:
    """One option of each layer with the least sum of divergences within the budget.

    ValueError if no choice is within it.
    """
    layers = sorted({option.layer for option in options})
    least = [min(o.values for o in options if o.layer == layer) for layer in layers]
    if sum(least) > budget:
        most = sum(max(o.values for o in options if o.layer == layer) for layer in layers)
        raise ValueError(
            f"A budget of {budget / most:.0%} cannot be reached: with these equations the smallest "
            f"is {sum(least) / most:.0%}.\nAllow equations with fewer heads: --options 'q,k=v' "
            "'q,k=v/1'."
        )
    by_layer = _by_layer(options)
    damages = [[max(o.divergence, 0.0) for o in row] for row in by_layer]
    chosen = least_damage(damages, [[o.values for o in row] for row in by_layer], budget)
    return tuple(row[taken] for row, taken in zip(by_layer, chosen, strict=True))


def spread(options: Sequence[Option], budget: int, how: Spread, seed: int = 0) -> Plan:
    """A plan that ignores damages: one equation in layers that are `how` chosen.

    The equation is the one with the largest cache with which the budget can be met, which
    `best_plan` has checked.
    """
    # First the layer as it is.
    by_layer = [sorted(row, key=lambda o: o.equation != UNCHANGED) for row in _by_layer(options)]
    counts = changed_layers([[o.values for o in row] for row in by_layer], budget)
    option, count = next(iter(counts.items()))
    chosen = choices.spread(len(by_layer), option, count, how, seed)
    return tuple(row[taken] for row, taken in zip(by_layer, chosen, strict=True))


def _by_layer(options: Sequence[Option]) -> list[list[Option]]:
    """The options of each layer, from the first layer on."""
    layers = sorted({option.layer for option in options})
    return [[o for o in options if o.layer == layer] for layer in layers]


def curve(options: Sequence[Option], points: int = 8) -> list[Plan]:
    """The best plan for budgets from the whole cache to the smallest one."""
    layers = {option.layer for option in options}
    full = sum(o.values for o in options if o.equation == UNCHANGED)
    least = sum(min(o.values for o in options if o.layer == layer) for layer in layers)
    budgets = np.linspace(full, least, points)
    plans = [best_plan(options, math.floor(budget)) for budget in budgets]
    return list(dict.fromkeys(plans))


def pairs(plan: Plan, count: int) -> list[tuple[Option, Option]]:
    """Pairs of changed layers to look at: the most damaging ones first."""
    changed = [option for option in plan if option.equation != UNCHANGED]
    found = sorted(combinations(changed, 2), key=lambda p: -(p[0].divergence + p[1].divergence))
    return found[:count]


def mode_of(plan: Plan) -> list[str]:
    """The `qkv_mode` of a plan: an equation for each layer."""
    return [option.equation for option in sorted(plan, key=lambda option: option.layer)]
