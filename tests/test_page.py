"""The page is one file that is complete, safe and says what the other reports say."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser

import pytest

import fake_study
from qkvbench.reports import page
from qkvbench.reports.parts import explore
from qkvbench.reports.parts import findings as findings
from qkvbench.reports.parts.headline import headline
from qkvbench.results.pair import pair_on_task
from qkvbench.results.stats import verdicts
from qkvbench.results.store import Store
from qkvbench.results.view import view
from report_texts import data_of, printed


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fake_study.build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(store):
    return view(store)


@pytest.fixture(scope="module")
def html(study):
    return page.render(study)


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
    study = fake_study.small(
        tmp_path, records, arms=[*fake_study.ARMS[:3], evil], name=evil, command=evil
    )
    name = f"{1:016x}.json"
    (tmp_path / "runs" / name).write_text('{"schema_version": "<script>"}')
    study = view(Store(tmp_path))
    html = page.render(study)
    assert html.count("<script") == html.count("</script>") == 2
    assert "&lt;script&gt;" in html
    assert Page(html).open == []
    assert data_of(html)["arms"][3]["arm"] == evil
    assert "\x1b" not in printed(study, 120)


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
