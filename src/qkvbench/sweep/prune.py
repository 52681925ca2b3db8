"""Learned plans and their rivals: every run of `qkvbench prune`, in order, from one store.

For each seed: the model is trained; then its layers get gates, which learn a plan while the weights
go on learning; then the plan alone heals. Rivals begin with the same trained weights and train as
many steps as gates and healing together, on batches in the same order.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, islice, product
from pathlib import Path
from statistics import fmean

import numpy as np

from qkvbench.cost.budget import (
    Budget,
    Choice,
    Pairs,
    Spread,
    budget,
    changed_layers,
    least_damage,
    spread,
)
from qkvbench.cost.search import Probe, cheapest_within
from qkvbench.experiment import Experiment, Training
from qkvbench.model import Gates, LossTarget, with_layers, write_cycle
from qkvbench.reports.parts.formatting import plural
from qkvbench.results.pruning import (
    ALONE,
    CONTINUED,
    LEARNED,
    PAIRS,
    PROGRAM,
    RANDOM,
    SCRATCH,
    PlanLoss,
)
from qkvbench.results.record import Record
from qkvbench.results.store import Store, write_atomically
from qkvbench.sweep.local import Workers
from qkvbench.sweep.study import Progress, run_experiments
from qkvbench.train.damages import losses_of_plans
from qkvbench.train.run import BEFORE
from qkvbench.variant import write

# Steps of the gates, and of healing, as shares of those of the trained model; and their rate, as a
# share of its learning rate.
SEARCH, HEAL, RATE = 0.25, 0.75, 0.5
# Plans whose damages are measured before they are written down.
PLANS_AT_A_TIME = 8
HOW: Mapping[Spread, str] = {"uniform": "evenly spaced", "first": "first", "last": "last"}


class FailedRunError(Exception):
    """A run of the study is not done; the message says which, and why."""


@dataclass(frozen=True)
class Pruning:
    """The study: the run of each seed that trains the model as it is, gates, and rivals.

    ``draws`` are random plans for each seed; ``pairs`` is how many pairs of changed layers are
    measured together. With ``distills`` the trained model is the teacher of every later run.
    """

    trained: tuple[Experiment, ...]
    gates: Gates
    draws: int
    pairs: int
    distills: bool = False

    @property
    def budget(self) -> Budget:
        """The cost of each option, and the limit; ValueError if the target cannot be met."""
        return budget(self.trained[0].model, self.gates)

    def gated(self, trained: Experiment) -> Experiment:
        """The run that learns a plan."""
        training = _further(trained.training, SEARCH)
        begun = replace(trained, training=training, init_from=trained, gates=self.gates)
        return replace(begun, teacher=self._teacher(trained), other_attention=False)

    def healed(self, plan: Choice, start: Experiment) -> Experiment:
        """The run that heals a plan: after gates, or as long as both from the trained model."""
        after_gates = start.gates is not None
        trained = start.init_from if start.gates and start.init_from else start
        return replace(
            trained,
            model=with_layers(trained.model, self.budget.layers(plan)),
            training=_further(trained.training, SEARCH + HEAL, after=SEARCH if after_gates else 0),
            init_from=start,
            other_attention=True,
            teacher=self._teacher(trained),
        )

    def continued(self, trained: Experiment) -> Experiment:
        """The model as it is, trained as many steps as a plan."""
        training = _further(trained.training, SEARCH + HEAL)
        begun = replace(trained, training=training, init_from=trained, other_attention=False)
        return replace(begun, teacher=self._teacher(trained))

    def scratch(self, plan: Choice, trained: Experiment) -> Experiment:
        """The plan from untrained weights, by as many steps in all."""
        training, added = trained.training, _further(trained.training, SEARCH + HEAL).steps
        return replace(
            trained,
            model=with_layers(trained.model, self.budget.layers(plan)),
            training=replace(training, steps=training.steps + added),
            init_from=None,
            other_attention=False,
            teacher=self._teacher(trained),
        )

    def at(self, share: float) -> "Pruning":
        """The same study with another bound of the cost."""
        target = replace(self.gates.target, share=share)
        return replace(self, gates=replace(self.gates, target=target))

    def _teacher(self, trained: Experiment) -> Experiment | None:
        return trained if self.distills else None


@dataclass(frozen=True)
class Result:
    """The outcomes of each arm by seed, and the plans of gates and of the integer program.

    ``history`` has for each seed, at each snapshot of the gates, every layer's probabilities.
    ``weights`` are the runs of the learned plan whose weights a person takes away: those of arm
    ``kept``, with the gates' weights or with those of before, whichever has less validation loss.
    """

    pruning: Pruning
    arms: Mapping[str, Sequence[Sequence[PlanLoss]]]
    learned: Sequence[Choice]
    program: Sequence[Choice]
    history: Sequence[Sequence[tuple[int, list[list[float]]]]]
    damages: Sequence[Sequence[Sequence[float]]]
    kept: str
    weights: Sequence[Experiment]


def learn_within(
    pruning: Pruning, target: LossTarget, store: Store, *, jobs: int | None, progress: Progress
) -> tuple[Pruning, list[Probe]]:
    """The study at the least cost whose learned plans are within the loss, and all that was tried.

    UnreachableLossError if the smallest change is too much; FailedRunError if a run is not done.
    """
    best, probes = cheapest_within(
        pruning.budget, target, lambda share: _probe(pruning.at(share), store, jobs, progress)
    )
    return pruning.at(best.share), probes


def _probe(pruning: Pruning, store: Store, jobs: int | None, progress: Progress) -> Probe:
    """Learn plans within the bound, and heal them as `run_pruning` does."""
    plans, _ = _learned_plans(pruning, store, jobs, progress)
    arms = _learned_arms(pruning, plans)
    runs = [run for arm in arms.values() for run in arm]
    records = _done(runs, store, jobs, progress, saves_weights=True)
    losses = {name: _validation(arm, records) for name, arm in arms.items()}
    least = min(losses[name] for name in (LEARNED, ALONE))
    cost = max(map(pruning.budget.share, plans))
    return Probe(pruning.gates.target.share, cost, least / losses[CONTINUED] - 1)


def run_pruning(pruning: Pruning, store: Store, *, jobs: int | None, progress: Progress) -> Result:
    """Run what the store lacks, and collect. The same call again resumes.

    FailedRunError if a run is not done.
    """
    found = pruning.budget
    trained = pruning.trained
    learned, searches = _learned_plans(pruning, store, jobs, progress)
    damages, programs = [], []
    with Workers(trained[0].backend) as workers:
        for each in trained:
            measured = _Damages(each, found, store.path / "damages" / f"{each.id}.json", workers)
            row = measured.single()
            damages.append(row)
            programs.append(_programs(row, measured.together(row, pruning.pairs), found))
    own = _learned_arms(pruning, learned)
    arms: dict[str, list[list[Experiment]]] = {}
    for number, each in enumerate(trained):
        plan, (program, with_pairs) = learned[number], programs[number]
        rows = {
            **{name: [runs[number]] for name, runs in own.items()},
            SCRATCH: [pruning.scratch(plan, each)],
            PROGRAM: [pruning.healed(program, each)],
            PAIRS: [pruning.healed(with_pairs, each)],
        }
        for name, plans in _simple(found, pruning.draws, each.seed).items():
            rows[name] = [pruning.healed(one, each) for one in plans]
        for name, runs in rows.items():
            arms.setdefault(name, []).append(runs)
    # The weights of a learned plan are what a person takes away.
    weights = [run for runs in own.values() for run in runs]
    records = _done(weights, store, jobs, progress, saves_weights=True)
    every = [run for seeds in arms.values() for runs in seeds for run in runs]
    records |= _done(every, store, jobs, progress)
    kept = min((LEARNED, ALONE), key=lambda name: _validation(own[name], records))
    return Result(
        pruning,
        {
            name: [[_plan_loss(run, records[run], pruning) for run in runs] for runs in seeds]
            for name, seeds in arms.items()
        },
        learned,
        [program for program, _ in programs],
        [_history(each, found) for each in searches],
        damages,
        kept,
        own[kept],
    )


def _learned_plans(
    pruning: Pruning, store: Store, jobs: int | None, progress: Progress
) -> tuple[list[Choice], list[Record]]:
    """The plan that gates learn for each seed, and the records of these runs."""
    gated = [pruning.gated(each) for each in pruning.trained]
    done = _done([*pruning.trained, *gated], store, jobs, progress, saves_weights=True)
    searches = [done[each] for each in gated]
    return [_plan(each, pruning.budget) for each in searches], searches


def _learned_arms(pruning: Pruning, plans: Sequence[Choice]) -> dict[str, list[Experiment]]:
    """For each seed the model as it is, and the learned plan with either weights."""
    pairs = list(zip(pruning.trained, plans, strict=True))
    return {
        CONTINUED: [pruning.continued(each) for each in pruning.trained],
        LEARNED: [pruning.healed(plan, pruning.gated(each)) for each, plan in pairs],
        ALONE: [pruning.healed(plan, each) for each, plan in pairs],
    }


def _validation(runs: Sequence[Experiment], records: Mapping[Experiment, Record]) -> float:
    """The mean validation loss at the end of these runs."""
    return fmean(records[each].curve[-1].metrics["loss"] for each in runs)


def _further(training: Training, share: float, after: float = 0) -> Training:
    """Further training of a trained model, up to a share of its steps, at a lower rate.

    ``after`` is the share that was trained before, so that both together are as many as all.
    """

    def rest(steps: int) -> int:
        return math.ceil(share * steps) - math.ceil(after * steps)

    return replace(
        training,
        steps=rest(training.steps),
        warmup=rest(training.warmup),
        learning_rate=RATE * training.learning_rate,
    )


def _done(
    experiments: Sequence[Experiment],
    store: Store,
    jobs: int | None,
    progress: Progress,
    *,
    saves_weights: bool = False,
) -> dict[Experiment, Record]:
    """The record of each run; FailedRunError if one is not done."""
    run_experiments(
        list(dict.fromkeys(experiments)),
        store,
        jobs=jobs,
        progress=progress,
        saves_weights=saves_weights,
    )
    found: dict[Experiment, Record] = {}
    for each in experiments:
        record = store.run(each)
        if record is None or record.status != "done":
            why = "it has no record" if record is None else f"{record.status}: {record.reason}"
            raise FailedRunError(f"The run of {each.arm}, seed {each.seed}, is not done: {why}")
        found[each] = record
    return found


def _history(record: Record, found: Budget) -> list[tuple[int, list[list[float]]]]:
    """The probability of each option of each layer, at each snapshot of a run with gates."""
    names = [write(each) for each in found.options]
    return [
        (
            each.step,
            [
                [p or 0.0 for p in row]
                for row in zip(*map(each.measures.__getitem__, names), strict=True)
            ],
        )
        for each in record.snapshots
    ]


def _plan(record: Record, found: Budget) -> Choice:
    """The plan of a run with gates."""
    _, last = _history(record, found)[-1]
    return found.rounded(last)


def _plan_loss(run: Experiment, record: Record, pruning: Pruning) -> PlanLoss:
    layers = tuple(block.attention.variant for block in run.model.blocks if block.attention)
    choice = tuple(pruning.gates.options.index(each) for each in layers)
    return PlanLoss(
        tuple(map(write, layers)),
        pruning.budget.share(choice),
        record.metrics.get(f"loss{BEFORE}"),
        record.metrics["loss"],
    )


def _simple(found: Budget, draws: int, seed: int) -> dict[str, list[Choice]]:
    """The plans that look at no damage, by name; of the random ones several."""
    layers = len(found.costs)
    plans: dict[str, list[Choice]] = {}
    for option, count in changed_layers(found.costs, found.left).items():
        equation = write(found.options[option])
        plans[f"{equation} in every layer"] = [(option,) * layers]
        if count < layers:
            plans |= {
                f"{equation} in {plural(count, 'layer')}, {words}": [
                    spread(layers, option, count, how)
                ]
                for how, words in HOW.items()
            }
    if draws:
        numbers = np.random.default_rng([seed, layers])
        drawn = (numbers.dirichlet([1.0] * len(found.options), layers) for _ in range(draws))
        plans[RANDOM] = [found.rounded(each.tolist()) for each in drawn]
    return {
        name: rows
        for name, rows in plans.items()
        if all(found.allows(each) and found.within(each) for each in rows)
    }


def _programs(
    damages: Sequence[Sequence[float]], together: Pairs, found: Budget
) -> tuple[Choice, Choice]:
    """The integer program's plan, and the one with a second look at pairs."""
    rows = [[max(each, 0.0) for each in row] for row in damages]
    best = partial(least_damage, rows, found.costs, found.left, borrowed=found.borrowed)
    return best(), best(pairs=together)


