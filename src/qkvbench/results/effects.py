"""Which choices of an arm matter, and do they hang together: a linear model of a study's scores.

Its factors are the function (where Q, K and V come from), the number of key/value heads, and the
positions; seeds are blocks. What is left over is noise of a run and every interaction that is not
named: with one seed of each arm nobody can tell these apart.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy import stats

from qkvbench.experiment import from_json
from qkvbench.model import position_written
from qkvbench.results.record import MetricInfo, Record
from qkvbench.task_ref import parse_task
from qkvbench.variant import (
    CANONICAL,
    Latent,
    LearnedRotation,
    Own,
    Same,
    Source,
    Stream,
    parse,
    write,
)

LEVEL = 0.95
# Singular values below this share of the largest are none: a column says what others say.
ROUNDING = 1e-9

# Named interactions: each of these with the positions.
SOURCES = ("q", "k", "v")


@dataclass(frozen=True)
class Run:
    """A score, and the level of each factor that it was made with."""

    score: float
    levels: Mapping[str, str]


@dataclass(frozen=True)
class Term:
    """A factor or an interaction: its part of all variation, and whether chance alone would do.

    ``share`` is of the sum of squares about the mean. ``p`` is that of the F test against what is
    left over, after Holm's correction over the terms of the task.
    """

    name: str
    freedom: int
    share: float
    f: float
    p: float


@dataclass(frozen=True)
class Effect:
    """What a level of a factor changes against another, on average over all else.

    The interval holds for all effects of the task at once (Bonferroni); ``p`` is after Holm's
    correction over them.
    """

    factor: str
    level: str
    versus: str
    value: float
    low: float
    high: float
    p: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Effects:
    """One task. ``lacking`` counts runs without a score, which are left out.

    ``left_over`` is the deviation of what no term explains, with ``freedom`` degrees;
    ``of_items`` is the part of it that another sample of test items would move, None where runs
    kept no items.
    """

    task: str
    metric: MetricInfo
    runs: int
    lacking: int
    mean: float
    left_over: float
    freedom: int
    of_items: float | None
    terms: tuple[Term, ...]
    effects: tuple[Effect, ...]
    interactions: tuple[Effect, ...]


def effects(records: Iterable[Record]) -> tuple[Effects, ...]:
    """Each task whose runs leave something over; tasks that differ in their positions are one."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[str(replace(parse_task(record.task), position=None))].append(record)
    found = (_effects(task, own) for task, own in by_task.items())
    return tuple(each for each in found if each is not None)


def levels(record: Record) -> dict[str, str] | None:
    """The level of each factor; None where the arm is of another size or its layers differ."""
    try:
        variant = parse(record.arm)
    except ValueError:
        return None
    model = from_json(record.experiment).model
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
        case LearnedRotation(origin):
            return f"R({origin})"
        case Latent(rank):
            return f"L({rank})"


def _effects(task: str, records: Sequence[Record]) -> Effects | None:
    done = [each for each in records if each.status == "done"]
    runs = [Run(each.score, found) for each in done if (found := levels(each)) is not None]
    if len({run.levels["function"] for run in runs}) < 2:
        return None
    model = _Model(runs)
    if model.freedom < 1 or model.left_over == 0:
        return None
    items = [_item_variance(each) for each in done if each.items is not None]
    return Effects(
        task=task,
        metric=done[0].metric,
        runs=len(runs),
        lacking=len(records) - len(runs),
        mean=float(model.scores.mean()),
        left_over=float(np.sqrt(model.left_over)),
        freedom=model.freedom,
        of_items=float(np.sqrt(np.mean(items))) if items else None,
        terms=model.terms(),
        effects=model.main_effects(),
        interactions=model.interactions(),
    )


def _item_variance(record: Record) -> float:
    """The variance of a run's score over samples of test items."""
    assert record.items is not None
    scores, weights = record.items.arrays()
    mean = float(np.sum(weights * scores))
    return float(np.sum(weights**2 * (scores - mean) ** 2))


