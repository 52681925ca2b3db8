"""Statistics for few seeds, against known values and in simulated studies."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from qkvbench.results import critical, layout, stats

ARMS = ("base", "one", "two", "three", "four")


def scores_of(table, arms=ARMS):
    """Rows of numbers as scores by arm and seed."""
    return {
        arm: {seed: float(score) for seed, score in enumerate(row)}
        for arm, row in zip(arms, table, strict=False)
    }


def compared(scores, *, seeds, chance=-100.0, better="higher", margin=None):
    return stats.compare(
        scores, baseline="base", seeds=seeds, chance=chance, better=better, margin=margin
    )


def tallied(scores, *, seeds, baseline="base"):
    return stats.tally(scores, baseline=baseline, seeds=seeds, solved=0.95, better="higher")


def solving(*counts, seeds=5):
    """Arms that solve so many of their seeds."""
    rows = [[1.0] * count + [0.2] * (seeds - count) for count in counts]
    return scores_of(rows)


# Dunnett's table of 1964, two-sided, 5%.
@pytest.mark.parametrize(
    ("arms", "degrees", "value"),
    [(1, 10, 2.23), (2, 5, 3.03), (2, 10, 2.57), (3, 10, 2.76), (9, 20, 2.95), (2, 10_000, 2.21)],
)
def test_the_critical_value_is_that_of_dunnetts_table(arms, degrees, value):
    assert critical.dunnett(arms=arms, degrees=degrees) == pytest.approx(value, abs=0.0051)


@pytest.mark.parametrize(("arms", "degrees"), [(2, 2), (3, 5), (7, 14), (14, 28)])
def test_the_critical_value_encloses_95_percent_of_the_multivariate_t(arms, degrees):
    value = critical.dunnett(arms=arms, degrees=degrees)
    correlation = 0.5 * np.eye(arms) + 0.5
    law = scipy_stats.multivariate_t(np.zeros(arms), correlation, degrees, seed=1)
    inside = law.cdf(np.full(arms, value), lower_limit=np.full(arms, -value), maxpts=20_000 * arms)
    # scipy integrates by random points, to about this.
    assert inside == pytest.approx(0.95, abs=2e-4)


def test_one_arm_needs_students_t():
    assert critical.dunnett(arms=1, degrees=2) == pytest.approx(scipy_stats.t.ppf(0.975, 2))
    p = critical.dunnett_p(1.7, arms=1, degrees=4)
    assert p == pytest.approx(2 * scipy_stats.t.sf(1.7, 4), abs=1e-9)


def test_the_p_value_at_the_critical_value_is_the_level():
    value = critical.dunnett(arms=7, degrees=14)
    assert critical.dunnett_p(-value, arms=7, degrees=14) == pytest.approx(0.05, abs=1e-8)


@pytest.mark.parametrize(("seeds", "power"), [(4, 0.8), (12, 0.9)])
def test_the_detectable_difference_of_a_pair_is_that_of_the_noncentral_t(seeds, power):
    found = layout.detectable_difference(arms=2, seeds=seeds, power=power)
    bound = scipy_stats.t.ppf(0.975, seeds - 1)
    law = scipy_stats.nct(seeds - 1, found / np.sqrt(2 / seeds))
    # The share of 10,000 drawn studies is known to within a percent.
    assert law.sf(bound) == pytest.approx(power, abs=0.015)


def test_a_two_way_example_agrees_with_the_sums_by_hand():
    # Rows are arms. Column means 3, 5, 7; row means 4, 5, 6; the residuals are 0 but for ±1.
    table = [[2, 4, 6], [3, 4, 8], [4, 7, 7]]
    result = compared(scores_of(table), seeds=range(3))
    # Squared residuals: 0 0 0 / 0 1 1 / 0 1 1 = 4, on (3 − 1)(3 − 1) degrees of freedom.
    assert result.degrees == 4
    assert result.deviation == pytest.approx(1.0)
    assert result.differences["two"].value == pytest.approx(2.0)
    # The baseline keeps its distance to the others' mean (3.5, 5.5, 7.5), so that has no variance.
    # The others: residuals 0 but for ±1, squares 4 on 2 degrees, variance 2, of which one half.
    margin = critical.dunnett(arms=2, degrees=2) * np.sqrt(1 / 3)
    # That is wider than by the pooled variance, 3.8 · √(2/3) · 1, and by its own, 2, 3, 1.
    assert margin > critical.dunnett(arms=2, degrees=4) * np.sqrt(2 / 3)
    assert margin > scipy_stats.t.isf(layout.OWN_LEVEL / 2, 2) * np.sqrt(1 / 3)
    # Degrees of freedom are rounded down in steps of 2%.
    assert result.differences["two"].low == pytest.approx(2.0 - margin, rel=2e-3)
    assert result.differences["two"].high == pytest.approx(2.0 + margin, rel=2e-3)


def test_what_all_arms_gain_on_a_seed_changes_no_difference():
    rng = np.random.default_rng(3)
    table = 5 + rng.normal(size=(4, 5))
    before = compared(scores_of(table), seeds=range(5))
    after = compared(scores_of(table + 9 * rng.normal(size=5)), seeds=range(5))
    assert after.differences["three"].low == pytest.approx(before.differences["three"].low)
    assert after.deviation == pytest.approx(before.deviation)


@pytest.mark.parametrize("seeds", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_studies_without_a_difference_find_one_in_5_percent(seeds):
    studies, rng = 400, np.random.default_rng(11)
    found = 0
    for _ in range(studies):
        table = 0.8 + 0.02 * rng.normal(size=seeds) + 0.01 * rng.normal(size=(5, seeds))
        result = compared(scores_of(table), seeds=range(seeds))
        found += any(each.clear for each in result.differences.values())
    low, high = scipy_stats.binom.interval(0.99, studies, 0.05)
    assert low <= found <= high


def test_intervals_and_p_values_agree():
    table = np.random.default_rng(5).normal(size=(5, 3)) + np.array([[9], [9], [12], [11], [9]])
    result = compared(scores_of(table), seeds=range(3))
    for each in result.differences.values():
        assert each.clear == (each.p < 0.05)


def test_an_arm_that_lacks_a_seed_is_named_shown_and_compared_with_nothing():
    table = np.random.default_rng(5).normal(size=(4, 3)) + 9
    scores = scores_of(table)
    without = compared({arm: scores[arm] for arm in scores if arm != "two"}, seeds=range(3))
    del scores["two"][1]
    result = compared(scores, seeds=range(3))
    assert result.incomplete == ("two",)
    assert result.means["two"].value == pytest.approx((table[2, 0] + table[2, 2]) / 2)
    assert "two" not in result.differences
    assert result.differences == without.differences


def test_an_arm_without_any_score_is_incomplete_too():
    scores = scores_of(np.random.default_rng(5).normal(size=(3, 3)) + 9) | {"four": {}}
    result = compared(scores, seeds=range(3))
    assert result.standing == "compared"
    assert result.incomplete == ("four",)


def test_nothing_is_compared_with_a_baseline_that_lacks_a_seed():
    scores = scores_of(np.random.default_rng(5).normal(size=(3, 3)) + 9)
    del scores["base"][2]
    result = compared(scores, seeds=range(3))
    assert result.standing == "baseline incomplete"
    assert not result.differences


def test_nothing_is_compared_with_a_baseline_at_chance():
    rng = np.random.default_rng(5)
    table = np.concatenate([0.5 + 0.01 * rng.normal(size=(1, 3)), np.full((2, 3), 0.9)])
    result = compared(scores_of(table), seeds=range(3), chance=0.5)
    assert result.standing == "baseline did not learn"
    assert not result.differences


def test_beating_chance_means_lower_scores_if_lower_is_better():
    assert stats.beats_chance([2.41, 2.42, 2.40], chance=8.0, better="lower")
    assert stats.beats_chance([8.3, 8.4, 8.2], chance=8.0, better="lower") is False


def test_one_seed_has_differences_without_intervals():
    result = compared(scores_of([[0.9], [0.8]]), seeds=range(1), chance=0.1)
    assert result.standing == "one seed"
    assert result.differences["one"].value == pytest.approx(-0.1)
    assert result.differences["one"].low is None
    assert result.means["base"].low is None


def test_scores_without_spread_have_no_intervals():
    result = compared(scores_of([[1.0, 1.0, 1.0], [0.9, 0.9, 0.9]]), seeds=range(3))
    assert result.standing == "no spread"
    assert result.differences["one"].value == pytest.approx(-0.1)
    assert not result.differences["one"].clear


def test_a_baseline_alone_has_a_mean_with_students_interval():
    result = compared(scores_of([[0.8, 0.9, 1.0]]), seeds=range(3))
    margin = scipy_stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert result.standing == "one arm"
    assert result.means["base"].high == pytest.approx(0.9 + margin)


def test_an_arm_that_varies_far_more_than_the_others_widens_its_own_interval_most():
    rng = np.random.default_rng(2)
    table = 0.9 + 0.001 * rng.normal(size=(5, 5))
    table[3] += 0.1 * rng.normal(size=5)
    result = compared(scores_of(table), seeds=range(5))
    length = {arm: each.high - each.low for arm, each in result.differences.items()}
    own = (table[3] - table[0]).std(ddof=1) / np.sqrt(5)
    assert length["three"] == pytest.approx(2 * scipy_stats.t.isf(0.02, 4) * own)
    assert max(length[arm] for arm in ("one", "two", "four")) < length["three"]


def test_a_pair_of_arms_is_contrasted_by_its_own_paired_t():
    table = np.random.default_rng(5).normal(size=(4, 3)) + 9
    scores = scores_of(table)
    result = compared(scores, seeds=range(3))
    pair = stats.contrast(scores, result, arms=("one", "two"))
    test = scipy_stats.ttest_rel(table[2], table[1])
    interval = test.confidence_interval(0.95)
    assert pair.p == pytest.approx(test.pvalue)
    assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high))


def test_solved_seeds_are_counted_with_exact_bounds():
    result = tallied(solving(5, 0, 3), seeds=range(5))
    assert (result.counts["one"].solved, result.counts["two"].solved) == (0, 3)
    # Without a success the upper bound b is where (1 − b)^5 is 2.5%.
    assert result.counts["one"].high == pytest.approx(1 - 0.025**0.2)
    assert result.counts["base"].low == pytest.approx(0.025**0.2)


def test_solved_seeds_are_compared_by_boschloo_and_holm():
    result = tallied(solving(5, 0, 3, 5), seeds=range(5))
    # 5 of 5 against 0 of 5: the null's most likely table pair is at one half, 2 · 2^-10.
    assert critical.boschloo(0, 5, seeds=5) == pytest.approx(2 * 2**-10)
    assert result.counts["one"].p == pytest.approx(3 * 2 * 2**-10)
    assert result.counts["three"].p == pytest.approx(1.0)
    assert result.counts["base"].p is None


def test_the_largest_significant_count_is_given():
    assert tallied(solving(5, 5), seeds=range(5)).lowest == 1
    assert tallied(solving(5, 5, 5, 5, 5), seeds=range(5)).lowest == 0
    assert tallied(solving(3, 3, 3, 3, 3, seeds=3), seeds=range(3)).lowest is None


def test_a_baseline_that_solves_no_majority_did_not_learn():
    result = tallied(solving(2, 5), seeds=range(5))
    assert result.standing == "baseline did not learn"
    assert result.counts["one"].p is None


def test_an_arm_that_lacks_a_seed_keeps_its_count_and_is_not_tested():
    scores = solving(5, 5, 5)
    del scores["two"][4]
    result = tallied(scores, seeds=range(5))
    assert result.incomplete == ("two",)
    assert (result.counts["two"].solved, result.counts["two"].seeds) == (4, 4)
    assert result.counts["two"].p is None


def test_holm_is_never_below_a_smaller_p():
    adjusted = critical.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    expected = {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9}
    assert adjusted == pytest.approx(expected)


def test_two_one_sided_tests_agree_with_two_t_tests_by_hand():
    rng = np.random.default_rng(8)
    table = 0.9 + 0.01 * rng.normal(size=6) + np.array([[0], [0.002]])
    table = table + 0.004 * rng.normal(size=(2, 6))
    result = compared(scores_of(table), seeds=range(6), margin=0.01)
    apart = table[1] - table[0]
    lower = scipy_stats.ttest_1samp(apart, -0.01, alternative="greater").pvalue
    upper = scipy_stats.ttest_1samp(apart, 0.01, alternative="less").pvalue
    assert result.differences["one"].match_p == pytest.approx(max(lower, upper))
    assert result.differences["one"].not_worse_p == pytest.approx(lower)


@pytest.mark.parametrize(
    ("shift", "noise", "better", "verdict"),
    [
        (0.0, 0.001, "higher", "matches"),
        (0.0, 0.05, "higher", "not distinguishable"),
        (-0.05, 0.001, "higher", "worse"),
        (0.05, 0.001, "higher", "better"),
        (0.05, 0.001, "lower", "worse"),
        (0.02, 0.02, "higher", "not worse"),
        (-0.02, 0.02, "lower", "not worse"),
    ],
)
def test_a_verdict_is_what_the_tests_show(shift, noise, better, verdict):
    rng = np.random.default_rng(1)
    apart = rng.normal(size=5)
    apart = noise * (apart - apart.mean()) / apart.std(ddof=1)
    base = 0.9 + 0.01 * rng.normal(size=5)
    scores = scores_of([base, base + shift + apart])
    chance = -100.0 if better == "higher" else 100.0
    result = compared(scores, seeds=range(5), better=better, chance=chance, margin=0.01)
    assert result.differences["one"].verdict(better) == verdict


def test_a_null_without_a_margin_never_matches():
    table = 0.9 + 1e-6 * np.random.default_rng(1).normal(size=(3, 5))
    result = compared(scores_of(table), seeds=range(5))
    assert set(stats.verdicts(result, "higher").values()) == {"not distinguishable"}


def test_a_small_clear_loss_is_worse_and_within_the_margin():
    table = 0.9 + 1e-4 * np.random.default_rng(1).normal(size=(2, 5)) + np.array([[0], [-0.004]])
    each = compared(scores_of(table), seeds=range(5), margin=0.01).differences["one"]
    assert each.verdict("higher") == "worse"
    assert each.matches


def test_a_run_that_diverged_has_not_solved_its_task():
    scores = solving(5, 5)
    del scores["one"][2]
    kwargs = {"baseline": "base", "seeds": range(5), "solved": 0.95, "better": "higher"}
    result = stats.tally(scores, **kwargs, diverged={"one": [2]})
    assert result.incomplete == ()
    assert (result.counts["one"].solved, result.counts["one"].seeds) == (4, 5)


def test_counts_match_only_where_their_exact_bounds_say_so():
    # 60 of 60: each one-sided bound at 2.5% leaves 1 − 0.025^(1/60) = 6% between the two.
    assert critical.not_lower_p(60, 60, seeds=60, margin=0.25) < 1e-6
    room = 1 - 0.025 ** (1 / 60)
    assert critical.not_lower_p(60, 60, seeds=60, margin=room) == pytest.approx(0.05)
    assert critical.not_lower_p(5, 5, seeds=5, margin=0.25) > 0.05
    assert critical.not_lower_p(3, 5, seeds=5, margin=0.25) == 1.0
