"""A report shows everything in its store and nothing else."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fake_study
from qkvbench import reports
from qkvbench.cli import main
from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.experiment import to_json
from qkvbench.reports import brief, full, page, summary
from qkvbench.reports.parts import findings as findings
from qkvbench.reports.parts import paper, picture
from qkvbench.reports.parts.caveats import limits
from qkvbench.reports.parts.formatting import size
from qkvbench.results.resampling import ItemBounds
from qkvbench.results.stats import Comparison, Tally
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.task_ref import parse_task, short_names
from report_texts import data_of, printed, said

STUDIES = Path(__file__).parent.parent / "studies"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fake_study.build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(store):
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
    halved = fake_study.small(tmp_path, runs, fake_study.ARMS[:2], ("sort",), cost_task="sort")
    assert "Runs in bf16, compiled." in full.render(halved)


def test_a_run_that_diverged_is_in_its_row_and_its_reason_below(study):
    text = printed(study, 120)
    assert "1 of 3 seeds diverged" in text
    assert "lm-reviews: q=k=x,v seed 1 diverged: the loss was not a number at step 214" in text


def test_runs_that_failed_for_one_reason_share_a_line(tmp_path):
    lost = {"status": "failed", "metrics": {}, "curve": [], "reason": "no data\nTraceback"}
    records = [each.model_copy(update=lost) for each in fake_study.scored("digits")]
    text = printed(fake_study.small(tmp_path, records, arms=fake_study.ARMS), 120)
    assert "digits: all 24 runs failed: no data\n" in text


def test_an_arm_without_a_record_is_a_row_of_its_own(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:2])
    study = fake_study.small(tmp_path, records, arms=fake_study.ARMS[:3])
    assert "3 missing" in printed(study, 120)
    assert "no record" in page.render(study)


def test_an_encoder_has_a_dash_for_its_cache_and_no_cache_plot(tmp_path):
    study = fake_study.small(tmp_path, fake_study.scored("digits", fake_study.ARMS[:3]))
    assert picture.picture(study, study.tasks[0], "cache", picture.WIDE) is None
    assert "0 B" not in printed(study, 120)
    assert data_of(page.render(study))["axes"]["cache"] == []


def test_runs_of_another_budget_are_not_mixed_in(tmp_path):
    longer = [
        replace(each, training=replace(each.training, steps=5))
        for each in fake_study.experiments("digits", fake_study.ARMS[:1])
    ]
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = fake_study.small(
        tmp_path, [*records, *(fake_study.record(each, 0.2) for each in longer)]
    )
    assert study.others == 3
    assert len(study.runs) == 9
    assert study.tasks[0].steps != 5


def test_only_runs_that_were_asked_for_belong_to_a_study(tmp_path):
    records = fake_study.scored("digits", fake_study.ARMS[:3])
    study = fake_study.small(tmp_path, records, runs=[each.id for each in records if each.seed < 2])
    assert [cell.missing for cell in study.tasks[0].cells] == [(2,)] * 3


def test_a_store_without_its_study_still_has_a_report(tmp_path):
    fake_study.small(tmp_path, fake_study.scored("digits", fake_study.ARMS[:3]))
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


def test_brackets_in_the_path_of_a_task_are_not_markup(study):
    # Brackets would be markup: a path could hide itself, be a link, or end the report in an error.
    path = "./[bold]a[link=x]b[c].txt"
    named = replace(study, tasks=(replace(study.tasks[0], label=path),), cost_task=None)
    head, _, _ = full.render(named).partition("canonical")
    assert path in head


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


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["sort", "../anna/a.txt#bpe-300"], ["sort", "a.txt#bpe-300"]),
        (["./en/train.txt", "./de/train.txt", "x/dev.txt"], ["en/train.txt", "de/train.txt"]),
        (["a/x/t.txt", "b/x/t.txt", "b/y/t.txt"], ["a/x/t.txt", "b/x/t.txt", "y/t.txt"]),
        (["./sort", "sort", "./a.txt", "a.txt"], ["./sort", "sort", "./a.txt", "a.txt"]),
    ],
)
def test_a_path_has_as_many_folders_as_make_its_name_unique(names, short):
    assert list(short_names(names).values())[: len(short)] == short


def of_tasks(names):
    """Records of lm-reviews under the names of files."""
    for record in fake_study.scored("lm-reviews", fake_study.ARMS[:3]):
        for name in names:
            run = replace(record.parsed_experiment, task=parse_task(name))
            update = {"id": run.id, "task": name, "experiment": to_json(run)}
            yield record.model_copy(update=update)


def test_two_files_of_one_name_are_told_apart_in_every_report(tmp_path):
    files = ("./en/train.txt", "../anna/corpora/de/train.txt")
    changes = {"tasks": list(files), "seeds": dict.fromkeys(files, 3), "cost_task": files[0]}
    store = Store(tmp_path)
    store.write_study(fake_study.info(fake_study.ARMS[:3], ("digits",)).model_copy(update=changes))
    for record in of_tasks(files):
        store.write_run(record)
    study = view(store)
    texts = paper.files(study)
    html = page.render(study).partition('id="data">')[0]
    for text in (brief.render(study), full.render(study), html, texts["table.md"]):
        assert {"en/train.txt", "de/train.txt"} <= set(re.findall(r"[\w/]+/train.txt", text))
        assert "anna" not in text
    assert "on de/train.txt" in texts["de_train.txt-gaps-page.svg"]


def stored(path, seeds, changed):
    """A store without study.json whose runs have these seeds; one of them may differ."""
    store = Store(path)
    for number, run in enumerate(fake_study.experiments("digits", fake_study.ARMS[:2], 2)):
        store.write_run(fake_study.record(replace(run, seed=seeds[run.seed]), 0.9 + number / 100))
    if changed is not None:
        (run, *_) = fake_study.experiments("digits", fake_study.ARMS[:2], 1)
        store.write_run(fake_study.record(replace(run, seed=changed), 0.9))
    return view(store)


@pytest.mark.parametrize(
    ("seeds", "tuned", "others"), [((42, 43), None, 0), ((2024, 7000), None, 0), ((3, 4), 1000, 1)]
)
def test_without_a_study_the_seeds_are_those_of_the_runs(tmp_path, seeds, tuned, others):
    study = stored(tmp_path, seeds, tuned)
    assert study.tasks[0].result.seeds == seeds
    assert study.tasks[0].result.standing == "compared"
    note = "Not in the table: 1 other run in this folder, which is not of this study."
    assert (note in brief.render(study)) == bool(others)
    assert study.others == others


@pytest.mark.parametrize("words", [["--full"], ["--as", "brief"]])
def test_on_a_terminal_a_report_is_as_wide_as_that(tmp_path, capsys, monkeypatch, words):
    fake_study.build(tmp_path)
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["report", str(tmp_path), *words]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 70


def test_a_margin_of_sizes_is_never_printed_as_zero():
    assert size(0.0017, 2) == "0.002"
    assert size(0.0, 2) == "0.00"
    assert " .00 " not in brief.render(view(Store(STUDIES / "minimal-found")))


def test_a_reader_that_stops_after_a_line_is_no_failure(tmp_path):
    store = fake_study.build(tmp_path, tasks=("digits",))
    given = ["compare", str(store.path), "q,k,v", "q,k=v"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-P", "-m", "qkvbench", *given]
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, b"Error" in ended.stderr) == (0, False)