class _Model:
    """Least squares on the factors of some runs. The first level of a factor is its baseline."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.scores = np.array([run.score for run in runs])
        self.order = {name: self._levels(name) for name in runs[0].levels}
        self.main = [("positions",), ("function",), ("heads",)]
        self.mixed = [("function", "heads")]
        self.named = [("positions", role) for role in (*SOURCES, "heads")]
        kept = [term for term in [*self.main, *self.mixed, *self.named] if self._columns(term)]
        self.main = [term for term in self.main if term in kept]
        self.all = kept
        matrix, names = self._matrix(kept)
        self.names = names
        fitted, rank = _fitted(matrix, self.scores)
        self.freedom = len(runs) - rank
        squares = float(np.sum((self.scores - fitted) ** 2))
        self.left_over = squares / self.freedom if self.freedom > 0 else 0.0
        if squares < ROUNDING * float(np.sum((self.scores - self.scores.mean()) ** 2)):
            self.left_over = 0.0

    def terms(self) -> tuple[Term, ...]:
        """Each term after all others that do not contain it."""
        whole = float(np.sum((self.scores - self.scores.mean()) ** 2))
        rows: list[tuple[str, int, float, float]] = []
        for term in self.all:
            others = [each for each in self.all if each != term and not self._contains(each, term)]
            without, rank = self._squares(others)
            with_it, more = self._squares([*others, term])
            if more == rank:
                continue
            f = (without - with_it) / (more - rank) / self.left_over
            rows.append((" × ".join(term), more - rank, (without - with_it) / whole, f))
        tails = _holm([float(stats.f.sf(f, df, self.freedom)) for _, df, _, f in rows])
        return tuple(
            Term(name, df, share, f, p) for (name, df, share, f), p in zip(rows, tails, strict=True)
        )

    def main_effects(self) -> tuple[Effect, ...]:
        """Each level of a factor against its first, in the model without interactions.

        Every arm is there with each of the positions, so this is a difference of means.
        """
        matrix, names = self._matrix(self.main)
        wanted = [
            (term[0], level, self.order[term[0]][0], {((term[0], level),): 1.0})
            for term in self.main
            for level in self.order[term[0]][1:]
        ]
        return self._contrasts(matrix, names, wanted)

    def interactions(self) -> tuple[Effect, ...]:
        """How the effect of a source or of heads under other positions differs from the first."""
        matrix, names = self._matrix(self.all)
        first = self.order["positions"][0]
        wanted = [
            (
                f"{role} {level}" if role in SOURCES else f"{level} {role}",
                scheme,
                first,
                {(("positions", scheme), (role, level)): 1.0},
            )
            for term in self.all
            if term in self.named
            for role in term[1:]
            for scheme, level in product(self.order["positions"][1:], self.order[role][1:])
        ]
        return self._contrasts(matrix, names, wanted)

    def _contrasts(
        self,
        matrix: Float[np.ndarray, "runs columns"],
        names: Sequence[tuple[tuple[str, str], ...]],
        wanted: Sequence[tuple[str, str, str, Mapping[tuple[tuple[str, str], ...], float]]],
    ) -> tuple[Effect, ...]:
        """The wanted sums of coefficients that the runs tell, with intervals for all at once."""
        inverse = np.linalg.pinv(matrix.T @ matrix, rcond=ROUNDING, hermitian=True)
        coefficients = inverse @ matrix.T @ self.scores
        rows: list[tuple[str, str, str, float, float]] = []
        for factor, level, versus, parts in wanted:
            contrast = np.array([parts.get(name, 0.0) for name in names])
            # Not estimable: another term's columns say the same.
            told = contrast @ inverse @ matrix.T @ matrix
            if not np.allclose(told, contrast, atol=1e-6) or not contrast.any():
                continue
            error = float(np.sqrt(self.left_over * (contrast @ inverse @ contrast)))
            rows.append((factor, level, versus, float(contrast @ coefficients), error))
        if not rows:
            return ()
        wide = float(stats.t.isf((1 - LEVEL) / 2 / len(rows), self.freedom))
        tails = _holm(
            [float(2 * stats.t.sf(abs(value) / error, self.freedom)) for *_, value, error in rows]
        )
        return tuple(
            Effect(factor, level, versus, value, value - wide * error, value + wide * error, p)
            for (factor, level, versus, value, error), p in zip(rows, tails, strict=True)
        )

    def _squares(self, terms: Sequence[tuple[str, ...]]) -> tuple[float, int]:
        fitted, rank = _fitted(self._matrix(terms)[0], self.scores)
        return float(np.sum((self.scores - fitted) ** 2)), rank

    def _matrix(
        self, terms: Sequence[tuple[str, ...]]
    ) -> tuple[Float[np.ndarray, "runs columns"], list[tuple[tuple[str, str], ...]]]:
        """One column for the mean, for each seed but the first, and for what the terms name."""
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
        """The combinations of levels of a term that are no baseline and that a run has."""
        combined = product(*(self.order[name][1:] for name in term))
        named = [tuple(zip(term, each, strict=True)) for each in combined]
        return [
            each
            for each in named
            if any(all(run.levels[name] == level for name, level in each) for run in self.runs)
        ]

    def _contains(self, term: tuple[str, ...], part: tuple[str, ...]) -> bool:
        """Whether a term is an interaction of the part; a source is a part of the function."""
        roles = {"function" if name in SOURCES else name for name in term}
        return len(term) > len(part) and {*part} <= roles

    def _levels(self, name: str) -> list[str]:
        """In the order of the study, which has the baseline first; canonical sources and heads."""
        found = list(dict.fromkeys(run.levels[name] for run in self.runs))
        if name == "function":
            found.sort(key=lambda level: level != write(CANONICAL))
        if name == "heads":
            found.sort(key=int, reverse=True)
        if name in SOURCES:
            found.sort(key=lambda level: level != "own")
        return found


def _fitted(
    matrix: Float[np.ndarray, "runs columns"], scores: Float[np.ndarray, " runs"]
) -> tuple[Float[np.ndarray, " runs"], int]:
    """The nearest scores that the columns can make, and how many columns say something new."""
    basis, sizes, _ = np.linalg.svd(matrix, full_matrices=False)
    rank = int(np.sum(sizes > ROUNDING * sizes[0]))
    basis = basis[:, :rank]
    return basis @ (basis.T @ scores), rank


def _holm(tails: Sequence[float]) -> list[float]:
    """The probabilities after Holm's correction, in their order."""
    order: list[int] = np.argsort(tails).tolist()
    corrected, highest = [0.0] * len(tails), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(tails) - place) * float(tails[index])))
        corrected[index] = highest
    return corrected
