"""Learned plans of a pretrained model: gates choose between each layer and its fitted changes.

A layer and its changes run side by side, and gates weigh their outputs. Only the gates learn, from
the predictions of the model without gates; weights are fitted before and healed after. Rivals have
the same budget, the same fits and the same healing.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from qkvbench.backends.torch.training.gates import BETAS, RATE, LayerGates
from qkvbench.cost.budget import Budget, Choice
from qkvbench.cost.search import Probe, cheapest_within, check_cheaper
from qkvbench.cost.units import seconds_text
from qkvbench.hub.fit import planning, quality
from qkvbench.hub.fit.attentions import attentions
from qkvbench.hub.fit.calls import CACHES
from qkvbench.hub.fit.counting import budget as counted_budget
from qkvbench.hub.fit.counting import counting
from qkvbench.hub.fit.healing import DECIDING_TOKENS, Healing, divergence, heal, write_whole
from qkvbench.hub.fit.latency import Steps
from qkvbench.hub.fit.moments import collect
from qkvbench.hub.fit.planning import Effect, Option, Plan, Trial, every_fit
from qkvbench.hub.fit.progress import Progress, TimeLeft, counted
from qkvbench.hub.fit.projections import Layer, Weights, layers_of
from qkvbench.hub.fit.quality import Windows
from qkvbench.hub.fit.road import (
    Reading,
    check_length,
    check_predicts,
    check_readable,
    check_tokens,
    steps_of,
)
from qkvbench.hub.fit.shards import weights_hash
from qkvbench.hub.fit.source import Checkpoint
from qkvbench.hub.fit.starts import parse_start
from qkvbench.hub.fit.tying import DEFAULT_START, tie
from qkvbench.model import LossTarget, Target
from qkvbench.results.store import write_atomically

# A step of the gates reads so many sequences of so many tokens: each draws a plan of its own.
SEQUENCES, LENGTH = 4, 64
# Steps of the gates between two saved states.
SAVED_EVERY = 16
LEARNED, PROGRAM, UNIFORM = "learned", "integer program", "evenly spaced"
# The probability of each option of each layer, at some steps.
History = list[tuple[int, list[list[float]]]]


@dataclass(frozen=True)
class Wanted:
    """A target, the equations that layers may get, and how much is read for it."""

    target: Target | LossTarget
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
    """The plans of a budget, by the way they were chosen, and how the gates came to theirs.

    ``target`` bounds a cost; ``share`` is what the learned plan takes of it. ``probes`` are the
    costs that were tried for a loss.
    """

    target: Target
    share: float
    loss: float
    plans: Mapping[str, Found]
    options: tuple[Option, ...]
    history: History
    healed_tokens: int
    probes: Sequence[Probe]


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
    saved: Path | None = None,
) -> tuple[Choice, History]:
    """The plan within the budget that gates learn, and their probabilities at some steps.

    The loss is the divergence from the predictions without gates. No weight learns. The same call
    goes on from the state in the file ``saved``, if there is one.
    """
    gates = LayerGates(layers, found, steps)
    optimizer = torch.optim.Adam(gates.parameters(), lr=RATE, betas=BETAS)
    rng = torch.Generator().manual_seed(seed)
    pieces = text[:, : text.shape[1] // LENGTH * LENGTH].reshape(-1, LENGTH)
    first, history = 0, [(0, gates.probabilities())]
    if saved and saved.is_file():
        first, history = _load_gates(saved, gates, optimizer, rng)
    time_left = TimeLeft("steps of the gates", steps, progress, first)
    with _frozen(model):
        for step in range(first + 1, steps + 1):
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
            if saved and (step % SAVED_EVERY == 0 or step == steps):
                _save_gates(saved, gates, optimizer, rng, step, history)
            time_left.done(step)
    for layer in layers:
        layer.gates = None
    return gates.choose(), history


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No parameter of the model learns while the block runs."""
    learned = [each for each in model.parameters() if each.requires_grad]
    for each in learned:
        each.requires_grad = False
    try:
        yield
    finally:
        for each in learned:
            each.requires_grad = True


def _save_gates(
    file: Path,
    gates: LayerGates,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    step: int,
    history: History,
) -> None:
    moments = optimizer.state.get(gates.logits, {})
    tensors = {"logits": gates.logits.data, "ascent": gates.ascent.data, "rng": rng.get_state()}
    notes = {"step": step, "history": history}
    write_whole(file, tensors | moments, {"notes": json.dumps(notes)})


@torch.no_grad()
def _load_gates(
    file: Path, gates: LayerGates, optimizer: torch.optim.Optimizer, rng: torch.Generator
) -> tuple[int, History]:
    """The steps that were taken, and the history; the rest goes to its places."""
    with safe_open(file, "pt") as read:
        notes = json.loads(read.metadata()["notes"])
        tensors = {name: read.get_tensor(name) for name in read.keys()}  # noqa: SIM118
    gates.logits.copy_(tensors.pop("logits"))
    gates.ascent.copy_(tensors.pop("ascent"))
    rng.set_state(tensors.pop("rng"))
    if tensors:
        optimizer.state[gates.logits] = tensors
    return notes["step"], [(step, rows) for step, rows in notes["history"]]


