"""`query` answers SQL about the records of folders, and SQL reaches nothing else."""

import csv
import json
import os
import sys
from io import StringIO
from pathlib import Path

import pytest

from fake_study import ARMS, SEEDS, build
from qkvbench.cli import main
from qkvbench.results.store import Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("store")).path


@pytest.fixture
def ask(folder, capsys):
    """The rows of an answer, as JSON values."""

    def asked(question, *folders):
        assert main(["query", *map(str, folders or (folder,)), question, "--format", "json"]) == 0
        return json.loads(capsys.readouterr().out)

    return asked


def refusal(folder, question, capsys):
    assert main(["query", str(folder), question]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_every_run_is_a_row_with_what_its_record_says(ask, folder):
    rows = {row["id"]: row for row in ask("from runs")}
    records = Store(folder).runs().good
    assert set(rows) == {run.id for run in records}
    for run in records:
        row = rows[run.id]
        experiment = run.parsed_experiment
        assert row["variant"] == run.arm
        assert (row["task"], row["seed"], row["status"]) == (run.task, run.seed, run.status)
        assert row["score"] == run.metrics.get(run.metric.name)
        assert row["learning_rate"] == experiment.training.learning_rate
        assert row["parameters"] == run.cost.total_parameters
        assert row["cache_bytes"] == run.cost.cache_bytes_per_token


def test_curves_and_metrics_belong_to_their_runs(ask, folder):
    (row,) = ask(
        "select count(*) points from curves join runs on run = id where curves.metric = runs.metric"
    )
    assert row["points"] == sum(len(run.curve) for run in Store(folder).runs().good)
    (row,) = ask("select count(*) n from metrics join runs on run = id where value = score")
    assert row["n"] == sum(SEEDS.values()) * len(ARMS) - 1


def test_measurements_have_the_time_of_a_decode_step(ask, folder):
    measured = {each.arm: each.decode_p50_s for each in Store(folder).measurements().good}
    rows = ask("select variant, decode_p50_s from measurements")
    assert {row["variant"]: row["decode_p50_s"] for row in rows} == measured


def test_folders_are_told_apart_by_their_names(ask, folder, tmp_path):
    build(tmp_path, ("q,k,v", "q,k=v"), ("digits",))
    rows = ask("select folder, count(*) n from runs group by all", folder, tmp_path)
    assert {row["folder"]: row["n"] for row in rows} == {
        str(folder): sum(SEEDS.values()) * len(ARMS),
        str(tmp_path): 6,
    }


def test_without_a_question_the_tables_and_their_columns_are_listed(folder, capsys):
    assert main(["query", str(folder)]) == 0
    out = capsys.readouterr().out
    for text in ("runs:", "curves:", "measurements:", "learning_rate", "decode_p50_s", "select"):
        assert text in out
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_a_csv_has_no_text_that_a_spreadsheet_takes_for_a_formula(folder, capsys):
    assert main(["query", str(folder), "select '=1+1' x, -1 y", "--format", "csv"]) == 0
    assert list(csv.reader(StringIO(capsys.readouterr().out))) == [["x", "y"], ["'=1+1", "-1"]]


def test_a_long_table_says_how_many_rows_it_leaves_out(folder, capsys):
    assert main(["query", str(folder), "select range from range(250)"]) == 0
    assert "250 rows, of which 50 are not shown: --format csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    "question",
    [
        "copy runs to '{place}'",
        "attach '{place}'",
        "export database '{place}'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "pragma database_list",
        "insert into runs select * from runs",
        "select 1; copy runs to '{place}'",
        "from read_text('{here}')",
        "from read_csv('{here}')",
        "from '{here}'",
        "from glob('*')",
        "from sniff_csv('{here}')",
        "from duckdb_extensions()",
        "from json_execute_serialized_sql(json_serialize_sql('from ''{here}'''))",
        "from query('from read_text(''{here}'')')",
        "select getenv('HOME')",
        "from folders",
    ],
)
def test_no_question_reads_or_writes_a_file_or_a_setting(folder, tmp_path, capsys, question):
    place, here = tmp_path / "written", folder / "study.json"
    # A Python variable of that name, which duckdb would read by default.
    folders = [1, 2]
    assert folders
    error = refusal(folder, question.format(place=place, here=here), capsys)
    assert len(error.splitlines()) <= 6
    assert "SQL needs" not in error
    assert not place.exists()
    assert "qkvbench run" not in error


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("selec 1", "syntax error"),
        ("select nope from runs", "nope"),
        ("", "this is none"),
        ("-- nothing", "this is none"),
    ],
)
def test_a_wrong_question_is_answered_in_a_sentence(folder, capsys, question, said):
    assert said in refusal(folder, question, capsys)


def test_a_question_may_be_longer_than_the_name_of_a_file(ask, folder):
    assert ask(f"select 1 as one {' ' * 5000}") == [{"one": 1}]


def test_a_word_that_is_no_folder_is_named(folder, capsys):
    assert main(["query", "no/such/folder", "from runs"]) == 2
    assert "no/such/folder is not a folder of results" in capsys.readouterr().err
    assert main(["query", "from runs"]) == 2
    assert "from runs is not a folder of results" in capsys.readouterr().err


def test_without_duckdb_a_question_says_how_to_install_it(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert 'qkv-ablation-bench[sql]"' in refusal(folder, "from runs", capsys)
    # The tables are listed without it.
    assert main(["query", str(folder)]) == 0


def test_a_query_changes_no_file(folder, ask):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ask("from runs")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_row_of_more_columns_than_fit_is_printed_one_value_a_line(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["query", str(folder), "select * from runs limit 1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (task,) = (line.split() for line in lines if line.startswith("task "))
    assert task[1] in SEEDS
    assert lines[-1] == "1 row"


def test_columns_of_one_name_stay_apart_in_json(ask):
    assert ask("select 1 x, 2 x, 3 x_1, 4 x") == [{"x": 1, "x_2": 2, "x_1": 3, "x_3": 4}]


def test_json_has_numbers_in_lists_and_structures_and_none_that_it_does_not_know(ask):
    question = "select 0.5 a, ['nan'::double, 1] b, {'c': 'inf'::double} d, map {1: 0.25} e"
    assert ask(question) == [{"a": 0.5, "b": [None, 1], "d": {"c": None}, "e": {"1": 0.25}}]


def test_a_folder_whose_name_is_no_unicode_can_be_asked(tmp_path, capsys):
    place = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    build(Path(place), ("q,k,v",), ("digits",))
    assert main(["query", place, "select distinct folder from runs", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["folder"].endswith("bad\N{REPLACEMENT CHARACTER}")
