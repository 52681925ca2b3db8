"""The ledger: each claim is complete, and each verdict follows from figures and runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fake_study
from qkvbench import claims, recipes
from qkvbench.claims import StoreView, judge
from qkvbench.claims.internals import CancelsOut
from qkvbench.claims.kit.arithmetic import Point, dominators, frontier
from qkvbench.claims.kit.evidence import Evidence, ScoreDifference
from qkvbench.claims.kit.figure import agree, change, exact_figure, figure, mean, rounds_to
from qkvbench.claims.kit.reported import points
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import AT_300M, SYNTHETIC
from qkvbench.cli import main
from qkvbench.reports import ledger as page
from qkvbench.results.store import Store
from qkvbench.results.view import view

ROOT = Path(__file__).parent.parent
EVERY_CLAIM = [claims.find(name) for name in claims.names()]


@pytest.fixture(scope="module", name="without_runs")
def _without_runs():
    """The findings without any store, by the claim's name."""
    return {entry.claim.name: entry.finding for entry in claims.ledger()}


def _verdict(name, *stores):
    return judge(claims.find(name), stores).verdict


# The verdict of arithmetic without any run, and a part of its reason.
PINNED = {
    "article-no-key-parameters": ("impossible", "117.35 M"),
    "article-shared-parameters": ("impossible", "110.27 M"),
    "article-value-only-parameters": ("impossible", "110.27 M"),
    "article-no-projections-parameters": ("impossible", "103.18 M"),
    "article-forty-percent": ("impossible", "17.1% to 25.0%"),
    "article-pruning-parameters": ("impossible", "17.1% to 25.0%"),
    "article-shared-flops": ("impossible", "11.2% at 128 tokens, 8.8% at 2048"),
    "article-gate-speed": ("impossible", "compute 1.15×"),
    "article-shared-latency": ("refuted", "22.8%"),
    "article-wmt14-share": ("not distinguishable", "98.59%"),
    "article-market-growth": ("supported", "31.20%"),
    "article-total-cost": ("refuted", "40 to 60%"),
    "article-key-redundant": ("refuted", "saves 0% of the cache"),
    "article-single-projection-free": ("refuted", "+25.44%"),
    "article-best-tradeoff": (
        "refuted",
        "Not dominated: `q,k,v` · `q,k,v/4` · `q,k,v/1` · `q,k=v/1`",
    ),
    "article-finetuning-speed": ("not testable here", "1.13×"),
    "study-parameters-300m": ("supported", "7 of 7"),
    "study-qgqa4-released": ("impossible", "268,798,976 parameters and 87.5%"),
    "study-flops-tied": ("supported", "6.80%, 6.47%, 6.07%, 5.41%"),
    "study-flops-single": ("supported", "13.60%, 12.94%, 12.15%, 10.83%"),
    "study-cache-tied": ("supported", "50.00%"),
    "study-cache-query-key": ("supported", "0.00%"),
    "study-cache-single": ("supported", "50.00%"),
    "study-cache-gqa-mqa": ("supported", "5 KiB"),
    "study-cache-tied-mqa": ("supported", "2.5 KiB"),
    "study-cache-32k": ("supported", "2.62 GB"),
    "study-cache-67-times": ("impossible", "64×"),
    "study-cache-unit": ("impossible", "In MB only `q,k,v` · `q,k=v` fit"),
    "study-later-cache": ("impossible", "`q=k,v` 100%"),
    "study-pareto-tied-300m": ("refuted", "`q,k=v` by `q,k,v/4`, `q,k,v/1`"),
    "study-pareto-tied-gqa": ("refuted", "`q,k=v/4` by `q,k,v/1`"),
    "study-pareto-tied-mqa": ("supported", "`q,k=v/1` by none"),
    "study-pareto-tied-1-2b": ("refuted", "`q,k=v` by `q,k,v/8`, `q,k,v/1`"),
    "study-downstream-tied": ("not distinguishable", "error of 0.68"),
    "study-downstream-gqa": ("not distinguishable", "−0.54"),
    "study-downstream-tied-gqa": ("not distinguishable", "+0.32"),
    "study-downstream-tied-mqa": ("supported", "−2.02"),
    "study-length-2048": ("refuted", "+3.13%"),
    "study-vision-average": ("refuted", "0.7650"),
    "study-similar-matrices": ("refuted", "0.0000"),
    "study-position-in-scores": ("impossible", "e-16"),
    "study-loss-on-text": ("not testable here", "+4.5% where it is 30%"),
    "study-training-speed": ("not testable here", "5.7%"),
    "study-sort-tied": ("not yet run", "qkvbench run longer"),
}

