"""Comparisons of two arms, plans, margins, item scores and Pareto fronts."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

import fake_study
from qkvbench import cost, tasks
from qkvbench.cli import main
from qkvbench.cost.matched import with_arm
from qkvbench.cost.units import bytes_text
from qkvbench.data.batch import IGNORE_INDEX, Predictions
from qkvbench.experiment import from_json, to_json
from qkvbench.model import PRESETS, parse_arm, write_arm
from qkvbench.reports import full, page
from qkvbench.reports.parts.comparison import lines, sentence
from qkvbench.results import planning, resampling
from qkvbench.results.aggregate import Scale, aggregate
from qkvbench.results.dominance import Rival, frontier, pareto_places
from qkvbench.results.items import MAX_BLOCKS, ItemScores
from qkvbench.results.margins import Margins, parse_margins
from qkvbench.results.pair import pair
from qkvbench.results.record import Ratio, Timing
from qkvbench.results.stats import verdicts
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.train.items import item_scores
from qkvbench.variant import parse

ARMS = ("q,k,v", "q,k=v", "q,k,v/1")
STUDIES = Path(__file__).parent.parent / "studies"


def study(path, noise=0.002, losses=(0.0, 0.0, 0.05), seeds=5, **changes):
    """A study of digits with these losses, the noise of each arm its own."""
    rng = np.random.default_rng(3)
    store = Store(path)
    info = fake_study.info(ARMS, ("digits",))
    store.write_study(info.model_copy(update={"seeds": {"digits": seeds}, **changes}))
    for run in fake_study.experiments("digits", ARMS, seeds):
        loss = losses[ARMS.index(run.variant)]
        score = 0.95 - loss + noise * rng.normal()
        items = np.full(100, score) + 0.1 * rng.normal(size=100)
        items += score - items.mean()
        made = fake_study.record(run, float(score))
        kept = ItemScores.from_scores(items, np.ones(100))
        store.write_run(made.model_copy(update={"items": kept}))
    return store


def digits(store, first="q,k,v", second="q,k=v", margin=None):
    return pair(view(store, margin), first, second).tasks[0]


def test_equal_arms_with_little_noise_match_and_a_loss_is_worse(tmp_path):
    store = study(tmp_path)
    assert digits(store).verdict == "matches"
    assert digits(store, second="q,k,v/1").verdict == "worse"
    assert digits(store, first="q,k,v/1", second="q,k,v").verdict == "better"


def test_an_arm_that_matches_within_a_margin_may_not_match_within_a_smaller_one(tmp_path):
    store = study(tmp_path)
    assert digits(store, margin=Margins(default=0.0005)).verdict == "not distinguishable"
    assert digits(store, margin=Margins(tasks={"digits": 0.02})).verdict == "matches"


def test_a_comparison_is_the_reports_own(tmp_path):
    study_ = view(fake_study.build(tmp_path))
    for arm in study_.arms[1:]:
        for task, each in zip(study_.tasks, pair(study_, "q,k,v", arm).tasks, strict=True):
            reported = verdicts(task.result, task.metric.better).get(arm)
            assert each.verdict == reported, (arm, task.name)
            if each.difference is not None and reported is not None:
                assert each.difference == task.result.differences[arm]


def test_a_failed_run_is_named_and_left_out_of_no_mean(tmp_path):
    store = study(tmp_path)
    lost = fake_study.experiments("digits", ("q,k=v",), 5)[2]
    (tmp_path / "runs" / f"{lost.id}.json").unlink()
    store.write_run(fake_study.record(lost, status="oom", reason="no room"))
    found = pair(view(store), "q,k,v", "q,k=v")
    assert found.tasks[0].standing == "runs failed"
    assert found.tasks[0].verdict is None
    assert "`q,k=v` seed 2 oom" in "\n".join(lines(found))
    assert "not compared on digits" in sentence(found)


def test_seeds_that_one_arm_has_not_run_yet_are_left_out_for_both(tmp_path):
    store = study(tmp_path)
    lost = fake_study.experiments("digits", ("q,k=v",), 5)[2]
    (tmp_path / "runs" / f"{lost.id}.json").unlink()
    assert digits(store).seeds == (0, 1, 3, 4)


def test_two_arms_at_chance_are_not_compared(tmp_path):
    found = digits(study(tmp_path, losses=(0.0, 0.85, 0.85)), "q,k=v", "q,k,v/1")
    assert found.standing == "neither learned"


@pytest.mark.parametrize("first", ["q=k=0,v", "none"])
def test_an_arm_and_the_one_without_attention_are_compared_either_way(first):
    (second,) = {"q=k=0,v", "none"} - {first}
    study_ = view(Store(STUDIES / "controls"))
    found, reversed_ = (
        {task.task: task for task in pair(study_, *arms).tasks}
        for arms in ((first, second), (second, first))
    )
    opposite = {"better": "worse", "worse": "better", "likely better": "likely worse"}
    opposite |= {"likely worse": "likely better"}
    for name, task in found.items():
        assert task.standing == reversed_[name].standing, name
        assert (task.standing == "compared") == (task.verdict is not None), name
        if task.verdict in opposite:
            assert reversed_[name].verdict == opposite[task.verdict], name
    assert found["topics-8"].verdict is not None
    assert lines(pair(study_, first, second))


def test_nothing_is_compared_where_the_study_s_baseline_did_not_learn(tmp_path):
    found = digits(study(tmp_path, losses=(0.851, 0.0, 0.0)), "q,k=v", "q,k,v/1")
    assert found.standing == "baseline did not learn"


def test_the_first_line_is_one_sentence_with_verdicts_and_costs(tmp_path, capsys):
    store = fake_study.build(tmp_path)
    assert main(["compare", str(store.path), "q,k,v", "shared-qkv"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith(".")
    assert second == ""
    head = "q=k=v compared with q,k,v"
    for part in (head, "worse on", "recall", "of the parameters", "of the cache"):
        assert part in first


def test_a_comparison_is_one_json_document(tmp_path, capsys):
    store = fake_study.build(tmp_path)
    words = ["compare", str(store.path), "q,k,v", "q=k=v", "--json", "--margin", "sort=0.5"]
    assert main(words) == 0
    value = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert value["sentence"].startswith("`q=k=v` compared with `q,k,v`")
    margins = {task["task"]: task["margin"] for task in value["tasks"]}
    assert margins == {"digits": 0.01, "sort": 0.5, "recall": 0.25, "lm-reviews": 0.02}


def test_a_decode_ratio_has_its_interval_in_both_directions(tmp_path):
    store = study(tmp_path, cost_task="digits")
    for number, run in enumerate(fake_study.experiments("digits", ARMS, 1)):
        ratio = Ratio(to="q,k,v", value=2.0, low=1.6, high=2.5, level=0.95, blocks=16)
        timing = Timing(
            samples=200,
            interrupted=0,
            percentiles_s={"p50": 0.001},
            tokens_per_second=1.0,
            ratio=ratio if number else None,
            memory_bytes=None,
            kernel="made up",
        )
        decoder = PRESETS["small-decoder"]().with_variant(parse(run.variant))
        made = fake_study.measurement(replace(run, model=decoder), number)
        store.write_measurement(
            made.model_copy(update={"timings": {"decode": timing}, "model": run.model.label})
        )
    seen = view(store)
    forth, back = pair(seen, "q,k,v", "q,k=v"), pair(seen, "q,k=v", "q,k,v")
    assert "200.0% (160.0% to 250.0%) of the time of a decode step" in sentence(forth)
    assert back.decode_ratio is not None
    assert (back.decode_ratio.low, back.decode_ratio.high) == (0.4, 0.625)
    # Two arms that were both measured beside a third have no interval of their own.
    assert pair(seen, "q,k=v", "q,k,v/1").decode_ratio is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "STORE", "q,k,v", "q,k=w"], "Did you mean q,k=v?"),
        (["compare", "STORE", "q,k,v", "canonical"], "are one arm"),
        (["compare", "STORE", "q,k,v", "q,k,v/2"], "There is no arm 'q,k,v/2'"),
        (["compare", "STORE", "q,k,v", "q,k=v", "--margin", "none"], "is not a margin"),
        (["plan", "STORE", "--margin", "-1"], "margin"),
        (["plan", "STORE", "--margin", "digit=0.1"], "Did you mean digits?"),
        (["report", "STORE", "--margin", "0"], "is not a margin"),
        (["plan", "no/such/folder"], "is not a folder of results"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_is_answered_with_the_remedy(words, said, tmp_path, capsys):
    store = study(tmp_path)
    assert main([word.replace("STORE", str(store.path)) for word in words]) == 2
    answer = capsys.readouterr().err
    assert said in answer
    assert len(answer.splitlines()) <= 6


def test_arms_without_a_common_seed_are_refused(tmp_path, capsys):
    store = study(tmp_path)
    for run in fake_study.experiments("digits", ("q,k=v",), 5):
        (tmp_path / "runs" / f"{run.id}.json").unlink()
    assert main(["compare", str(store.path), "q,k,v", "q,k=v"]) == 2
    assert "no seed of any task in common" in capsys.readouterr().err


def test_margins_are_stated_for_all_tasks_or_for_one():
    margins = parse_margins(["0.03", "sort=0.5"])
    metric = fake_study.record(fake_study.experiments("digits")[0]).metric
    assert (margins.of("digits", metric), margins.of("sort", metric)) == (0.03, 0.5)
    assert Margins().of("digits", metric) == 0.01
    assert Margins().of("digits", metric.model_copy(update={"unit": "knots"})) is None


@pytest.mark.parametrize("words", [["0.01", "0.02"], ["sort=0.01", "sort=0.01"]])
def test_of_two_margins_none_is_taken_in_silence(words):
    with pytest.raises(ValueError, match="second margin"):
        parse_margins(words)


def test_a_plan_needs_more_seeds_for_less_and_agrees_with_the_noncentral_t():
    def planned(margin, *deviations):
        return planning.seeds_needed(deviations or (1.0, 1.0), margin)

    assert planned(1.0).likely > planned(2.0).likely
    assert planned(2.0).certain > planned(2.0).likely
    assert planned(2.0, 1.0, 3.0).likely > planned(2.0).likely
    # A loud baseline takes as many seeds as a loud arm.
    assert planned(2.0, 1.0, 3.0) == planned(2.0, 3.0, 1.0)

    def power(seeds):
        law = scipy_stats.nct(2 * seeds - 2, 1.0 / np.sqrt(2 / seeds))
        return law.sf(scipy_stats.t.ppf(0.975, 2 * seeds - 2))

    exact = next(seeds for seeds in range(2, 100) if power(seeds) >= 0.8)
    # Welch's test has a little less power than Student's.
    assert exact <= planned(1.0).likely <= exact + 1


def test_a_plan_is_printed_for_every_task_and_arm(tmp_path, capsys):
    store = study(tmp_path)
    assert main(["plan", str(store.path), "--margin", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "digits: margin 0.01, 5 seeds so far" in text
    for arm in ARMS[1:]:
        assert f"  {arm} " in text


def test_a_noisy_arm_takes_more_seeds_and_costs_the_others_none(tmp_path, capsys):
    def seeds(path, noise):
        rng = np.random.default_rng(3)
        _study(path, "digits", {a: 0.9 + noise.get(a, 0.002) * rng.normal(size=3) for a in ARMS})
        assert main(["plan", str(path), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        return {each["arm"]: each["expected"]["likely"] for each in row["arms"]}

    alike = seeds(tmp_path / "alike", {})
    loud = seeds(tmp_path / "loud", {"q,k,v/1": 0.02})
    assert loud["q,k=v"] == alike["q,k=v"]
    assert loud["q,k,v/1"] > 4 * alike["q,k,v/1"]


def test_the_planned_seeds_give_a_count_the_planned_power():
    seeds = planning.counted_seeds_needed(share=0.95, margin=0.5)
    counts = np.arange(seeds + 1)
    told = planning.fisher_table(seeds) < 0.05
    arm, base = (scipy_stats.binom.pmf(counts, seeds, each) for each in (0.45, 0.95))
    assert arm @ (told & (counts[:, None] < counts)) @ base >= 0.8
    assert planning.counted_seeds_needed(share=1.0, margin=1e-3) is None


def test_five_of_five_is_not_taken_for_all():
    plan = planning.plan_counts(5, 5, margin=0.25)
    assert plan.share == pytest.approx(6 / 7)
    assert plan.careful > plan.seeds > planning.counted_seeds_needed(share=1.0, margin=0.25)


@pytest.mark.parametrize("seeds", [3, 5])
def test_fisher_at_once_is_fisher_one_by_one(seeds):
    table = planning.fisher_table(seeds)
    for first in range(seeds + 1):
        for second in range(seeds + 1):
            counts = [[first, second], [seeds - first, seeds - second]]
            assert table[first, second] == pytest.approx(scipy_stats.fisher_exact(counts).pvalue)


def test_items_survive_a_record_and_keep_its_score(tmp_path):
    scores = np.random.default_rng(0).random(3 * MAX_BLOCKS + 5)
    places = np.arange(1.0, len(scores) + 1)
    kept = ItemScores.from_scores(scores, places)
    values, weights = ItemScores.model_validate_json(kept.model_dump_json()).arrays()
    assert kept.items == len(scores)
    assert len(values) <= MAX_BLOCKS
    assert values @ weights == pytest.approx(scores @ places / places.sum(), rel=1e-6)


@pytest.mark.parametrize(
    "damage", [{"values": "###"}, {"values": "AAAA"}, {"values": ""}, {"weights": "AAAAAA=="}]
)
def test_damaged_items_are_refused(damage):
    kept = ItemScores.from_scores(np.ones(3), np.ones(3)).model_dump()
    with pytest.raises(ValueError, match="items'"):
        ItemScores.model_validate(kept | damage)


def outcome(items=7, places=4):
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=(items, places))
    targets[0] = IGNORE_INDEX
    targets[1, :2] = IGNORE_INDEX
    loss = rng.random((items, places))
    predicted = rng.integers(3, size=(items, places))
    return Predictions(loss, predicted, targets, rng.integers(3, size=(items, places)))


@pytest.mark.parametrize("task", ["sort", "recall", "digits"])
def test_the_items_of_a_run_average_to_its_score(task):
    said = outcome()
    values, weights = item_scores(tasks.find(task), said).arrays()
    assert values @ weights == pytest.approx(tasks.find(task).score(said)["accuracy"])
    assert len(values) == 6


def test_a_metric_that_is_no_mean_keeps_no_items():
    task = tasks.find("sort")
    metric = replace(task.metric, name="worst")
    other = replace(task, metric=metric, score=lambda said: {"worst": float(said.loss.max())})
    assert item_scores(other, outcome()) is None


def test_item_scores_add_bounds_to_a_report_and_are_optional(tmp_path):
    assert view(fake_study.build(tmp_path / "old")).tasks[0].items == {}
    seen = view(study(tmp_path / "new")).tasks[0]
    for arm, each in seen.items.items():
        seeds = seen.result.differences[arm]
        assert each.both[0] < seeds.low < seeds.high < each.both[1]
        assert each.items[0] < each.value < each.items[1]
        assert not each.resampled


def test_the_bootstrap_over_items_has_the_error_of_their_mean_and_repeats():
    table = np.random.default_rng(1).normal(size=(1, 3, 500))
    weights = np.full(500, 1 / 500)
    (one,), (two,) = (resampling.bounds_over_items(table, weights, [(-1.0, 1.0)]) for _ in range(2))
    assert one == two
    error = table[0].mean(axis=0).std() / np.sqrt(500)
    # 10,000 resamples know a quantile to about 2%.
    assert (one.items[1] - one.items[0]) / (2 * 1.96 * error) == pytest.approx(1, abs=0.05)


def test_seeds_are_resampled_only_where_there_are_enough():
    rng = np.random.default_rng(1)
    weights = np.full(50, 1 / 50)
    few, many = (
        resampling.bounds_over_items(rng.normal(size=(1, seeds, 50)), weights, [None])[0]
        for seeds in (resampling.MIN_SEEDS - 1, resampling.MIN_SEEDS)
    )
    assert few is None
    assert many.resampled


def test_zero_is_no_attention_one_the_baseline_and_the_worst_task_is_named():
    floor, base = np.array([0.1, 0.1]), np.array([0.9, 0.9])
    found = aggregate(
        {
            "a": Scale(floor, base, np.array([0.5, 0.5])),
            # Bits, of which fewer are better.
            "b": Scale(np.array([4.0, 4.0]), np.array([2.0, 2.0]), np.array([2.1, 1.9])),
        }
    )
    assert (found.mean, found.worst, found.worst_task) == (pytest.approx(0.75), 0.5, "a")
    # The only spread is that of one arm on one of the two tasks, with one degree of freedom.
    half = scipy_stats.t.isf(0.025, 1) * np.sqrt(0.02 / 2) / 2 / 2
    assert found.high - found.mean == pytest.approx(half)
    assert aggregate({"a": Scale(floor, base, base)}) is None


def _study(path, task, scores):
    """A study of one task with these scores of each arm."""
    store = Store(path)
    store.write_study(
        fake_study.info(tuple(scores), (task,)).model_copy(update={"seeds": {task: 3}})
    )
    for run in fake_study.experiments(task, arms=tuple(scores), seeds=3):
        store.write_run(fake_study.record(run, score=scores[run.variant][run.seed]))
    return view(store)


def test_a_task_that_is_solved_without_attention_says_nothing_of_variants(tmp_path):
    arms = {"q,k,v": [0.95, 0.96, 0.95], "q,k=v": [0.90, 0.92, 0.89]}
    for number, (floor, standing) in enumerate(
        [([0.94, 0.95, 0.95], "attention not needed"), ([0.1, 0.12, 0.09], "compared")]
    ):
        seen = _study(tmp_path / str(number), "sort", arms | {"none": floor})
        (task,) = seen.tasks
        assert task.result.standing == standing
        assert task.result.worth == pytest.approx(np.mean(arms["q,k,v"]) - np.mean(floor))
        said = " ".join(full.render(seen).split())
        assert ("says nothing of variants" in said) == (standing != "compared")
        assert bool(task.result.differences) == (standing == "compared")
        assert "No control without attention" not in said
    without = _study(tmp_path / "without", "sort", arms)
    assert "No control without attention" in full.render(without)


def test_a_page_and_a_comparison_have_an_arm_that_caches_nothing(tmp_path):
    arms = {"q,k,v": [2.4, 2.41, 2.4], "q,k=v": [2.5, 2.52, 2.5], "none": [3.5, 3.51, 3.5]}
    seen = _study(tmp_path, "lm-reviews", arms)
    assert seen.tasks[0].costs["none"].cache_bytes_per_token == 0
    assert "q,k=v" in page.render(seen)
    assert any("none" in line for line in lines(pair(seen, "q,k,v", "none")))


def test_a_run_that_diverged_counts_as_no_attention_over_tasks(tmp_path):
    arms = ("q,k,v", "q,k=v", "none")
    store = Store(tmp_path)
    store.write_study(fake_study.info(arms, ("digits", "sort")))
    best = {"q,k,v": 0.9, "q,k=v": 0.8, "none": 0.1}
    for task in ("digits", "sort"):
        for number, run in enumerate(fake_study.experiments(task, arms)):
            made = fake_study.record(run, score=best[run.variant] + number % 4 / 1000)
            if (task, run.variant, run.seed) == ("sort", "q,k=v", 1):
                made = made.model_copy(update={"status": "diverged", "metrics": {}})
            store.write_run(made)
    seen = view(store)
    assert verdicts(seen.tasks[1].result, "higher")["q,k=v"] == "diverged"
    assert "Diverged more often than q,k,v: q,k=v (1 run)" in " ".join(full.render(seen).split())
    found = seen.aggregates["q,k=v"]
    # Two seeds of seven eighths, and one of nothing.
    assert found.worst == pytest.approx(7 / 8 * 2 / 3, abs=0.01)
    assert (found.worst_task, found.mean) == ("sort", pytest.approx(7 / 8 * 5 / 6, abs=0.01))


def test_solved_seeds_need_a_control_that_solves_fewer(tmp_path):
    solved, failed = [0.999] * 3, [0.2] * 3
    seen = _study(tmp_path / "a", "recall", {"q,k,v": solved, "q,k=v": failed, "none": solved})
    assert seen.tasks[0].result.standing == "attention not needed"
    assert "none" not in seen.aggregates


@pytest.mark.parametrize(
    ("floor", "tasks"),
    [([0.2, 0.21, 0.2], 3), ([0.995, 0.996, 0.997], 2), ([0.9, 0.2, 0.2], 2)],
)
def test_a_solved_task_is_a_scale_only_if_attention_is_worth_its_noise(tmp_path, floor, tasks):
    arms = ("q,k,v", "q,k=v", "none")
    store = Store(tmp_path)
    store.write_study(fake_study.info(arms, ("digits", "sort", "recall")))
    best = {"q,k,v": 0.9, "q,k=v": 0.8, "none": 0.1}
    for task in ("digits", "sort", "recall"):
        for run in fake_study.experiments(task, arms):
            made = fake_study.record(run, score=best[run.variant] + run.seed % 3 / 1000)
            if task == "recall":
                solved = {"q,k,v": ([1.0] * 3, 100), "q,k=v": ([0.95] * 3, 300)}
                scores, step = solved.get(run.variant, (floor, 1000))
                made = fake_study.record(run, score=scores[run.seed % 3])
                made = made.model_copy(update={"solved_step": step + run.seed})
            store.write_run(made)
    found = view(store).aggregates["q,k=v"]
    assert len(found.tasks) == tasks
    assert found.mean > 0.5


def test_dominance_on_given_numbers_is_exact():
    points = {"a": (1, 3), "b": (2, 2), "c": (2, 3), "d": (3, 1), "e": (1, 3)}
    assert frontier(points) == ("a", "b", "d", "e")


def test_an_arm_is_dominated_only_by_a_rival_that_is_no_dearer_and_surely_better():
    costs = {"big": 4.0, "mid": 2.0, "small": 1.0}

    stronger, weaker = (partial(Rival, better) for better in (True, False))
    known = {
        "big": {"mid": stronger(0.0001), "small": stronger(0.9)},
        "mid": {"big": weaker(0.01), "small": stronger(0.02)},
        "small": {"big": weaker(0.9), "mid": weaker(0.2)},
    }
    places = pareto_places(costs, known)
    assert (places["big"].outlook, places["big"].by) == ("dominated", "mid")
    assert (places["mid"].outlook, places["mid"].by) == ("likely dominated", "small")
    assert places["small"].outlook == "on the frontier"
    worse = {"big": {"mid": weaker(0.01), "small": weaker(0.02)}}
    assert pareto_places(costs, worse)["big"].outlook == "on the frontier"
    unsure = {"big": {"mid": weaker(0.01), "small": weaker(0.4)}}
    assert pareto_places(costs, unsure)["big"].outlook == "not decided"
    near = {"big": 1.01, "small": 1.0}
    assert pareto_places(near, known, tolerance=0.03)["big"].outlook == "on the frontier"


# The study's table 4 (arXiv:2606.04032): perplexity and cache in KiB a token.
TABLE = {
    "q,k,v": (5.11, 80),
    "q,k=v": (5.27, 40),
    "q=k,v": (5.36, 80),
    "q=k=v": (6.41, 40),
    "q,k,v/4": (5.15, 20),
    "q,k,v/1": (5.19, 5),
    "q,k=v/4": (5.32, 10),
    "q,k=v/1": (5.36, 2.5),
}


def test_the_frontier_of_the_study_s_own_table():
    assert set(frontier(TABLE)) == {"q,k,v", "q,k,v/4", "q,k,v/1", "q,k=v/1"}


def test_the_study_s_cache_column_is_what_its_variants_keep():
    base = PRESETS["gpt-300m"]()
    for text, (_, kib) in TABLE.items():
        model = base.with_variant(parse_arm(text).variants[0][0])
        assert bytes_text(cost.cache_bytes_per_token(model)) == f"{kib:g} KiB"


def test_the_cache_of_multi_query_with_a_shared_key_is_64_times_smaller_not_67():
    base = PRESETS["gpt-1.2b"]()
    whole, kept = (
        cost.cache_bytes_per_token(base.with_variant(parse_arm(text).variants[0][0]))
        for text in ("q,k,v", "q,k=v/1")
    )
    assert whole == 64 * kept


def test_the_study_s_five_shot_averages_but_one_are_not_distinguishable():
    # Items of ARC-C, ARC-E, HellaSwag, PIQA and WinoGrande; the average weighs tasks alike.
    items = np.array([1172, 2376, 10042, 1838, 1267])
    shares = np.array([0.1903, 0.3001, 0.2615, 0.5664, 0.5020])
    error = np.sqrt((shares * (1 - shares) / items).sum()) / len(items)
    assert 100 * error == pytest.approx(0.48, abs=0.005)
    averages = {"q,k=v": 35.99, "q,k,v/8": 35.86, "q,k=v/8": 36.72, "q,k=v/1": 34.38}
    base = 36.40
    z = {arm: (average - base) / (100 * np.sqrt(2) * error) for arm, average in averages.items()}
    p = {arm: 2 * scipy_stats.norm.sf(abs(each)) for arm, each in z.items()}
    from qkvbench.results.critical import holm

    told = {arm for arm, each in holm(p).items() if each < 0.05}
    assert told == {"q,k=v/1"}
    assert z["q,k=v/1"] < 0


@pytest.mark.parametrize("text", ["q,k,v", "q,k,v~q,k=v", "q,k=v~q,k,v:macs"])
def test_an_arm_has_one_text(text):
    assert write_arm(parse_arm(text)) == text


@pytest.mark.parametrize("size", ["", "~q,k=v", "~q,k=v:macs"])
def test_a_first_record_of_an_arm_of_equal_size_is_read_as_the_same_experiment(size):
    (base,) = fake_study.experiments("digits", ("q,k,v",), 1)
    model = with_arm(base.model, parse_arm(f"q,k,v{size}"), tokens=16)
    experiment = replace(base, model=model)
    assert experiment.arm == f"q,k,v{size}"
    written = to_json(experiment)
    assert from_json(written) == experiment
    # The first version had the size match in the model's name alone.
    del written["model"]["size_match"]
    written["model"]["name"] = f"digits{size}"
    assert from_json(written) == experiment


@pytest.mark.parametrize("task", ["digits", "lm-reviews"])
@pytest.mark.parametrize("tie", ["q,k=v", "q=k=v=x", "q,k,v/1"])
def test_an_arm_of_equal_size_has_as_many_parameters_or_macs(task, tie):
    found = tasks.find(task)
    base, tokens = found.model, found.tokens
    tied = with_arm(base, parse_arm(tie), tokens=tokens)
    for by, size in (("", lambda model: cost.parameters(model).total), (":macs", None)):
        measure = size or (lambda model: cost.macs(model, tokens))
        model = with_arm(base, parse_arm(f"q,k,v~{tie}{by}"), tokens=tokens)
        assert model.variant == "q,k,v"
        # Half a hidden unit in every layer is the most that a whole width can be off.
        step = measure(with_width(model, 2)) - measure(with_width(model, 1))
        assert abs(measure(model) - measure(tied)) <= step / 2


def test_a_half_feed_forward_finds_its_width_too():
    """Half of an odd width is rounded, so the cost is no line between widths that are near."""
    found = tasks.find("lm-reviews")
    tied, half = (
        with_arm(found.model, parse_arm(arm), tokens=found.tokens)
        for arm in ("q,k=v", "q,k,v~half-ff~q,k=v")
    )
    sizes = [cost.parameters(model).total for model in (tied, half)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.002)


def with_width(model, width):
    feed_forward = replace(model.blocks[0].feed_forward, width=width)
    return replace(
        model, blocks=tuple(replace(block, feed_forward=feed_forward) for block in model.blocks)
    )


def test_an_arm_that_cannot_be_made_so_small_is_refused():
    base = PRESETS["small-decoder"]()
    thin = with_width(base, 4)
    with pytest.raises(ValueError, match="narrow enough"):
        with_arm(thin, parse_arm("q,k,v~q=k=v=x"), tokens=8)


def test_arms_of_equal_size_are_arms_of_their_own_in_a_view(tmp_path):
    arms = ("q,k,v", "q,k=v", "q,k,v~q,k=v")
    store = Store(tmp_path)
    store.write_study(fake_study.info(arms, ("digits",)))
    base = fake_study.experiments("digits", ("q,k,v",), 3)
    for run in base:
        for arm in arms:
            model = with_arm(run.model, parse_arm(arm), tokens=16)
            score = 0.9 + 0.01 * run.seed - 0.01 * (arm != "q,k,v")
            store.write_run(fake_study.record(replace(run, model=model), score))
    seen = view(store)
    assert [len(cell.runs) for cell in seen.tasks[0].cells] == [3, 3, 3]
    sizes = [seen.tasks[0].costs[arm].total_parameters for arm in arms]
    assert sizes[0] > sizes[1]
    assert abs(sizes[2] - sizes[1]) < 0.005 * sizes[1]
    assert seen.others == 0


def diverged(path, seeds):
    """A study in which the second arm diverged on these seeds."""
    store = study(path, seeds=4)
    for run in store.runs().good:
        if run.arm == "q,k=v" and run.seed in seeds:
            update = {"status": "diverged", "metrics": {}, "curve": [], "items": None}
            (path / "runs" / f"{run.id}.json").unlink()
            store.write_run(run.model_copy(update=update))
    return view(store)


@pytest.mark.parametrize(
    ("seeds", "said", "unsaid"),
    [
        ((0, 1, 2, 3), "4 seeds): diverged. Failures", "solved by"),
        ((1, 2, 3), "; one seed has a score: no interval.", "the same on every seed"),
    ],
)
def test_an_arm_of_which_most_runs_diverged_is_compared_in_words(tmp_path, seeds, said, unsaid):
    text = "\n".join(lines(pair(diverged(tmp_path, seeds), "q,k,v", "q,k=v")))
    assert said in text
    assert unsaid not in text


def test_a_loss_without_spread_has_the_report_s_verdict(tmp_path):
    store = study(tmp_path, noise=0.0)
    (task,) = view(store).tasks
    assert task.verdicts == {"q,k,v/1": "likely worse"}
    assert digits(store).standing == "no spread"
    text = "\n".join(lines(pair(view(store), "q,k,v", "q,k,v/1")))
    assert "likely worse; −0.050, the same on every seed: no interval, p=0.008 by permut" in text
