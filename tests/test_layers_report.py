"""Snapshots of layers are in the page and the summary of a study that has them."""

import json
from html.parser import HTMLParser

import pytest

import fake_study
from qkvbench.reports import page, summary
from qkvbench.reports.parts.analyses import analyses, histories
from qkvbench.results.record import Snapshot
from qkvbench.results.store import Store
from qkvbench.results.view import view

LAYERS = ["blocks.0.attention", "blocks.1.attention"]


def with_snapshots(record, arm):
    """The record with made-up snapshots, in which arm and seed can be told."""
    numbers = [
        Snapshot(
            step=step,
            layers=LAYERS,
            measures={
                "kv_cka": [0.1 * arm + 0.01 * record.seed, 1.0],
                "entropy": [0.9 - step / 1000, 0.5],
                "k_rank": [20.0 + arm, 31.25],
                "attention_symmetry": [None, None],
            },
        )
        for step in (0, 50, 100)
    ]
    return record.model_copy(update={"snapshots": numbers})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("layers"))
    arms = fake_study.ARMS[:3]
    store.write_study(fake_study.info(arms, ("digits", "sort")))
    for record in fake_study.scored("digits", arms):
        store.write_run(with_snapshots(record, arms.index(record.variant)))
    for record in fake_study.scored("sort", arms):
        store.write_run(record)
    return view(store)


class _Balanced(HTMLParser):
    """Notes the tags that stay open; those that have no end are left out."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_course_is_the_mean_over_the_seeds_of_each_layer(study):
    digits = next(task for task in study.tasks if task.name == "digits")
    history = histories(digits)[2]
    assert (history.variant, history.seeds, history.steps) == ("q,k=v", 3, (0, 50, 100))
    assert history.measures["kv_cka"][-1] == pytest.approx([0.2 + 0.01, 1.0])
    assert history.measures["attention_symmetry"] == [[None, None]] * 3


def test_the_page_has_a_panel_for_each_layer_and_a_table_of_the_last_step(study):
    html = page.render(study)
    balanced = _Balanced()
    balanced.feed(html)
    assert balanced.open == []
    section = html[html.index('<details id="layers">') : html.index('<details id="limits"')]
    # Three measures of two layers, a line for each of three arms.
    assert section.count("<path d=") == 3 * 2 * 3
    assert "layer 1" in section
    assert "0.21 · 1.00" in section
    assert "20.0 · 31.2" in section
    # What applies to no arm has no column.
    assert '<th class="numeric">weights\' symmetry' not in section.replace("&#39;", "'")
    assert "sort" not in section


def test_the_summary_has_every_measure_of_every_step(study):
    tasks = {task["task"]: task for task in json.loads(summary.render(study))["tasks"]}
    assert tasks["sort"]["layers"] == []
    assert [arm["variant"] for arm in tasks["digits"]["layers"]] == list(fake_study.ARMS[:3])
    assert tasks["digits"]["layers"][0]["measures"]["k_rank"] == [[20.0, 31.25]] * 3


def test_a_study_without_snapshots_says_nothing_of_layers(tmp_path):
    quiet = view(fake_study.build(tmp_path))
    assert analyses(quiet) == ()
    assert 'id="layers"' not in page.render(quiet)


def test_text_of_a_record_is_escaped_in_the_figures(tmp_path):
    store = Store(tmp_path)
    arms = fake_study.ARMS[:3]
    store.write_study(fake_study.info(arms, ("digits",)))
    for record in fake_study.scored("digits", arms):
        hostile = with_snapshots(record, 0)
        named = [
            each.model_copy(update={"layers": ["<script>", "b"]}) for each in hostile.snapshots
        ]
        store.write_run(hostile.model_copy(update={"snapshots": named}))
    html = page.render(view(store))
    # The page's own script, and its data.
    assert html.count("<script") == 2
    assert "&lt;script&gt;" in html
