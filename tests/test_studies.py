"""The committed studies: what README says of them, and what the ledger concludes from them."""

import importlib.util
from functools import cache
from pathlib import Path

import minimal_search
import numpy as np
import pytest

from qkvbench import claims, recipes
from qkvbench.claims import judge, pool
from qkvbench.claims.kit.runs import Runs
from qkvbench.recipes import CONTROLS
from qkvbench.reports import brief
from qkvbench.reports.parts import evidence as evidence_text
from qkvbench.reports.parts import paper
from qkvbench.reports.parts.formatting import signed
from qkvbench.reports.parts.table import SYMBOLS
from qkvbench.results.evidence import runs_of, settings
from qkvbench.results.pair import pair
from qkvbench.results.preregistration import judge_hypotheses
from qkvbench.results.store import Store
from qkvbench.results.trend import trends
from qkvbench.results.view import view

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "studies"
OUTCOMES = ("confirmed", "not decided", "contradicted")
EVERY_CLAIM = [claims.find(name) for name in claims.names()]


@cache
def committed(name):
    """The view of a committed study."""
    return view(Store(STUDIES / name))


def test_the_readme_s_table_is_what_its_records_say():
    printed = brief.render(committed("quick-tuned"))
    assert f"```\n{printed.rstrip()}\n```" in (ROOT / "README.md").read_text()


def test_what_tuning_changes_is_what_the_readme_says():
    plain, tuned = (differences(each, "lm-reviews") for each in ("quick", "quick-tuned"))
    changed = {arm for arm in tuned if plain[arm].verdict("lower") != tuned[arm].verdict("lower")}
    assert changed == {"q,k,v/1"}
    assert tuned["q,k,v/1"].verdict("lower") == "likely better"
    assert round(-tuned["q,k,v/1"].value, 3) == 0.037
    assert [round(each["q=k=v=x"].value, 2) for each in (plain, tuned)] == [0.66, 0.54]
    for arm in ("q=k,v", "q,k=v", "q=k=v", "q,k=R(q),v=R(q)"):
        assert tuned[arm].value > plain[arm].value - 0.01
    images = differences("quick-tuned", "anomaly-pixels")["q,k,v/1"]
    assert (images.verdict("higher"), round(-images.value, 3)) == ("worse", 0.019)
    plain, tuned = (
        next(each for each in committed(name).tasks if each.name == "recall").result
        for name in ("quick", "quick-tuned")
    )
    assert {arm for arm in tuned.counts if plain.verdict(arm) != tuned.verdict(arm)} == {"q=k=v=x"}


def test_what_ten_times_the_steps_change_is_what_the_readme_says():
    few, many = (differences(each, "lm-reviews") for each in ("quick", "budgets-5000"))
    losses = {"q=k,v": (0.227, 0.18), "q,k=v": (0.078, 0.053), "q=k=v": (0.354, 0.241)}
    for arm, (before, after) in losses.items():
        assert few[arm].value == pytest.approx(before, abs=6e-4)
        assert many[arm].value == pytest.approx(after, abs=6e-4)
        assert many[arm].verdict("lower") == "worse"
    # Its loss lies below that of the baseline with three times fewer steps.
    steps = {n: committed(f"budgets-{n}" if n > 500 else "quick") for n in (500, 1500, 5000, 15000)}
    base = {n: _task(each, "lm-reviews").result.means["q,k,v"].value for n, each in steps.items()}
    tied = _task(steps[5000], "lm-reviews").result.means["q=k=v"].value
    share = (base[500] - tied) / (base[500] - base[1500])
    assert 500 * 3**share == pytest.approx(0.29 * 5000, rel=0.01)


