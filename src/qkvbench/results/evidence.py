"""The evidence of all folders on one arm: every setting in which it ran beside a baseline.

Runs of one experiment count once, whatever the folder and the name of the task under which it was
run: a setting is what the two arms share, without arm, seed and name.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float

from qkvbench.cost.matched import unmarked
from qkvbench.experiment import Experiment
from qkvbench.results.across import FLOOR
from qkvbench.results.margins import Margins
from qkvbench.results.record import MetricInfo, Record
from qkvbench.results.stats import (
    Comparison,
    Difference,
    Standing,
    Tally,
    Verdict,
    compare,
    tally,
    verdicts,
)
from qkvbench.results.store import Store
from qkvbench.results.view import BASELINE, Cell, without_rate

Curve = Float[np.ndarray, " points"]
# The reason for which nothing is said of the two arms.
Silence = Standing | Literal["runs failed"]


@dataclass(frozen=True)
class Run:
    """A record, the folder that it is in, and its experiment.

    ``tuned``: its learning rate was chosen for its arm, so that matched arms differ in it.
    """

    folder: str
    record: Record
    tuned: bool = False

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment of the record."""
        return self.record.parsed_experiment


@dataclass(frozen=True, eq=False)
class Setting:
    """The two arms in one setting, with all the seeds that any folder has of them.

    ``tuned``: each arm has a learning rate of its own. ``names`` are those under which the task was
    run. ``seeds`` counts the baseline's and the arm's runs that ended. ``silence`` is the reason if
    there is no verdict. ``speed`` is the effective speed-up; None if it cannot be told.
    """

    shared: Experiment
    tuned: bool
    names: tuple[str, ...]
    folders: tuple[str, ...]
    seeds: tuple[int, int]
    parameters: int
    runs: tuple[str, ...]
    result: Comparison | Tally
    verdict: Verdict | None
    silence: Silence | None
    speed: float | None


def settings(
    runs: Iterable[Run], *, arm: str, against: str = BASELINE, margins: Margins | None = None
) -> tuple[Setting, ...]:
    """All settings that have runs of both arms, by task and steps."""
    by_setting: dict[tuple[Experiment, bool], list[Run]] = defaultdict(list)
    wanted = {arm, against, FLOOR}
    for run in runs:
        if run.record.arm in wanted and run.record.status != "interrupted":
            key = shared(run.experiment)
            by_setting[without_rate(key) if run.tuned else key, run.tuned].append(run)
    found = [
        _setting(key, own, arm, against, margins or Margins(), tuned=tuned)
        for (key, tuned), own in by_setting.items()
        if {arm, against} <= {run.record.arm for run in own}
    ]
    return tuple(sorted(found, key=lambda each: (each.names, each.shared.training.steps)))


def runs_of(store: Store, folder: str) -> list[Run]:
    """The runs of a folder, without those that tuned learning rates."""
    study = store.study()
    tuning = study.tuning if study is not None else None
    own = set(study.runs) if study is not None else set[str]()
    tuned = tuning.ids if tuning is not None else set[str]()
    return [
        Run(folder, record, tuned=tuning is not None and record.id in own)
        for record in store.runs().good
        if record.id in own or record.id not in tuned
    ]


def shared(experiment: Experiment) -> Experiment:
    """The part that matched arms share: no arm, no size match, no seed, no name of the task."""
    (plain,) = experiment.vary(variants=[BASELINE], seeds=[0])
    return unnamed(plain)


def unnamed(experiment: Experiment) -> Experiment:
    """The experiment without the name under which its task and model were run.

    ``recall@4x16`` is `recall`, whose model has four heads of 16 in any case. Forms in few bits, in
    which a trained model is scored once more, change no run.
    """
    init_from = experiment.init_from and unnamed(experiment.init_from)
    model = replace(unmarked(experiment.model), name="")
    return replace(
        experiment,
        task=experiment.task.inputs,
        model=model,
        init_from=init_from,
        quantizations=(),
    )


def _setting(
    key: Experiment,
    runs: Sequence[Run],
    arm: str,
    against: str,
    margins: Margins,
    *,
    tuned: bool,
) -> Setting:
    once: dict[tuple[str, int], Run] = {}
    # The first to have been run, so that a folder that repeats it adds nothing.
    for run in sorted(runs, key=lambda each: each.record.started):
        kept = once.setdefault((run.record.arm, run.record.seed), run)
        if kept.record.status != "done" and run.record.status == "done":
            once[run.record.arm, run.record.seed] = run
    arms = [each for each in dict.fromkeys((against, arm, FLOOR)) if _of(once, each)]
    cells = [Cell(each, str(key.task), _of(once, each), ()) for each in arms]
    metric = cells[0].runs[0].metric
    margin = margins.of_any(sorted({str(key.task), *(run.record.task for run in runs)}), metric)
    result = _compared(cells, metric, margin)
    verdict = verdicts(result, metric.better).get(arm)
    used = [run for run in runs if run.record.arm in (arm, against)]
    return Setting(
        shared=key,
        tuned=tuned,
        names=tuple(sorted({run.record.task for run in used})),
        folders=tuple(dict.fromkeys(run.folder for run in used if run.record.arm == arm)),
        seeds=(len(cells[0].runs), len(cells[arms.index(arm)].runs)),
        parameters=cells[0].runs[0].cost.total_parameters,
        runs=tuple(run.id for cell in cells[:2] for run in cell.runs),
        result=result,
        verdict=verdict,
        silence=_silence(result, arm) if verdict is None else None,
        speed=effective_speed(cells[0].runs, _of(once, arm)),
    )


