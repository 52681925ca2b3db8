"""The average over a benchmark's tasks: its arithmetic, its pairs, and what is left out of it."""

from dataclasses import dataclass, field

import pytest

import fake_study
from qkvbench.recipes import Study
from qkvbench.reports import full, summary
from qkvbench.results.averages import averages
from qkvbench.results.margins import Margins
from qkvbench.results.record import MetricInfo
from qkvbench.results.stats import compare, tally
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.sweep.study import info

ARMS = ("q,k,v", "q,k=v")


@dataclass
class Arm:
    """The fields of a cell that an average reads."""

    variant: str
    scores: dict
    runs: tuple = ()
    diverged: tuple = ()


@dataclass
class Scored:
    """The fields of a task's view that an average reads."""

    name: str
    table: dict
    chance: float = 0.5
    unit: str = "share"
    solved: float | None = None
    metric: MetricInfo = field(init=False)

    def __post_init__(self):
        self.metric = MetricInfo(
            name="accuracy", unit=self.unit, better="higher", chance=self.chance, solved=self.solved
        )
        self.cells = tuple(Arm(arm, scores) for arm, scores in self.table.items())
        words = {"baseline": ARMS[0], "seeds": range(3)}
        if self.solved is None:
            self.result = compare(self.table, metric=self.metric, **words)
        else:
            steps = {
                arm: {seed: 100.0 if each >= self.solved else None for seed, each in row.items()}
                for arm, row in self.table.items()
            }
            self.result = tally(steps, **words)


def table(*rows):
    return {arm: dict(enumerate(row)) for arm, row in zip(ARMS, rows, strict=True)}


ONE = Scored("one", table((0.80, 0.82, 0.81), (0.70, 0.75, 0.71)))
TWO = Scored("two", table((0.30, 0.36, 0.33), (0.28, 0.30, 0.35)), chance=0.1)
NONE = Scored("none", table((0.49, 0.51, 0.50), (0.5, 0.5, 0.51)))
COUNTED = Scored("counted", table((1.0, 1.0, 1.0), (0.2, 0.3, 1.0)), solved=0.9)
BITS = Scored("bits", table((0.9, 0.91, 0.92), (0.9, 0.93, 0.91)), unit="bits")
GLUE = dict.fromkeys(["one", "two", "none", "counted", "bits"], "glue (packaged)")


def test_an_average_is_the_mean_of_the_tasks_seed_by_seed_and_is_compared_as_a_task_is():
    (found,) = averages([ONE, TWO], GLUE, Margins())
    means = table((0.55, 0.59, 0.57), (0.49, 0.525, 0.53))
    again = compare(means, baseline="q,k,v", seeds=range(3), metric=found.metric, margin=0.01)
    assert (found.benchmark, found.tasks) == ("glue (packaged)", ("one", "two"))
    assert found.metric.chance == pytest.approx(0.3)
    for arm in ARMS:
        assert found.result.means[arm].value == pytest.approx(again.means[arm].value)
    difference, wanted = found.result.differences["q,k=v"], again.differences["q,k=v"]
    assert difference.value == pytest.approx(-0.055, abs=1e-3)
    assert (difference.low, difference.high) == pytest.approx((wanted.low, wanted.high))


def test_tasks_that_were_not_learned_are_left_out_and_named():
    (found,) = averages([ONE, NONE, TWO], GLUE, Margins())
    assert (found.tasks, found.left_out) == (("one", "two"), ("none",))
    assert averages([ONE, NONE], GLUE, Margins()) == ()


@pytest.mark.parametrize("other", [COUNTED, BITS], ids=lambda task: task.name)
def test_tasks_of_another_unit_or_with_counted_seeds_are_not_averaged(other):
    assert averages([ONE, other], GLUE, Margins()) == ()


def test_an_arm_that_lacks_one_run_of_one_task_is_incomplete_and_compared_with_nothing():
    scores = table((0.80, 0.82, 0.81), (0.70, 0.75, 0.71))
    del scores["q,k=v"][1]
    (found,) = averages([Scored("one", scores), TWO], GLUE, Margins())
    assert found.result.incomplete == ("q,k=v",)
    # Of the seeds that both tasks have.
    assert found.result.means["q,k=v"].value == pytest.approx((0.49 + 0.53) / 2)


def test_tasks_of_different_benchmarks_have_no_average():
    assert averages([ONE, TWO], {"one": "glue (packaged)", "two": "lm (packaged)"}, Margins()) == ()
    assert averages([ONE, TWO], {}, Margins()) == ()


def test_reports_show_an_average_under_its_own_name(tmp_path):
    store = fake_study.build(tmp_path)
    before = view(store)
    assert before.averages == ()
    benchmarks = {"digits": "small (built-in)", "sort": "small (built-in)"}
    store.write_study(fake_study.info().model_copy(update={"benchmarks": benchmarks}))
    seen = view(Store(tmp_path))
    (average,) = seen.averages
    results = {task.name: task.result for task in seen.tasks}
    for arm, mean in average.result.means.items():
        wanted = sum(results[name].means[arm].value for name in ("digits", "sort")) / 2
        assert mean.value == pytest.approx(wanted)
    said = " ".join(full.render(seen).split())
    assert "small (built-in) average: the plain mean over digits, sort (3 seeds" in said
    assert "not the score of a benchmark of that name" in said
    (written,) = summary.document(seen)["averages"]
    assert written["tasks"] == ("digits", "sort")
    assert written["result"]["differences"].keys() == average.result.differences.keys()


def test_a_study_maps_its_tasks_to_benchmarks():
    study = Study("test", ("q,k,v",), {"sentiment": 1, "topics-8": 1, "digits": 1})
    assert info(study, "test").benchmarks == {
        "sentiment": "glue (packaged)",
        "topics-8": "glue (packaged)",
        "digits": "imagenet (built-in)",
    }