def test_what_thirty_times_the_steps_change_is_what_the_readme_says():
    names = ("quick", *(f"budgets-{n}" for n in (1500, 5000, 15000)))
    runs = [run for name in names for run in runs_of(Store(STUDIES / name), name)]
    (found,) = trends(runs).tasks
    arms = {arm.arm: arm for arm in found.arms}
    last, second = found.places[-1], found.places[1]
    assert last.steps == 15000
    for arm, left, verdict in (
        ("q=k=v", 0.18, "shrinks"),
        ("q=k,v", 0.11, "shrinks"),
        ("q,k=v", 0.04, "likely shrinks"),
        ("q,k,v/1", -0.01, None),
        ("none", 1.56, "grows"),
    ):
        assert round(arms[arm].gaps[last].value, 2) == left
        assert arms[arm].verdict("tokens") == verdict
    assert round(arms["q=k=v"].share[last], 2) == 0.24
    assert round(arms["q=k=v"].share[second], 2) == 0.37
    outcomes = [each.outcome for each in judge_hypotheses(committed("budgets-15000"))]
    assert sorted(outcomes) == ["confirmed"] * 2 + ["not decided"] * 3


@cache
def every_run():
    """The runs of all committed studies."""
    folders = sorted(path for path in STUDIES.iterdir() if (path / "study.json").exists())
    return [run for folder in folders for run in runs_of(Store(folder), folder.name)]


@cache
def evidence(arm, task, *, steps=500):
    """The one setting of this arm with this number of steps, on torch at the task's own rate."""
    found = [
        each
        for each in settings(every_run(), arm=arm)
        if task in each.names
        and each.shared.training.steps == steps
        and each.shared.backend == "torch"
        and not each.tuned
    ]
    # Of several rates the one that most seeds of the arm have.
    return max(found, key=lambda each: each.seeds[1])


def numbers(arm, task, *, steps=500, places=2):
    each = evidence(arm, task, steps=steps).result.differences[arm]
    return [round(value, places) for value in (each.value, each.low, each.high)]


def test_the_readme_s_verdicts_are_what_the_records_say():
    verdict = {
        ("q,k,v/1", "lm-reviews", 500): "not worse",
        ("q,k,v/1", "recall", 1000): "worse",
        ("q,k,v/1", "translation", 1000): "likely worse",
        ("q,k=v", "recall", 1000): "worse",
        ("q,k,v=R(k)", "recall", 1000): "worse",
        ("q,k=v", "lm-reviews", 500): "likely worse",
        ("q,k=v", "lm-reviews", 1500): "worse",
        ("q=k,v", "lm-reviews", 500): "worse",
        ("q=k,v-diag", "lm-reviews", 500): "matches",
        ("q=k=v", "lm-reviews", 500): "worse",
        ("q=k=v", "lm-reviews", 1500): "worse",
        ("q=k=v=x", "lm-reviews", 500): "worse",
        ("q=k=v=x", "recall", 1000): "worse",
        ("q=k=v=x", "sort", 150): "worse",
        ("q=k,v", "recall", 1000): "better",
        ("q=k=0,v", "lm-reviews", 500): "worse",
        ("none", "lm-reviews", 500): "worse",
        ("q,k=v", "sort", 450): "matches",
        ("q,k,v/1", "sort", 150): "matches",
        ("q,k=v", "sort", 150): "matches",
        ("q=k,v", "sort", 150): "likely worse",
        ("q=k,v-diag", "sort", 150): "matches",
        ("q=k=v", "recall", 1000): "likely matches",
        ("q,k,v~q,k=v", "lm-reviews", 500): "likely matches",
        ("q=k=0,v", "sort", 150): "matches",
        ("q=k=0,v", "anomaly-pixels", 600): "likely not worse",
    }
    found = {key: evidence(*key[:2], steps=key[2]).verdict for key in verdict}
    assert found == verdict