# The same claim with other figures: the true ones, or false ones.
CHANGED = [
    ("study-cache-67-times", ("64", "×"), "supported"),
    ("article-no-key-parameters", ("117", "M"), "supported"),
    ("article-no-projections-parameters", ("103", "M"), "supported"),
    ("article-shared-flops", ("11", "%"), "supported"),
    ("article-forty-percent", ("17", "%"), "supported"),
    ("article-gate-speed", ("1.5", "×"), "not testable here"),
    ("article-shared-latency", ("23", "%"), "supported"),
    ("article-shared-latency", ("22", "%"), "not distinguishable"),
    ("article-wmt14-share", ("98.6", "%"), "supported"),
    ("article-wmt14-share", ("99.5", "%"), "refuted"),
    ("article-market-growth", ("33.0", "%"), "refuted"),
    ("article-single-projection-free", ("25", "%"), "not testable here"),
    ("study-cache-tied", ("33", "%"), "impossible"),
    ("study-cache-32k", ("2.68", "GB"), "impossible"),
    ("study-length-2048", ("3.1", "%"), "supported"),
    ("study-vision-average", ("0.765", ""), "supported"),
    ("study-loss-tied-300m", ("4.1", "%"), "refuted"),
]


def test_each_claim_is_complete_and_every_name_in_it_exists():
    bibliography = (ROOT / "docs" / "references.bib").read_text()
    for claim in EVERY_CLAIM:
        for text in (claim.text, claim.place, claim.quantity, claim.arithmetic().text):
            assert text.strip() == text != "", claim.name
        assert claim.text[0].isupper(), claim.name
        assert claim.text.endswith("."), claim.name
        assert claim.tests, claim.name
        assert claim.recipe is None or claim.recipe in recipes.names(), claim.name
        assert re.fullmatch(rf"{claim.source.name}(-[0-9a-z]+)+", claim.name)
        assert re.search(rf"^@\w+\{{{claim.source.citation},$", bibliography, re.MULTILINE)


def test_no_two_claims_of_the_ledger_share_a_name_or_a_text():
    names, texts = ([getattr(claim, key) for claim in EVERY_CLAIM] for key in ("name", "text"))
    assert names == sorted(set(names))
    assert len(texts) == len(set(texts)) >= 67
    assert {claim.source for claim in EVERY_CLAIM} == set(claims.SOURCES)
    with pytest.raises(KeyError):
        claims.find("study-cache")


def test_the_verdicts_of_arithmetic_are_pinned_with_the_figure_that_decides(without_runs):
    for name, (verdict, figure_text) in PINNED.items():
        finding = without_runs[name]
        assert finding.verdict == verdict, name
        assert figure_text in finding.reason, name
    undecided = {"not testable here", "not yet run"}
    others = {name: without_runs[name].verdict for name in without_runs.keys() - PINNED.keys()}
    assert {name for name, verdict in others.items() if verdict not in undecided} == set()


def test_a_claim_with_another_figure_has_another_verdict(without_runs):
    for name, printed, verdict in CHANGED:
        claim = replace(claims.find(name), figures=(figure(*printed),))
        assert judge(claim).verdict == verdict != without_runs[name].verdict, (name, printed)


