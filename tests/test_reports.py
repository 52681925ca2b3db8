"""A report shows everything in its store, nothing else, and escapes its text."""

import csv
import errno
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from io import StringIO
from itertools import permutations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

import fake_study
from qkvbench import reports
from qkvbench.cli import main
from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.reports import brief, full, page, summary
from qkvbench.reports.parts import answer_table, curves, explore, labels, paper, picture
from qkvbench.reports.parts import findings as findings
from qkvbench.reports.parts.caveats import limits
from qkvbench.reports.parts.headline import headline
from qkvbench.results.pair import pair_on_task
from qkvbench.results.resampling import ItemBounds
from qkvbench.results.stats import Comparison, Tally, verdicts
from qkvbench.results.store import Store
from qkvbench.results.view import view


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fake_study.build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(store):
    return view(store)


@pytest.fixture(scope="module")
def html(study):
    return page.render(study)


def printed(study, width):
    file = StringIO()
    console = Console(file=file, width=width, color_system=None)
    full.print_table(study, console)
    full.print_words(study, console)
    return file.getvalue()


def said(notes):
    return "\n".join(f"{note.topic}: {note.text}" for note in notes)


def small(path, records, arms=fake_study.ARMS[:3], tasks=("digits",), **changes):
    """The view of a store with these records."""
    store = Store(path)
    store.write_study(fake_study.info(arms, tasks).model_copy(update=changes))
    for record in records:
        store.write_run(record)
    return view(store)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(768), "768 B"),
        (bytes_text(1536), "1.5 KiB"),
        (bytes_text(81_920), "80 KiB"),
        (bytes_text(1_048_575), "1 MiB"),
        (count_text(999), "999"),
        (count_text(999_999), "1 M"),
        (count_text(1_234_567), "1.23 M"),
        (seconds_text(0.000412), "412 µs"),
        (seconds_text(0.0009996), "1 ms"),
        (seconds_text(12.345), "12.3 s"),
        (seconds_text(59.7), "1 min 0 s"),
        (seconds_text(3_700), "1 h 1 min"),
    ],
)
def test_numbers_get_units_without_losing_their_first_three_digits(text, expected):
    assert text == expected


def test_every_report_keeps_the_contract(study):
    assert {"page", "summary", "brief", "full"} <= set(reports.names())
    for name in reports.names():
        report = reports.find(name)
        assert report.ABOUT
        assert report.SUFFIX
        assert report.render(study) == report.render(study)


def test_an_unknown_report_is_a_key_error():
    with pytest.raises(KeyError):
        reports.find("_words")


