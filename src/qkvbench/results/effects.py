"""Main effects and interactions of an arm's design choices: a linear model of a study's scores.

Its factors are the function (the sources of Q, K and V), the number of key/value heads and the
position scheme; seeds are blocks. The residual contains the noise of a run and every interaction
outside of the model: with one seed of each arm the two cannot be separated.

Arms may differ in noise, so no test pools it: the variance of a contrast is estimated from the
residuals of its own runs (HC3: MacKinnon and White, "Some heteroskedasticity-consistent covariance
matrix estimators", J. Econometrics 29, 1985), with Satterthwaite's degrees of freedom for that
estimate under equal noise (Bell and McCaffrey, "Bias reduction in standard errors", Survey
Methodology 28, 2002). Proportions are analysed as logits, as in `welch`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.model import position_written
from qkvbench.results.across import FLOOR
from qkvbench.results.critical import holm
from qkvbench.results.record import MetricInfo, Record
from qkvbench.results.welch import Unit, unit_of
from qkvbench.task_ref import parse_task
from qkvbench.variant import (
    CANONICAL,
    Latent,
    LayerBelow,
    LearnedMap,
    Own,
    Same,
    Source,
    Stream,
    Zeros,
    parse,
    write,
)

CONFIDENCE = 0.95
# Singular values below this fraction of the largest count as zero: the columns are dependent.
RANK_TOLERANCE = 1e-9

# Factors whose interaction with the position scheme is in the model.
SOURCES = ("q", "k", "v")


@dataclass(frozen=True)
class Run:
    """A score, and the level of each factor of its run."""

    score: float
    levels: Mapping[str, str]


@dataclass(frozen=True)
class Term:
    """A factor or an interaction: its share of the variation, and its F test.

    ``share`` is of the sum of squares about the mean. ``f`` is the sum of squares over its
    expectation without an effect, for the noise of each run, and ``p`` is after Holm's correction
    over the terms of the task.
    """

    name: str
    degrees: int
    share: float
    f: float
    p: float


@dataclass(frozen=True)
class Effect:
    """The difference between two levels of a factor, averaged over the other factors.

    For proportions it is computed on logits, and given as the change from the mean of the runs with
    the levels that it is against. The intervals of a task hold together (Bonferroni); ``p`` is
    after Holm's correction over them.
    """

    factor: str
    level: str
    versus: str
    value: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Effects:
    """The effects on one task.

    Runs are left out that have no score, ``unscored``, or no levels, ``unplain``: those of arms
    with another size or block. ``residual_deviation`` has ``degrees`` degrees of freedom;
    ``item_deviation`` is its part that comes from the sample of test items, None if the records
    have no item scores. ``at_floor`` has the position schemes that are left out, because a model
    without attention does as well there as half of the arms.
    """

    task: str
    metric: MetricInfo
    runs: int
    unscored: int
    unplain: int
    mean: float
    residual_deviation: float
    degrees: int
    item_deviation: float | None
    at_floor: tuple[str, ...]
    terms: tuple[Term, ...]
    effects: tuple[Effect, ...]
    interactions: tuple[Effect, ...]


def effects(records: Iterable[Record]) -> tuple[Effects, ...]:
    """The effects on each task with residual degrees of freedom.

    Variants of a task that differ in the position scheme count as one task.
    """
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[str(replace(parse_task(record.task), position=None))].append(record)
    found = (_effects(task, own) for task, own in by_task.items())
    return tuple(each for each in found if each is not None)


def levels(record: Record) -> dict[str, str] | None:
    """The level of each factor; None if the arm has another arm's size or its layers differ."""
    try:
        variant = parse(record.arm)
    except ValueError:
        return None
    model = record.parsed_experiment.model
    return {
        "function": write(replace(variant, kv_heads=None)),
        "heads": str(variant.kv_heads or model.geometry.kv_heads),
        "positions": position_written(model.position),
        "seed": str(record.seed),
        **{role: _source(variant.source(role)) for role in SOURCES},
    }