def test_the_readme_s_numbers_are_what_the_records_say():
    assert numbers("q,k,v/1", "lm-reviews", places=3) == [-0.008, -0.017, 0.001]
    assert numbers("q,k,v/1", "translation", steps=1000) == [-3.30, -5.89, -0.72]
    assert numbers("q,k=v", "lm-reviews") == [0.08, 0.05, 0.11]
    assert numbers("q,k=v", "lm-reviews", steps=1500) == [0.07, 0.05, 0.10]
    assert numbers("q=k,v", "lm-reviews", places=3) == [0.227, 0.203, 0.251]
    assert 0.45 < evidence("q=k,v", "lm-reviews").speed < 0.55
    assert numbers("q=k,v-diag", "lm-reviews", places=3) == [-0.003, -0.01, 0.004]
    assert numbers("q=k=v", "lm-reviews") == [0.36, 0.32, 0.40]
    assert numbers("q=k=v", "lm-reviews", steps=1500) == [0.34, 0.30, 0.39]
    assert numbers("q=k=v", "sort", steps=150) == [-0.15, -0.18, -0.13]
    assert round(numbers("q=k,v", "sort", steps=150, places=4)[0], 3) == -0.004
    assert round(numbers("q=k=v=x", "sort", steps=150)[0], 2) == -0.15
    assert round(numbers("none", "lm-reviews")[0], 2) == 0.85
    assert round(numbers("q=k=0,v", "lm-reviews")[0], 2) == 0.78
    assert evidence("q=k=0,v", "recall", steps=1000).result.counts["q=k=0,v"].solved == 0
    lost = evidence("q=k=v=x", "lm-reviews").result.differences["q=k=v=x"].value
    assert round(lost, 2) in (0.66, 0.67)
    for arm, solved in (("q,k=v", 11), ("q,k,v=R(k)", 11), ("q,k,v/1", 16), ("q=k=v", 20)):
        counts = evidence(arm, "recall", steps=1000).result.counts
        assert (counts[arm].solved, counts["q,k,v"].solved) == (solved, 20)
    assert evidence("q,k=v", "recall@4x64", steps=1000).result.counts["q,k=v"].solved == 10


def test_what_was_registered_of_fifty_seeds_came_out_so():
    judged = {
        (each.hypothesis.arm, on_task.task): on_task.outcome
        for each in judge_hypotheses(committed("equivalence"))
        for on_task in each.tasks
    }
    assert judged[("q=k,v-diag", "lm-reviews")] == "confirmed"
    assert judged[("q,k,v/1", "lm-reviews")] == "not decided"


def test_a_masked_diagonal_gives_all_back_with_rope_and_a_part_with_learned_positions():
    study = committed("masked-diagonal")
    outcomes = [each.outcome for each in judge_hypotheses(study)]
    assert sorted(outcomes) == ["confirmed"] * 5 + ["not decided"] * 2
    # Of many tasks the first sentence has the number.
    assert "50% of the cache, on 9 of 10 tasks." in " ".join(brief.render(study).split())
    for corpus in ("lm-reviews", "lm-docs", "lm-plays"):
        for task in (corpus, f"{corpus}@512"):
            found = differences("masked-diagonal", task)
            assert found["q=k,v"].verdict("lower") == "worse"
            # No loss is left that the interval would show.
            assert found["q=k,v-diag"].low < 0, task
            assert found["q=k,v-diag"].value < 0.04 * found["q=k,v"].value, task
        found = differences("masked-diagonal", f"{corpus}@learned")
        left = found["q=k,v-diag"].value / found["q=k,v"].value
        assert 1 / 3 - 0.03 < left < 1 / 2 + 0.01, corpus


def test_a_tie_loses_beside_an_arm_of_as_many_parameters_too():
    for tie, verdict in (
        ("q,k=v", "likely worse"),
        ("q=k=v", "worse"),
        ("q,k,v/1", "likely better"),
    ):
        compared = pair(committed("matched"), f"q,k,v~{tie}", tie)
        found = next(each for each in compared.tasks if each.task == "lm-reviews")
        assert found.verdict == verdict, tie


def test_a_teacher_is_worth_as_much_to_ties_as_to_canonical_attention():
    taught = committed("distillation")
    means = {arm: mean.value for arm, mean in _task(taught, "lm-reviews").result.means.items()}
    alone = {
        arm: mean.value
        for arm, mean in _task(committed("quick"), "lm-reviews").result.means.items()
    }
    gains = {arm: alone[arm] - means[arm] for arm in means}
    assert all(0.11 <= round(gains[arm], 2) <= 0.15 for arm in means if arm not in CONTROLS), gains
    assert all(gains[arm] < 0.03 for arm in CONTROLS)
    gaps = [
        abs((means[arm] - means["q,k,v"]) - (alone[arm] - alone["q,k,v"]))
        for arm in means
        if arm not in CONTROLS
    ]
    assert max(gaps) < 0.04


