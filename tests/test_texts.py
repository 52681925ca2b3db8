"""What the texts tell a reader to type is understood, and what they name exists."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qkvbench import recipes
from qkvbench.cli.parser import parse_request
from qkvbench.reports import terminal
from qkvbench.results.stats import Tally
from qkvbench.results.store import Store
from qkvbench.results.view import view

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/own-data.md",
    "docs/reading-the-numbers.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "NOTES.md",
]
# A comment begins after a blank: the number sign in `my.txt#bpe-300` is a task's.
COMMAND = re.compile(
    r"^(?:\$ )?(?:\./qkv|qkvbench) (?!setup|test)(?P<words>(?:[^#\n]|(?<=\S)#)+)", re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def _commands(page):
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [found["words"] for block in blocks for found in COMMAND.finditer(block)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_a_text_is_understood(page):
    for line in _commands(page):
        parse_request(shlex.split(line))


def test_the_readme_shows_the_main_job():
    assert any(line.startswith("run quick") for line in _commands("README.md"))


def test_the_readme_s_python_runs():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_readme_s_table_is_what_its_records_say():
    printed = terminal.render(view(Store(ROOT / "studies" / "quick")))
    assert f"```\n{printed.rstrip()}\n```" in (ROOT / "README.md").read_text()


def test_the_readme_s_further_findings_are_what_their_records_say():
    counts = view(Store(ROOT / "studies" / "recall")).tasks[0].result.counts
    assert [counts[arm].solved for arm in ("q,k,v", "q,k=v", "q,k,v=R(k)")] == [20, 11, 11]
    quick = {task.name: task.result for task in view(Store(ROOT / "studies" / "quick")).tasks}
    assert [quick["recall"].counts[arm].solved for arm in ("q,k=v", "q=k=v")] == [2, 5]
    longer = {task.name: task.result for task in view(Store(ROOT / "studies" / "longer")).tasks}
    assert longer["recall"].counts["q,k=v"].solved == 4
    tied = longer["lm-reviews"].differences["q,k=v"]
    assert [round(each, 2) for each in (tied.value, tied.low, tied.high)] == [0.06, 0.02, 0.10]
    assert not longer["lm-reviews"].differences["q,k,v/1"].clear
    scores = {task.name: task.result for task in view(Store(ROOT / "studies" / "scores")).tasks}
    left = scores["lm-reviews"].differences["q=k=v-diag"]
    assert [round(each, 2) for each in (left.value, left.low, left.high)] == [0.12, 0.06, 0.19]
    assert round(scores["lm-reviews"].differences["q=k=v"].value, 2) == 0.33
    encoded = [scores["lm-reviews"].differences[arm].value for arm in ("q=k,v", "q=k,v+2d")]
    assert [round(each, 2) for each in encoded] == [0.22, 0.22]
    diagonal = view(Store(ROOT / "studies" / "diagonal")).tasks[0].result.differences
    tied, mended = diagonal["q=k,v"], diagonal["q=k,v-diag"]
    assert [round(each, 2) for each in (tied.value, tied.low, tied.high)] == [0.22, 0.20, 0.25]
    assert [round(each, 3) for each in (mended.value, mended.low, mended.high)] == [
        -0.004,
        -0.026,
        0.019,
    ]
    by_eight = view(Store(ROOT / "studies" / "fifteen-by-eight"))
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
    nulls = [task.same for task in view(Store(ROOT / "studies" / "catalogue")).tasks]
    differences = [same.difference for pair in nulls for same in pair if same.difference]
    assert [each.clear for each in differences] == [False, False, True]
    null = differences[2]
    assert [round(each, 3) for each in (null.value, null.low, null.high)] == [0.019, 0.012, 0.026]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_text_links_to_is_there(page):
    for target in LINK.findall((ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_place_in_the_architecture_s_tree_is_there():
    tree = (ROOT / "ARCHITECTURE.md").read_text().partition("## The tree")[2].partition("```")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", tree, re.MULTILINE)
    places = [place for cell in cells for place in re.findall(r"`([\w/.]+)`", cell)]
    for place in places:
        assert (ROOT / "src" / "qkvbench" / place).exists(), place
    packages = {path.parent.name for path in (ROOT / "src" / "qkvbench").glob("*/__init__.py")}
    assert packages == {place.split("/")[0] for place in places if place.endswith("/")}


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_s_caption_says_how_to_run_it_and_how_long_it_takes(name):
    caption = importlib.import_module(f"qkvbench.recipes.{name.replace('-', '_')}").__doc__
    assert f"Run       qkvbench run {name}\n" in caption
    assert "\nTakes     " in caption


@pytest.mark.slow
def test_the_tour_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "tour.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "q=k=v=x" in done.stdout


@pytest.mark.slow
def test_the_example_that_writes_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "write.py", "--steps", "5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a cache of int8" in done.stdout


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
