"""Statistics for few seeds, against known values and in simulated studies."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from qkvbench.results import critical, planning, stats, welch
from qkvbench.results.log_rank import log_rank
from qkvbench.results.record import MetricInfo

ARMS = ("base", "one", "two", "three", "four")
NEVER = None


def scores_of(table, arms=ARMS):
    """Rows of numbers as scores by arm and seed."""
    return {
        arm: {seed: float(score) for seed, score in enumerate(row)}
        for arm, row in zip(arms, table, strict=False)
    }


def metric_of(unit="bits", better="higher", chance=-100.0):
    return MetricInfo(name="score", unit=unit, better=better, chance=chance, solved=None)


def compared(scores, *, seeds, margin=None, diverged=None, floor=None, **metric):
    return stats.compare(
        scores,
        baseline="base",
        seeds=seeds,
        metric=metric_of(**metric),
        margin=margin,
        diverged=diverged,
        floor=floor,
    )


def tallied(steps, *, seeds, baseline="base", margin=None, floor=None):
    return stats.tally(steps, baseline=baseline, seeds=seeds, margin=margin, floor=floor)


def solving(*counts, seeds=5, step=100.0):
    """Arms that solve so many of their seeds, all at one step."""
    rows = [[step] * count + [NEVER] * (seeds - count) for count in counts]
    return {arm: dict(enumerate(row)) for arm, row in zip(ARMS, rows, strict=False)}


def test_a_difference_is_welchs_t_test_of_the_two_arms():
    rng = np.random.default_rng(5)
    table = rng.normal(size=(2, 5)) * np.array([[1], [3]]) + 9
    each = compared(scores_of(table), seeds=range(5)).differences["one"]
    test = scipy_stats.ttest_ind(table[1], table[0], equal_var=False)
    interval = test.confidence_interval(0.95)
    assert each.p == pytest.approx(test.pvalue)
    assert (each.low, each.high) == pytest.approx((interval.low, interval.high))


def test_a_verdict_does_not_depend_on_who_else_is_in_the_study():
    rng = np.random.default_rng(2)
    table = 0.9 + 0.001 * rng.normal(size=(5, 5))
    table[3] += 0.5 * rng.normal(size=5)
    table[4] = 0.1 + 1e-4 * rng.normal(size=5)
    scores = scores_of(table)
    alone = compared({arm: scores[arm] for arm in ("base", "one")}, seeds=range(5), margin=0.01)
    among = compared(scores, seeds=range(5), margin=0.01)
    assert among.differences["one"] == alone.differences["one"]
    assert among.detectable == alone.detectable


def test_proportions_are_analysed_as_logits_and_given_back_as_proportions():
    table = np.array([[0.98, 0.985, 0.99], [0.9, 0.93, 0.95]])
    each = compared(scores_of(table), seeds=range(3), unit="share", chance=0.1).differences["one"]
    logits = np.log(table / (1 - table))
    test = scipy_stats.ttest_ind(logits[1], logits[0], equal_var=False)
    # But for the half of one in a thousand by which 0 and 1 are kept from infinity.
    assert each.p == pytest.approx(test.pvalue, rel=0.05)
    reach = scipy_stats.t.isf(0.025, test.df)
    ends = logits.mean(1) + np.array([[-1], [0], [1]]) * reach * scipy_stats.sem(logits, axis=1)
    (low, first, high), (other_low, second, other_high) = (1 / (1 + np.exp(-ends))).T
    wanted = (
        second - first - np.hypot(second - other_low, high - first),
        second - first + np.hypot(other_high - second, first - low),
    )
    assert (each.low, each.high) == pytest.approx(wanted, abs=0.005)


def _shares(rng, mean, deviation, seeds):
    unit = welch.unit_of("share")
    drawn = unit.analysed([mean]) + deviation * rng.normal(size=seeds)
    return [unit.restored(each) for each in drawn]


@pytest.mark.parametrize(
    "means", [(0.9, 0.9), (0.9, 0.995), (0.995, 0.9), (0.8, 0.95), (0.01, 0.05)]
)
@pytest.mark.parametrize("deviations", [(0.4, 0.4), (0.8, 0.2)])
def test_an_interval_of_proportions_has_the_true_difference_in_it(means, deviations):
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        arms = [_shares(rng, *arm, 5) for arm in zip(means, deviations, strict=True)]
        each = stats.difference(*arms, metric=metric_of(unit="share"))
        held.append(each.low <= means[1] - means[0] <= each.high)
        assert each.clear == (not each.low <= 0 <= each.high)
        # The other way round it is the mirror image.
        other = stats.difference(*arms[::-1], metric=metric_of(unit="share"))
        assert (other.low, other.high) == pytest.approx((-each.high, -each.low), abs=1e-9)
    assert np.mean(held) > 0.88


@pytest.mark.parametrize(
    ("means", "margin"),
    [
        ((0.94, 0.9901), 0.05),
        ((0.985, 0.9951), 0.01),
        ((0.9898, 0.9999), 0.01),
        ((0.0151, 0.005), 0.01),
    ],
)
def test_arms_that_differ_by_more_than_the_margin_seldom_match(means, margin):
    rng, found = np.random.default_rng(1), []
    for _ in range(300):
        arms = [_shares(rng, mean, 0.6, 5) for mean in means]
        for one, other in (arms, arms[::-1]):
            each = stats.difference(one, other, metric=metric_of(unit="share"), margin=margin)
            found.append(each.match_p)
        assert found[-1] == pytest.approx(found[-2])
    assert np.mean(np.array(found) < 0.05) < 0.08
    assert np.mean(np.array(found) < stats.CERTAIN) < 0.01


def test_a_proportion_of_one_has_a_finite_difference_within_zero_and_one():
    table = [[1.0, 1.0, 0.998], [0.9, 0.95, 1.0]]
    each = compared(scores_of(table), seeds=range(3), unit="share", chance=0.1).differences["one"]
    assert -1 < each.low < each.value < each.high <= 0.01


@pytest.mark.parametrize(("seeds", "level"), [(4, 0.05), (12, 0.00125)])
def test_the_detectable_difference_is_detected_with_its_power(seeds, level):
    found = welch.detectable_difference(2.0, seeds=seeds, level=level, power=0.8)
    rng = np.random.default_rng(1)
    rows = 2.0 * rng.normal(size=(2, 20_000, seeds))
    test = scipy_stats.ttest_ind(rows[1] + found, rows[0], axis=1, equal_var=False)
    assert ((test.pvalue < level) & (test.statistic > 0)).mean() == pytest.approx(0.8, abs=0.015)


def test_intervals_and_p_values_agree():
    table = np.random.default_rng(5).normal(size=(5, 3)) + np.array([[9], [9], [12], [11], [9]])
    result = compared(scores_of(table), seeds=range(3))
    for each in result.differences.values():
        assert each.clear == (each.p < 0.05) == (not each.low <= 0 <= each.high)


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


def test_an_arm_of_which_a_run_diverged_has_that_as_its_verdict():
    table = np.random.default_rng(5).normal(size=(3, 5)) + 9
    scores = scores_of(table)
    del scores["one"][3]
    result = compared(scores, seeds=range(5), diverged={"one": [3]})
    assert result.incomplete == ()
    assert stats.verdicts(result, "higher")["one"] == "diverged"
    assert result.differences["one"].value == pytest.approx(
        np.delete(table[1], 3).mean() - table[0].mean()
    )
    # An arm that diverged on every seed has no difference, and the same verdict.
    scores["two"] = {}
    result = compared(scores, seeds=range(5), diverged={"one": [3], "two": range(5)})
    assert stats.verdicts(result, "higher")["two"] == "diverged"
    assert "two" not in result.differences


def test_one_diverged_seed_of_the_baseline_does_not_void_the_task():
    scores = scores_of(np.random.default_rng(5).normal(size=(3, 5)) + 9)
    del scores["base"][1], scores["one"][0]
    result = compared(scores, seeds=range(5), diverged={"base": [1], "one": [0]})
    assert result.standing == "compared"
    # As many runs of the arm diverged as of the baseline: it is judged by the others.
    assert "diverged" not in stats.verdicts(result, "higher").values()


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


def test_attention_must_be_worth_twice_what_is_likely_seen():
    base = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    seen = stats.sensitivity(list(base), metric=metric_of())[0]
    for worth, standing in ((1.9 * seen, "attention not needed"), (2.1 * seen, "compared")):
        scores = scores_of([base + 50, base + 49, base + 50 - worth])
        assert compared(scores, seeds=range(5), floor="two").standing == standing


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
    result = compared(scores_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]), seeds=range(3))
    assert result.standing == "no spread"
    assert result.differences["one"].low is None
    assert not result.differences["one"].clear


def test_a_loss_on_every_seed_is_seen_though_neither_arm_varies():
    """Exact by permutation: of ten scores all five of one arm are above those of the other."""
    table = [[1.0] * 5, [0.5] * 5, [0.9, 1.0, 0.8, 0.9, 1.0]]
    result = compared(scores_of(table), seeds=range(5))
    assert result.standing == "compared"
    assert result.differences["one"].p == pytest.approx(2 / 252)
    assert result.differences["one"].low is None
    assert stats.verdicts(result, "higher")["one"] == "likely worse"


@pytest.mark.parametrize("score", [1.0, 0.5], ids=["equal", "lower"])
def test_a_verdict_on_an_arm_without_spread_is_the_same_beside_an_arm_with_spread(score):
    table = [[1.0] * 5, [score] * 5, [0.9, 1.0, 0.8, 0.9, 1.0]]
    beside = compared(scores_of(table), seeds=range(5))
    alone = compared(scores_of(table[:2]), seeds=range(5))
    verdicts = [stats.verdicts(each, "higher").get("one") for each in (beside, alone)]
    assert verdicts == [None if score == 1.0 else "likely worse"] * 2


def test_an_arm_with_the_higher_mean_is_not_called_worse():
    """Two failed seeds weigh more in a mean, many perfect ones more in logits."""
    base = [1.0] * 18 + [0.4] * 2
    one = list(0.96 + 0.001 * np.random.default_rng(0).normal(size=20))
    assert np.mean(one) > np.mean(base)
    result = compared(scores_of([base, one]), seeds=range(20), unit="share", chance=0.1)
    assert result.differences["one"].value < 0
    assert stats.verdicts(result, "higher")["one"] == "not distinguishable"


def test_shares_of_diverged_seeds_are_compared_not_their_numbers():
    rng = np.random.default_rng(5)
    scores = {
        "base": dict(enumerate(rng.normal(size=2))),
        "one": dict(enumerate(rng.normal(size=18))),
    }
    for lost, said in ((range(20, 22), False), (range(20, 40), True)):
        result = compared(scores, seeds=[], diverged={"base": [30], "one": lost})
        assert (stats.verdicts(result, "higher")["one"] == "diverged") == said


def test_attention_that_is_worth_nothing_is_not_needed_though_nothing_varies():
    table = [[0.5] * 5, [0.4, 0.5, 0.6, 0.5, 0.5], [0.5] * 5]
    result = compared(scores_of(table), seeds=range(5), floor="two")
    assert result.standing == "attention not needed"


def test_bounds_that_are_certain_are_wider_than_those_of_95_percent():
    table = np.random.default_rng(5).normal(size=(2, 5))
    found = stats.difference(table[0], table[1], metric=metric_of())
    low, high = found.certain
    assert low < found.low < found.value < found.high < high
    degrees = stats.welch(table[0], table[1], welch.unit_of("bits")).degrees
    ratio = scipy_stats.t.ppf(1 - stats.CERTAIN / 2, degrees) / scipy_stats.t.ppf(0.975, degrees)
    assert high - low == pytest.approx(ratio * (found.high - found.low))


def test_a_baseline_alone_has_a_mean_with_students_interval():
    result = compared(scores_of([[0.8, 0.9, 1.0]]), seeds=range(3))
    margin = scipy_stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert result.standing == "one arm"
    assert result.means["base"].high == pytest.approx(0.9 + margin)


def test_solved_seeds_are_counted_with_exact_bounds():
    result = tallied(solving(5, 0, 3), seeds=range(5))
    assert (result.counts["one"].solved, result.counts["two"].solved) == (0, 3)
    # Without a success the upper bound b is where (1 − b)^5 is 2.5%.
    assert result.counts["one"].high == pytest.approx(1 - 0.025**0.2)
    assert result.counts["base"].low == pytest.approx(0.025**0.2)
    assert result.counts["one"].step is None
    assert result.counts["base"].step == 100


def test_the_log_rank_test_is_exact_by_permutation():
    first, second = (1.0, 2.0, 2.0, 3.0, np.inf), (2.0, 4.0, 4.0, np.inf, np.inf)
    times = np.array([*first, *second])

    def statistic(chosen):
        """Events of the chosen, minus those expected, over the distinct times."""
        total = 0.0
        for time in np.unique(times[np.isfinite(times)]):
            at_risk, events = times >= time, times == time
            total += events[chosen].sum() - at_risk[chosen].sum() * events.sum() / at_risk.sum()
        return total

    observed = statistic([5, 6, 7, 8, 9])
    every = [statistic(list(each)) for each in combinations(range(10), 5)]
    expected = np.mean([abs(each) >= abs(observed) - 1e-9 for each in every])
    later, p = log_rank(first, second)
    assert p == pytest.approx(expected)
    assert later == pytest.approx(-observed, abs=0.01)


def test_many_times_take_the_normal_law_which_is_near_the_exact_one(monkeypatch):
    rng = np.random.default_rng(3)
    first, second = (tuple(100.0 * rng.integers(1, 40, 45) + late) for late in (0, 400))
    exact = log_rank.__wrapped__(first, second)
    monkeypatch.setattr("qkvbench.results.log_rank.MOST_EXACT", 10)
    near = log_rank.__wrapped__(first, second)
    assert near[0] == exact[0]
    assert 1e-4 < exact[1] < 0.5
    assert near[1] == pytest.approx(exact[1], rel=0.1)


def test_an_arm_that_solves_later_is_worse_though_it_solves_as_many_seeds():
    steps = solving(10, 10, seeds=10)
    steps["one"] = {seed: 900.0 for seed in range(10)}
    result = tallied(steps, seeds=range(10))
    assert result.counts["one"].solved == 10
    assert result.verdict("one") == "worse"
    assert (
        tallied({"base": steps["one"], "one": steps["base"]}, seeds=range(10)).verdict("one")
        == "better"
    )


def test_five_of_five_against_none_is_likely_and_ten_of_ten_is_certain():
    assert tallied(solving(5, 0), seeds=range(5)).verdict("one") == "likely worse"
    # One of the two ways in 252.
    assert tallied(solving(5, 0), seeds=range(5)).counts["one"].p == pytest.approx(2 / 252)
    assert tallied(solving(10, 0, seeds=10), seeds=range(10)).verdict("one") == "worse"
    assert tallied(solving(5, 5), seeds=range(5)).counts["one"].p == 1.0
    assert tallied(solving(5, 5), seeds=range(5)).counts["base"].p is None


def test_a_baseline_that_solves_no_majority_did_not_learn():
    result = tallied(solving(2, 5), seeds=range(5))
    assert result.standing == "baseline did not learn"
    assert result.counts["one"].p is None


def test_a_model_without_attention_must_solve_later_or_less():
    assert tallied(solving(5, 3, 5), seeds=range(5), floor="two").standing == "attention not needed"
    assert tallied(solving(5, 3, 0), seeds=range(5), floor="two").standing == "compared"


def test_an_arm_that_lacks_a_seed_keeps_its_count_and_is_not_tested():
    steps = solving(5, 5, 5)
    del steps["two"][4]
    result = tallied(steps, seeds=range(5))
    assert result.incomplete == ("two",)
    assert (result.counts["two"].solved, result.counts["two"].seeds) == (4, 4)
    assert result.counts["two"].p is None


def test_holm_is_never_below_a_smaller_p():
    adjusted = critical.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    expected = {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9}
    assert adjusted == pytest.approx(expected)


def test_two_one_sided_tests_agree_with_two_t_tests_by_hand():
    rng = np.random.default_rng(8)
    table = 0.9 + 0.004 * rng.normal(size=(2, 6))
    each = compared(scores_of(table), seeds=range(6), margin=0.01).differences["one"]
    shifted = [
        scipy_stats.ttest_ind(table[1] + by, table[0], equal_var=False, alternative=side).pvalue
        for by, side in ((0.01, "greater"), (-0.01, "less"))
    ]
    assert each.match_p == pytest.approx(max(shifted))
    assert each.not_worse_p == pytest.approx(shifted[0])


def test_the_margin_of_a_proportion_is_one_of_proportions():
    rng = np.random.default_rng(8)
    # At one half a logit is 4 proportions, near one it is many more.
    for level, spread in ((0.5, 0.002), (0.97, 0.002)):
        table = level + spread * rng.normal(size=(2, 20))
        found = compared(scores_of(table), seeds=range(20), unit="share", chance=0.0, margin=0.01)
        each = found.differences["one"]
        raw = [
            scipy_stats.ttest_ind(table[1] + by, table[0], equal_var=False, alternative=side).pvalue
            for by, side in ((0.01, "greater"), (-0.01, "less"))
        ]
        assert each.verdict("higher") == "matches"
        assert max(raw) < stats.CERTAIN
        wide = compared(scores_of(table), seeds=range(20), unit="share", chance=0.0, margin=0.5)
        assert wide.differences["one"].verdict("higher") == "matches"


@pytest.mark.parametrize(
    ("shift", "noise", "better", "verdict"),
    [
        (0.0, 0.001, "higher", "matches"),
        (0.0, 0.007, "higher", "likely matches"),
        (0.0, 0.05, "higher", "not distinguishable"),
        (-0.05, 0.001, "higher", "worse"),
        (-0.02, 0.01, "higher", "likely worse"),
        (0.05, 0.001, "higher", "better"),
        (0.05, 0.001, "lower", "worse"),
        (0.02, 0.02, "higher", "likely not worse"),
        (-0.02, 0.02, "lower", "likely not worse"),
    ],
)
def test_a_verdict_is_what_the_tests_show(shift, noise, better, verdict):
    rng = np.random.default_rng(1)
    base, other = rng.normal(size=(2, 5))
    base, other = (noise * (each - each.mean()) / each.std(ddof=1) for each in (base, other))
    scores = scores_of([0.9 + base, 0.9 + other + shift])
    chance = -100.0 if better == "higher" else 100.0
    result = compared(scores, seeds=range(5), better=better, chance=chance, margin=0.01)
    assert result.differences["one"].verdict(better) == verdict


def test_a_null_without_a_margin_never_matches():
    table = 0.9 + 1e-6 * np.random.default_rng(1).normal(size=(3, 5))
    result = compared(scores_of(table), seeds=range(5))
    assert set(stats.verdicts(result, "higher").values()) == {"not distinguishable"}


def test_counts_match_only_where_their_exact_bounds_say_so():
    # 60 of 60: each one-sided bound at 2.5% leaves 1 − 0.025^(1/60) = 6% between the two.
    assert critical.not_lower_p(60, 60, seeds=60, margin=0.25) < 1e-6
    room = 1 - 0.025 ** (1 / 60)
    assert critical.not_lower_p(60, 60, seeds=60, margin=room) == pytest.approx(0.05)
    assert critical.not_lower_p(5, 5, seeds=5, margin=0.25) > 0.05
    assert critical.not_lower_p(3, 5, seeds=5, margin=0.25) == 1.0


def test_a_margin_beyond_all_scores_is_planned_on_its_other_side():
    """Chance-like accuracies: nothing can be .1 lower than .05."""
    base, own = [0.05, 0.055, 0.045, 0.05], [0.051, 0.049, 0.05, 0.052]
    metric = metric_of(unit="share", chance=0.01)
    found = planning.plan_arm("one", base, own, metric=metric, margin=0.1)
    assert found.expected.match is not None
    narrower = planning.plan_arm("one", base, own, metric=metric, margin=0.03)
    assert found.expected.match <= narrower.expected.match