def test_what_was_learned_from_a_teacher_is_evidence_of_its_own_and_none_for_a_claim(studies):
    found = settings(every_run(), arm="q,k=v")
    taught = [each for each in found if each.shared.teacher]
    assert {each.folders for each in taught} == {("distillation",)}
    printed = "\n".join(evidence_text.lines(found, "q,k=v", "q,k,v"))
    assert printed.count("taught by q,k,v") == len(taught) == 2
    pooled = pool(list(studies.values()))
    assert not any(
        run.record.parsed_experiment.teacher for runs in pooled.runs.values() for run in runs
    )


def _task(study, name):
    return next(task for task in study.tasks if task.name == name)


def test_the_same_runs_have_one_verdict_in_every_folder():
    """As in three folders of which each once said something else of six runs."""
    compared = [
        next(task for task in committed(name).tasks if task.name == "sort").result.differences
        for name in ("quick-first", "catalogue", "scores")
    ]
    first, *others = [each["q=k,v"] for each in compared]
    assert all(each == first for each in others)
    assert first.verdict("higher") == "likely worse"


def test_what_attention_is_worth_is_what_the_records_say():
    controls = {task.name: task.result for task in committed("controls").tasks}
    unneeded = {name for name, each in controls.items() if each.standing == "attention not needed"}
    assert unneeded == {"digits", "sentiment", "clip"}
    assert len(controls) == 11
    means = [round(controls["digits"].means[arm].value, 3) for arm in ("none", "q,k,v")]
    assert means == [0.982, 0.972]
    means = [round(controls["sort"].means[arm].value, 3) for arm in ("q=k=0,v", "q,k,v")]
    assert means == [0.998, 0.997]
    # In these, choosing what to read is worth a tenth of reading anything at all, or nothing.
    for task in ("sort", "anomaly-features"):
        worth = controls[task].differences
        assert abs(worth["q=k=0,v"].value) < 0.003 < 0.5 < -worth["none"].value, task
    for task, chosen in (("lm-reviews", 0.92), ("long-plays", 0.99), ("translation", 0.34)):
        worth = controls[task].differences
        share = worth["q=k=0,v"].value / worth["none"].value
        assert share == pytest.approx(chosen, abs=0.01), task
    assert controls["recall"].counts["q=k=0,v"].solved == 0
    assert round(controls["lm-reviews"].differences["q=k=0,v"].value, 2) == 0.78


def _scores(study):
    """The score of each task, variant and seed."""
    records = Store(ROOT / "studies" / study).runs().good
    return {
        (each.task, each.variant, each.seed): each.metrics[each.metric.name] for each in records
    }


def test_quick_has_the_same_scores_on_both_backends():
    ours, theirs = _scores("quick-first"), _scores("quick-jax")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 112
    away = [abs(theirs[run] - score) for run, score in ours.items()]
    # What docs/commands.md and NOTES.md say.
    assert sum(each == 0 for each in away) == 84
    assert sum(each < 0.0005 for each in away) == 107
    assert round(max(away), 4) == 0.0047
    said = (ROOT / "docs" / "commands.md").read_text()
    assert "84 of the 112 scores of the first `quick` to the last digit" in said


@pytest.fixture(scope="module", name="studies")
def _studies():
    """Every committed folder of results, as the ledger reads it."""
    return {path.name: claims.open_store(path) for path in STUDIES.iterdir() if path.is_dir()}


@pytest.fixture(scope="module", name="without_runs")
def _without_runs():
    """The findings without any store, by the claim's name."""
    return {entry.claim.name: entry.finding for entry in claims.ledger()}


@pytest.fixture(scope="module", name="with_all_runs")
def _with_all_runs(studies):
    """The findings from all committed studies together, by the claim's name."""
    return {e.claim.name: e.finding for e in claims.ledger(tuple(studies.values()))}


def _finding(name, *stores):
    return judge(claims.find(name), pool(stores))


def test_each_claim_has_a_verdict_without_a_study_and_with_one_and_all(
    studies, without_runs, with_all_runs
):
    with_one = claims.ledger((studies["fifteen-by-eight"],))
    findings = [
        *without_runs.items(),
        *with_all_runs.items(),
        *((entry.claim.name, entry.finding) for entry in with_one),
    ]
    assert len(findings) == len(EVERY_CLAIM) * 3
    for name, finding in findings:
        assert finding.verdict in claims.VERDICTS, name
        assert finding.reason.endswith("."), name
        assert finding.summary.endswith("."), name
        assert (finding.verdict == "not testable here") == bool(finding.requires), name


