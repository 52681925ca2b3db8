"""The committed studies: what README says of them, and what the ledger concludes from them."""

from functools import cache
from pathlib import Path

import pytest

from qkvbench import claims
from qkvbench.claims import StoreView, judge
from qkvbench.claims.kit.evidence import collect_evidence
from qkvbench.claims.kit.runs import Runs
from qkvbench.reports import brief
from qkvbench.results.stats import Tally
from qkvbench.results.store import Store
from qkvbench.results.view import view

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "studies"
EVERY_CLAIM = [claims.find(name) for name in claims.names()]


@cache
def committed(name):
    """The view of a committed study."""
    return view(Store(STUDIES / name))


def test_the_readme_s_table_is_what_its_records_say():
    printed = brief.render(committed("quick"))
    assert f"```\n{printed.rstrip()}\n```" in (ROOT / "README.md").read_text()


def test_the_readme_s_further_findings_are_what_their_records_say():
    counts = committed("recall").tasks[0].result.counts
    assert [counts[arm].solved for arm in ("q,k,v", "q,k=v", "q,k,v=R(k)")] == [20, 11, 11]
    quick = {task.name: task.result for task in committed("quick").tasks}
    assert [quick["recall"].counts[arm].solved for arm in ("q,k=v", "q=k=v")] == [2, 5]
    longer = {task.name: task.result for task in committed("longer").tasks}
    assert longer["recall"].counts["q,k=v"].solved == 4
    tied = longer["lm-reviews"].differences["q,k=v"]
    assert [round(each, 2) for each in (tied.value, tied.low, tied.high)] == [0.06, 0.02, 0.10]
    assert not longer["lm-reviews"].differences["q,k,v/1"].clear
    scores = {task.name: task.result for task in committed("scores").tasks}
    left = scores["lm-reviews"].differences["q=k=v-diag"]
    assert [round(each, 2) for each in (left.value, left.low, left.high)] == [0.12, 0.06, 0.19]
    assert round(scores["lm-reviews"].differences["q=k=v"].value, 2) == 0.33
    encoded = [scores["lm-reviews"].differences[arm].value for arm in ("q=k,v", "q=k,v+2d")]
    assert [round(each, 2) for each in encoded] == [0.22, 0.22]
    diagonal = committed("diagonal").tasks[0].result.differences
    tied, mended = diagonal["q=k,v"], diagonal["q=k,v-diag"]
    assert [round(each, 2) for each in (tied.value, tied.low, tied.high)] == [0.22, 0.20, 0.25]
    assert [round(each, 3) for each in (mended.value, mended.low, mended.high)] == [
        -0.004,
        -0.026,
        0.019,
    ]
    by_eight = committed("fifteen-by-eight")
    compared = {task.name: task.result for task in by_eight.tasks}
    for task in ("sentiment", "animals", "anomaly-features"):
        differences = compared[task].differences
        assert len(differences) == len(by_eight.arms) - 1 == 14
        assert not any(each.clear for each in differences.values())
    for task in ("sort", "lm-reviews"):
        assert compared[task].differences["q=k=v=x"].clear
    told = {
        arm
        for result in compared.values()
        if not isinstance(result, Tally)
        for arm, each in result.differences.items()
        if each.clear
    }
    assert {*by_eight.arms} - told == {"q,k,v", "q,k=v", "q=v,k", "q,k,v=x", "q,k,v/2"}
    shared = compared["translation"].differences["q,k,v/1"]
    found = [round(each, 2) for each in (shared.value, shared.low, shared.high)]
    assert found == [-3.30, -6.36, -0.25]
    controls = {task.name: task.result for task in committed("controls").tasks}
    standings = {name: result.standing for name, result in controls.items()}
    assert {name for name, each in standings.items() if each == "attention not needed"} == {
        "digits",
        "sentiment",
    }
    means = [round(controls["digits"].means[arm].value, 3) for arm in ("none", "q,k,v")]
    assert means == [0.982, 0.972]
    assert controls["sort"].differences["q=k=0,v"].clear
    means = [round(controls["sort"].means[arm].value, 3) for arm in ("q=k=0,v", "q,k,v")]
    assert means == [0.99, 0.985]
    assert controls["recall"].counts["q=k=0,v"].solved == 0
    assert round(controls["lm-reviews"].differences["q=k=0,v"].value, 2) == 0.78
    nulls = [task.same for task in committed("catalogue").tasks]
    differences = [same.difference for pair in nulls for same in pair if same.difference]
    assert [each.clear for each in differences] == [False, False, True]
    null = differences[2]
    assert [round(each, 3) for each in (null.value, null.low, null.high)] == [0.019, 0.012, 0.026]


