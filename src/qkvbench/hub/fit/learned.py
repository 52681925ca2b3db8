"""Learned plans of a pretrained model: gates choose between each layer and its fitted changes.

A layer and its changes run side by side, and gates weigh their outputs. Only the gates learn, from
the predictions of the model without gates; weights are fitted before and healed after. Rivals have
the same budget, the same fits and the same healing.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkvbench.backends.torch.training.gates import BETAS, RATE, LayerGates
from qkvbench.cost.budget import Budget, Choice
from qkvbench.hub.fit import planning, quality
from qkvbench.hub.fit.healing import DECIDING_TOKENS, Healing, divergence, heal
from qkvbench.hub.fit.moments import collect
from qkvbench.hub.fit.planning import Effect, Option, Plan, Trial
from qkvbench.hub.fit.progress import Progress, TimeLeft, counted
from qkvbench.hub.fit.projections import Layer, Weights, layers_of
from qkvbench.hub.fit.quality import Windows
from qkvbench.hub.fit.road import Reading
from qkvbench.hub.fit.source import Checkpoint
from qkvbench.hub.fit.tying import DEFAULT_START, Change, fit_layer, tie
from qkvbench.variant import CANONICAL

# A step of the gates reads so many sequences of so many tokens: each draws a plan of its own.
SEQUENCES, LENGTH = 4, 64
# Arguments of a layer that hold a cache, by the version of transformers.
CACHES = ("cache", "past_key_values")
LEARNED, PROGRAM, UNIFORM = "learned", "integer program", "evenly spaced"


@dataclass(frozen=True)
class Wanted:
    """A share of the cache, the equations that layers may get, and how much is read for it."""

    share: float
    equations: Sequence[str]
    steps: int
    reading: Reading
    start: str = DEFAULT_START


@dataclass(frozen=True)
class Found:
    """A plan with its divergence from the original's predictions, and its loss above it.

    ``after`` is healed; None without healing.
    """

    plan: Plan
    before: Effect
    after: tuple[float, float] | None


@dataclass(frozen=True)
class Learning:
    """The plans of a budget, by the way they were chosen, and how the gates came to theirs."""

    share: float
    loss: float
    plans: Mapping[str, Found]
    options: tuple[Option, ...]
    history: Sequence[tuple[int, list[list[float]]]]
    healed_tokens: int


class SideBySide:
    """A layer of a model and its changes: the sum of their outputs, each times its gate.

    Without gates the option `taken` runs alone.
    """

    gates: Tensor | None
    taken: int

    def __init__(self, layer: Layer, fits: Sequence[Weights]) -> None:
        """The layer as it is, then a copy with each of these weights."""
        self.attention = layer.attention
        self.options = [layer.attention.forward]
        for weights in fits:
            changed = copy.deepcopy(layer.attention).requires_grad_(requires_grad=False)
            output = changed.get_submodule(layer.family.output)
            replace(layer, attention=changed, output=output).write(weights)
            self.options.append(changed.forward)
        self.gates, self.taken = None, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the layer, and whatever the layer's own returns beside it."""
        if self.gates is None:
            return self.options[self.taken](*args, **kwargs)
        # Options would append to one cache.
        kwargs = {name: each for name, each in kwargs.items() if name not in CACHES}
        outputs = [option(*args, **kwargs) for option in self.options]
        gates = self.gates[:, :, None, None].unbind(1)
        mixed = [gate * output[0] for gate, output in zip(gates, outputs, strict=True)]
        return (torch.stack(mixed).sum(0), *outputs[0][1:])


@contextmanager
def side_by_side(layers: Sequence[Layer], fits: Sequence[Sequence[Weights]]) -> Iterator[Any]:
    """The layers of a model with their changes, which run in their place; then they are as before.

    ValueError for an architecture whose attention has its output projection elsewhere.
    """
    if layers[0].family.output is None:
        raise ValueError(
            f"The attention of {layers[0].family.kind} has its output projection in another module,"
            " so its changes cannot run side by side.\n'qkvbench advise' plans its layers."
        )
    found = [SideBySide(layer, row) for layer, row in zip(layers, fits, strict=True)]
    for each in found:
        each.attention.forward = each.forward
    try:
        yield found
    finally:
        for each in found:
            del each.attention.forward