@pytest.mark.parametrize(
    ("loss", "verdict"), [(0.0, "supported"), (0.012, "not distinguishable"), (0.2, "refuted")]
)
def test_a_store_with_other_scores_has_another_verdict(tmp_path, monkeypatch, loss, verdict):
    monkeypatch.setitem(fake_study.LOSS, "sort", (0.0, 0.0, loss, *fake_study.LOSS["sort"][3:]))
    # Three seeds with the usual noise could not show that two arms are equal.
    monkeypatch.setitem(fake_study.NOISE, "sort", 0.002)
    store = Store(tmp_path / "made")
    store.write_study(fake_study.info(tasks=("sort",)))
    for made in fake_study.scored("sort"):
        store.write_run(made)
    assert _verdict("study-sort-tied", claims.open_store(store.path)) == verdict


def _evidence(task, low, high, p):
    return Evidence(
        store="made",
        task=task,
        arm="q,k=v",
        against="q,k,v",
        seeds=3,
        steps=10,
        parameters=100_000,
        runs=(task,),
        outcome=ScoreDifference("accuracy", "higher", (low + high) / 2, low, high, p),
    )


@pytest.mark.parametrize(
    ("low", "high", "margin", "p", "verdict"),
    [
        # A loss that is significant and small is within the margin.
        (-0.010, -0.002, 0.013, 0.001, "supported"),
        (-0.010, -0.002, None, 0.001, "refuted"),
        (-0.020, -0.002, 0.013, 0.001, "not distinguishable"),
        (-0.030, -0.020, 0.013, 0.001, "refuted"),
        (-0.030, 0.020, 0.013, 0.9, "not distinguishable"),
    ],
)
def test_a_margin_is_decided_by_the_whole_interval(low, high, margin, p, verdict):
    test = Runs("q,k=v", "no worse", ("sort",), SYNTHETIC, margin=margin)
    assert test.combine([_evidence("sort", low, high, p)]).verdict == verdict


def test_many_comparisons_of_one_claim_are_corrected_together():
    test = Runs("q,k=v", "no worse", ("a", "b", "c"), SYNTHETIC)
    p_values = {"a": 0.03, "b": 0.8, "c": 0.8}
    one, *others = (_evidence(task, -0.19, -0.01, p) for task, p in p_values.items())
    assert test.combine([one]).verdict == "refuted"
    assert test.combine([one, *others]).verdict == "not distinguishable"


def test_a_study_that_compares_nothing_decides_nothing(tmp_path):
    store = Store(tmp_path / "made")
    store.write_study(fake_study.info(tasks=("sort",)))
    for experiment in fake_study.experiments("sort"):
        store.write_run(fake_study.record(experiment, score=0.1))
    assert _verdict("study-sort-tied", claims.open_store(store.path)) == "not yet run"