def test_small_runs_never_decide_a_claim_about_large_models(without_runs, with_all_runs):
    far = [
        claim.name
        for claim in EVERY_CLAIM
        if all(not test.scale.tasks for test in claim.tests if isinstance(test, Runs))
    ]
    assert len(far) > 50
    for name in far:
        assert with_all_runs[name].verdict == without_runs[name].verdict, name
        assert with_all_runs[name].evidence == (), name


def test_runs_at_the_claim_s_own_scale_decide_it(studies, with_all_runs):
    name = "study-recall-by-heads"
    assert _finding(name).verdict == "not yet run"
    assert _finding(name, studies["longer"]).verdict == "not distinguishable"
    assert _finding(name, studies["recall"]).verdict == "supported"
    assert with_all_runs[name].verdict == "supported"


def test_sorting_sixteen_digits_is_not_at_the_scale_of_the_study_s_sorting(with_all_runs):
    for name in ("study-sort-tied", "study-sort-query-key", "study-sort-single"):
        finding = with_all_runs[name]
        assert finding.verdict == "not testable here", name
        assert "1/8 of the length of a sequence" in finding.other_scale.distance
    assert with_all_runs["study-sort-single"].other_scale.direction == "same direction"
    # There the baseline makes next to no errors, so its equality is no support.
    other = with_all_runs["study-sort-query-key"].other_scale
    assert "Not counted, at a ceiling: sort (quick, 150 steps)" in other.result
    assert "sort (longer, 450 steps)" in other.result
    assert other.direction == "opposite direction"


def test_small_runs_are_reported_with_their_distance_from_the_claim_s_scale(studies):
    finding = _finding("study-order-of-ties", studies["longer"])
    assert finding.verdict == "not testable here"
    assert finding.other_scale.direction == "same direction"
    assert "1/1,201 of the parameters" in finding.other_scale.distance
    (evidence,) = finding.other_scale.evidence
    assert (evidence.task, evidence.arm, evidence.against) == ("lm-reviews", "q=k,v", "q,k=v")
    assert evidence.outcome.low > 0
    assert len(evidence.runs) == 6
    runs = ROOT / "studies" / "longer" / "runs"
    assert all((runs / f"{run}.json").exists() for run in evidence.runs)


def test_a_run_in_several_stores_counts_once(studies):
    together = pool([studies[name] for name in ("catalogue", "quick", "recall", "heads")])
    (evidence,) = together.comparisons("recall@4x16", arm="q,k=v", against="q,k,v")
    # The ten seeds of `heads` are the first ten of `recall`, under another name.
    assert evidence.stores == ("catalogue", "heads", "quick", "recall")
    assert evidence.seeds == (20, 20)
    assert len(set(evidence.runs)) == 40
    assert together.comparisons("recall", arm="q,k=v", against="q,k,v")[0].runs == evidence.runs


def test_the_ledger_does_not_depend_on_the_order_of_the_folders(studies, with_all_runs):
    for entry in claims.ledger(tuple(reversed(studies.values()))):
        assert entry.finding == with_all_runs[entry.claim.name], entry.claim.name


def test_the_page_of_claims_has_the_verdicts_of_today(with_all_runs):
    """`python docs/ledger.py` writes them; small numbers of the last column are of a machine."""
    spec = importlib.util.spec_from_file_location("ledger", ROOT / "docs" / "ledger.py")
    ledger = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ledger)
    entries = [claims.Entry(claims.find(name), each) for name, each in with_all_runs.items()]
    written = ledger.section(entries)
    page = ledger.PAGE.read_text()
    assert written.partition("\n\n|")[0] in page
    rows = [row.rpartition(" | ")[0] for row in written.splitlines() if row.startswith("| ")]
    assert len(rows) == 2 + sum(
        each.verdict in ("impossible", "refuted") for each in with_all_runs.values()
    )
    assert [row for row in rows if f"\n{row} | " not in page] == []


