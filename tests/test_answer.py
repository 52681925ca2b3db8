"""The answer: one sentence and one line for each arm, in any terminal."""

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import fake_study
from qkvbench.reports import brief, page
from qkvbench.reports.parts import findings as findings
from qkvbench.reports.parts.headline import headline
from qkvbench.results.across import has_attention
from qkvbench.results.store import Store
from qkvbench.results.view import view

STUDIES = Path(__file__).parent.parent / "studies"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fake_study.build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(store):
    return view(store)


def scored_study(path, table, tasks=("digits",), seeds=5, noise=0.002):
    """A study whose arms lose so much on each task."""
    rng = np.random.default_rng(4)
    records = [
        fake_study.record(run, 0.9 - table[run.arm][tasks.index(task)] + noise * rng.normal())
        for task in tasks
        for run in fake_study.experiments(task, tuple(table), seeds)
    ]
    return fake_study.small(
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


def test_solved_seeds_have_no_interval_that_could_leave_room(tmp_path):
    records = [
        fake_study.record(run, 0.99, solved_step=400)
        for run in fake_study.experiments("recall", ("q,k,v", "q,k=v"), 5)
    ]
    arms, tasks = ("q,k,v", "q,k=v"), ("recall",)
    said = headline(
        fake_study.small(tmp_path, records, arms, tasks, seeds={"recall": 5}, cost_task="recall")
    )
    assert "5 of 5 seeds solve recall" in said
    assert "interval" not in said


def test_what_is_neither_lost_nor_excluded_is_not_decided(tmp_path):
    table = {"q,k,v": (0.0,), "q,k=v": (0.0,)}
    said = headline(scored_study(tmp_path / "noisy", table, noise=0.03, seeds=3))
    assert "is not seen to lose against `q,k,v` on the task, which is not decided on digits" in said
    assert "does not lose against" in headline(scored_study(tmp_path / "sure", table))


def test_a_size_that_is_not_zero_is_not_printed_as_zero():
    said = headline(view(Store(STUDIES / "minimal-found")))
    assert "0.00 " not in said


def test_an_arm_without_a_cache_has_a_state():
    study = view(Store(STUDIES / "rivals-longer"))
    said = "takes a state of fixed size in place of the cache and is better than `q,k,v`"
    assert said in headline(study)
    assert "state" in brief.render(study)


@pytest.mark.parametrize(
    ("arm", "attends"),
    [("none", False), ("none~rms", False), ("none;none", False), ("none;q,k,v", True)],
)
def test_an_arm_without_attention_keeps_no_state(arm, attends):
    assert has_attention(arm) == attends


def test_the_room_for_a_loss_is_the_worse_end_of_the_interval(tmp_path):
    study = scored_study(tmp_path, {"q,k,v": (0.0,), "q,k=v": (0.0,)})
    each = study.tasks[0].result.differences["q,k=v"]
    assert f"leave room for a loss of {-each.low:.3f} on digits" in headline(study)


def test_the_brief_report_has_one_line_for_each_arm_and_fits(study):
    lines = brief.render(study).splitlines()
    assert max(map(len, lines)) <= brief.WIDTH
    assert len(lines) <= 30
    for arm in fake_study.ARMS:
        assert sum(line.startswith(f" {arm} ") for line in lines) == 1
    row = next(line for line in lines if line.startswith(" q=k=v=x "))
    difference = study.tasks[3].result.differences["q=k=v=x"]
    assert f"+{difference.value:.2f}".replace("0.", ".") in row


def printed(study, width):
    file = StringIO()
    brief.print_answer(study, Console(file=file, width=width, color_system=None))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.fixture(scope="module")
def largest():
    """Fifteen arms on ten tasks."""
    return view(Store(STUDIES / "fifteen-by-eight"))


def test_fifteen_arms_on_ten_tasks_take_thirty_lines(largest):
    lines = printed(largest, 100)
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "…" not in text
    assert "Not shown" not in text
    for task in largest.tasks:
        assert task.name in text
    row = next(line for line in lines if line.startswith(" q,k=v "))
    # The signs and differences of all ten tasks, then cache and decode time.
    assert len(row.split()) == 13
    assert "▽+.06" in row
    assert "▽2/5" in row


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_the_table_is_as_wide_as_the_terminal_allows(largest, study, width):
    for each in (largest, study):
        lines = printed(each, width)
        assert max(map(len, lines)) <= width
        assert len(lines) <= (30 if width >= 100 else 40)
        told = "\n".join(lines)
        assert all(task.name in told.replace("\n ", " ") for task in each.tasks)
    assert ("±.10" in "\n".join(printed(largest, width))) == (width == 200)


def test_of_many_arms_those_with_the_fewest_losses_are_shown(tmp_path):
    arms = [f"q,k,v+window{count}" for count in range(2, 22)]
    table = {"q,k,v": (0.0,), "none": (0.7,)}
    table |= {arm: (0.2 if place % 2 else 0.0,) for place, arm in enumerate(arms)}
    lines = printed(scored_study(tmp_path, table), 100)
    shown = [line.split()[0] for line in lines if line.startswith((" q,k,v", " none"))]
    # In the study's order: all that lose nothing, and the first four of those that lose.
    assert shown == ["q,k,v", "none", *arms[:8], *arms[8::2]]
    assert " Not shown: 6 other arms, which lose on as many tasks or more." in lines


def test_a_narrow_terminal_gets_several_tables_and_no_shortened_cell(study):
    lines = printed(study, 40)
    assert "…" not in "\n".join(lines)
    assert sum(line.startswith(" q,k,v ") for line in lines) == 2


def test_a_terminal_without_unicode_still_tells_a_loss_from_a_gain(store):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-P", "-m", "qkvbench", "report", str(store.path)]
    out = subprocess.run(words, env=environment, capture_output=True, check=True).stdout.decode()
    assert "?" not in out
    assert "V A certain, v a likely; = ~ within the margin" in out
    assert re.search(r"v -\.\d+ /\.\d+ .* V \+\.\d+ /\.\d+", out)
    # A mark is one letter, so the columns are those of a terminal with Unicode.
    unicode = subprocess.run(words, capture_output=True, check=True).stdout.decode()
    assert [len(line) for line in out.splitlines()] == [len(line) for line in unicode.splitlines()]


def without(path, table, lost, **changes):
    """A study in which the runs of these (arm, task, seed) failed."""
    tasks = ("digits", "sort")
    study = scored_study(path, table, tasks, **changes)
    for run in study.runs:
        if (run.arm, run.task, run.seed) in lost:
            update = {"status": "oom", "metrics": {}, "curve": []}
            (path / "runs" / f"{run.id}.json").unlink()
            Store(path).write_run(run.model_copy(update=update))
    return view(Store(path))


ONE_LOSES = {"q,k,v": (0.0, 0.0), "q,k=v": (0.1, 0.1), "q=k=v": (0.0, 0.0), "none": (0.7, 0.7)}


def test_an_arm_that_is_not_complete_is_named_and_nothing_is_said_of_it(tmp_path):
    study = without(tmp_path / "one", ONE_LOSES, {("q=k=v", "sort", 1)})
    said = headline(study)
    assert said.startswith("Every complete arm with less of the parameters than `q,k,v` loses")
    assert said.endswith("Not complete: `q=k=v`.")
    lost = {("q=k=v", "sort", 1), ("q,k=v", "digits", 0)}
    study = without(tmp_path / "all", ONE_LOSES, lost)
    assert headline(study) == "No arm can be judged: none is complete on all 2 tasks compared."


def test_the_costs_of_another_task_serve_until_the_cost_task_is_complete(tmp_path):
    seeds = range(5)
    lost = {(arm, "digits", seed) for arm in ("q,k,v", "q=k=v") for seed in seeds}
    study = without(tmp_path, ONE_LOSES, lost)
    for run in study.runs:
        if (run.arm, run.task, run.seed) in lost:
            (tmp_path / "runs" / f"{run.id}.json").unlink()
    study = view(Store(tmp_path))
    assert study.cost_task == "digits"
    assert study.baseline not in study.costs
    assert headline(study).startswith("`q=k=v` (shared-qkv) takes")
    assert page.render(study)


def test_arms_that_are_not_shown_are_not_said_to_lose_if_they_are_not_complete(tmp_path):
    arms = [f"q,k,v+window{count}" for count in range(2, 22)]
    table = {"q,k,v": (0.0, 0.0)} | {arm: (0.1, 0.1) for arm in arms}
    study = without(tmp_path, table, {(arms[0], "sort", 1), (arms[1], "sort", 2)}, seeds=3)
    text = " ".join(brief.render(study).split())
    why = "3 other arms, which lose on as many tasks or more; 2 other arms, which are not complete."
    assert f"Not shown: {why}" in text