def learn_plan(
    checkpoint: Checkpoint,
    text: str,
    wanted: Wanted,
    healing: Healing,
    folder: Path,
    progress: Progress = lambda line: None,
) -> Learning:
    """The plan that gates learn for a target, and its rivals, before and after healing.

    Parts of the text are for the fit, for the damages of layers, for the comparison, for what
    decides in healing; the rest is for gates and healing. The same call with the same folder goes
    on where it was interrupted. ValueError for a target that cannot be reached, before anything is
    trained; UnreachableLossError for a loss.
    """
    search = _Search(checkpoint, text, wanted, healing, folder, progress)
    target, probes = wanted.target, list[Probe]()
    if isinstance(target, LossTarget):
        best, probes = cheapest_within(search.budget, target, search.probe)
        target = target.at(best.share)
    return search.compared(target, probes)


class _Search:
    """A model, its fitted changes and their damages: everything that plans are made from."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: str,
        wanted: Wanted,
        healing: Healing,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.healing, self.progress = checkpoint, healing, progress
        self.start, self.steps = wanted.start, wanted.steps
        check_readable(checkpoint)
        check_length(checkpoint.config(), wanted.reading.window)
        if wanted.reading.window < LENGTH:
            raise ValueError(
                f"Gates learn from sequences of {LENGTH} tokens: write --window {LENGTH}, or more."
            )
        self.model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
        check_predicts(self.model)
        self.allowed = planning.options_of(self.model, wanted.equations)
        if turned := [name for name, change in self.allowed.items() if change.turned]:
            raise ValueError(
                f"Gates cannot choose '{turned[0]}': they mix what the library's own attention "
                "gives, which rotates no V.\nThe program 'qkvbench advise' can, without gates."
            )
        self.layers = layers_of(self.model)
        parts = self._parts(tokenizer, text, wanted)
        self.fit, self.damaging, self.judging, self.deciders, self.rest = parts
        check_tokens(self.model, parts)
        self.folder = folder / f"search-{self._identity()}"
        target = wanted.target
        if isinstance(target, LossTarget):
            # May keep everything, until the bound of the cost is found.
            target = target.at(1.0)
        # A target that cannot be reached is refused before anything is read.
        self.target = target.at_length(wanted.reading.window)
        steps = self._latencies(tokenizer, text) if self.target.quantity == "latency" else None
        self.counting = counting(self.model, self.layers, self.target, steps)
        self.budget = self._budget(self.target.share)
        if isinstance(target := wanted.target, LossTarget):
            check_cheaper(self.budget, target)
        self.folder.mkdir(parents=True, exist_ok=True)
        progress(f"reading {self.fit.numel():,} tokens for the fit")
        rows = counted(list(self.fit), "windows of the fit", progress)
        self.calibration = collect(self.model, ({"input_ids": row[None]} for row in rows))
        self.fitted = every_fit(self.model, self.allowed, self.calibration, self.start, progress)
        self.attentions = attentions(self.model, self.fitted, parse_start(self.start).rows)
        self.trial = Trial(self.model, self.damaging, self.attentions, self.counting.of_layer)
        self.table = self._damages()

    def probe(self, share: float) -> Probe:
        """Learn a plan within the bound, and heal it if plans are healed."""
        found = self._budget(share)
        chosen, _ = self._learned(found)
        plan = self._plan(chosen)
        grown = self.trial.effect(plan).loss
        if self.healing.tokens:
            grown = self._effect(self._healed(plan), self.damaging)[1]
        return Probe(share, found.share(chosen), grown / self.trial.loss)

    def compared(self, target: Target, probes: Sequence[Probe]) -> Learning:
        """The learned plan beside its rivals, on windows that nothing else reads."""
        found = self._budget(target.share)
        chosen, history = self._learned(found)
        every = tuple(option for row in self.table for option in row)
        rest, whole = self.counting.rest, round(found.full)
        limit = planning.whole_limit(found.limit / found.full, whole - rest, rest)
        plans = {
            LEARNED: self._plan(chosen),
            PROGRAM: planning.best_plan(every, limit),
            UNIFORM: planning.spread(every, limit, "uniform"),
        }
        judged = Trial(self.model, self.judging, self.attentions)
        effects = {name: judged.effect(plan) for name, plan in plans.items()}
        healed: dict[Plan, tuple[float, float]] = {}
        for name, plan in plans.items():
            if self.healing.tokens and plan not in healed:
                self.progress(f"healing the plan: {name}")
                healed[plan] = self._effect(self._healed(plan), self.judging)
        return Learning(
            target,
            found.share(chosen),
            judged.loss,
            {name: Found(plan, effects[name], healed.get(plan)) for name, plan in plans.items()},
            every,
            history,
            self.healing.tokens,
            probes,
        )

    def _parts(self, tokenizer: Any, text: str, wanted: Wanted) -> Sequence[Windows]:
        """The windows of each part; ValueError if the text is too short."""
        reading = wanted.reading
        count = reading.count(reading.held_out) // 2 or 1
        deciding = reading.count(DECIDING_TOKENS) if self.healing.tokens else 0
        most = max(wanted.steps * SEQUENCES * LENGTH, self.healing.tokens)
        parts = [reading.count(reading.fit), count, count, deciding, reading.count(most)]
        read = quality.windows(tokenizer, text, reading.window, sum(parts))
        if len(read) <= sum(parts[:-1]):
            raise ValueError(
                f"The text has {len(read)} windows of {reading.window} tokens; at least "
                f"{sum(parts[:-1]) + 1} are needed.\nGive a longer text, or shorter windows."
            )
        parts[-1] = len(read) - sum(parts[:-1])
        return read.split(parts)

    def _identity(self) -> str:
        """A short hash of everything that decides the search, but for its target."""
        what = [list(self.allowed), self.start, self.steps, asdict(self.healing)]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        digest.update(self.model.config.to_json_string().encode())
        digest.update(weights_hash(self.model).encode())
        for part in (self.fit, self.damaging, self.judging, self.deciders, self.rest):
            digest.update(f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
        return digest.hexdigest()[:12]

    def _latencies(self, tokenizer: Any, text: str) -> Steps:
        """The steps that were measured first: measured again, the same plan would cost another."""
        file = self.folder / f"steps-{self.target.tokens}.json"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            equations = list(self.allowed)
            steps = steps_of(self.model, equations, tokenizer, text, self.target, self.progress)
            write_atomically(file, json.dumps(asdict(steps)).encode())
        steps = Steps(**json.loads(file.read_bytes()))
        if not any(steps.is_faster(equation) for equation in self.allowed):
            raise ValueError(
                f"{self.target} cannot be reached: no equation makes a step faster. After "
                f"{steps.context:,} tokens it takes {seconds_text(steps.step_s)}; "
                + ", ".join(
                    f"with {equation} in all layers {seconds_text(median(times))}"
                    for equation, times in steps.changed_s.items()
                )
                + ".\nThese equations save memory: --target cache=75%."
            )
        return steps

    def _budget(self, share: float) -> Budget:
        target = replace(self.target, share=share)
        return counted_budget(self.counting, self.layers, self.allowed, target)

    def _damages(self) -> list[list[Option]]:
        """The options of each layer, the layer as it is first, with their damages.

        Each row is kept in a file as soon as it is measured.
        """
        file = self.folder / "damages.json"
        kept = json.loads(file.read_bytes()) if file.is_file() else []
        table = [[self._counted(Option(**each)) for each in row] for row in kept]
        time_left = TimeLeft("layers", len(self.layers), self.progress, len(table))
        for layer in range(len(table), len(self.layers)):
            changed = [self.trial.option(layer, change) for change in self.allowed.values()]
            table.append([self.trial.unchanged(layer), *changed])
            rows = [[asdict(each) for each in row] for row in table]
            write_atomically(file, json.dumps(rows).encode())
            time_left.done(layer + 1)
        return table

    def _counted(self, option: Option) -> Option:
        """A kept option with its cost in the unit of this target."""
        change = self.allowed.get(option.equation)
        return replace(option, values=self.counting.of_layer(self.layers[option.layer], change))

    def _learned(self, found: Budget) -> tuple[Choice, History]:
        fits = [[self.fitted[layer.number, each] for each in self.allowed] for layer in self.layers]
        bound = replace(self.target, share=found.limit / found.full)
        saved = self.folder / f"gates-{str(bound).replace('%', '')}.safetensors"
        with side_by_side(self.layers, fits) as options:
            return learn_gates(
                self.model,
                options,
                found,
                self.rest,
                self.steps,
                self.healing.seed,
                self.progress,
                saved,
            )

    def _plan(self, chosen: Choice) -> Plan:
        return tuple(row[taken] for row, taken in zip(self.table, chosen, strict=True))

    def _healed(self, plan: Plan) -> Any:
        """The model with a plan, healed; what was healed before is only read."""
        mode = planning.mode_of(plan)
        name = hashlib.sha256(json.dumps(mode).encode()).hexdigest()[:12]
        changed = tie(self.checkpoint.model(), mode, self.calibration, self.start)
        state = self.folder / f"healing-{name}"
        heal(changed, self.model, self.rest, self.deciders, self.healing, state, self.progress)
        return changed

    @torch.no_grad()
    def _effect(self, model: Any, text: Windows) -> tuple[float, float]:
        """The divergence from the original's predictions, and the loss above its own."""
        apart, grown = [], []
        cache = quality.cache_of(model, parse_start(self.start).rows)
        for row in text:
            whole = quality.logits(self.model, row[None], None)[0].float()
            made = quality.logits(model, row[None], cache)[0].float()
            # The last prediction is of a token that is not read, as everywhere else.
            apart.append(float(divergence(whole[:-1], made[:-1])))
            grown.append(
                float(quality.cross_entropy(made, row) - quality.cross_entropy(whole, row))
            )
        return fmean(apart), fmean(grown)