def _silence(result: Comparison | Tally, arm: str) -> Silence:
    """The reason that an arm has no verdict; the standing may be that of the control alone."""
    if result.standing != "compared":
        return result.standing
    if arm in result.incomplete:
        return "runs failed"
    own = result.means.get(arm) if isinstance(result, Comparison) else None
    return "one seed" if own is not None and own.deviation is None else "no spread"


def _of(once: Mapping[tuple[str, int], Run], arm: str) -> tuple[Record, ...]:
    own = [run.record for (each, _), run in once.items() if each == arm]
    return tuple(sorted(own, key=lambda record: record.seed))


def _compared(
    cells: Sequence[Cell], metric: MetricInfo, margin: float | None
) -> Comparison | Tally:
    """The comparison of all runs; an arm need not have the other's seeds: nothing is paired.

    A seed of which a run of the two arms failed, without diverging, is one that both must have.
    """
    baseline = cells[0].variant
    # The control serves with the runs that it has: one that failed takes no verdict from the arms.
    failed = {run.seed for cell in cells[:2] for run in cell.failures if run.status != "diverged"}
    if metric.solved is not None:
        steps = {cell.variant: cell.solved_steps for cell in cells}
        return tally(steps, baseline=baseline, seeds=sorted(failed), margin=margin, floor=FLOOR)
    return compare(
        {cell.variant: cell.scores for cell in cells},
        baseline=baseline,
        seeds=sorted(failed),
        metric=metric,
        margin=margin,
        diverged={cell.variant: cell.diverged for cell in cells},
        floor=FLOOR,
    )


def effective_speed(base: Sequence[Record], own: Sequence[Record]) -> float | None:
    """The compute at which the baseline has the score that the arm ends with, over the arm's.

    Below 1 the arm is slower: the baseline reaches its last validation score with so much of its
    compute. Above 1 by the arm's own curve. Both are read off curves whose learning rate has not
    come down yet, so the true figure is further from 1. None without curves, or if a run failed.
    """
    of_base, of_own = _mean_curve(base), _mean_curve(own)
    if of_base is None or of_own is None:
        return None
    (steps, slow), fast = of_base, of_own[1]
    higher = base[0].metric.better == "higher"
    macs = base[0].cost.macs / own[0].cost.macs
    end_of_base, end_of_own, last = float(slow[-1]), float(fast[-1]), float(steps[-1])
    behind = end_of_base > end_of_own if higher else end_of_base < end_of_own
    at = _reached(steps, slow, end_of_own, higher=higher) if behind else None
    if at is not None:
        return at / last * macs
    at = _reached(steps, fast, end_of_base, higher=higher)
    return None if at is None else last / at * macs


def _mean_curve(runs: Sequence[Record]) -> tuple[Curve, Curve] | None:
    """Steps, and the mean validation score of the runs at each."""
    name = runs[0].metric.name
    tables = [
        [(point.step, point.metrics[name]) for point in run.curve if name in point.metrics]
        for run in runs
        if run.status == "done"
    ]
    if len(tables) < len(runs) or not tables[0] or len({len(each) for each in tables}) > 1:
        return None
    values = np.array(tables, dtype=float)
    return values[0, :, 0], np.asarray(values[:, :, 1].mean(axis=0), dtype=float)


def _reached(steps: np.ndarray, curve: np.ndarray, level: float, *, higher: bool) -> float | None:
    """The first step at which the curve has this level, by linear interpolation."""
    good = curve >= level if higher else curve <= level
    if not good.any():
        return None
    first = int(good.argmax())
    if first == 0:
        return float(steps[0])
    ends = float(curve[first - 1]), float(curve[first])
    share = (level - ends[0]) / (ends[1] - ends[0])
    return float(steps[first - 1]) + share * float(steps[first] - steps[first - 1])


def difference_of(setting: Setting, arm: str) -> Difference | None:
    """The arm's difference; None if the task counts solved seeds, or nothing was compared."""
    result = setting.result
    return result.differences.get(arm) if isinstance(result, Comparison) else None