def learn_gates(
    model: Any,
    layers: Sequence[SideBySide],
    found: Budget,
    text: Windows,
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[Choice, list[tuple[int, list[list[float]]]]]:
    """The plan within the budget that gates learn, and their probabilities at some steps.

    The loss is the divergence from the predictions without gates. No weight learns.
    """
    model.requires_grad_(requires_grad=False)
    gates = LayerGates(layers, found, steps)
    optimizer = torch.optim.Adam(gates.parameters(), lr=RATE, betas=BETAS)
    rng = torch.Generator().manual_seed(seed)
    pieces = text[:, : text.shape[1] // LENGTH * LENGTH].reshape(-1, LENGTH)
    history = [(0, gates.probabilities())]
    time_left = TimeLeft("steps of the gates", steps, progress)
    for step in range(1, steps + 1):
        rows = pieces[torch.randint(len(pieces), (SEQUENCES,), generator=rng)]
        for layer in layers:
            layer.gates = None
        with torch.no_grad():
            wanted = model(input_ids=rows, use_cache=False).logits.float()
        gates.draw(len(rows), rng)
        logits = model(input_ids=rows, use_cache=False).logits.float()
        loss = divergence(wanted.flatten(0, 1), logits.flatten(0, 1))
        if gates.learning:
            (loss + gates.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
        gates.update()
        if step % max(1, steps // 4) == 0 or step == steps:
            history.append((step, gates.probabilities()))
        time_left.done(step)
    for layer in layers:
        layer.gates = None
    model.requires_grad_(requires_grad=True)
    return gates.choose(), history


def learn_plan(
    checkpoint: Checkpoint,
    text: str,
    wanted: Wanted,
    healing: Healing,
    folder: Path,
    progress: Progress = lambda line: None,
) -> Learning:
    """The plan that gates learn for a share of the cache, and its rivals, before and after healing.

    Parts of the text are for the fit, for the damages of layers, for the comparison, for what
    decides in healing; the rest is for gates and healing.
    """
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    allowed = planning.options_of(model, wanted.equations)
    start, reading, steps = wanted.start, wanted.reading, wanted.steps
    # Refused before anything is read.
    layers = layers_of(model)
    found = _budget(layers, allowed, wanted.share)
    count = reading.count(reading.held_out) // 2 or 1
    deciding = reading.count(DECIDING_TOKENS) if healing.tokens else 0
    most = max(steps * SEQUENCES * LENGTH, healing.tokens)
    parts = [reading.count(reading.fit), count, count, deciding, reading.count(most)]
    read = quality.windows(tokenizer, text, reading.window, sum(parts))
    if len(read) <= sum(parts[:-1]):
        raise ValueError(
            f"The text has {len(read)} windows of {reading.window} tokens; at least "
            f"{sum(parts[:-1]) + 1} are needed.\nGive a longer text, or shorter windows."
        )
    parts[-1] = len(read) - sum(parts[:-1])
    fit, damaging, judging, deciders, rest = read.split(parts)
    progress(f"reading {fit.numel():,} tokens for the fit")
    rows = counted(list(fit), "windows of the fit", progress)
    moments = collect(model, ({"input_ids": row[None]} for row in rows))
    trial = Trial(model, damaging, moments, start)
    table = _table(trial, allowed, progress)
    fits = [
        [fit_layer(layer, each, row, start, layer.read()) for each in allowed.values()]
        for layer, row in zip(layers, moments, strict=True)
    ]
    with side_by_side(layers, fits) as options:
        chosen, history = learn_gates(model, options, found, rest, steps, healing.seed, progress)
    every = tuple(option for row in table for option in row)
    limit = int(found.limit)
    plans = {
        LEARNED: tuple(row[taken] for row, taken in zip(table, chosen, strict=True)),
        PROGRAM: planning.best_plan(every, limit),
        UNIFORM: planning.spread(every, limit, "uniform"),
    }
    judged = Trial(model, judging, moments, start)
    effects = {name: judged.effect(plan, allowed) for name, plan in plans.items()}
    healed: dict[Plan, tuple[float, float]] = {}
    for name, plan in plans.items():
        if healing.tokens and plan not in healed:
            progress(f"healing the plan: {name}")
            state = folder / f"healing-{name.replace(' ', '-')}"
            model = checkpoint.model()
            changed = tie(checkpoint.model(), planning.mode_of(plan), moments, start)
            heal(changed, model, rest, deciders, healing, state, progress)
            healed[plan] = _effect(changed, model, judging)
    return Learning(
        found.share(chosen),
        judged.loss,
        {name: Found(plan, effects[name], healed.get(plan)) for name, plan in plans.items()},
        every,
        history,
        healing.tokens,
    )


def _table(trial: Trial, allowed: Mapping[str, Change], progress: Progress) -> list[list[Option]]:
    """The options of each layer, the layer as it is first, with their damages."""
    time_left = TimeLeft("layers", len(trial.layers), progress)
    table = []
    for layer in range(len(trial.layers)):
        changed = [trial.option(layer, change) for change in allowed.values()]
        table.append([trial.unchanged(layer), *changed])
        time_left.done(layer + 1)
    return table


def _budget(layers: Sequence[Layer], allowed: Mapping[str, Change], share: float) -> Budget:
    """The cost of each option by the numbers that are cached; ValueError if none is so small."""
    values = [
        [planning.cached_values(layer, change) for change in (None, *allowed.values())]
        for layer in layers
    ]
    full = sum(row[0] for row in values)
    costs = tuple(tuple(float(each - row[0]) for each in row) for row in values)
    variants = (CANONICAL, *(change.variant for change in allowed.values()))
    found = Budget(variants, costs, full, share * full)
    least, _ = found.bounds
    if least > share:
        raise ValueError(
            f"A cache of {share:.0%} cannot be reached: with these options the smallest is "
            f"{least:.0%}.\nAllow options with fewer heads: --options 'q,k=v' 'q,k=v/1'."
        )
    return found


@torch.no_grad()
def _effect(model: Any, original: Any, text: Windows) -> tuple[float, float]:
    """The divergence from the original's predictions, and the loss above its own."""
    apart = []
    for row in text:
        wanted, made = (each(input_ids=row[None]).logits[0].float() for each in (original, model))
        apart.append(float(divergence(wanted, made)))
    return sum(apart) / len(apart), quality.loss(model, text) - quality.loss(original, text)