class _Damages:
    """Validation losses of a trained model with some layers replaced: measured once, in a file."""

    def __init__(self, trained: Experiment, found: Budget, path: Path, workers: Workers) -> None:
        """The losses that are in the file already."""
        self.trained, self.found, self.path, self.workers = trained, found, path, workers
        self.losses: dict[str, float] = {}
        if path.is_file():
            self.losses = {str(k): float(v) for k, v in json.loads(path.read_bytes()).items()}

    def single(self) -> list[list[float]]:
        """By how much the loss grows if one layer gets one option."""
        layers, options = range(len(self.found.costs)), range(len(self.found.options))
        self._measure(self._changed({layer: option}) for layer in layers for option in options)
        return [[self._damage({layer: option}) for option in options] for layer in layers]

    def together(self, single: Sequence[Sequence[float]], most: int) -> Pairs:
        """By how much two changes add to the sum of their damages: the `most` harmless pairs.

        These are the ones of which a good plan is made.
        """
        changes = list(product(range(len(single)), range(1, len(self.found.options))))
        pairs = [
            pair
            for pair in combinations(changes, 2)
            if pair[0][0] != pair[1][0] and self.found.allows(self._changed(dict(pair)))
        ]
        pairs.sort(key=lambda pair: sum(single[layer][option] for layer, option in pair))
        chosen = pairs[:most]
        self._measure(self._changed(dict(pair)) for pair in chosen)
        return {
            (one, other): self._damage(dict((one, other)))
            - single[one[0]][one[1]]
            - single[other[0]][other[1]]
            for one, other in chosen
        }

    def _changed(self, changes: Mapping[int, int]) -> Choice:
        return tuple(changes.get(layer, 0) for layer in range(len(self.found.costs)))

    def _damage(self, changes: Mapping[int, int]) -> float:
        own = self.losses[self._text(self._changed({}))]
        return self.losses[self._text(self._changed(changes))] - own

    def _text(self, choice: Choice) -> str:
        return write_cycle(self.found.layers(choice))

    def _measure(self, choices: Iterable[Choice]) -> None:
        """Measure what the file lacks of these, and write it."""
        wanted = {self._text(each): self.found.layers(each) for each in choices}
        missing = {text: each for text, each in wanted.items() if text not in self.losses}
        if not missing:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        plans = iter(missing.items())
        while part := list(islice(plans, PLANS_AT_A_TIME)):
            losses = self.workers.call(losses_of_plans, self.trained, [each for _, each in part])
            self.losses |= {text: loss for (text, _), loss in zip(part, losses, strict=True)}
            text = json.dumps(self.losses, indent=1, allow_nan=False)
            write_atomically(self.path, f"{text}\n".encode())
