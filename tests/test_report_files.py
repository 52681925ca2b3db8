"""Reports as files: tables and figures for a paper, and where they are written."""

import csv
import errno
import os
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fake_study
from qkvbench.cli import main
from qkvbench.reports import brief
from qkvbench.reports.parts import answer_table, paper
from qkvbench.reports.parts import findings as findings
from qkvbench.reports.parts.formatting import value_and_half
from qkvbench.results.stats import Difference
from qkvbench.results.store import Store
from qkvbench.results.view import view

STUDIES = Path(__file__).parents[1] / "studies"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fake_study.build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(store):
    return view(store)


@pytest.mark.parametrize("text", [answer_table.markdown, answer_table.latex])
def test_every_arm_has_a_row_in_a_table_for_a_paper(study, text):
    rows = text(study).splitlines()
    for arm in fake_study.ARMS:
        written = f"`{arm}`" if text is answer_table.markdown else rf"\texttt{{{arm}}}"
        assert sum(f"{written} " in row for row in rows) >= 1
    widths = {len(re.findall(r"(?<!\\)[|&]", row)) for row in rows if arm in row}
    assert len(widths) == 1


def test_a_name_in_a_markdown_table_is_no_html_and_ends_no_cell():
    assert (
        answer_table._markdown("<img src=x>|a\\|b & c") == "&lt;img src=x&gt;\\|a\\\\\\|b &amp; c"
    )


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


def test_gaps_are_drawn_from_best_to_worst_and_no_attention_is_beyond_the_scale():
    quick = view(Store(STUDIES / "quick"))
    task = next(task for task in quick.tasks if task.name == "lm-reviews")
    root = ElementTree.fromstring(paper.files(quick)["lm-reviews-gaps-page.svg"])
    rows = [each for each in root.iter(f"{SVG}g") if "mark" in each.get("class")]
    drawn = {each.findall(f"{SVG}text")[0].text.split()[-1]: each for each in rows}
    gaps = {arm: each.value for arm, each in task.result.differences.items()}
    assert list(drawn) == sorted(gaps, key=gaps.get)
    dots = {arm: each.find(f"{SVG}circle") for arm, each in drawn.items()}
    beyond = {arm for arm, dot in dots.items() if dot is None}
    assert beyond == {arm for arm, gap in gaps.items() if gap > task.result.worth / 2}
    assert "none" in beyond
    places = {arm: float(dot.get("cx")) for arm, dot in dots.items() if dot is not None}
    assert sorted(places.values()) == list(places.values())
    # The same distance for the same difference.
    (first, *_, last) = places
    width = (places[last] - places[first]) / (gaps[last] - gaps[first])
    for arm, place in places.items():
        assert place - places[first] == pytest.approx(width * (gaps[arm] - gaps[first]), abs=0.1)


def test_a_file_for_a_paper_stays_in_its_folder(study):
    named = replace(study, tasks=(replace(study.tasks[0], name="../../a/b"),), cost_task=None)
    assert not any("/" in name or name.startswith(".") for name in paper.files(named))


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


def test_no_two_tildes_of_an_arm_strike_out_the_text_between_them():
    arm = "q,k,v~swiglu~q,k,v"
    assert answer_table._markdown_code(arm) == f"`{arm}`"


def test_an_interval_that_excludes_zero_is_not_printed_as_reaching_it():
    """Intervals of proportions are not symmetric: here from -0.13 to -0.01."""
    skewed = Difference(-0.056, low=-0.126, high=-0.0104, p=0.02)
    assert value_and_half(skewed, 3, "likely worse") == ("−0.056", "0.046")
    near = Difference(0.0414, low=0.0002, high=0.0826, p=0.049)
    assert value_and_half(near, 3, "likely worse") == ("+0.0414", "0.0412")
    # No verdict of a match says that zero is excluded.
    assert value_and_half(replace(skewed, p=0.5), 3, "matches") == ("−0.056", "0.058")


def test_a_side_of_an_interval_is_explained_below_the_table():
    text = brief.render(view(Store(STUDIES / "scores")))
    assert "▽ −.019 ±.015" in text
    assert answer_table.ONE_SIDED in " ".join(text.split())
