"""What a study shows and cannot tell, in sentences."""

import re

import pytest

import fake_study
from qkvbench.reports import full, page
from qkvbench.reports.parts import findings as findings
from qkvbench.reports.parts.caveats import limits
from qkvbench.results.stats import verdicts
from qkvbench.results.view import view
from report_texts import printed, said


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fake_study.build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(store):
    return view(store)


def test_a_clear_loss_is_reported_with_its_direction_and_interval(study):
    text = said(findings.findings(study))
    each = next(task for task in study.tasks if task.name == "lm-reviews")
    difference = each.result.differences["q=k=v=x"]
    assert "Worse than `q,k,v`, higher by: " in text
    expected = f"`q=k=v=x` {difference.value:.3f} ({difference.low:.3f} to {difference.high:.3f})"
    assert expected in text


def test_indistinguishable_arms_are_reported_with_what_would_be_seen(study):
    digits = next(note for note in findings.findings(study) if note.topic == "digits")
    result = study.tasks[0].result
    assert "Not distinguishable from `q,k,v`: " in digits.text
    assert f"seen as likely from {result.detectable:.3f}" in digits.text
    assert f"for certain from {result.certain_from:.3f}" in digits.text


def test_solved_seeds_are_counted_in_the_findings(study):
    recall = next(note for note in findings.findings(study) if note.topic == "recall")
    assert "`q=k=v` 0 of 5" in recall.text
    assert "Likely worse: `q=k=v` (p=0.008) · `q=k=v=x` (p=0.008)." in recall.text
    assert "With 5 seeds no difference could be certain: it takes 7." in recall.text


def test_the_two_grades_of_a_verdict_have_symbols_of_their_own(study):
    text = full.render(study)
    symbols = {
        {"worse": "▼", "likely worse": "▽"}[verdict]
        for task in study.tasks
        for verdict in verdicts(task.result, task.metric.better).values()
        if "worse" in verdict and "not" not in verdict
    }
    assert symbols == {"▼", "▽"}
    table = text.split("Score ±")[0]
    assert all(symbol in table for symbol in symbols)


def test_arms_without_a_loss_are_listed_apart_from_arms_with_one(study):
    worse, likely, open_ = findings.findings(study)[:3]
    assert "`q=k=v=x` (" in worse.text
    assert "Likely worse" in likely.topic
    assert "q,k,v/1" in open_.text
    assert "q=k=v=x" not in open_.text + likely.text


def test_the_limits_name_what_is_incomplete_and_damaged(study):
    text = said(limits(study))
    assert "0000000000000000.json" in text
    assert "measure speed of learning more than capacity" in text


def test_the_limits_name_an_arm_that_lacks_a_seed(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = fake_study.small(
        tmp_path, [each for each in records if (each.variant, each.seed) != ("q=k,v", 1)]
    )
    assert "`q=k,v` (digits)" in said(limits(study))


def test_mixed_revisions_are_named(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = fake_study.small(tmp_path, [fake_study.revised(records[0], "0000late"), *records[1:]])
    assert "0000made" in said(limits(study))
    assert "0000late" in said(limits(study))
    assert "0000late" in page.render(study)


def test_a_baseline_at_chance_did_not_learn(tmp_path):
    records = [
        fake_study.record(each, score=0.10 + 0.01 * each.seed)
        for each in fake_study.experiments("digits", fake_study.ARMS[:3])
    ]
    study = fake_study.small(tmp_path, records)
    text = printed(study, 120)
    assert "The baseline did not learn: q,k,v scores" in text
    assert re.search(r" baseline .*\n.* did not learn", text)
    assert "Worse than" not in text


def test_one_seed_proves_nothing(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = fake_study.small(
        tmp_path, [each for each in records if each.seed == 0], seeds={"digits": 1}
    )
    text = printed(study, 120)
    assert "One seed shows no spread" in text
    assert "[" not in text
    assert "±" not in full.render(study).split("Score ±")[0]
    assert page.render(study)


def test_scores_that_never_vary_have_no_interval(tmp_path):
    records = [fake_study.record(each, 1.0) for each in fake_study.experiments("digits")]
    study = fake_study.small(tmp_path, records, arms=fake_study.ARMS)
    assert "no interval" in printed(study, 120)
    assert page.render(study)


def test_a_baseline_that_failed_compares_nothing(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    failed = [
        each.model_copy(update={"status": "oom", "metrics": {}, "curve": [], "reason": "no room"})
        if each.variant == "q,k,v"
        else each
        for each in records
    ]
    text = printed(fake_study.small(tmp_path, failed), 120)
    assert re.search(r" baseline .*\n.* incomplete ", text)
    assert "3 oom" in text
    assert "`q,k,v` lacks seeds, so nothing is compared.".replace("`", "") in text
