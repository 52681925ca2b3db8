"""The ledger: each claim is complete, and each verdict follows from figures and runs."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fake_study
from qkvbench import claims, recipes
from qkvbench.claims import Point, Runs, Shown, dominators, frontier, judge
from qkvbench.claims._evidence import Piece, Shift, pieces
from qkvbench.claims._figure import agree, change, exact, mean, printed, rounds_to
from qkvbench.claims._reported import points_1_2b, points_300m
from qkvbench.claims._scales import AT_300M, SYNTHETIC
from qkvbench.claims.study_position_in_scores import CancelsOut
from qkvbench.cli import main
from qkvbench.reports import ledger as page
from qkvbench.results.store import Store

ROOT = Path(__file__).parent.parent
STUDIES = sorted(path for path in (ROOT / "studies").iterdir() if path.is_dir())

every_claim = pytest.mark.parametrize("name", claims.names())


@pytest.fixture(scope="module")
def studies():
    """Every committed study, by name."""
    return {path.name: claims.opened(path) for path in STUDIES}


def _verdict(name, *shown):
    return judge(claims.find(name), shown).verdict


# What arithmetic says without any run, and the figure that decides it.
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


@every_claim
def test_a_claim_has_all_of_its_parts_and_what_it_names_exists(name):
    claim = claims.find(name)
    for text in (claim.text, claim.place, claim.quantity, claim.arithmetic().says):
        assert text.strip() == text != ""
    assert claim.text[0].isupper()
    assert claim.text.endswith(".")
    assert claim.tests
    assert claim.recipe is None or claim.recipe in recipes.names()
    assert name.startswith(f"{claim.source.name}-")
    bibliography = (ROOT / "docs" / "references.bib").read_text()
    assert re.search(rf"^@\w+\{{{claim.source.citation},$", bibliography, re.MULTILINE)
    assert importlib.import_module(f"qkvbench.claims.{name.replace('-', '_')}").__doc__


def test_the_ledger_is_long_and_no_claim_stands_in_it_twice():
    texts = [claims.find(name).text for name in claims.names()]
    assert len(texts) == len(set(texts)) >= 30
    assert {claims.find(name).source for name in claims.names()} == set(claims.SOURCES)


@every_claim
def test_a_claim_has_a_verdict_without_a_store_and_with_each_study(name, studies):
    claim = claims.find(name)
    for shown in ((), *((each,) for each in studies.values()), tuple(studies.values())):
        finding = judge(claim, shown)
        assert finding.verdict in claims.VERDICTS
        assert finding.why.endswith(".")
        assert finding.brief.endswith(".")
        assert (finding.verdict == "not testable here") == bool(finding.takes)


@pytest.mark.parametrize("name", PINNED)
def test_arithmetic_gives_its_verdict_without_a_run(name):
    verdict, figure = PINNED[name]
    finding = judge(claims.find(name))
    assert (finding.verdict, figure in finding.why) == (verdict, True), finding.why


@every_claim
def test_a_verdict_that_needs_no_run_is_pinned(name):
    assert name in PINNED or _verdict(name) in ("not testable here", "not yet run")


@pytest.mark.parametrize(("name", "stated", "verdict"), CHANGED)
def test_another_figure_has_another_verdict(name, stated, verdict):
    claim = replace(claims.find(name), stated=(printed(*stated),))
    assert judge(claim).verdict == verdict != _verdict(name)


@every_claim
def test_small_runs_never_decide_what_is_claimed_of_large_models(name, studies):
    claim = claims.find(name)
    far = all(not test.scale.tasks for test in claim.tests if isinstance(test, Runs))
    if far:
        assert _verdict(name, *studies.values()) == _verdict(name)
        assert judge(claim, tuple(studies.values())).pieces == ()


def test_runs_at_the_claim_s_own_scale_decide_it(studies):
    assert _verdict("study-tied-never-harms") == "not yet run"
    assert _verdict("study-tied-never-harms", studies["quick"]) == "not distinguishable"
    assert _verdict("study-tied-never-harms", studies["recall"]) == "refuted"
    assert _verdict("study-tied-never-harms", *studies.values()) == "refuted"
    assert _verdict("study-sort-tied", studies["quick"]) == "not distinguishable"
    assert _verdict("study-sort-tied", studies["longer"]) == "supported"
    assert _verdict("study-sort-single", studies["quick"]) == "supported"


def test_what_small_runs_show_stands_beside_with_its_distance(studies):
    finding = judge(claims.find("study-order-of-ties"), (studies["longer"],))
    assert finding.verdict == "not testable here"
    assert finding.here.verdict == "supported"
    assert "1/1,201 of the source's parameters" in finding.here.why
    (piece,) = finding.here.pieces
    assert (piece.task, piece.arm, piece.against) == ("lm-reviews", "q=k,v", "q,k=v")
    assert piece.outcome.low > 0
    assert len(piece.runs) == 6
    assert all(
        (ROOT / "studies" / "longer" / "runs" / f"{run}.json").exists() for run in piece.runs
    )


def test_a_run_in_two_stores_counts_once(studies):
    both = (studies["catalogue"], studies["quick"], studies["recall"])
    found = pieces(both, ("recall",), arm="q,k=v", against="q,k,v")
    assert [piece.store for piece in found] == ["recall"]
    again = pieces(both, ("sort",), arm="q,k=v", against="q,k,v")
    assert [piece.store for piece in again] == ["catalogue"]


@pytest.mark.parametrize(
    ("loss", "verdict"), [(0.0, "supported"), (0.012, "not distinguishable"), (0.2, "refuted")]
)
def test_a_store_with_other_scores_has_another_verdict(tmp_path, monkeypatch, loss, verdict):
    monkeypatch.setitem(fake_study.LOSS, "sort", (0.0, 0.0, loss, *fake_study.LOSS["sort"][3:]))
    # Quieter than the others' tests: three seeds that vary more could show no equality.
    monkeypatch.setitem(fake_study.NOISE, "sort", 0.002)
    store = Store(tmp_path / "made")
    store.write_study(fake_study.info(tasks=("sort",)))
    for made in fake_study.scored("sort"):
        store.write_run(made)
    assert _verdict("study-sort-tied", claims.opened(store.path)) == verdict


def _piece(task, outcome):
    return Piece(
        store="made",
        task=task,
        arm="q,k=v",
        against="q,k,v",
        seeds=3,
        steps=10,
        parameters=100_000,
        runs=(task,),
        outcome=outcome,
    )


def test_a_margin_is_kept_by_the_whole_interval_or_broken_by_it():
    def ruled(low, high, *, margin, p):
        outcome = Shift("accuracy", "higher", (low + high) / 2, low, high, p)
        test = Runs("q,k=v", "no worse", ("sort",), SYNTHETIC, margin=margin)
        return test.ruling([_piece("sort", outcome)]).verdict

    # A loss that is clear and small is within what the claim allows.
    assert ruled(-0.010, -0.002, margin=0.013, p=0.001) == "supported"
    assert ruled(-0.010, -0.002, margin=None, p=0.001) == "refuted"
    assert ruled(-0.020, -0.002, margin=0.013, p=0.001) == "not distinguishable"
    assert ruled(-0.030, -0.020, margin=0.013, p=0.001) == "refuted"
    assert ruled(-0.030, 0.020, margin=0.013, p=0.9) == "not distinguishable"


def test_many_comparisons_of_one_claim_are_corrected_together():
    def piece(task, p):
        return _piece(task, Shift("accuracy", "higher", -0.1, -0.19, -0.01, p))

    test = Runs("q,k=v", "no worse", ("a", "b", "c"), SYNTHETIC)
    assert test.ruling([piece("a", 0.03)]).verdict == "refuted"
    three = [piece("a", 0.03), piece("b", 0.8), piece("c", 0.8)]
    assert test.ruling(three).verdict == "not distinguishable"


def test_a_study_that_compares_nothing_decides_nothing(tmp_path):
    store = Store(tmp_path / "made")
    store.write_study(fake_study.info(tasks=("sort",)))
    for experiment in fake_study.experiments("sort"):
        store.write_run(fake_study.record(experiment, score=0.1))
    assert _verdict("study-sort-tied", claims.opened(store.path)) == "not yet run"


def test_a_scale_holds_for_its_tasks_and_sizes_only():
    smallest, largest = SYNTHETIC.sizes
    assert SYNTHETIC.holds("sort", smallest)
    assert not SYNTHETIC.holds("sort", smallest // 5)
    assert not SYNTHETIC.holds("sort", largest * 5)
    assert not SYNTHETIC.holds("recall", smallest)
    assert AT_300M.sizes == (305_534_976, 305_534_976)
    assert not AT_300M.holds("lm-reviews", 305_534_976)


def test_the_frontiers_of_the_study_s_tables_are_those_without_sharing_and_the_smallest_cache():
    assert frontier(points_300m()) == ("q,k,v", "q,k,v/4", "q,k,v/1", "q,k=v/1")
    assert frontier(points_1_2b()) == ("q,k,v", "q,k,v/8", "q,k,v/1", "q,k=v/1")


def test_dominance_takes_both_columns_and_the_digits_that_are_printed():
    table = {
        "a": Point(printed("5.1"), 0.5),
        "b": Point(printed("5.3"), 0.5),
        "c": Point(printed("5.2"), 0.5),
        "d": Point(printed("5.0"), 0.7),
    }
    assert dominators(table, "b") == ("a",)
    assert dominators(table, "c") == ()
    assert dominators(table, "c", surely=False) == ("a",)
    assert dominators(table, "a") == ()


def test_an_encoding_of_both_places_together_is_not_ruled_out():
    together = lambda rng: rng.normal(size=(13, 13))
    assert CancelsOut().finding(claims.find("study-position-in-scores"), ()) is not None
    assert CancelsOut(together).finding(claims.find("study-position-in-scores"), ()) is None


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
        assert _verdict("article-flash-gpu-only", claims.opened(store.path)) == verdict


def test_printed_figures_keep_what_their_digits_leave_open():
    assert agree(printed("0.7", "%"), change(printed("5.15"), printed("5.11")))
    assert not rounds_to(printed("0.7", "%"), change(printed("5.15"), printed("5.11")))
    assert not agree(printed("2.2", "%"), change(printed("5.27"), printed("5.11")))
    assert agree(printed("5,900", step=100), exact(5905.6, ""))
    assert not agree(printed("5,900"), exact(5905.6, ""))
    assert mean([printed("1.0"), printed("2.0")], 1).low == pytest.approx(1.45)


@pytest.mark.parametrize("verdict", claims.VERDICTS)
def test_the_documentation_says_what_each_verdict_means(verdict):
    assert (
        f"| {verdict} | {claims.MEANINGS[verdict]} |" in (ROOT / "docs" / "claims.md").read_text()
    )


def test_the_page_has_every_claim_and_escapes_what_is_not_ours(studies):
    name = "<script>alert(1)</script>"
    shown = (Shown(name, studies["recall"].view),)
    text = page.page(tuple(claims.ledger(shown)), (name,))
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


def test_one_claim_is_told_at_length(capsys):
    assert main(["claims", "study-tied-never-harms", str(ROOT / "studies" / "recall")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "refuted" in text
    assert "solved 11 of 20 seeds against 20" in text
    assert "qkvbench run quick" in text


def test_json_is_one_strict_document_and_filters_hold(capsys):
    words = ["claims", "--json", "--source", "article", "--verdict", "impossible"]
    assert main([*words, str(ROOT / "studies" / "recall")]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {"article-gate-speed", "article-no-key-parameters"} <= {row["name"] for row in rows}
    assert {(row["source"], row["verdict"]) for row in rows} == {("article", "impossible")}
    for key in ("about", "place", "quantity", "stated", "arithmetic", "recipe", "why", "evidence"):
        assert all(key in row for row in rows)


def test_the_ledger_is_written_as_a_page_without_importing_a_framework(tmp_path):
    script = (
        "import sys; from qkvbench.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(99 if {'torch', 'jax'} & set(sys.modules) else status)"
    )
    words = ["claims", str(ROOT / "studies" / "recall"), "--out", str(tmp_path / "ledger.html")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ledger.html").read_text().startswith("<!doctype html>")