def _scores(study):
    """The score of each task, variant and seed."""
    records = Store(ROOT / "studies" / study).runs().good
    return {
        (each.task, each.variant, each.seed): each.metrics[each.metric.name] for each in records
    }


def test_quick_has_the_same_scores_on_both_backends():
    ours, theirs = _scores("quick"), _scores("quick-jax")
    assert ours.keys() == theirs.keys()
    assert len(ours) == 112
    away = [abs(theirs[run] - score) for run, score in ours.items()]
    # What README.md and NOTES.md say.
    assert sum(each == 0 for each in away) == 84
    assert sum(each < 0.0005 for each in away) == 107
    assert round(max(away), 4) == 0.0047
    said = (ROOT / "README.md").read_text()
    assert "84 of the 112 scores of `quick` to the last digit" in said


@pytest.fixture(scope="module", name="studies")
def _studies():
    """Every committed study, as the ledger reads it."""
    folders = sorted(path.name for path in STUDIES.iterdir() if path.is_dir())
    return {name: StoreView(name, committed(name)) for name in folders}


@pytest.fixture(scope="module", name="without_runs")
def _without_runs():
    """The findings without any store, by the claim's name."""
    return {entry.claim.name: entry.finding for entry in claims.ledger()}


@pytest.fixture(scope="module", name="with_all_runs")
def _with_all_runs(studies):
    """The findings from all committed studies together, by the claim's name."""
    return {e.claim.name: e.finding for e in claims.ledger(tuple(studies.values()))}


def _verdict(name, *stores):
    return judge(claims.find(name), stores).verdict


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
    assert _verdict("study-tied-never-harms") == "not yet run"
    assert _verdict("study-tied-never-harms", studies["quick"]) == "not distinguishable"
    assert _verdict("study-tied-never-harms", studies["recall"]) == "refuted"
    assert with_all_runs["study-tied-never-harms"].verdict == "refuted"
    assert _verdict("study-sort-tied", studies["quick"]) == "not distinguishable"
    assert _verdict("study-sort-tied", studies["longer"]) == "supported"
    assert _verdict("study-sort-single", studies["quick"]) == "supported"


def test_small_runs_are_reported_with_their_distance_from_the_claim_s_scale(studies):
    finding = judge(claims.find("study-order-of-ties"), (studies["longer"],))
    assert finding.verdict == "not testable here"
    assert finding.other_scale.verdict == "supported"
    assert "1/1,201 of the source's parameters" in finding.other_scale.reason
    (evidence,) = finding.other_scale.evidence
    assert (evidence.task, evidence.arm, evidence.against) == ("lm-reviews", "q=k,v", "q,k=v")
    assert evidence.outcome.low > 0
    assert len(evidence.runs) == 6
    runs = ROOT / "studies" / "longer" / "runs"
    assert all((runs / f"{run}.json").exists() for run in evidence.runs)


def test_a_run_in_two_stores_counts_once(studies):
    both = (studies["catalogue"], studies["quick"], studies["recall"])
    for task, store in (("recall", "recall"), ("sort", "catalogue")):
        evidence = collect_evidence(both, (task,), arm="q,k=v", against="q,k,v")
        assert [each.store for each in evidence] == [store]
