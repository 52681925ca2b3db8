"""What the texts tell a reader to type is understood, and what they name exists."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qkvbench import recipes
from qkvbench.cli.parser import parse_request

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "NOTES.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
# A comment begins after a blank: the number sign in `my.txt#bpe-300` is a task's.
NOTATION = ROOT / "docs" / "notation.md"
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


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_the_readme_shows_the_main_job():
    assert any(line.startswith("run quick") for line in _commands("README.md"))


def test_the_readme_s_python_runs():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_text_links_to_is_there(page):
    for target in LINK.findall((ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_page_has_its_place_on_the_site():
    placed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(placed)


def _commands_module():
    """`docs/options.py`, which lies in no package."""
    spec = importlib.util.spec_from_file_location("options", ROOT / "docs" / "options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_ends_with_every_option_of_the_parser(capsys):
    """`python docs/options.py` writes it."""
    generated = _commands_module().options()
    written = _commands_module()
    assert NOTATION.read_text().endswith(written.suffix_table() + written.block_table())
    assert (ROOT / "docs" / "commands.md").read_text().endswith(generated)
    for part in generated.split("\n### ")[1:]:
        command, _, table = part.partition("\n")
        with pytest.raises(SystemExit):
            parse_request([command, "--help"])
        options = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out)) - {"--help"}
        assert options == set(re.findall(r"--[a-z][\w-]*", table)), command


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