def test_a_scale_covers_its_own_tasks_and_sizes_only():
    smallest, largest = SYNTHETIC.sizes
    assert SYNTHETIC.covers("sort", smallest)
    assert not SYNTHETIC.covers("sort", smallest // 5)
    assert not SYNTHETIC.covers("sort", largest * 5)
    assert not SYNTHETIC.covers("recall", smallest)
    assert AT_300M.sizes == (305_534_976,)
    assert not AT_300M.covers("lm-reviews", 305_534_976)


def test_the_frontiers_of_the_study_s_tables_are_those_without_sharing_and_the_smallest_cache():
    assert frontier(points("300M")) == ("q,k,v", "q,k,v/4", "q,k,v/1", "q,k=v/1")
    assert frontier(points("1.2B")) == ("q,k,v", "q,k,v/8", "q,k,v/1", "q,k=v/1")


def test_dominance_takes_both_columns_and_the_digits_that_are_printed():
    losses = {"a": ("5.1", 0.5), "b": ("5.3", 0.5), "c": ("5.2", 0.5), "d": ("5.0", 0.7)}
    table = {arm: Point(figure(loss), cache) for arm, (loss, cache) in losses.items()}
    assert dominators(table, "b") == ("a",)
    assert dominators(table, "c") == ()
    assert dominators(table, "c", certain=False) == ("a",)
    assert dominators(table, "a") == ()


def test_only_an_encoding_of_each_place_alone_is_ruled_out():
    claim = claims.find("study-position-in-scores")
    joint = lambda rng: rng.normal(size=(13, 13))
    assert CancelsOut().finding(claim, ()) is not None
    assert CancelsOut(joint).finding(claim, ()) is None


def test_a_flash_kernel_measured_on_a_cpu_refutes_that_it_needs_a_gpu(tmp_path):
    store = Store(tmp_path / "made")
    store.write_study(fake_study.info(tasks=("lm-reviews",)))
    (experiment,) = fake_study.experiments("lm-reviews", arms=("q,k,v",), seeds=1)
    store.write_run(fake_study.record(experiment))
    machine = fake_study.MACHINE.model_copy(update={"device": "cpu"})
    for kernel, verdict in (
        ("matmul, no flash kernel", "not testable here"),
        ("flash (scaled_dot_product_attention)", "refuted"),
    ):
        store.write_measurement(
            fake_study.measurement(experiment, 0).model_copy(
                update={"kernel": kernel, "machine": machine}
            )
        )
        assert _verdict("article-flash-gpu-only", claims.open_store(store.path)) == verdict


def test_a_printed_figure_is_as_exact_as_its_digits():
    assert agree(figure("0.7", "%"), change(figure("5.15"), figure("5.11")))
    assert not rounds_to(figure("0.7", "%"), change(figure("5.15"), figure("5.11")))
    assert not agree(figure("2.2", "%"), change(figure("5.27"), figure("5.11")))
    assert agree(figure("5,900", step=100), exact_figure(5905.6, ""))
    assert not agree(figure("5,900"), exact_figure(5905.6, ""))
    assert mean([figure("1.0"), figure("2.0")], 1).low == pytest.approx(1.45)


def test_the_documentation_defines_each_verdict():
    text = (ROOT / "docs" / "claims.md").read_text()
    for verdict in claims.VERDICTS:
        assert f"| {verdict} | {claims.MEANINGS[verdict]} |" in text


def test_the_page_has_every_claim_and_escapes_the_name_of_a_store(tmp_path):
    name = "<script>alert(1)</script>"
    entries = tuple(
        claims.ledger((StoreView(name, view(fake_study.build(tmp_path, tasks=("recall",)))),))
    )
    text = page.page(entries, (name,))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert all(f'id="{each}"' in text for each in claims.names())
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", text)


def test_the_command_line_prints_the_ledger_within_a_hundred_columns(capsys):
    assert main(["claims"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert all(name in text for name in claims.names())
    assert f"{len(claims.names())} claims: " in text


def test_the_command_line_prints_one_claim_in_full(capsys):
    assert main(["claims", "study-tied-never-harms", str(ROOT / "studies" / "recall")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "refuted" in text
    assert "solved 11 of 20 seeds against 20" in text
    assert "qkvbench run quick" in text


def test_json_is_one_strict_document_of_the_filtered_claims(capsys):
    words = ["claims", "--json", "--source", "article", "--verdict", "impossible"]
    assert main([*words, str(ROOT / "studies" / "recall")]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {"article-gate-speed", "article-no-key-parameters"} <= {row["name"] for row in rows}
    assert {(row["source"], row["verdict"]) for row in rows} == {("article", "impossible")}
    for key in ("about", "place", "quantity", "stated", "arithmetic", "recipe", "why", "evidence"):
        assert all(key in row for row in rows)


def test_the_command_line_writes_the_ledger_as_a_page(tmp_path):
    out = tmp_path / "ledger.html"
    assert main(["claims", str(ROOT / "studies" / "recall"), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