def test_what_changes_of_a_block_do_is_what_their_page_says():
    page, study = (ROOT / "docs" / "minimal.md").read_text(), committed("minimal")
    language, recall = study.tasks
    whole = language.costs[study.baseline].total_parameters
    for arm in study.arms[1:]:
        each, count = language.result.differences[arm], recall.result.counts[arm]
        half = (each.high - each.low) / 2
        language_symbol = SYMBOLS.get(language.verdicts.get(arm), "")
        recall_symbol = SYMBOLS.get(recall.verdicts.get(arm), "")
        step = "" if count.step is None else f", {count.step:.0f}"
        row = (
            f" | {language.costs[arm].total_parameters / whole:.0%} "
            f"| {language_symbol}{signed(each.value, 3)} ±{half:.3f} "
            f"| {recall_symbol}{count.solved}/7{step} |"
        )
        assert any(line.startswith(f"| `{arm}` |") and row in line for line in page.splitlines())
    drawn = paper.files(study)["lm-reviews-gaps-page.svg"]
    assert (ROOT / "docs" / "minimal.svg").read_text(encoding="utf-8") == drawn
    verdicts = [each.outcome for each in judge_hypotheses(study)]
    assert [verdicts.count(word) for word in ("confirmed", "not decided", "contradicted")] == [
        5,
        5,
        2,
    ]


def test_what_tuned_rates_and_more_steps_do_to_a_block_is_what_its_page_says():
    page = (ROOT / "docs" / "minimal.md").read_text()
    plain = ("minimal",)
    tuned = ("minimal-tuned", "rivals-tuned", "minimal-others-tuned", "minimal-last-tuned")
    longer = ("minimal-1500-tuned", "minimal-1500-more-tuned")
    columns = [
        [_task(committed(name), "lm-reviews") for name in names] for names in (plain, tuned, longer)
    ]
    means = [tasks[0].result.means["q,k,v"].value for tasks in columns]
    assert f"| `q,k,v` | {' | '.join(f'{mean:.3f}' for mean in means)} |" in page
    assert columns[2][1].result.means["q,k,v"].value == means[2]
    of_minimal = {*columns[0][0].result.differences}
    arms = {arm for tasks in columns[1:] for task in tasks for arm in task.result.differences}
    # All of them.
    assert arms & of_minimal == of_minimal
    for arm in arms & of_minimal:
        cells = []
        for tasks in columns:
            # The first study that has the arm; its own baseline is beside it.
            task = next((task for task in tasks if arm in task.result.differences), None)
            if task is None:
                cells.append("")
                continue
            each, symbol = task.result.differences[arm], SYMBOLS.get(task.verdicts.get(arm), "")
            cells.append(f"{symbol}{signed(each.value, 3)} ±{(each.high - each.low) / 2:.3f}")
        assert f"| `{arm}` | {' | '.join(cells)} |".replace("|  |", "| |") in page, arm
    counts = {}
    for name in (tuned[0], *tuned[2:], *longer):
        outcomes = [each.outcome for each in judge_hypotheses(committed(name))]
        counts[name] = [outcomes.count(word) for word in OUTCOMES]
    assert counts == {
        "minimal-tuned": [5, 5, 0],
        "minimal-others-tuned": [3, 2, 0],
        "minimal-last-tuned": [3, 3, 0],
        "minimal-1500-tuned": [0, 6, 0],
        "minimal-1500-more-tuned": [5, 4, 0],
    }


def test_rivals_of_equal_compute_are_what_their_page_says():
    page = (ROOT / "docs" / "rivals.md").read_text()
    (line,) = [each for each in page.splitlines() if "as many multiply-accumulates" in each]
    study, plain = committed("rivals-compute"), committed("rivals")
    compute, shape = _task(study, "lm-reviews"), _task(plain, "lm-reviews")
    for arm in recipes.find("rivals-compute").variants[1:-1]:
        each = compute.result.differences[arm]
        before = shape.result.differences[arm.partition("~")[0]].value
        written = signed(each.value, 3).replace("0.", ".")
        half = f"{(each.high - each.low) / 2:.3f}".lstrip("0")
        assert f"{written} ± {half}" in line or f" {written} (" in line, arm
        assert signed(before, 3).replace("0.", ".").lstrip("+") in line, arm
    outcomes = [each.outcome for each in judge_hypotheses(study)]
    assert outcomes == ["confirmed"] * 7
    macs = {cell.variant: {run.cost.macs for run in cell.runs} for cell in compute.cells}
    (wanted,) = macs["q,k,v"]
    for arm, found in macs.items():
        assert arm == "none" or max(found) == pytest.approx(wanted, rel=0.005), arm