def test_reports_bring_no_framework():
    code = (
        "import sys, qkvbench.reports.page, qkvbench.reports.brief, qkvbench.reports.summary;"
        "print(sorted({'torch', 'jax', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_view_has_a_cell_for_each_arm_and_task(study):
    assert [task.name for task in study.tasks] == list(fake_study.SEEDS)
    for task in study.tasks:
        assert [cell.variant for cell in task.cells] == list(fake_study.ARMS)
    kinds = {task.name: type(task.result) for task in study.tasks}
    assert kinds["recall"] is Tally
    assert kinds["digits"] is Comparison


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_the_table_fits_its_console(study, width):
    assert max(len(line) for line in printed(study, width).splitlines()) <= width


def test_at_120_columns_there_is_one_table(study):
    assert printed(study, 120).count("Configuration") == 1
    assert printed(study, 80).count("Configuration") > 1


def test_every_arm_and_column_is_in_the_table(study):
    text = printed(study, 160)
    for arm in fake_study.ARMS:
        assert re.search(rf"^ {re.escape(arm)} ", text, re.MULTILINE)
    for title in (
        "Parameters",
        "digits",
        "sort",
        "recall",
        "lm-reviews",
        "Cache",
        "Decode",
    ):
        assert title in text


def test_the_cost_columns_name_their_task(study):
    assert "the model of lm-reviews" in printed(study, 120)


def test_the_report_names_the_precision_of_runs_that_are_not_fp32(tmp_path, study):
    assert "Runs in" not in full.render(study)
    runs = [
        fake_study.record(replace(run, precision="bf16", compiled=True))
        for run in fake_study.experiments("sort", fake_study.ARMS[:2])
    ]
    halved = small(tmp_path, runs, fake_study.ARMS[:2], ("sort",), cost_task="sort")
    assert "Runs in bf16, compiled." in full.render(halved)


def test_a_run_that_diverged_is_in_its_row_and_its_reason_below(study):
    text = printed(study, 120)
    assert "1 of 3 seeds diverged" in text
    assert "lm-reviews: q=k=x,v seed 1 diverged: the loss was not a number at step 214" in text


def test_runs_that_failed_for_one_reason_share_a_line(tmp_path):
    lost = {"status": "failed", "metrics": {}, "curve": [], "reason": "no data\nTraceback"}
    records = [each.model_copy(update=lost) for each in fake_study.scored("digits")]
    text = printed(small(tmp_path, records, arms=fake_study.ARMS), 120)
    assert "digits: all 24 runs failed: no data\n" in text


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
    study = small(tmp_path, [each for each in records if (each.variant, each.seed) != ("q=k,v", 1)])
    assert "`q=k,v` (digits)" in said(limits(study))


def test_mixed_revisions_are_named(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = small(tmp_path, [fake_study.revised(records[0], "0000late"), *records[1:]])
    assert "0000made" in said(limits(study))
    assert "0000late" in said(limits(study))
    assert "0000late" in page.render(study)


def test_a_baseline_at_chance_did_not_learn(tmp_path):
    records = [
        fake_study.record(each, score=0.10 + 0.01 * each.seed)
        for each in fake_study.experiments("digits", fake_study.ARMS[:3])
    ]
    study = small(tmp_path, records)
    text = printed(study, 120)
    assert "The baseline did not learn: q,k,v scores" in text
    assert re.search(r" baseline .*\n.* did not learn", text)
    assert "Worse than" not in text


def test_one_seed_proves_nothing(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = small(tmp_path, [each for each in records if each.seed == 0], seeds={"digits": 1})
    text = printed(study, 120)
    assert "One seed shows no spread" in text
    assert "[" not in text
    assert "±" not in full.render(study).split("Score ±")[0]
    assert page.render(study)


def test_scores_that_never_vary_have_no_interval(tmp_path):
    records = [fake_study.record(each, 1.0) for each in fake_study.experiments("digits")]
    study = small(tmp_path, records, arms=fake_study.ARMS)
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
    text = printed(small(tmp_path, failed), 120)
    assert re.search(r" baseline .*\n.* incomplete ", text)
    assert "3 oom" in text
    assert "`q,k,v` lacks seeds, so nothing is compared.".replace("`", "") in text


def test_an_arm_without_a_record_is_a_row_of_its_own(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:2])
    study = small(tmp_path, records, arms=fake_study.ARMS[:3])
    assert "3 missing" in printed(study, 120)
    assert "no record" in page.render(study)


def test_an_encoder_has_a_dash_for_its_cache_and_no_cache_plot(tmp_path):
    study = small(tmp_path, fake_study.scored("digits", fake_study.ARMS[:3]))
    assert picture.picture(study, study.tasks[0], "cache", picture.WIDE) is None
    assert "0 B" not in printed(study, 120)
    assert data_of(page.render(study))["axes"]["cache"] == []


def test_runs_of_another_budget_are_not_mixed_in(tmp_path):
    longer = [
        replace(each, training=replace(each.training, steps=5))
        for each in fake_study.experiments("digits", fake_study.ARMS[:1])
    ]
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = small(tmp_path, [*records, *(fake_study.record(each, 0.2) for each in longer)])
    assert study.others == 3
    assert len(study.runs) == 9
    assert study.tasks[0].steps != 5


def test_only_runs_that_were_asked_for_belong_to_a_study(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = small(tmp_path, records, runs=[each.id for each in records if each.seed < 2])
    assert [cell.missing for cell in study.tasks[0].cells] == [(2,)] * 3


def test_a_store_without_its_study_still_has_a_report(tmp_path):
    small(tmp_path, fake_study.scored("digits", fake_study.ARMS[:3]))
    (tmp_path / "study.json").write_text("{")
    study = view(Store(tmp_path))
    assert study.baseline == "q,k,v"
    assert set(study.arms) == set(fake_study.ARMS[:3])
    assert "study.json" in said(limits(study))
    assert page.render(study)


def test_an_empty_store_still_has_a_report(tmp_path):
    study = view(Store(tmp_path))
    for name in reports.names():
        assert reports.find(name).render(study)


def test_the_summary_is_strict_json_with_every_run(study):
    value = json.loads(summary.render(study), parse_constant=pytest.fail)
    ids = {run["id"] for task in value["tasks"] for cell in task["cells"] for run in cell["runs"]}
    assert ids == {run.id for run in study.runs}


class Page(HTMLParser):
    """The tags of a page: what is open, what is linked, what can be jumped to."""

    EMPTY = frozenset({"meta", "input"})

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.ids, self.tags, self.attributes = [], [], [], [], set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        values = dict(attrs)
        if "href" in values:
            self.links.append(values["href"])
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_ids_are_unique(html):
    read = Page(html)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))


def test_the_page_asks_for_nothing_from_outside(html):
    read = Page(html)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(read.tags)
    assert not read.attributes & {"src", "srcset", "onclick", "onload", "background"}
    # The name of SVG's namespace is no address.
    addressless = html.replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", addressless)
    assert len(html.encode()) < page.LARGEST_BYTES


def test_every_cell_leads_to_its_runs_and_every_run_to_its_record(html, study, store):
    read = Page(html)
    for link in read.links:
        if link.startswith("#"):
            assert link[1:] in read.ids
        else:
            assert (store.path / link).is_file()
    assert {f"runs/{run.id}.json" for run in study.runs} <= set(read.links)
    cells = [link for link in read.links if link.startswith("#cell-")]
    assert len(set(cells)) == len(fake_study.ARMS) * len(fake_study.SEEDS)


def test_text_from_records_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    records[0] = records[0].model_copy(
        update={"status": "failed", "reason": evil + "\x1b[2J", "metrics": {}}
    )
    study = small(tmp_path, records, arms=[*fake_study.ARMS[:3], evil], name=evil, command=evil)
    name = f"{1:016x}.json"
    (tmp_path / "runs" / name).write_text('{"schema_version": "<script>"}')
    study = view(Store(tmp_path))
    html = page.render(study)
    assert html.count("<script") == html.count("</script>") == 2
    assert "&lt;script&gt;" in html
    assert Page(html).open == []
    assert data_of(html)["arms"][3]["arm"] == evil
    assert "\x1b" not in printed(study, 120)


def data_of(html):
    """The JSON inside the page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    return json.loads(text, parse_constant=pytest.fail)


def test_embedded_json_has_no_character_that_could_end_its_element_or_line():
    evil = "</script><!--\u2028\u2029&amp;]]>"
    text = str(explore.embedded({"text": evil}))
    assert json.loads(text) == {"text": evil}
    assert not set(text) & set("<>&\u2028\u2029")


def test_only_the_script_of_the_page_may_run(html):
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', html)
    *_, script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert len(script.encode()) <= 30_000


def test_the_page_begins_with_the_sentence_of_the_brief_report(html, study):
    heading = re.search(r"<h1>(.*?)</h1>", html, re.DOTALL)[1]
    assert unescape(re.sub("<.*?>", "", heading)) == headline(study).replace("`", "")


def test_the_page_has_the_comparison_of_any_two_arms_as_compare_makes_it(html, study):
    pairs = data_of(html)["pairs"]
    for number, task in enumerate(study.tasks):
        for one, first in enumerate(study.arms):
            for two, second in enumerate(study.arms):
                if first == second:
                    assert pairs[number][one][two] == 0
                    continue
                found = pair_on_task(task, first, second)
                verdict = pairs[number][one][two][0]
                assert verdict.lstrip("▼▽▲△≈~ ") == (found.verdict or found.standing)


def test_comparisons_with_the_baseline_are_those_of_the_table(html, study):
    data = data_of(html)
    for number, task in enumerate(study.tasks):
        found = verdicts(task.result, task.metric.better)
        for order, arm in enumerate(study.arms[1:], 1):
            if arm in found:
                verdict = data["pairs"][number][0][order][0]
                assert verdict.lstrip("▼▽▲△≈~ ") == found[arm]


def test_a_page_of_too_many_arms_has_the_comparisons_with_the_baseline_and_says_so(
    study, monkeypatch
):
    monkeypatch.setattr(explore, "MOST_PAIRS", 10)
    html = page.render(study)
    assert [len(firsts) for firsts in data_of(html)["pairs"]] == [1] * len(study.tasks)
    assert "the comparisons with the baseline alone" in html


def test_a_page_that_would_be_too_large_leaves_out_its_curves_and_says_so(study, monkeypatch):
    monkeypatch.setattr(page, "LARGEST_BYTES", len(page.render(study).encode()) - 1)
    html = page.render(study)
    assert len(html.encode()) <= page.LARGEST_BYTES
    assert 'id="curves"' not in html
    assert "Left out, because the page would be larger than 2 MB: learning curves." in html


def test_the_first_task_shown_is_a_compared_one(html, study):
    task, axis = data_of(html)["shown"]
    assert study.tasks[task].name == "lm-reviews"
    assert axis == "cache"


@pytest.mark.parametrize("text", [answer_table.markdown, answer_table.latex])
def test_every_arm_has_a_row_in_a_table_for_a_paper(study, text):
    rows = text(study).splitlines()
    for arm in fake_study.ARMS:
        written = arm if text is answer_table.markdown else rf"\texttt{{{arm}}}"
        assert sum(f"{written} " in row for row in rows) >= 1
    widths = {len(re.findall(r"(?<!\\)[|&]", row)) for row in rows if arm in row}
    assert len(widths) == 1


def test_a_spreadsheet_takes_no_text_for_a_formula(study):
    task = replace(study.tasks[0], name="=HYPERLINK(1)")
    named = replace(study, tasks=(task,), cost_task=None)
    head, *rows = csv.reader(StringIO(answer_table.csv_text(named)))
    assert not any(each.startswith("=") for each in head)
    assert [row[0] for row in rows] == list(study.arms)


def test_the_csv_has_the_numbers_unrounded(study):
    head, *rows = csv.reader(StringIO(answer_table.csv_text(study)))
    row = dict(zip(head, rows[3], strict=True))
    each = study.tasks[1].result.differences[study.arms[3]]
    assert float(row["sort difference"]) == each.value
    assert row["sort verdict"] == each.verdict("higher")


def test_latex_has_no_character_of_its_own_left_in_a_text():
    assert answer_table._tex("a_b & 5% ≈ −.1") == r"a\_b \& 5\% $\approx$ $-$.1"


def test_figures_for_a_paper_are_well_formed_and_as_wide_as_its_columns(study):
    files = paper.files(study)
    assert {"table.csv", "table.tex", "table.md"} <= set(files)
    for name, text in files.items():
        if not name.endswith(".svg"):
            continue
        root = ElementTree.fromstring(text)
        width = 3.3 if "column" in name else 7
        assert root.get("width") == f"{72 * width:g}pt"
        assert "var(" not in text
    assert "lm-reviews-cache-column.svg" in files


def test_a_file_for_a_paper_stays_in_its_folder(study):
    named = replace(study, tasks=(replace(study.tasks[0], name="../../a/b"),), cost_task=None)
    assert not any("/" in name or name.startswith(".") for name in paper.files(named))


def test_brackets_in_the_path_of_a_task_are_not_markup(study):
    # Brackets would be markup: a path could hide itself, be a link, or end the report in an error.
    path = "./[bold]a[link=x]b[c].txt"
    named = replace(study, tasks=(replace(study.tasks[0], name=path),), cost_task=None)
    head, _, _ = full.render(named).partition("canonical")
    assert path.removeprefix("./") in head


def test_the_largest_growth_of_an_interval_over_items_is_reported(study):
    task = study.tasks[0]
    lengths = {arm: each.high - each.low for arm, each in task.result.differences.items()}
    first, second, *_ = sorted(lengths, key=lambda arm: lengths[arm])
    # The widest of both intervals is not the one that grows most.
    items = {
        arm: ItemBounds(0.0, 400, (0.0, 0.0), (0.0, by * lengths[arm]), resampled=False)
        for arm, by in ((first, 3.0), (second, 3.0 * lengths[first] / lengths[second] + 0.01))
    }
    told = limits(replace(study, tasks=(replace(task, items=items),)))
    assert f"{task.name} at most 3.0 times" in said(told)


def test_figures_are_well_formed_and_curves_name_every_arm_once(study):
    for task in study.tasks:
        drawn = ElementTree.fromstring(str(curves.curves(task)))
        texts = [
            text.text for text in drawn.iter("text") if "label" in text.get("class", "").split()
        ]
        assert sorted(texts) == sorted(fake_study.ARMS)


@pytest.mark.parametrize("size", [picture.WIDE, picture.PHONE, picture.COLUMN, picture.PAGE])
def test_a_picture_has_every_arm_that_has_a_score_and_lies_within_its_frame(study, size):
    for task in study.tasks:
        made = picture.picture(study, task, "parameters", size)
        assert [mark.point.arm for mark in made.marks] == list(fake_study.ARMS)
        assert ElementTree.fromstring(str(picture.svg(made))) is not None
        for mark in made.marks:
            assert made.left < mark.x < made.right
            assert made.top - 1 < mark.y < made.bottom + 1


def test_the_numbers_of_a_picture_are_those_of_its_drawing(study):
    made = picture.picture(study, study.tasks[3], "cache", picture.WIDE)
    told = picture.numbers(made)
    root = ElementTree.fromstring(str(picture.svg(made)))
    groups = list(root.iter("g"))
    assert len(groups) == len(told["marks"])
    for group, (order, kind, x, y, *_) in zip(groups, told["marks"], strict=True):
        assert group.get("class") == f"mark {kind}"
        assert int(group.get("data-arm")) == order
        place = [float(each) for each in re.findall(r"[\d.]+", group.get("transform"))]
        assert place == pytest.approx([x, y], abs=0.31)


def test_the_marks_on_the_frontier_are_those_of_the_findings(study):
    for task in study.tasks:
        for front in task.fronts:
            made = picture.picture(study, task, front.cost, picture.WIDE)
            drawn = {mark.point.arm for mark in made.marks if " front" in mark.kind}
            assert drawn == {
                arm for arm, each in front.places.items() if each.outlook == "on the frontier"
            }


def test_an_arm_that_caches_nothing_has_a_place_on_the_axis(tmp_path):
    arms = ("q,k,v", "q,k=v", "none")
    records = [
        fake_study.record(run, 2.4 + 0.1 * arms.index(run.arm) + 0.001 * run.seed)
        for run in fake_study.experiments("lm-reviews", arms)
    ]
    study = small(tmp_path, records, arms, ("lm-reviews",), cost_task="lm-reviews")
    made = picture.picture(study, study.tasks[0], "cache", picture.WIDE)
    places = {mark.point.arm: mark.x for mark in made.marks}
    assert places["none"] < places["q,k=v"] < places["q,k,v"]
    assert "0 B" in [text for _, text in made.x_ticks]


@pytest.mark.parametrize("arms", [8, 15, 40])
def test_no_label_hides_another(arms):
    rng = np.random.default_rng(arms)
    names = [f"q,k=R(q),v={index:04d}" for index in range(arms)]
    places = {
        name: (60 + 480 * x, 40 + 240 * y)
        for name, x, y in zip(names, *rng.random((2, arms)).tolist(), strict=True)
    }
    font = labels.Font(6.3, 13.0)
    placed = labels.labels(places, {name: name for name in names}, [], (0, 0, 560, 350), font)
    assert len(placed) >= min(arms, 15)
    boxes = []
    for name, label in placed.items():
        width = font.width * len(name)
        left = label.x if label.anchor == "start" else label.x - width
        assert left >= 0
        assert left + width <= 560
        boxes.append((left, label.y - 6, left + width, label.y + 6))
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def overlap(one, other):
    return all(one[i] < other[i + 2] and other[i] < one[i + 2] for i in (0, 1))


def test_labels_beside_curves_are_apart_and_in_order():
    moved = curves._spread({0: 100.0, 1: 100.5, 2: 99.0, 3: 300.0})
    ordered = sorted(moved, key=lambda order: moved[order])
    assert ordered == [2, 0, 1, 3]
    gaps = np.diff([moved[order] for order in ordered])
    assert (gaps >= curves.LABEL_HEIGHT - 1e-9).all()


def scored_study(path, table, tasks=("digits",), seeds=5, noise=0.002):
    """A study whose arms lose so much on each task."""
    rng = np.random.default_rng(4)
    records = [
        fake_study.record(run, 0.9 - table[run.arm][tasks.index(task)] + noise * rng.normal())
        for task in tasks
        for run in fake_study.experiments(task, tuple(table), seeds)
    ]
    return small(
        path, records, tuple(table), tasks, seeds=dict.fromkeys(tasks, seeds), cost_task=tasks[0]
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        # The cheapest of two that lose nothing.
        (
            {"q,k,v": (0.0,), "q,k=v": (0.0,), "q=k=v": (0.0,), "q=k=v=x": (0.2,)},
            "`q=k=v` (shared-qkv) takes",
        ),
        (
            {"q,k,v": (0.0,), "q,k=v": (0.1,), "none": (0.7,)},
            "Every arm with less of the parameters",
        ),
        ({"q,k,v": (0.0,), "none": (0.7,), "q=k=0,v": (0.6,)}, "Attention is worth 0.7"),
        (
            {"q,k,v": (0.0,), "q,k=v": (0.1,), "none": (0.0,)},
            "Nothing can be said yet: digits: atten",
        ),
    ],
    ids=["one loses nothing", "all lose", "only controls", "no attention needed"],
)
def test_the_answer_names_the_cheapest_arm_that_was_not_seen_to_lose(tmp_path, table, said):
    assert headline(scored_study(tmp_path, table)).startswith(said)


def test_the_room_for_a_loss_is_the_worse_end_of_the_interval(tmp_path):
    study = scored_study(tmp_path, {"q,k,v": (0.0,), "q,k=v": (0.0,)})
    each = study.tasks[0].result.differences["q,k=v"]
    assert f"leave room for a loss of {-each.low:.3f} on digits" in headline(study)


def test_the_brief_report_has_one_line_for_each_arm_and_fits(study):
    lines = brief.render(study).splitlines()
    assert max(map(len, lines)) <= brief.WIDTH
    assert len(lines) < 40
    for arm in fake_study.ARMS:
        assert sum(line.startswith(f" {arm} ") for line in lines) == 1
    row = next(line for line in lines if line.startswith(" q=k=v=x "))
    difference = study.tasks[3].result.differences["q=k=v=x"]
    assert f"+{difference.value:.2f}".replace("0.", ".") in row


def test_a_narrow_terminal_gets_several_tables_and_no_shortened_cell(study):
    file = StringIO()
    brief.print_answer(study, Console(file=file, width=70, color_system=None))
    text = file.getvalue()
    assert "…" not in text
    assert (
        sum(line.strip() == "q,k,v" or line.startswith(" q,k,v ") for line in text.splitlines())
        == 2
    )


def test_a_full_disk_leaves_the_page_as_it_was(tmp_path, monkeypatch, capsys):
    fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits",))
    assert main(["report", str(tmp_path)]) == 0
    before = (tmp_path / "report.html").read_text(encoding="utf-8")

    def full_disk(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    capsys.readouterr()
    # The answer is printed all the same.
    assert main(["report", str(tmp_path)]) == 0
    assert "report.html cannot be written: the disk is full." in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert not list(tmp_path.glob(".report.html*"))


def test_a_report_can_be_written_to_a_device(tmp_path, capfd):
    fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits",))
    assert main(["report", str(tmp_path), "--as", "page", "--out", "/dev/null"]) == 0
    assert not Path("/dev/null").is_file()


def test_figures_and_tables_for_a_paper_are_written_into_a_folder(tmp_path, capsys):
    store = fake_study.build(tmp_path / "store", fake_study.ARMS[:3], ("digits", "lm-reviews"))
    folder = tmp_path / "paper" / "figures"
    assert main(["report", str(store.path), "--paper", str(folder)]) == 0
    written = {str(each) for each in folder.iterdir()}
    assert set(capsys.readouterr().out.splitlines()) == written
    assert {each.name for each in folder.iterdir()} == set(paper.files(view(store)))
    assert not (store.path / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--paper", "figures", "--out", "page.html"], "leave out one of them"),
        (["--paper", "figures", "--json"], "not allowed with argument"),
        (["--paper", "taken"], "cannot be written"),
    ],
)
def test_a_wrong_request_for_a_paper_says_what_to_write(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    fake_study.build(tmp_path / "store", fake_study.ARMS[:2], ("digits",))
    assert main(["report", "store", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.nightly
def test_ten_thousand_runs_make_a_page_within_a_gigabyte(tmp_path):
    arms = [*fake_study.ARMS, *(f"{one};{other}" for one, other in permutations(PAIRED, 2))][:25]
    store = Store(tmp_path)
    names = [f"{task}{at}" for task in ("digits", "lm-reviews") for at in POSITIONS]
    rng = np.random.default_rng(0)
    for name in names:
        score = 2.4 if name.startswith("lm") else 0.9
        for run in fake_study.experiments(name, arms, 50):
            store.write_run(fake_study.record(run, score + 0.004 * rng.normal()))
    seeds = dict.fromkeys(names, 50)
    store.write_study(fake_study.info(arms, ()).model_copy(update={"tasks": names, "seeds": seeds}))
    code = (
        "import resource, sys\n"
        "from qkvbench.cli import main\n"
        "assert main(['report', sys.argv[1]]) == 0\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    seconds, kibibytes = map(float, said.splitlines()[-1].split())
    assert (tmp_path / "report.html").stat().st_size <= page.LARGEST_BYTES
    assert kibibytes < 1e9 / 1024
    # Seconds of processor time, twice those of a quiet machine with two cores.
    assert seconds < 20


PAIRED = ("q,k,v", "q,k=v", "q=k,v", "q=k=v", "q=v,k")
POSITIONS = ("", "@learned", "@rotary", "@none")