def _source(source: Source) -> str:
    match source:
        case Own():
            return "own"
        case Stream():
            return "x"
        case Same(origin):
            return f"={origin}"
        case LearnedMap(origin):
            return f"{source.letter}({origin})"
        case Latent():
            return source.text
        case LayerBelow("first"):
            return "of the first layer"
        case LayerBelow(layers):
            return f"of the layer {layers} below"
        case Zeros():
            return "0"


def _effects(task: str, records: Sequence[Record]) -> Effects | None:
    at_floor = _schemes_at_floor(records)
    arms = [each for each in records if each.arm != FLOOR and _scheme(each) not in at_floor]
    done = [each for each in arms if each.status == "done"]
    runs = [Run(each.score, own) for each in done if (own := levels(each)) is not None]
    if len({run.levels["function"] for run in runs}) < 2:
        return None
    model = _Model(runs, unit_of(done[0].metric.unit))
    if model.degrees < 1 or model.noise == 0:
        return None
    items = [_item_variance(each) for each in done if each.items is not None]
    return Effects(
        task=task,
        metric=done[0].metric,
        runs=len(runs),
        unscored=len(arms) - len(done),
        unplain=len(done) - len(runs),
        mean=float(np.mean([run.score for run in runs])),
        residual_deviation=model.residual_deviation,
        degrees=model.degrees,
        item_deviation=float(np.sqrt(np.mean(items))) if items else None,
        at_floor=at_floor,
        terms=model.terms(),
        effects=model.main_effects(),
        interactions=model.interactions(),
    )


def _schemes_at_floor(records: Sequence[Record]) -> tuple[str, ...]:
    """The position schemes at which `none` does as well as half of the arms."""
    by_scheme: dict[str, list[Record]] = defaultdict(list)
    for each in records:
        if each.status == "done":
            by_scheme[_scheme(each)].append(each)
    found: list[str] = []
    for scheme, runs in by_scheme.items():
        sign = 1 if runs[0].metric.better == "higher" else -1
        floors = [sign * run.score for run in runs if run.arm == FLOOR]
        others = [sign * run.score for run in runs if run.arm != FLOOR]
        if floors and others and np.mean(floors) >= np.median(others):
            found.append(scheme)
    return tuple(found)


def _scheme(record: Record) -> str:
    return position_written(record.parsed_experiment.model.position)


def _item_variance(record: Record) -> float:
    """The variance of a run's score over samples of test items."""
    assert record.items is not None
    scores, weights = record.items.arrays()
    mean = float(np.sum(weights * scores))
    return float(np.sum(weights**2 * (scores - mean) ** 2))


@dataclass(frozen=True)
class _Contrast:
    """A sum of coefficients: a factor's level against another, at the levels in ``reference``."""

    factor: str
    level: str
    versus: str
    coefficients: Mapping[tuple[tuple[str, str], ...], float]
    reference: Mapping[str, str]


