"""The ledger: each claim is complete, and each verdict follows from figures and runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fake_study
from qkvbench import claims, recipes
from qkvbench.claims import judge, pool
from qkvbench.claims.internals import CancelsOut
from qkvbench.claims.kit.arithmetic import Point, dominators, frontier
from qkvbench.claims.kit.evidence import Conditions, Evidence, ScoreDifference
from qkvbench.claims.kit.figure import agree, change, exact_figure, figure, mean, rounds_to
from qkvbench.claims.kit.measured import Benchmark, MeasuredChange
from qkvbench.claims.kit.reported import points
from qkvbench.claims.kit.runs import Measured, Runs
from qkvbench.claims.kit.scales import AT_300M, AT_SORTING
from qkvbench.claims.speed import RunsOnCpu
from qkvbench.cli import main
from qkvbench.reports import ledger as page
from qkvbench.results.critical import LEVEL
from qkvbench.results.record import Ratio, Timing
from qkvbench.results.stats import CERTAIN
from qkvbench.results.store import Store, StoreError
from qkvbench.task_ref import parse_task
from qkvbench.tasks import find
from qkvbench.variant import parse

ROOT = Path(__file__).parent.parent
EVERY_CLAIM = [claims.find(name) for name in claims.names()]


@pytest.fixture(scope="module", name="without_runs")
def _without_runs():
    """The findings without any store, by the claim's name."""
    return {entry.claim.name: entry.finding for entry in claims.ledger()}


def _finding(name, *stores):
    return judge(claims.find(name), pool(stores))


def _verdict(name, *stores):
    return _finding(name, *stores).verdict


# The verdict of arithmetic without any run, and a part of its reason.
PINNED = {
    "article-no-key-parameters": ("impossible", "117.35 M"),
    "article-shared-parameters": ("impossible", "110.27 M"),
    "article-value-only-parameters": ("impossible", "110.27 M"),
    "article-no-projections-parameters": ("impossible", "103.18 M"),
    "article-forty-percent": ("impossible", "17.1% to 25.0%"),
    "article-pruning-parameters": ("impossible", "17.1% to 25.0%"),
    "article-shared-flops": ("impossible", "11.2% at 128 tokens, 8.8% at 2048"),
    "article-gate-speed": ("not testable here", "2.00× at any length: projections alone cannot"),
    "article-latencies": ("impossible", "at least 6.15 ms"),
    "article-memory": ("impossible", "at least 1.05 GB"),
    "article-shared-latency": ("refuted", "22.8%"),
    "article-wmt14-share": ("not distinguishable", "98.59%"),
    "article-market-growth": ("supported", "31.20%"),
    "article-takeaway-latency": ("not testable here", "22.8%"),
    "article-total-cost": ("not distinguishable", "40 to 60%"),
    "article-hundreds-of-variants": ("refuted", "12 variants in all, 8 in one table"),
    "article-fifteen-by-eight": ("refuted", "12 variants in all"),
    "article-match-or-exceed": ("refuted", "0 of 4"),
    "article-model-sizes": ("refuted", "305.53 M and 1215.10 M"),
    "article-qkv-mode": ("refuted", "0 of 1,781 modules"),
    "article-forecast-date": ("refuted", "June 2026"),
    "article-flash-gpu-only": ("refuted", "flash_attention_for_cpu"),
    "article-value-only-imagenet": ("not testable here", "90.96%"),
    "article-no-key-glue": ("not testable here", "0.4%"),
    "article-sparse-attention": ("not testable here", "3× from 10,752 tokens"),
    "article-linear-attention": ("not testable here", "10× from 44,032 tokens"),
    "article-key-redundant": ("refuted", "saves 0% of the cache"),
    "article-single-projection-free": ("refuted", "`q=k=v` +25.44%"),
    "article-best-tradeoff": ("not testable here", "`q,k=v` by `q,k,v/4`, `q,k,v/1`"),
    "article-finetuning-speed": ("not testable here", "1.13×"),
    "study-parameters-300m": ("supported", "7 of 7"),
    "study-qgqa4-released": ("impossible", "268,798,976"),
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
    "study-downstream-tied": ("not distinguishable", "questions alone 0.68"),
    "study-downstream-gqa": ("not distinguishable", "−0.54"),
    "study-downstream-tied-gqa": ("not distinguishable", "+0.32"),
    "study-downstream-tied-mqa": ("not testable here", "−2.02"),
    "study-length-2048": ("not distinguishable", "+3.13%"),
    "study-size-gain": ("not testable here", "2.1%"),
    "study-bits-per-character": ("refuted", "4.41 bits a token"),
    "study-synthetic-query-key": ("refuted", "0.034 below it"),
    "study-synthetic-encoding": ("not testable here", "0.037 above it"),
    "study-vision-encoding": ("not distinguishable", "another size of batch"),
    "study-conversion-healed": ("not testable here", "averaged +7.47%"),
    "study-training-speeds": ("not testable here", "`q=k=v` +8.75%"),
    "study-vision-average": ("refuted", "0.7650"),
    "study-similar-matrices": ("refuted", "0.0000"),
    "study-position-in-scores": ("impossible", "e-16"),
    "study-loss-on-text": ("not testable here", "+4.5% where it is 30%"),
    "study-training-speed": ("not testable here", "5.7%"),
    "study-recall-by-heads": ("not yet run", "qkvbench run heads"),
}