def test_what_the_search_kept_is_what_its_page_says():
    page = (ROOT / "docs" / "minimal.md").read_text().partition("## What can go together")[2]
    runs = Store(STUDIES / "minimal-search").runs().good

    def gap(arm, task):
        means = [
            np.mean([run.score for run in runs if (run.arm, run.task) == (each, task)])
            for each in (arm, "q,k,v")
        ]
        return float(means[0] - means[1]) * (1 if task == "lm-reviews" else -1)

    def gaps(arm):
        return {task: gap(arm, task) for task in ("lm-reviews", "recall")}

    steps = list(minimal_search.search(gaps, 0.025))
    assert {step.arm for step in steps} == {run.arm for run in runs} - {"q,k,v"}
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| `", "| …"))]
    assert len(rows) == len(steps)
    for (arm, parameters, *found, kept), step in zip(rows, steps, strict=True):
        assert {*arm.strip("| …`").split("~")} <= {*step.arm.split("~"), ""}
        assert parameters == f"{step.parameters / minimal_search.size('q,k,v'):.0%}"
        written = [float(each.replace("−", "-")) for each in found]
        assert written == [round(each, 3) + 0 for each in step.gaps.values()]
        assert ("kept" in kept) == step.kept
    assert f"**What is left has {steps[-1].parameters:,} of" in page
    assert recipes.find("minimal-found").variants[1] == steps[-1].arm


def test_what_was_found_turns_with_the_budget_as_its_page_says():
    arm = recipes.find("minimal-found").variants[1]
    few, many = "minimal-found", "minimal-found-1500"
    for study, task, value, verdict in (
        (few, "lm-docs", -0.035, "likely not worse"),
        (few, "lm-plays", -0.055, "better"),
        (many, "lm-docs", 0.036, "worse"),
        (many, "lm-plays", 0.018, "likely worse"),
    ):
        assert round(differences(study, task)[arm].value, 3) == value
        assert _task(committed(study), task).verdicts[arm] == verdict
    assert _task(committed(few), "sort").verdicts[arm] == "matches"
    found = [[each.outcome for each in judge_hypotheses(committed(name))] for name in (few, many)]
    assert found == [["confirmed", "confirmed"], ["not decided", "confirmed"]]


def test_what_rivals_lose_is_what_their_page_says():
    page, study = (ROOT / "docs" / "rivals.md").read_text(), committed("rivals")
    language, plays, mqar = (_task(study, name) for name in ("lm-reviews", "long-plays", "mqar"))
    tuned, longer = (
        _task(committed(f"rivals-{name}"), "lm-reviews") for name in ("tuned", "longer")
    )

    def cell(task, arm):
        symbol, each = SYMBOLS.get(task.verdicts.get(arm), ""), task.result.differences[arm]
        return f"{symbol}{signed(each.value, 3)} ±{(each.high - each.low) / 2:.3f}"

    for arm in study.arms[1:]:
        count = mqar.result.counts[arm]
        step = "" if count.step is None else f", {count.step:.0f}"
        cells = [cell(task, arm) for task in (language, tuned, longer, plays)]
        cells.append(f"{SYMBOLS.get(mqar.verdicts.get(arm), '')}{count.solved}/5{step}")
        assert f"| `{arm}` | {' | '.join(cells)} |" in page
    drawn = paper.files(study)["lm-reviews-gaps-page.svg"]
    assert (ROOT / "docs" / "rivals-quality.svg").read_text(encoding="utf-8") == drawn
    outcomes = {
        "rivals": (3, 6, 0),
        "rivals-tuned": (5, 3, 0),
        "rivals-longer": (6, 2, 0),
        "rivals-glue": (0, 5, 0),
        "rivals-mqar-tuned": (3, 0, 0),
    }
    for name, expected in outcomes.items():
        verdicts = [each.outcome for each in judge_hypotheses(committed(name))]
        words = ("confirmed", "not decided", "contradicted")
        assert tuple(map(verdicts.count, words)) == expected