class _Model:
    """Least squares on the factors of some runs. The first level of a factor is its baseline.

    ``noise`` is the residual variance on the scale of analysis; ``residual_deviation`` is in the
    unit of the scores.
    """

    def __init__(self, runs: Sequence[Run], unit: Unit) -> None:
        self.runs = runs
        self.unit = unit
        self.scores = unit.analysed([run.score for run in runs])
        self.order = {name: self._levels(name) for name in runs[0].levels}
        main = [("positions",), ("function",), ("heads",)]
        self.with_positions = [("positions", role) for role in (*SOURCES, "heads")]
        terms = [*main, ("function", "heads"), *self.with_positions]
        self.all = [term for term in terms if self._columns(term)]
        self.main = [term for term in main if term in self.all]
        basis = self._basis(self.all)
        self.degrees = len(runs) - basis.shape[1]
        # Residuals are `keep @ scores`.
        self.keep = np.eye(len(runs)) - basis @ basis.T
        self.residuals = self.keep @ self.scores
        squares = float(self.residuals @ self.residuals)
        constant = squares < RANK_TOLERANCE * self._whole()
        self.noise = 0.0 if constant or self.degrees < 1 else squares / self.degrees
        fitted = [unit.restored(float(each)) for each in self.scores - self.residuals]
        missed = np.array([run.score for run in runs]) - fitted
        self.residual_deviation = float(np.sqrt(missed @ missed / max(1, self.degrees)))

    def terms(self) -> tuple[Term, ...]:
        """Each term adjusted for all others that do not contain it (type II sums of squares)."""
        rows: list[tuple[str, int, float, float]] = []
        p: dict[str, float] = {}
        noise = self._noises()
        for term in self.all:
            others = [each for each in self.all if each != term and not self._contains(each, term)]
            without, with_it = self._basis(others), self._basis([*others, term])
            gained = with_it.shape[1] - without.shape[1]
            if not gained:
                continue
            squares = float(np.sum((with_it.T @ self.scores) ** 2))
            squares -= float(np.sum((without.T @ self.scores) ** 2))
            space = with_it @ with_it.T - without @ without.T
            expected, degrees = self._variance(np.maximum(np.diag(space), 0.0))
            # Of unequal noises, few make up most of the squares (Box, Ann. Math. Stat. 25, 1954).
            own = float(np.diag(space) @ noise) ** 2 / float(noise @ space**2 @ noise)
            name = " × ".join(term)
            f = squares / expected
            rows.append((name, gained, squares / self._whole(), f))
            p[name] = float(stats.f.sf(f, min(own, gained), degrees))
        adjusted = holm(p)
        return tuple(Term(*row, adjusted[row[0]]) for row in rows)

    def main_effects(self) -> tuple[Effect, ...]:
        """Each level of a factor against its first, in the model without interactions.

        If every arm was run with each position scheme, this is a difference of means.
        """
        matrix, names = self._matrix(self.main)
        contrasts = [
            _Contrast(name, level, first, {((name, level),): 1.0}, {name: first})
            for (name,) in self.main
            for first, *others in [self.order[name]]
            for level in others
        ]
        return self._contrasts(matrix, names, contrasts)

    def interactions(self) -> tuple[Effect, ...]:
        """The effect of a source or of heads under each position scheme minus under the first."""
        matrix, names = self._matrix(self.all)
        first = self.order["positions"][0]
        contrasts = [
            _Contrast(
                f"{role} {level}" if role in SOURCES else f"{level} {role}",
                scheme,
                first,
                {(("positions", scheme), (role, level)): 1.0},
                {"positions": first, role: self.order[role][0]},
            )
            for term in self.all
            if term in self.with_positions
            for role in term[1:]
            for scheme, level in product(self.order["positions"][1:], self.order[role][1:])
        ]
        return self._contrasts(matrix, names, contrasts)

    def _contrasts(
        self,
        matrix: Float[np.ndarray, "runs columns"],
        names: Sequence[tuple[tuple[str, str], ...]],
        contrasts: Sequence[_Contrast],
    ) -> tuple[Effect, ...]:
        """The estimable ones of these sums of coefficients, with simultaneous intervals."""
        inverse = np.linalg.pinv(matrix.T @ matrix, rcond=RANK_TOLERANCE, hermitian=True)
        rows: list[tuple[_Contrast, float, float, float]] = []
        for each in contrasts:
            contrast = np.array([each.coefficients.get(name, 0.0) for name in names])
            weights = contrast @ inverse @ matrix.T
            # A contrast outside the row space is not estimable: its columns depend on others.
            if not np.allclose(weights @ matrix, contrast, atol=1e-6) or not contrast.any():
                continue
            variance, degrees = self._variance(weights**2)
            rows.append((each, float(weights @ self.scores), float(np.sqrt(variance)), degrees))
        p = holm(
            {
                index: float(2 * stats.t.sf(abs(value) / error, degrees))
                for index, (_, value, error, degrees) in enumerate(rows)
            }
        )
        found: list[Effect] = []
        for index, (each, value, error, degrees) in enumerate(rows):
            half = float(stats.t.isf((1 - CONFIDENCE) / 2 / len(rows), degrees)) * error
            value, low, high = self._restored(each, (value, value - half, value + half))
            found.append(Effect(each.factor, each.level, each.versus, value, low, high, p[index]))
        return tuple(found)

    def _variance(self, weights: Float[np.ndarray, " runs"]) -> tuple[float, float]:
        """The sum over runs of weight times the variance of its noise, and its degrees of freedom.

        That of a run is its squared residual over the square of its part that is not fitted.
        """
        unfitted = np.diag(self.keep)
        known = unfitted > RANK_TOLERANCE
        parts = np.divide(weights, unfitted**2, out=np.zeros_like(weights), where=known)
        # A run that the model always fits says nothing of its noise: it is that of all runs.
        parts += float(weights[~known].sum()) / self.degrees
        # Scores without any noise would have no degrees of freedom.
        least = RANK_TOLERANCE * self.noise * float(weights.sum())
        variance = max(float(parts @ self.residuals**2), least)
        degrees = float(parts @ unfitted) ** 2 / float(parts @ self.keep**2 @ parts)
        return variance, degrees

    def _noises(self) -> Float[np.ndarray, " runs"]:
        """The variance of each run's noise, without bias if all are equal."""
        unfitted = np.diag(self.keep)
        whole = np.full_like(unfitted, self.noise)
        known = unfitted > RANK_TOLERANCE
        found = np.divide(self.residuals**2, unfitted, out=whole, where=known)
        return np.maximum(found, RANK_TOLERANCE * self.noise)

    def _restored(self, contrast: _Contrast, changes: Iterable[float]) -> tuple[float, ...]:
        """Changes on the scale of analysis in the metric's unit, from the contrast's reference."""
        if not self.unit.logit:
            return tuple(changes)
        chosen = [
            all(run.levels[name] == level for name, level in contrast.reference.items())
            for run in self.runs
        ]
        base = float(np.mean(self.scores, where=np.array(chosen) if any(chosen) else True))
        return tuple(self.unit.restored(base + each) - self.unit.restored(base) for each in changes)

    def _whole(self) -> float:
        """The sum of squares about the mean."""
        return float(np.sum((self.scores - self.scores.mean()) ** 2))

    def _basis(self, terms: Sequence[tuple[str, ...]]) -> Float[np.ndarray, "runs rank"]:
        """An orthonormal basis of the columns of these terms."""
        basis, sizes, _ = np.linalg.svd(self._matrix(terms)[0], full_matrices=False)
        return basis[:, sizes > RANK_TOLERANCE * sizes[0]]

    def _matrix(
        self, terms: Sequence[tuple[str, ...]]
    ) -> tuple[Float[np.ndarray, "runs columns"], list[tuple[tuple[str, str], ...]]]:
        """One column for the mean, for each seed but the first, and for each level of the terms."""
        names = [(("", ""),)]
        for term in [("seed",), *terms]:
            names += self._columns(term)
        columns = [
            [
                float(all(run.levels.get(name, "") == level for name, level in each))
                for each in names
            ]
            for run in self.runs
        ]
        return np.array(columns), names

    def _columns(self, term: tuple[str, ...]) -> list[tuple[tuple[str, str], ...]]:
        """The combinations of non-baseline levels of a term that occur in a run."""
        combined = product(*(self.order[name][1:] for name in term))
        named = [tuple(zip(term, each, strict=True)) for each in combined]
        return [
            each
            for each in named
            if any(all(run.levels[name] == level for name, level in each) for run in self.runs)
        ]

    def _contains(self, term: tuple[str, ...], part: tuple[str, ...]) -> bool:
        """Whether a term is an interaction of the part; a source belongs to the function."""
        roles = {"function" if name in SOURCES else name for name in term}
        return len(term) > len(part) and {*part} <= roles

    def _levels(self, name: str) -> list[str]:
        """The levels in the order of the study, the canonical one first; heads descend."""
        levels = list(dict.fromkeys(run.levels[name] for run in self.runs))
        if name == "function":
            levels.sort(key=lambda level: level != write(CANONICAL))
        if name == "heads":
            levels.sort(key=int, reverse=True)
        if name in SOURCES:
            levels.sort(key=lambda level: level != "own")
        return levels
