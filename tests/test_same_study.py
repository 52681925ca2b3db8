"""A folder of results goes on with its study; another one is refused unless it is asked for."""

import pytest

from qkvbench.cli import main
from qkvbench.cli.parser import parse_request
from qkvbench.cli.run import requested_study
from qkvbench.results.continuing import difference
from qkvbench.results.store import Store
from qkvbench.sweep.study import info

FOUR = "--variants q,k,v q,k=v q=k,v none"
WHOLE = f"run quick {FOUR}"


def info_of(words):
    """The description that a folder gets from `qkvbench` with these words."""
    return info(requested_study(parse_request(words.split())), command=words)


@pytest.mark.parametrize(
    "words",
    [
        WHOLE,
        f"{WHOLE} --seeds 9",
        f"{WHOLE} --seeds 1",
        f"{WHOLE} --tasks sort",
        f"{WHOLE} --tasks sort digits",
        f"{WHOLE} q=k=v",
        "run quick --variants q,k,v none",
    ],
)
def test_other_seeds_tasks_or_arms_are_the_same_study(words):
    assert difference(info_of(WHOLE), info_of(words)) is None
    assert difference(info_of(words), info_of(WHOLE)) is None


def test_two_parts_without_a_common_task_are_the_same_study():
    one, other = (f"{WHOLE} --tasks {task}" for task in ("sort", "recall"))
    assert difference(info_of(one), info_of(other)) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"run heads {FOUR} --tasks sort", "its name is quick, not heads"),
        (f"run {FOUR} --tasks sort", "its name is quick, not study"),
        (f"{WHOLE} --smoke", "its name is quick, not quick-smoke"),
        (f"{WHOLE} --precision bf16", "its precision is fp32, not bf16"),
        (f"{WHOLE} --tune lr", "its learning rates are the tasks' own"),
        (f"{WHOLE} --model small-decoder --tasks lm-reviews", "have another model, training"),
        (f"{WHOLE} --position alibi", "have another model, training or version"),
        ("run quick --variants q,k=v q,k,v q=k,v none", "its baseline is q,k,v, not q,k=v"),
        (
            "run quick --variants q,k,v q=k=v",
            "it has none, q,k=v, q=k,v, which this one has not, and not q=k=v",
        ),
    ],
)
def test_what_changes_the_runs_or_cannot_be_joined_is_another_study(words, said):
    assert said in difference(info_of(WHOLE), info_of(words))


def test_a_folder_of_another_study_is_refused_unless_it_is_to_be_replaced(tmp_path, capsys):
    store = Store(tmp_path)
    store.write_study(info_of(WHOLE))
    before = (tmp_path / "study.json").read_bytes()
    other = ["run", "--variants", "q,k,v", "--tasks", "sort", "--seeds", "1", "--smoke"]
    other += ["--out", str(tmp_path)]
    for more in ([], ["--dry-run"]):
        assert main([*other, *more]) == 2
        said = capsys.readouterr().err
        assert f"{tmp_path} has another study, quick: its name is quick" in said
        assert "--replace" in said
    assert (tmp_path / "study.json").read_bytes() == before
    assert main([*other, "--dry-run", "--replace"]) == 0
    assert main([*WHOLE.split(), "--dry-run", "--out", str(tmp_path)]) == 0