def test_no_linear_layer_recalls_a_pair_at_any_rate_that_was_tried():
    study = committed("rivals-mqar-tuned")
    (task,) = study.tasks
    solved = {arm: count.solved for arm, count in task.result.counts.items()}
    linear = ("q,k,v+elu", "q,k,v+favor64", "q,k,v+gateddelta")
    assert solved == {"q,k,v": 7, **dict.fromkeys((*linear, "none"), 0)}
    assert task.result.counts["q,k,v"].step == 400
    tried = [rate for each in study.tuning if each.arm in linear for rate in each.rates]
    assert len(tried) == 3 * 6
    assert max(rate.score for rate in tried) < 0.29
    assert not any(rate.solved for rate in tried)


def test_what_rivals_lose_is_a_direction_for_the_article(with_all_runs):
    directions = {"sparse": "opposite direction", "linear": "same direction"}
    for kind, direction in directions.items():
        assert with_all_runs[f"article-{kind}-attention-loss"].other_scale.direction == direction


def test_every_study_has_a_row_in_their_index():
    page = (STUDIES / "README.md").read_text()
    for path in STUDIES.iterdir():
        assert not path.is_dir() or f"[{path.name}]({path.name})" in page, path.name


def test_the_ledger_reads_the_committed_benchmarks(with_all_runs):
    measured = {
        "article-finetuning-speed": "finetune_speed",
        "article-gradient-variance": "long_sequences",
        "article-takeaway-latency": "article_table",
    }
    for name, benchmark in measured.items():
        assert f"python benchmarks/{benchmark}.py" in with_all_runs[name].other_scale.reason


def differences(study, task):
    """The differences to the baseline, by arm."""
    return next(each for each in committed(study).tasks if each.name == task).result.differences


def test_the_wrong_conclusions_are_drawn_from_what_the_records_say():
    pictures = differences("quick", "anomaly-pixels")["q,k=v"]
    assert [round(x, 3) for x in (pictures.value, pictures.low, pictures.high)] == [
        -0.002,
        -0.012,
        0.009,
    ]
    assert pictures.verdict("higher") == "not distinguishable"
    digits = {
        arm: each.verdict("higher") for arm, each in differences("quick-first", "digits").items()
    }
    assert digits["q=k=v=x"] == "likely not worse"
    assert {"worse", "likely worse"}.isdisjoint(digits.values())
    uniform = differences("quick", "sort")["q=k=0,v"]
    assert uniform.verdict("higher") == "matches"
    first, now = differences("quick-first", "sort"), differences("quick", "sort")
    losses = {arm: (-round(first[arm].value, 3), -round(now[arm].value, 3)) for arm in first}
    assert losses["q=k,v"] == (0.021, 0.004)
    assert losses["q=k=x,v"] == (0.194, 0.085)
    assert losses["q=k=v=x"] == (0.282, 0.152)
    decode = {arm: committed("quick").decode_ratio(arm).value for arm in ("q,k=v", "q,k,v/1")}
    assert {arm: round(ratio, 2) for arm, ratio in decode.items()} == {
        "q,k=v": 1.02,
        "q,k,v/1": 0.46,
    }
    table = brief.render(committed("quick")).partition(" Learning rate:")[0]
    assert table.count("▽") == 6
    counted = next(each for each in committed("quick").tasks if each.name == "recall").result
    solved = {arm: counted.counts[arm].solved for arm in ("q,k=v", "q,k,v", "q=k=0,v")}
    assert solved == {"q,k=v": 4, "q,k,v": 7, "q=k=0,v": 0}
    longer = next(each for each in committed("longer").tasks if each.name == "recall").result
    assert longer.counts["q,k=v"].solved == 4
    assert round(differences("longer", "lm-reviews")["q=k,v"].value, 2) == 0.22
    assert round(-first["q=k=v"].value, 2) == 0.18
    assert round(-differences("longer", "sort")["q=k=v"].value, 3) == 0.003
    gaps = [differences(each, "lm-reviews")["q=k=v"].value for each in ("quick-first", "longer")]
    assert [round(gap, 2) for gap in gaps] == [0.33, 0.32]
