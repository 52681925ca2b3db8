"""What a few seeds can tell, against known values and in simulated studies."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from qkvbench.results import stats

ARMS = ("base", "one", "two", "three", "four")


def scores_of(table, arms=ARMS):
    """Rows of numbers as scores by arm and seed."""
    return {
        arm: {seed: float(score) for seed, score in enumerate(row)}
        for arm, row in zip(arms, table, strict=False)
    }


def compared(scores, *, seeds, chance=-100.0, baseline="base", better="higher"):
    return stats.compare(scores, baseline=baseline, seeds=seeds, chance=chance, better=better)


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
    assert stats.dunnett(arms=arms, degrees=degrees) == pytest.approx(value, abs=0.0051)


@pytest.mark.parametrize(("arms", "degrees"), [(2, 2), (3, 5), (7, 14), (14, 28)])
def test_the_critical_value_encloses_95_percent_of_the_multivariate_t(arms, degrees):
    value = stats.dunnett(arms=arms, degrees=degrees)
    correlation = 0.5 * np.eye(arms) + 0.5
    law = scipy_stats.multivariate_t(np.zeros(arms), correlation, degrees, seed=1)
    inside = law.cdf(np.full(arms, value), lower_limit=np.full(arms, -value), maxpts=20_000 * arms)
    # scipy integrates by random points, to about this.
    assert inside == pytest.approx(0.95, abs=2e-4)


def test_one_arm_needs_students_t():
    assert stats.dunnett(arms=1, degrees=2) == pytest.approx(scipy_stats.t.ppf(0.975, 2))
    p = stats.dunnett_p(1.7, arms=1, degrees=4)
    assert p == pytest.approx(2 * scipy_stats.t.sf(1.7, 4), abs=1e-9)


def test_the_p_value_at_the_critical_value_is_the_level():
    value = stats.dunnett(arms=7, degrees=14)
    assert stats.dunnett_p(-value, arms=7, degrees=14) == pytest.approx(0.05, abs=1e-8)


def test_the_detectable_shift_is_the_one_with_80_percent_power():
    critical = stats.dunnett(arms=7, degrees=14)
    shift = stats.detectable_shift(critical, degrees=14)
    law = scipy_stats.nct(14, shift)
    assert law.sf(critical) + law.cdf(-critical) == pytest.approx(0.80, abs=1e-6)


def test_a_two_way_example_agrees_with_the_sums_by_hand():
    # Rows are arms. Column means 3, 5, 7; row means 4, 5, 6; the residuals are 0 but for ±1.
    table = [[2, 4, 6], [3, 4, 8], [4, 7, 7]]
    result = compared(scores_of(table), seeds=range(3))
    # Squared residuals: 0 0 0 / 0 1 1 / 0 1 1 = 4, on (3 − 1)(3 − 1) degrees of freedom.
    assert result.degrees == 4
    assert result.deviation == pytest.approx(1.0)
    assert result.differences["two"].value == pytest.approx(2.0)
    margin = stats.dunnett(arms=2, degrees=4) * np.sqrt(2 / 3)
    assert result.differences["two"].low == pytest.approx(2.0 - margin)
    assert result.differences["two"].high == pytest.approx(2.0 + margin)


def test_what_all_arms_gain_on_a_seed_changes_no_difference():
    draws = np.random.default_rng(3)
    table = 5 + draws.normal(size=(4, 5))
    before = compared(scores_of(table), seeds=range(5))
    after = compared(scores_of(table + 9 * draws.normal(size=5)), seeds=range(5))
    assert after.differences["three"].low == pytest.approx(before.differences["three"].low)
    assert after.deviation == pytest.approx(before.deviation)


@pytest.mark.parametrize("seeds", [3, 5])
def test_studies_without_a_difference_find_one_in_5_percent(seeds):
    studies, draws = 400, np.random.default_rng(11)
    found = 0
    for _ in range(studies):
        table = 0.8 + 0.02 * draws.normal(size=seeds) + 0.01 * draws.normal(size=(5, seeds))
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
    draws = np.random.default_rng(5)
    table = np.concatenate([0.5 + 0.01 * draws.normal(size=(1, 3)), np.full((2, 3), 0.9)])
    result = compared(scores_of(table), seeds=range(3), chance=0.5)
    assert result.standing == "baseline did not learn"
    assert not result.differences


def test_a_baseline_learned_where_lower_is_better_and_it_is_lower():
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


def test_an_arm_that_varies_far_more_than_the_others_is_named():
    draws = np.random.default_rng(2)
    table = 0.9 + 0.001 * draws.normal(size=(5, 5))
    table[3] += 0.1 * draws.normal(size=5)
    assert compared(scores_of(table), seeds=range(5)).uneven == "three"


def test_a_pair_of_arms_is_contrasted_at_the_pooled_variance():
    table = np.random.default_rng(5).normal(size=(4, 3)) + 9
    scores = scores_of(table)
    result = compared(scores, seeds=range(3))
    pair = stats.contrast(scores, result, arms=("one", "two"))
    assert pair.value == pytest.approx(table[2].mean() - table[1].mean())
    assert pair.high - pair.low == pytest.approx(
        2 * scipy_stats.t.ppf(0.975, 6) * result.deviation * np.sqrt(2 / 3)
    )


def test_solved_seeds_are_counted_with_exact_bounds():
    result = tallied(solving(5, 0, 3), seeds=range(5))
    assert (result.counts["one"].solved, result.counts["two"].solved) == (0, 3)
    # Without a success the upper bound b is where (1 − b)^5 is 2.5%.
    assert result.counts["one"].high == pytest.approx(1 - 0.025**0.2)
    assert result.counts["base"].low == pytest.approx(0.025**0.2)


def test_solved_seeds_are_compared_by_boschloo_and_holm():
    result = tallied(solving(5, 0, 3, 5), seeds=range(5))
    # 5 of 5 against 0 of 5: the null's most likely table pair is at one half, 2 · 2^-10.
    assert stats.boschloo(0, 5, seeds=5) == pytest.approx(2 * 2**-10)
    assert result.counts["one"].p == pytest.approx(3 * 2 * 2**-10)
    assert result.counts["three"].p == pytest.approx(1.0)
    assert result.counts["base"].p is None


def test_the_count_that_could_be_told_apart_is_given():
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
    adjusted = stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    expected = {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9}
    assert adjusted == pytest.approx(expected)
