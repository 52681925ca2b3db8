"""How gaps change with the training budget and with the size: several studies in one report."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import fake_study
from qkvbench.cli import main
from qkvbench.recipes import Study
from qkvbench.recipes.frontier import model
from qkvbench.results.evidence import Run
from qkvbench.results.store import Store
from qkvbench.results.sums import sum_of
from qkvbench.results.trend import _has_slopes, trends

STUDIES = Path(__file__).parent.parent / "studies"
ARMS = ("q,k,v", "q,k=v", "none")
NAMES = ("quick", "budgets-1500", "budgets-5000", "budgets-15000")


def runs(folder, loss, *, size="330k", budget=1.0, noise=0.004, arms=ARMS, seeds=4, **changes):
    """Made-up runs in which the second arm is worse by `loss`, and the third by ten times it."""
    study = Study(
        folder, arms, {"lm-reviews@256": seeds}, model=model(size), budget=budget, **changes
    )
    rng = np.random.default_rng(len(folder) + 7)
    worse = dict(zip(ARMS, (0.0, loss, 10 * loss), strict=True))
    return [
        Run(folder, fake_study.record(each, 3 + worse[each.arm] + noise * rng.normal()))
        for each in study.experiments()
    ]


def test_two_samples_are_those_of_welch():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 5), rng.normal(1, 3, 7)
    found = sum_of((1, one), (-1, other))
    expected = stats.ttest_ind(one, other, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval()
    assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high))


def test_a_slope_over_two_budgets_is_the_difference_of_the_gaps():
    (found,) = trends([*runs("short", 0.3), *runs("longer", 0.1, budget=10)]).tasks
    tied, none = found.arms
    assert found.axes == ("tokens",)
    first, last = tied.gaps.values()
    assert tied.slopes["tokens"].value == pytest.approx(last.value - first.value)
    assert tied.slopes["tokens"].variance == pytest.approx(first.variance + last.variance)
    assert (tied.verdict("tokens"), none.verdict("tokens")) == ("shrinks", "shrinks")


def test_a_gap_that_stays_has_no_verdict_and_a_better_arm_s_lead_may_grow():
    (found,) = trends([*runs("short", 0.2), *runs("longer", 0.2, budget=10)]).tasks
    assert found.arms[0].verdict("tokens") is None
    (found,) = trends([*runs("short", -0.1), *runs("longer", -0.3, budget=10)]).tasks
    assert found.arms[0].verdict("tokens") == "grows"
    # Without a gap at any budget there is nothing that could shrink.
    (found,) = trends([*runs("short", 0.0), *runs("longer", 0.0, budget=10)]).tasks
    assert {arm.verdict("tokens") for arm in found.arms} == {None}


def test_size_and_budget_have_a_slope_each():
    """A gap of .5 - .1·log10(tokens / first) - .2·log10(parameters / first), without noise."""
    settings = [("330k", 1), ("330k", 4), ("700k", 1), ("700k", 4), ("1.2m", 1)]
    first = runs("a", 0.0, size="330k")[0].record

    def gap(size, budget):
        own = runs("a", 0.0, size=size, budget=budget)[0].record
        tokens = (own, first)
        steps = [each.parsed_experiment.training.steps for each in tokens]
        parameters = own.cost.total_parameters / first.cost.total_parameters
        return 0.5 - 0.1 * math.log10(steps[0] / steps[1]) - 0.2 * math.log10(parameters)

    made = [
        run
        for number, (size, budget) in enumerate(settings)
        for run in runs(
            "x" * number, gap(size, budget), size=size, budget=budget, noise=1e-6, arms=ARMS[:2]
        )
    ]
    (found,) = trends(made).tasks
    (tied,) = found.arms
    assert found.axes == ("tokens", "parameters")
    slopes = [tied.slopes[axis].value for axis in found.axes]
    assert slopes == pytest.approx([-0.1, -0.2], abs=1e-4)
    assert {tied.verdict(axis) for axis in found.axes} == {"shrinks"}
    assert set(tied.share.values()) == {None}


def test_a_budget_that_goes_with_the_size_is_no_axis_of_its_own():
    """20 tokens for each parameter at both sizes: one line, over the size."""
    (found,) = trends([*runs("a", 0.3), *runs("bb", 0.1, size="700k", budget=2)]).tasks
    assert found.axes == ("parameters",)
    assert found.arms[0].verdict("parameters") == "shrinks"


def test_budgets_that_are_rounded_shares_of_the_sizes_are_no_axis_of_their_own():
    steps = {"330k": 1.0, "700k": 2.004, "1.2m": 3.498}
    made = [
        run
        for number, (size, budget) in enumerate(steps.items())
        for run in runs("x" * number, 0.1 / (number + 1), size=size, budget=budget)
    ]
    (found,) = trends(made).tasks
    exponent = np.polyfit(
        np.log([each.parameters for each in found.places]),
        np.log([each.tokens for each in found.places]),
        1,
    )[0]
    assert 0.5 < exponent < 2
    near = [replace(each, tokens=20 * each.parameters + 7) for each in found.places]
    assert _has_slopes(found.places, found.axes)
    assert not _has_slopes(near, ("tokens", "parameters"))


def test_an_arm_gains_nothing_by_a_run_that_diverged():
    made = [*runs("short", 0.3), *runs("longer", 0.1, budget=10), *runs("dd", 0.1, budget=30)]
    one = next(i for i, run in enumerate(made) if run.record.arm == "q,k=v" and run.folder == "dd")
    lost = made[one].record.model_copy(update={"status": "diverged", "metrics": {}})
    (found,) = trends([*made[:one], Run("dd", lost), *made[one + 1 :]]).tasks
    assert [len(arm.gaps) for arm in found.arms] == [2, 3]


def test_a_gap_that_changes_its_sign_neither_shrinks_nor_grows():
    (found,) = trends([*runs("short", 0.3), *runs("longer", -0.4, budget=10)]).tasks
    assert found.arms[0].verdict("tokens") == "changes sign"


def test_a_sign_that_changes_between_sizes_is_no_change_along_the_budget():
    (found,) = trends(
        [
            *runs("short", 0.5),
            *runs("longer", 0.7, budget=10),
            *runs("large", -0.5, size="1.2m"),
            *runs("both", -0.3, size="1.2m", budget=10),
        ]
    ).tasks
    tied = found.arms[0]
    assert tied.slopes["tokens"].value == pytest.approx(0.2, abs=0.01)
    assert tied.verdict("tokens") is None
    assert tied.verdict("parameters") == "changes sign"


def test_one_budget_under_two_learning_rates_is_refused():
    faster = {"lm-reviews@256": dict.fromkeys(ARMS, 2.0)}
    mixed = [*runs("a", 0.3), *runs("bb", 0.3, rates=faster), *runs("c", 0.1, budget=10)]
    with pytest.raises(
        ValueError, match=r"(?s)a and bb have lm-reviews@256.*Give folders with one of them"
    ):
        trends(mixed)


def test_other_positions_have_a_trend_of_their_own():
    learned = [*runs("c", 0.2, position="learned"), *runs("dd", 0.2, budget=10, position="learned")]
    both = trends([*runs("a", 0.3), *runs("bb", 0.1, budget=10), *learned]).tasks
    assert [each.arms[0].verdict("tokens") for each in both] == ["shrinks", None]


def test_the_baseline_s_share_of_the_budget_is_where_it_has_the_arm_s_score():
    base = {1: 3.0, 10: 2.0}
    made = [
        Run(
            f"x{budget}",
            fake_study.record(
                run.experiment, base[budget] + (0.5 if run.record.arm == "q,k=v" else 0)
            ),
        )
        for budget in base
        for run in runs(f"x{budget}", 0.0, budget=budget, arms=ARMS[:2])
    ]
    (found,) = trends(made).tasks
    none, share = found.arms[0].share.values()
    assert none is None
    # Half way in the score is half way in the logarithm.
    assert share == pytest.approx(10**-0.5)


def test_what_the_committed_budgets_show(capsys, tmp_path):
    folders = [str(STUDIES / name) for name in NAMES]
    figure = tmp_path / "figure.svg"
    assert main(["report", *folders, "--out", str(figure)]) == 0
    printed = capsys.readouterr().out
    first = printed.splitlines()[0]
    assert first.startswith("lm-reviews, bits per byte. With ten times the steps the gap to q,k,v")
    assert "shrinks: q=k,v · q=k=v; likely shrinks: q,k=v; grows: none (no attention)" in first
    assert re.search(r"^q=k=v .*−0\.124 ±0\.028", printed, re.MULTILINE)
    assert "solved seeds have no line: sort, anomaly-pixels, recall" in printed
    drawn = figure.read_text(encoding="utf-8")
    assert drawn.startswith("<svg xmlns=")
    assert drawn == (STUDIES.parent / "docs" / "budgets.svg").read_text(encoding="utf-8")
    assert main(["report", *folders, "--json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    slope = task["arms"]["q=k=v"]["slopes"]["tokens"]
    assert (round(slope["value"], 3), slope["verdict"]) == (-0.124, "shrinks")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--full"], "how the gaps change"),
        (["--margin", "0.1"], "Leave out --as"),
        ([], "at two budgets or sizes"),
    ],
)
def test_folders_without_a_trend_are_refused_with_what_to_do(words, said, tmp_path, capsys):
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        for run in runs(name, 0.1):
            store.write_run(run.record)
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_slope_beyond_what_was_run_says_so(capsys):
    assert main(["report", *(str(STUDIES / f"budgets-{n}") for n in (1500, 5000))]) == 0
    assert "ten times the steps (extrapolated from 3.3 times)" in capsys.readouterr().out


def test_a_figure_that_cannot_be_written_ends_with_a_sentence(tmp_path, capsys):
    folders = [str(STUDIES / f"budgets-{n}") for n in (1500, 5000)]
    assert main(["report", *folders, "--out", str(tmp_path / "none" / "x.svg")]) == 2
    assert "cannot be written" in capsys.readouterr().err