# The same claim with other figures: the true ones, or false ones.
CHANGED = [
    ("study-cache-67-times", ("64", "×"), "supported"),
    ("article-no-key-parameters", ("117", "M"), "supported"),
    ("article-no-projections-parameters", ("103", "M"), "supported"),
    ("article-shared-flops", ("11", "%"), "supported"),
    ("article-forty-percent", ("17", "%"), "supported"),
    ("article-gate-speed", ("3.0", "×"), "impossible"),
    ("article-shared-latency", ("23", "%"), "supported"),
    ("article-shared-latency", ("22", "%"), "not distinguishable"),
    ("article-wmt14-share", ("98.6", "%"), "supported"),
    ("article-wmt14-share", ("99.5", "%"), "refuted"),
    ("article-market-growth", ("33.0", "%"), "refuted"),
    ("article-single-projection-free", ("3", "%"), "not testable here"),
    ("article-model-sizes", ("1,215", "M"), "supported"),
    ("article-fifteen-by-eight", ("12", ""), "supported"),
    ("article-total-cost", None, "supported"),
    ("article-latencies", None, "not testable here"),
    ("study-bits-per-character", ("1.5", "bits"), "supported"),
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
    assert len(texts) == len(set(texts)) >= 98
    assert {claim.source for claim in EVERY_CLAIM} == set(claims.SOURCES)
    with pytest.raises(KeyError):
        claims.find("study-cache")


def test_the_verdicts_of_arithmetic_are_pinned_with_the_figure_that_decides(without_runs):
    for name, (verdict, figure_text) in PINNED.items():
        finding = without_runs[name]
        assert finding.verdict == verdict, name
        assert figure_text in finding.reason, name
    undecided = {"not testable here"}
    others = {name: without_runs[name].verdict for name in without_runs.keys() - PINNED.keys()}
    assert {name for name, verdict in others.items() if verdict not in undecided} == set()


def test_a_claim_with_another_figure_has_another_verdict(without_runs):
    for name, printed, verdict in CHANGED:
        claim = claims.find(name)
        # Without a figure of its own the claim gets the computed ones.
        figures = claim.arithmetic().figures if printed is None else (figure(*printed),)
        found = judge(replace(claim, figures=figures), pool(()))
        assert found.verdict == verdict != without_runs[name].verdict, (name, printed)


def _made_store(path, task, records):
    store = Store(path)
    store.write_study(fake_study.info(tasks=(task,)))
    for each in records:
        store.write_run(each)
    return claims.open_store(store.path)


@pytest.mark.parametrize(
    ("loss", "direction"),
    [(0.0, "same direction"), (0.012, "no direction seen"), (0.2, "opposite direction")],
)
def test_a_store_with_other_scores_shows_another_direction(tmp_path, monkeypatch, loss, direction):
    monkeypatch.setitem(fake_study.LOSS, "sort", (0.0, 0.0, loss, *fake_study.LOSS["sort"][3:]))
    # Three seeds with the usual noise could not show that two arms are equal.
    monkeypatch.setitem(fake_study.NOISE, "sort", 0.002)
    store = _made_store(tmp_path / "made", "sort", fake_study.scored("sort"))
    finding = _finding("study-sort-tied", store)
    # Sequences of 16 digits are not at the scale of a source with up to 128.
    assert finding.verdict == "not testable here"
    assert finding.evidence == ()
    assert finding.other_scale.direction == direction
    assert "1/8 of the length of a sequence" in finding.other_scale.distance


def test_a_baseline_near_the_ceiling_is_named_and_left_out_beside_another(tmp_path, monkeypatch):
    monkeypatch.setitem(fake_study.NOISE, "sort", 0.0001)
    monkeypatch.setitem(fake_study.BEST, "sort", 0.9994)
    ceiling = _made_store(tmp_path / "ceiling", "sort", fake_study.scored("sort"))
    alone = _finding("study-sort-tied", ceiling).other_scale
    assert "a ceiling at which a loss hardly shows" in alone.distance
    monkeypatch.setitem(fake_study.BEST, "sort", 0.985)
    scores = {(each.variant, each.seed): each.score for each in fake_study.scored("sort")}
    shorter = [
        fake_study.record(
            replace(each, training=replace(each.training, steps=75)),
            scores[each.variant, each.seed],
        )
        for each in fake_study.experiments("sort")
    ]
    below = _made_store(tmp_path / "below", "sort", shorter)
    both = _finding("study-sort-tied", ceiling, below).other_scale
    assert "ceiling" not in both.distance
    assert {each.stores for each in both.evidence} == {("below",)}
    assert "Not counted, at a ceiling: sort (ceiling, 150 steps)" in both.result


def test_one_experiment_under_two_names_in_two_folders_is_one_comparison(tmp_path):
    def store(name, task, seeds):
        model = find(task).model
        runs = [
            fake_study.record(
                replace(each, task=parse_task(task), model=model.with_variant(parse(each.variant))),
                0.99 if each.variant == "q,k,v" else 0.3,
            )
            for each in fake_study.experiments("recall", seeds=8)
            if each.seed in seeds
        ]
        return _made_store(tmp_path / name, "recall", runs)

    plain = store("plain", "recall", range(3))
    named = store("named", "recall@4x16", range(1, 8))
    for stores in ((plain, named), (named, plain)):
        (evidence,) = _finding("study-recall-by-heads", *stores).evidence
        assert evidence.seeds == (8, 8)
        assert evidence.stores == ("named", "plain")
        assert (evidence.outcome.arm, evidence.outcome.other) == (0, 8)
    assert _verdict("study-recall-by-heads", plain, named) == "supported"
    other = store("other", "recall@1x64", range(8))
    assert _finding("study-recall-by-heads", other).evidence == ()


def _evidence(task, low, high, p):
    return Evidence(
        stores=("made",),
        task=task,
        arm="q,k=v",
        against="q,k,v",
        seeds=(3, 3),
        steps=10,
        conditions=Conditions(parameters=100_000, tokens=16, sequences=1000, score=0.9),
        runs=(task,),
        outcome=ScoreDifference(
            "accuracy", "higher", (low + high) / 2, low, high, p, (2 * low - high, 2 * high - low)
        ),
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
    test = Runs("q,k=v", "no worse", ("sort",), AT_SORTING, margin=margin)
    assert test.combine([_evidence("sort", low, high, p)], level=LEVEL).verdict == verdict


def test_a_claim_is_decided_by_what_is_certain_and_a_direction_by_what_is_likely():
    test = Runs("q,k=v", "no worse", ("a",), AT_SORTING)
    likely = _evidence("a", -0.19, -0.01, 0.03)
    certain = _evidence("a", -0.19, -0.11, CERTAIN / 2)
    assert test.combine([likely], level=LEVEL).verdict == "refuted"
    assert test.combine([likely], level=CERTAIN).verdict == "not distinguishable"
    assert test.combine([certain], level=CERTAIN).verdict == "refuted"
    # One of several comparisons decides only if their number is counted.
    chance = [_evidence("a", -0.05, 0.05, 0.8) for _ in range(4)]
    assert test.combine([likely, *chance], level=LEVEL).verdict == "not distinguishable"
    # So do intervals: within the margin at 95%, of which there are several.
    small = _evidence("a", -0.010, 0.004, 0.3)
    within = Runs("q,k=v", "no worse", ("a",), AT_SORTING, margin=0.013)
    assert within.combine([small, *chance], level=LEVEL).verdict == "not distinguishable"
    # Beyond the margin by the interval of 95%, and not by the wider one.
    beyond = _evidence("a", -0.19, -0.11, 1e-9)
    allowed = Runs("q,k=v", "no worse", ("a",), AT_SORTING, margin=0.1)
    assert allowed.combine([beyond], level=LEVEL).verdict == "refuted"
    assert allowed.combine([beyond], level=CERTAIN).verdict == "not distinguishable"
    # Within the margin by the interval of 95%, and beyond it by the wider one.
    near = _evidence("a", -0.010, 0.004, 0.3)
    allowing = Runs("q,k=v", "no worse", ("a",), AT_SORTING, margin=0.013)
    assert allowing.combine([near], level=LEVEL).verdict == "supported"
    assert allowing.combine([near], level=CERTAIN).verdict == "not distinguishable"


def test_the_ledger_in_json_is_read_by_strict_parsers(capsys):
    assert main(["claims", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert any(figure["high"] is None for each in found for figure in each["stated"])


def test_a_study_that_compares_nothing_decides_nothing(tmp_path):
    # The baseline is at chance.
    runs = [fake_study.record(each, score=0.1) for each in fake_study.experiments("sort")]
    finding = _finding("study-sort-tied", _made_store(tmp_path / "made", "sort", runs))
    assert finding.verdict == "not testable here"
    assert finding.other_scale is None


def test_a_task_that_needs_no_attention_compares_nothing(tmp_path):
    def store(name, floor):
        without = fake_study.experiments("digits", arms=("none",))
        controls = [fake_study.record(each, floor + each.seed / 1e3) for each in without]
        return _made_store(tmp_path / name, "digits", [*fake_study.scored("digits"), *controls])

    assert _finding("study-vision-single", store("low", 0.2)).other_scale is not None
    assert _finding("study-vision-single", store("high", 0.97)).other_scale is None


def test_a_scale_is_size_and_length_and_training_and_the_level_of_the_baseline():
    smallest, largest = AT_SORTING.sizes
    runs = Conditions(smallest, tokens=64, sequences=50_000, score=0.96)
    assert AT_SORTING.covers("sort", runs)
    assert AT_SORTING.covers("sort", replace(runs, parameters=largest * 3))
    assert not AT_SORTING.covers("recall", runs)
    for far, words in (
        ({"parameters": smallest // 5}, "parameters"),
        ({"parameters": largest * 5}, "parameters"),
        ({"tokens": 16}, "length"),
        ({"sequences": 9600}, "sequences"),
        ({"score": 0.9994}, "ceiling"),
        ({"score": 0.80}, "0.8000"),
    ):
        other = replace(runs, **far)
        assert not AT_SORTING.covers("sort", other), far
        (distance,) = AT_SORTING.distances(other)
        assert words in distance
    assert AT_300M.sizes == (305_534_976,)
    assert not AT_300M.covers("lm-reviews", Conditions(AT_300M.sizes[0], 2048, 5_000_000, None))


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
    assert CancelsOut().finding(claim, pool(())) is not None
    assert CancelsOut(joint).finding(claim, pool(())) is None


def test_a_flash_kernel_on_a_cpu_refutes_that_it_needs_a_gpu():
    claim = claims.find("article-flash-gpu-only")
    kernels = {
        "aten::_scaled_dot_product_flash_attention_for_cpu": "refuted",
        "aten::_scaled_dot_product_attention_math": None,
        None: None,
    }
    for kernel, verdict in kernels.items():
        finding = RunsOnCpu(lambda kernel=kernel: kernel).finding(claim, pool(()))
        assert (finding and finding.verdict) == verdict, kernel


def _benchmark(changes_of_arms):
    return Benchmark(
        benchmark="made",
        command="python benchmarks/made.py",
        day="2026-01-01",
        machine=fake_study.MACHINE,
        found=[
            MeasuredChange(
                quantity="time of a step",
                model="small",
                arm=arm,
                against="q,k,v",
                setting="made",
                percent=(low + high) / 2,
                low=low,
                high=high,
            )
            for arm, (low, high) in changes_of_arms.items()
        ],
    )


@pytest.mark.parametrize(
    ("first", "second", "direction"),
    [
        ((-20, -10), (-5, -1), "same direction"),
        ((-20, -10), (-5, 1), "no direction seen"),
        ((2, 10), (1, 5), "opposite direction"),
        ((2, 10), (-5, -1), "no direction seen"),
    ],
)
def test_the_findings_of_a_benchmark_show_a_direction(tmp_path, first, second, direction):
    _benchmark({"q=k,v": first, "q,k=v": second, "q=k=v": (50, 60)}).write(tmp_path)
    found_here = pool((claims.open_store(tmp_path),))
    test = Measured("time of a step", ("q=k,v", "q,k=v"), "falls", "a GPU")
    found = test.direction(found_here)
    assert found.direction == direction
    assert "python benchmarks/made.py" in found.reason
    assert "`q=k=v`" not in found.reason
    assert replace(test, quantity="memory").direction(found_here) is None
    assert replace(test, model="large").direction(found_here) is None


def test_the_measurements_of_a_store_are_read_like_those_of_a_benchmark(tmp_path):
    (experiment,) = fake_study.experiments("lm-reviews", arms=("q=k=v",), seeds=1)
    timing = Timing(
        samples=9,
        interrupted=0,
        percentiles_s={"p50": 1.0},
        tokens_per_second=1.0,
        ratio=Ratio(to="q,k,v", value=0.8, low=0.7, high=0.9, level=0.95, blocks=9),
        memory_bytes=None,
        kernel="reference",
    )
    for model, direction in (("gpt2-small", "same direction"), (experiment.model.name, None)):
        own = replace(experiment, model=replace(experiment.model, name=model))
        made = fake_study.measurement(own, 0).model_copy(update={"timings": {"decode": timing}})
        Store(tmp_path / model).write_measurement(made)
        finding = _finding("article-takeaway-latency", claims.open_store(tmp_path / model))
        # Only the claim's own model bears on a claim about its latency.
        assert (finding.other_scale and finding.other_scale.direction) == direction
    finding = _finding("article-takeaway-latency", claims.open_store(tmp_path / "gpt2-small"))
    assert "`q=k=v` −20.0% (−30.0 to −10.0)" in finding.other_scale.reason


def test_a_damaged_file_of_a_benchmark_is_named(tmp_path):
    (tmp_path / "made.json").write_text('{"benchmark": "made"}')
    (tmp_path / "other.json").write_text("no JSON")
    with pytest.raises(StoreError, match=r"made\.json"):
        claims.open_store(tmp_path)


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


def test_the_documentation_lists_the_verdicts_in_the_order_of_the_ledger():
    text = (ROOT / "docs" / "claims.md").read_text()
    places = [text.index(f"| {verdict} |") for verdict in claims.VERDICTS]
    assert places == sorted(places)


def test_the_page_has_every_claim_and_escapes_the_name_of_a_store(tmp_path):
    name = "<script>alert(1)</script>"
    store = claims.open_store(fake_study.build(tmp_path, tasks=("recall",)).path)
    text = page.page(tuple(claims.ledger((replace(store, name=name),))), (name,))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert all(f'id="{each}"' in text for each in claims.names())
    headings = [f"<h2>{verdict.capitalize()}</h2>" for verdict in claims.VERDICTS]
    places = [text.index(heading) for heading in headings if heading in text]
    assert places == sorted(places)
    assert len(places) >= 5
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", text)


def test_the_command_line_prints_counts_then_groups_in_120_columns(capsys, without_runs):
    assert main(["claims"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith(f"{len(claims.names())} claims: ")
    impossible = [name for name, each in without_runs.items() if each.verdict == "impossible"]
    assert lines[2].startswith(f"impossible ({len(impossible)}): ")
    assert [line.split()[0] for line in lines[3 : 3 + len(impossible)]] == impossible
    (row,) = [line for line in lines if line.split()[:1] == ["article-no-key-parameters"]]
    assert row.split() == ["article-no-key-parameters", "110", "M", "117.35", "M"]
    text = "\n".join(lines)
    assert all(name in text for name in claims.names())
    # Claims that follow from arithmetic share a few lines.
    assert len(lines) < len(claims.names()) + 20


def test_the_command_line_prints_one_claim_in_full(capsys):
    assert main(["claims", "study-recall-by-heads", str(ROOT / "studies" / "recall")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "supported" in text
    assert "solved 11 of 20 seeds against 20 of 20" in text
    assert "qkvbench run heads" in text


def test_json_is_one_strict_document_of_the_filtered_claims(capsys):
    words = ["claims", "--json", "--source", "article", "--verdict", "impossible"]
    assert main([*words, str(ROOT / "studies" / "recall")]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {"article-memory", "article-no-key-parameters"} <= {row["name"] for row in rows}
    assert {(row["source"], row["verdict"]) for row in rows} == {("article", "impossible")}
    for key in ("about", "place", "quantity", "stated", "arithmetic", "recipe", "why", "evidence"):
        assert all(key in row for row in rows)


def test_the_command_line_writes_the_ledger_as_a_page(tmp_path):
    out = tmp_path / "ledger.html"
    assert main(["claims", str(ROOT / "studies" / "recall"), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")


# Each sentence of the article with a quantity, by a few of its words, and the claims that it makes.
SENTENCES = {
    "hundreds of variants": ["article-hundreds-of-variants"],
    "15 configurations on 8 benchmarks": ["article-fifteen-by-eight"],
    "match or exceed": ["article-match-or-exceed"],
    "up to 40% fewer parameters": ["article-forty-percent"],
    "latency by 30%": ["article-shared-latency"],
    "key redundant": ["article-key-redundant"],
    "both roles": ["article-single-projection-free"],
    "-0.3% GLUE without key": ["article-no-key-glue"],
    "-12% parameters": ["article-no-key-parameters"],
    "98.7% of WMT14": ["article-wmt14-share"],
    "33% fewer FLOPs": ["article-shared-flops"],
    "91% of ImageNet-1K": ["article-value-only-imagenet"],
    "2.3k stars": ["article-stars"],
    "v4.45.0": ["article-qkv-mode"],
    "table of results: parameters": [
        "article-no-key-parameters",
        "article-shared-parameters",
        "article-value-only-parameters",
        "article-no-projections-parameters",
    ],
    "table of results: GLUE, BLEU": [
        "article-no-key-glue",
        "article-glue-shared",
        "article-wmt14-share",
        "article-value-only-quality",
        "article-no-projections-quality",
    ],
    "table of results: latency": ["article-latencies"],
    "table of results: memory": ["article-memory"],
    "takeaway: -33% parameters, -23% latency": [
        "article-shared-parameters",
        "article-takeaway-latency",
    ],
    "gates: 2.3x at 8k": ["article-gate-speed"],
    "20-30% faster fine-tuning": ["article-finetuning-speed"],
    "approaches: QKV pruning": ["article-pruning-parameters", "article-glue-shared"],
    "approaches: FlashAttention": ["article-flash-speed", "article-flash-gpu-only"],
    "approaches: sparse": ["article-sparse-attention", "article-sparse-attention-loss"],
    "approaches: linear": ["article-linear-attention", "article-linear-attention-loss"],
    "best trade-off": ["article-best-tradeoff"],
    "market 12.5 to 48.6": ["article-market-growth"],
    "total cost -25-35%": ["article-total-cost"],
    "request -40%": ["article-request-cost"],
    "Mistral 7B on RTX 3060": ["article-mistral-on-rtx-3060"],
    "table of costs": ["article-token-costs"],
    "adoption one to four years earlier": ["article-adoption-years"],
    "models up to 125M": ["article-model-sizes"],
    "gradient norms at 100k tokens": ["article-gradient-variance"],
    "CLIP: keys": ["article-clip-keys"],
    "by Q1 2026, 30% or more": ["article-forecast-date"],
}


def test_each_sentence_of_the_article_with_a_quantity_has_claims_and_each_claim_a_sentence():
    mapped = {name for names in SENTENCES.values() for name in names}
    article = {claim.name for claim in EVERY_CLAIM if claim.source.name == "article"}
    assert mapped == article
