"""Fault 11: a request that cannot be met is a few lines that help, at once, and nothing has run."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import qkvbench.cli

LINES = 6


def table(folder, *lines):
    (folder / "own.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "own.csv")


def damaged_store(folder):
    """A folder whose only record is half a record."""
    (folder / "store" / "runs").mkdir(parents=True)
    (folder / "store" / "runs" / f"{'0' * 16}.json").write_text('{"schema_version": 1, "id"')
    return str(folder / "store")


RUN = ("run", "--variants", "q,k,v", "q,k=v", "--seeds", "1", "--tasks")
# What was written, given a folder with nothing in it; and what the answer must say.
REQUESTS = {
    "a command that is none": (lambda _: ["rnu", "quick"], ["rnu", "Did you mean run?"]),
    "a flag with a slip": (lambda _: ["run", "quick", "--sseds", "2"], ["--sseds", "--seeds"]),
    "a recipe with a slip": (lambda _: ["run", "qiuck"], ["qiuck", "Did you mean quick?"]),
    "a task with a slip": (lambda _: [*RUN, "digts"], ["digts", "Did you mean digits?"]),
    "a model that is none": (
        lambda _: [*RUN, "digits", "--model", "smal-decoder"],
        ["smal-decoder", "small-decoder"],
    ),
    "a precision that is none": (
        lambda _: [*RUN, "digits", "--precision", "bf61"],
        ["bf61", "Did you mean bf16?"],
    ),
    "a backend that is none": (
        lambda _: [*RUN, "digits", "--backend", "tourch"],
        ["tourch", "Did you mean torch?"],
    ),
    "a position that is none": (
        lambda _: ["show", "q,k=v", "--position", "rotory"],
        ["rotory", "rotary"],
    ),
    "a pooling that is none": (
        lambda _: [*RUN, "digits", "--pooling", "means"],
        ["means", "Did you mean mean?"],
    ),
    "a start that is none": (
        lambda _: [*RUN, "digits", "--start", "recal"],
        ["recal", "Did you mean recall?"],
    ),
    "no seeds": (lambda _: [*RUN, "digits", "--seeds", "0"], ["--seeds", "'0'"]),
    "seeds below nothing": (lambda _: [*RUN, "digits", "--seeds", "-3"], ["--seeds", "-3"]),
    "a number in words": (lambda _: [*RUN, "digits", "--jobs", "two"], ["--jobs", "'two'"]),
    "a count that is no whole number": (
        lambda _: [*RUN, "digits", "--micro-batches", "1e1"],
        ["--micro-batches", "'1e1'"],
    ),
    "an empty value": (lambda _: [*RUN, "digits", "--seeds", ""], ["--seeds", "''"]),
    "a variant that is no equation": (lambda _: ["show", "q,k=w"], ["q,k=w"]),
    "a variant with a slip in its name": (lambda _: ["show", "shard-kv"], ["shared-kv"]),
    "heads that do not divide": (
        lambda _: ["run", "--variants", "q,k,v/3", "--tasks", "digits", "--seeds", "1"],
        ["3", "4"],
    ),
    "roles of one root with other heads": (
        lambda _: ["run", "--variants", "q=k,v/1", "--tasks", "digits", "--seeds", "1"],
        ["q=k,v/1"],
    ),
    "a rotation of nothing": (lambda _: ["show", "q,k=R(v),v"], ["k=R(v)"]),
    "nothing at all": (lambda _: ["run"], ["quick"]),
    "a file that is not there": (lambda at: [*RUN, f"{at}/none.csv"], ["none.csv"]),
    "a table without a label": (
        lambda at: [*RUN, table(at, "a,b", "1,2", "3,4")],
        ["own.csv"],
    ),
    "an empty table": (lambda at: [*RUN, table(at)], ["own.csv"]),
    "results that are not there": (lambda at: ["report", f"{at}/none"], ["none"]),
    "results without a run": (lambda at: ["report", str(at)], ["no run"]),
    "a margin that is no number": (
        lambda at: ["report", damaged_store(at), "--margin", "1e-4x"],
        ["1e-4x"],
    ),
    "results in place of which a file lies": (
        lambda at: [*RUN, "digits", "--smoke", "--out", table(at, "text,label", "a,b")],
        ["own.csv"],
    ),
}


def answered(words):
    said, printed = io.StringIO(), io.StringIO()
    with redirect_stderr(said), redirect_stdout(printed):
        code = qkvbench.cli.main(words)
    return code, said.getvalue(), printed.getvalue()


@pytest.mark.parametrize(("write", "said"), REQUESTS.values(), ids=list(REQUESTS))
def test_a_wrong_request_is_answered_in_a_few_lines_that_help(write, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, answer, printed = answered(write(tmp_path))
    assert code == 2, answer
    assert printed == ""
    assert 0 < len(answer.splitlines()) <= LINES, answer
    assert "Traceback" not in answer
    for word in said:
        assert word in answer
    assert not (tmp_path / "results").exists()


def test_no_wrong_request_imports_a_framework(tmp_path):
    """In one process, one after the other: what one had imported would be seen."""
    program = f"""
import sys, json
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from faults.test_11_wrong_requests import REQUESTS, answered
found = {{}}
for number, (name, (write, _)) in enumerate(REQUESTS.items()):
    folder = Path({str(tmp_path)!r}) / str(number)
    folder.mkdir()
    answered(write(folder))
    found[name] = sorted({{"torch", "jax", "transformers"}} & sys.modules.keys())
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    imported = json.loads(done.stdout)
    assert len(imported) >= 25
    assert not any(imported.values()), imported
