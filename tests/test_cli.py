"""The command line answers what it is asked, and says what to write instead of what it is not."""

import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from multiprocessing import forkserver

import pytest

import fake_study
from faults.sweeps import alive, family, start, under_way, until
from qkvbench import recipes, reports, tasks
from qkvbench.backends.torch.kernels.contract import PROFILER_NAME
from qkvbench.cli import ls, main, names
from qkvbench.cli.parser import parse_request
from qkvbench.cli.progress import StudyProgress
from qkvbench.cli.run import default_folder, requested_study
from qkvbench.experiment import from_json, to_json
from qkvbench.model import POSITIONS, Learned, position_named, position_written
from qkvbench.reports.parts import headline
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.variant import Own, parse

RUN = [sys.executable, "-m", "qkvbench"]


@pytest.fixture
def fresh_fork_server():
    """A fork server that begins in the test: it keeps the environment with which it begins."""
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


def test_a_variant_is_shown_with_what_is_computed_of_it(capsys):
    assert main(["show", "shared-kv", "--model", "gpt-300m", "--tokens", "2048", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["variant"] == "q,k=v"
    assert shown["model"] == "gpt-300m"
    assert shown["position"] == "learned"
    assert shown["parameters"]["total"] == 284_542_976
    assert shown["flops"] == 2 * shown["macs"]
    assert shown["cache"] == {
        "tensors": 20,
        "bytes_per_token": 40 * 2**10,
        "state_bytes": 0,
    }


@pytest.mark.parametrize(
    "variant",
    ["q,k,v", "q,k=R(q),v=R(q)", "q=k=v=x", "q,k,v/1", "q,k=v+qknorm", "q=k,v+2d-diag", "q=k=v++"],
)
def test_a_picture_names_the_matrices_that_exist_and_what_a_cache_keeps(variant, capsys):
    assert main(["show", variant]) == 0
    text = capsys.readouterr().out
    assert ("W_q" in text) == (parse(variant).q == Own())
    assert "The cache keeps" in text
    for role in "QKV":
        assert f"▶ {role}" in text


@pytest.mark.parametrize(
    ("variant", "program"),
    [
        ("q,k=v/2+window64+gate+ropellama8", "The native kernel decodes on a CPU."),
        ("q,k,v+softcap50+sinklogit", "has no sink logit, no soft cap on scores."),
        ("q,k,v+valuedim8", "has no cached K and V of two shapes."),
        ("q,k,v+keydim12+valuedim12", "has no rows of 12 numbers in bf16."),
    ],
)
def test_a_picture_says_which_program_decodes_and_why(variant, program, capsys):
    assert main(["show", variant]) == 0
    assert program in capsys.readouterr().out


def test_a_picture_says_what_positions_and_suffixes_do(capsys):
    assert main(["show", "q,k=v+qknorm++-diag", "--position", "rotary-inverse"]) == 0
    text = capsys.readouterr().out
    assert "┬── norm ── ·s_k ── RoPE ──▶ K" in text
    assert "softmax(a·Q·Kᵀ + g(distance))·V, no token on itself ── inverse RoPE ── W_o" in text
    # V is taken before the norm and gets RoPE: one tensor does not serve both.
    assert "two tensors: K as k normed, scaled and rotated by RoPE, and V as k rotated" in text
    assert main(["show", "q,k=v", "--position", "alibi"]) == 0
    assert "m_head·distance" in capsys.readouterr().out


@pytest.mark.parametrize("text", [*POSITIONS, "rotary/0.25", "rotary-inverse/0.5"])
def test_positions_are_written_as_they_are_read(text):
    assert position_written(position_named(text, 7)) == text


def test_the_first_name_of_a_scheme_is_still_read():
    assert position_written(position_named("turned-back/0.5", 7)) == "rotary-inverse/0.5"


def test_a_study_runs_with_the_positions_that_are_asked_for():
    request = parse_request(["run", "quick", "--position", "learned"])
    models = {str(run.task): run.model for run in requested_study(request).experiments()}
    for name, model in models.items():
        assert model.position == Learned(tasks.find(name).tokens)


@pytest.mark.parametrize("what", ls.LISTS)
def test_lists_are_json_with_name_and_about(what, capsys):
    assert main(["ls", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["name"] and row["about"] for row in rows)
    assert main(["ls", what]) == 0
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in rows)


def test_tasks_are_listed_with_what_they_are_judged_by(capsys):
    main(["ls", "tasks", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["digits"]["chance"] == 0.1
    assert rows["lm-reviews"]["metric"] == "bits_per_byte"
    assert all({"tier", "benchmark", "metric", "chance"} <= set(row) for row in rows.values())


def test_the_places_of_a_task_s_attention_are_listed_and_no_other_can_be_named(capsys):
    main(["ls", "tasks", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sort"]["places"] == ["self"]
    for arm, said in {
        "q,k=v@cross": "names the attention site 'cross'; sort has self",
        "q,k=v|q=k,v@self": "needs sites of its own",
        "q,k=w@self": "lists the ones with names",
    }.items():
        assert main(["run", "--variants", "q,k,v", arm, "--tasks", "sort", "--dry-run"]) == 2
        assert said in capsys.readouterr().err
    arm = "shared-kv@self"
    assert main(["run", "--variants", "q,k,v", arm, "--tasks", "sort", "--dry-run"]) == 0
    assert "q,k=v@self" in capsys.readouterr().out


def test_a_list_that_is_no_terminal_s_breaks_sentences_and_nothing_else(capsys):
    assert main(["ls", "tasks"]) == 0
    printed = capsys.readouterr().out
    assert "bits_per_byte" in printed
    assert "Name a handwritten digit" in printed
    assert max(map(len, printed.splitlines())) <= ls.WIDTH


def test_own_data_and_their_tokenizers_have_models_that_can_be_measured(tmp_path):
    (tmp_path / "my.txt").write_text("\n\n".join(f"Paragraph {n}, {n * n}." for n in range(2000)))
    path = str(tmp_path / "my.txt")
    assert names.model_or_task(path).name == "own-text"
    assert names.model_or_task("recall") == tasks.find("recall").model
    assert names.model_or_task(f"{path}#bpe-300").architecture.vocabulary == 300


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quick", "--dry-run"]) == 0
    count = len(recipes.find("quick").experiments())
    assert f"{count} runs" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_no_files_either(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quick", "--dry-run", "--files", "files"]) == 0
    assert "quick: " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_forecast_is_of_the_same_model_or_is_not_known(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("\n\n".join(f"Paragraph {n}, {n * n}." for n in range(2000)))
    own = ["--variants", "q,k,v", "--tasks", "./my.txt"]
    for words in (["lm-plays", "--model", "gpt-1.2b"], own, [*own, "--seeds", "1"]):
        named = words if words[0].startswith("--") else ["--variants", "q,k,v", "--tasks", *words]
        assert main(["run", *named, "--dry-run", "--out", "out"]) == 0
        printed = capsys.readouterr().out
        assert "Takes  not known: no record of" in printed
        assert "about" not in printed
    # One run that has ended is enough to know how long the others take.
    study = requested_study(parse_request(["run", *own]))
    Store(tmp_path / "out").write_run(record_of_own(study.experiments()[0]))
    assert main(["run", *own, "--dry-run", "--out", "out"]) == 0
    assert "Takes  about " in capsys.readouterr().out


def record_of_own(experiment):
    """A record of a task that is not one of the built-in ones."""
    sort = fake_study.record(fake_study.experiments("sort")[0])
    return sort.model_copy(
        update={
            "id": experiment.id,
            "experiment": to_json(experiment),
            "model": experiment.model.label,
            "task": str(experiment.task),
            "task_version": experiment.task_version,
            "variant": experiment.variant,
            "seed": experiment.seed,
        }
    )


def test_parts_that_differ_in_size_are_named(capsys):
    assert main(["run", "quick", "--dry-run", "--micro-batches", "4"]) == 0
    assert "Parts" not in capsys.readouterr().out
    assert main(["run", "quick", "--dry-run", "--micro-batches", "7"]) == 0
    batches = {each.training.batch for each in recipes.find("quick").experiments()}
    printed = capsys.readouterr().out
    for batch in batches:
        sizes = sorted({-(-batch // 7), batch // 7})
        assert f"a batch of {batch} is computed in 7 parts of {sizes[0]} or {sizes[1]}" in printed


def test_two_names_of_one_arm_are_said_to_be_one(capsys):
    words = ["run", "--tasks", "sort", "--dry-run", "--variants"]
    assert main([*words, "q,k,v", "q,k=v", "shared-kv"]) == 0
    said = capsys.readouterr()
    assert said.err == "q,k=v and shared-kv are one arm, q,k=v; it runs once.\n"
    assert "Arms   q,k,v   q,k=v\n" in said.out
    assert main([*words, "q,k,v", "q,k=v"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", ["1", "words", "20"])
def test_a_list_in_a_narrow_terminal_has_no_broken_words(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["ls", "recipes"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b[" in printed
    assert max(map(len, printed.splitlines())) >= ls.LEAST_WIDTH - 10
    assert len(printed.splitlines()) <= 3 * len(recipes.names())


def test_a_folder_that_cannot_have_a_page_has_its_table(tmp_path, capsys):
    fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits",))
    (tmp_path / "report.html").mkdir()
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "q=k,v" in said.out
    assert "No page: " in said.err
    assert f"'qkvbench report {tmp_path} --out FILE' writes it elsewhere" in said.err
    assert main(["report", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_page_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits",))
    (tmp_path / "report.html").write_text("the page of before")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qkvbench.results.store.os.fsync", full)
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text() == "the page of before"
    assert list(tmp_path.glob(".*")) == []


def test_a_record_of_a_newer_version_is_said_to_be_newer(tmp_path, capsys):
    store = fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits",))
    newer = next(path for path in (tmp_path / "runs").iterdir() if path.stem != f"{0:016x}")
    newer.write_text('{"schema_version": 2}')
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert f"Newer, not modified: {newer}: A newer version of this program wrote it" in said
    # A run would replace the description of a study that it cannot read.
    (tmp_path / "study.json").write_text('{"schema_version": 2}')
    assert main(["run", "quick", "--dry-run", "--out", str(store.path)]) == 2
    assert "A newer version of this program wrote it" in capsys.readouterr().err


def test_arms_without_the_native_kernel_are_named_if_others_have_it(tmp_path, capsys):
    assert headline.NATIVE == PROFILER_NAME
    store = fake_study.build(tmp_path, fake_study.ARMS[:3], ("lm-reviews",))
    line, good = "Decode: without the native kernel", store.measurements().good
    cpu = good[0].machine.model_copy(update={"device": "cpu"})
    for measured in good:
        store.write_measurement(measured.model_copy(update={"machine": cpu}))
    assert main(["report", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert line not in said
    assert "Decode: by torch, for want of the native kernel" in said
    for measured in store.measurements().good[:2]:
        native = measured.model_copy(update={"kernel": f"{PROFILER_NAME} (fp32, avx2)"})
        store.write_measurement(native)
    (other,) = store.measurements().good[2:]
    assert main(["report", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{line}, so their time is of another program: {other.arm}." in said
    assert "for want of" not in said


def test_a_small_study_runs_to_a_table_and_a_page_and_reports_again_from_the_store(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["--variants", "q,k,v", "shared-kv", "--tasks", "digits", "recall", "--smoke"]
    assert main(["run", *words, "--seeds", "1", "--out", "out"]) == 0
    printed, said = capsys.readouterr()
    assert said.startswith("4 runs begin; the time left is known once one has ended.\n")
    assert re.search(r"^\[1/4\] .* \(about .*s left\)$", said, re.MULTILINE)
    assert re.search(r"^\[4/4\] .*s$", said, re.MULTILINE)
    assert "q,k=v" in printed
    assert "Learning rate: one for all arms" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "q,k=v" in page
    (tmp_path / "out" / "report.html").unlink()

    assert main(["report", "out"]) == 0
    assert capsys.readouterr().out == printed
    assert (tmp_path / "out" / "report.html").read_text() == page

    # A damaged record is named and left alone; nothing else is lost.
    record = next((tmp_path / "out" / "runs").glob("*.json"))
    record.write_text(record.read_text()[:100])
    for strict, status in (([], 0), (["--strict"], 1)):
        assert main(["report", "out", *strict]) == status
        assert record.name in capsys.readouterr().err
    assert len(record.read_text()) == 100
    assert main(["run", *words, "--seeds", "1", "--out", "out"]) == 0
    assert "3 of 4 runs are done already" in capsys.readouterr().err
    assert record.with_name(f"{record.name}.damaged").exists()


def test_the_page_is_written_even_if_nobody_reads_the_table(tmp_path, monkeypatch):
    fake_study.build(tmp_path / "store", fake_study.ARMS[:2], ("digits",))
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        assert main(["report", str(tmp_path / "store")]) == 0
    assert (tmp_path / "store" / "report.html").stat().st_size > 10_000


def test_a_store_of_someone_else_s_does_not_steer_the_terminal(tmp_path, capsys):
    store = fake_study.build(tmp_path, fake_study.ARMS[:3], ("sort", "recall"))
    evil = "\x1b[2J"
    study = store.study().model_copy(update={"name": evil, "tasks": ["sort", evil]})
    store.write_study(study.model_copy(update={"seeds": {"sort": 3, evil: 3}}))
    for run in fake_study.scored("sort", fake_study.ARMS[:3]):
        changed = {**run.experiment, "task": evil}
        name = from_json(changed).id
        update = {"task": evil, "experiment": changed, "id": name}
        store.write_run(run.model_copy(update=update))
    (tmp_path / "runs" / f"{1:016x}.json").write_text(
        json.dumps({"schema_version": 1, evil: 1}), encoding="utf-8"
    )
    for words in (
        ["report", str(tmp_path)],
        ["plan", str(tmp_path)],
        ["plan", str(tmp_path), "--margin", "none=1"],
        ["compare", str(tmp_path), "q,k,v", "q,k=v"],
        ["claims", str(tmp_path)],
    ):
        main(words)
        told = capsys.readouterr()
        assert told.out or told.err
        assert "\x1b" not in told.out + told.err, words


def test_letters_that_a_terminal_lacks_are_replaced(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["show", "q,k=v"]) == 0
    terminal.flush()
    assert b"softmax" in terminal.buffer.getvalue()


@pytest.fixture(name="experiment")
def _experiment(tmp_path, monkeypatch):
    """The content of the file of an experiment."""
    monkeypatch.chdir(tmp_path)
    words = ["--variants", "q,k=v", "--tasks", "digits", "--seeds", "1", "--smoke"]
    assert main(["run", *words, "--files", "files"]) == 0
    (path,) = (tmp_path / "files").iterdir()
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda experiment: "[" * 100_000, "it is not JSON"),
        (lambda experiment: {**experiment, "threads": 0}, "1 or more threads"),
        (lambda experiment: {**experiment, "task": "./gone.txt"}, "gone.txt"),
        (
            lambda experiment: {
                **experiment,
                "training": {**experiment["training"], "clip": math.inf},
            },
            "training: clip is inf",
        ),
    ],
    ids=["nested", "threads", "gone", "infinite"],
)
def test_an_experiment_that_cannot_run_is_refused_in_words(
    change, said, experiment, tmp_path, capsys
):
    content = change(experiment)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert main(["train", "x.json", "--out", "out"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) <= 6
    assert not (tmp_path / "out").exists()


def test_a_store_that_cannot_be_written_is_refused_before_anything_is_trained(
    experiment, tmp_path, capsys, monkeypatch
):
    def train(*words, **options):
        raise AssertionError

    monkeypatch.setattr("qkvbench.train.dependencies.run_with_dependencies", train)
    (tmp_path / "x.json").write_text(json.dumps(experiment), encoding="utf-8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").write_text("in the way", encoding="utf-8")
    assert main(["train", "x.json", "--out", "out"]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_a_probe_leaves_an_empty_store(tmp_path):
    Store(tmp_path / "out").make_writable()
    assert [*(tmp_path / "out").rglob("*")] == [tmp_path / "out" / "runs"]


@pytest.mark.parametrize(
    ("words", "closed", "status"),
    [("ls positions", ">&-", 0), ("ls bogus", "2>&-", 2), ("ls bogus", ">&- 2>&-", 2)],
)
def test_what_is_printed_to_a_closed_stream_goes_nowhere(words, closed, status):
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m qkvbench {words} {closed}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_fork_server")
def test_a_study_with_a_run_that_fails_prints_its_row_and_ends_with_1(
    tmp_path, monkeypatch, capsys
):
    # A cache that can be used, as it seems: the folder is in the way of a file.
    (tmp_path / "cache" / "lock").mkdir(parents=True)
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["run", "--variants", "q,k,v", "--tasks", "lm-reviews", "recall", "--smoke"]
    assert main([*words, "--seeds", "1", "--out", str(out)]) == 1
    printed, said = capsys.readouterr()
    assert "lm-reviews cannot run. The cache folder" in said
    assert " failed: " in printed
    assert (out / "report.html").exists()
    assert {run.task: run.status for run in Store(out).runs().good} == {
        "lm-reviews": "failed",
        "recall": "done",
    }
    assert main(["report", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {task["task"] for task in shown["tasks"]} == {"lm-reviews", "recall"}


def test_another_study_gets_another_folder_and_more_seeds_do_not():
    others = ["--precision bf16", "--precision fp16", "--compile", "--checkpointing"]
    others += ["--micro-batches 2", "--variants q,k,v"]
    plain, more_seeds, *places = (
        default_folder(requested_study(parse_request(["run", "quick", *words.split()])))
        for words in ("", "--seeds 9", *others)
    )
    assert plain == more_seeds == "quick"
    assert len({plain, *places}) == 1 + len(others)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    return fake_study.build(place, fake_study.ARMS[:3], ("digits", "lm-reviews"))


@pytest.mark.parametrize("name", reports.names())
def test_every_report_can_be_asked_for_by_name(name, store, capsys):
    assert main(["report", str(store.path), "--as", name]) == 0
    assert capsys.readouterr().out == reports.find(name).render(view(store))


def test_a_dry_run_says_how_runs_are_carried_out(capsys, monkeypatch):
    # It compiles nothing, so any program is compiler enough.
    monkeypatch.setenv("CXX", sys.executable)
    words = ["--precision", "fp16", "--compile", "--checkpointing", "--micro-batches", "2"]
    assert main(["run", "quick", "--dry-run", *words]) == 0
    said = capsys.readouterr().out
    assert "fp16, compiled, checkpointing, 2 micro-batches" in said
    words = ["--variants", "q,k,v", "--tasks", "lm-reviews", "--quantize", "int8", "w4"]
    assert main(["run", *words, "--rates", "studies/quick-tuned", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "scored again with int8, w4" in said
    assert "of quick-tuned, which were tuned" in said


def test_compiling_without_a_compiler_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["run", "--variants", "q,k,v", "--tasks", "digits", "--smoke", "--compile"]) == 2
    said = capsys.readouterr().err
    assert "'no-such-compiler' is not here" in said
    assert "Run without --compile" in said
    assert len(said.strip().splitlines()) <= 6
    assert list(tmp_path.iterdir()) == []


# What a compiled step must not do: compile. Places are scored in another number each time.
RECOMPILED = """
import numpy as np, torch
from qkvbench import tasks
from qkvbench.backends.torch import Learner, prepare
from qkvbench.data.batch import IGNORE_INDEX, Batch
from qkvbench.experiment import Experiment, Training
from qkvbench.task_ref import TaskRef

prepare(1)
training = Training(steps=1, batch=5, learning_rate=1e-3, warmup=0, dropout=0.1, micro_batches=2)
task = tasks.find("recall")
wanted = Experiment(task.model, TaskRef("recall"), 1, training, seed=0, compiled=True)
batch = task.load().train.batch(np.arange(5))
learner, fresh = Learner(wanted), Learner(wanted)
before = {name: value.clone() for name, value in learner.weights().items()}
draws = torch.get_rng_state()
learner.warm_up(batch)
assert torch.equal(torch.get_rng_state(), draws)
assert all(torch.equal(value, before[name]) for name, value in learner.weights().items())
assert all(each.grad is None for each in learner.network.parameters())
torch._dynamo.config.error_on_recompile = True
for dropped in range(4):
    targets = batch.targets.copy()
    targets[:dropped, 8] = IGNORE_INDEX
    learner.gradients(Batch(batch.inputs, targets))
    learner.update(1e-3)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the compiler takes minutes on a busy machine
def test_a_compiled_step_never_compiles_and_warming_up_changes_nothing():
    done = subprocess.run([sys.executable, "-c", RECOMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.nightly
@pytest.mark.timeout(1200)  # the compiler takes minutes on a busy machine
def test_a_study_can_be_compiled_and_no_step_s_time_has_the_compiler_s(tmp_path):
    words = ["run", "--variants", "q,k,v", "q,k=R(q),v=R(q)", "--tasks", "recall", "--smoke"]
    records = {}
    for more in ([], ["--compile"]):
        done = subprocess.run(
            [*RUN, *words, "--seeds", "1", "--out", f"out{len(more)}", *more],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        for path in (tmp_path / f"out{len(more)}" / "runs").glob("*.json"):
            record = json.loads(path.read_text())
            records[record["variant"], bool(more)] = record
    for variant in ("q,k,v", "q,k=R(q),v=R(q)"):
        eager, compiled = records[variant, False], records[variant, True]
        assert eager["observed"]["compile_s"] is None
        # Seconds against milliseconds: no claim about speed, but about what is on the clock.
        assert compiled["observed"]["compile_s"] > 10 * compiled["observed"]["step_p50_s"]
        assert compiled["experiment"]["compiled"]
        # The same sums in another order.
        assert compiled["metrics"]["loss"] == pytest.approx(eager["metrics"]["loss"], rel=1e-4)


# The main one, pre-training, two inputs, several sites of attention; the others nightly.
IN_SHORT = ("quick", "glue", "towers", "places")


# The data of the others are on the Hugging Face Hub.
RUNNABLE = [
    name
    for name in recipes.names()
    if all(tasks.find(task).tier != "hub" for task in recipes.find(name).tasks)
]


def smoke(recipe, out, *words):
    """The size of the page of a recipe that was run without learning anything."""
    # Two seeds of `quick`, so that statistics are computed; one of the others.
    seeds = "2" if recipe == "quick" else "1"
    # The folder is named: a recipe with other variants would go into another one.
    assert main(["run", recipe, "--smoke", "--seeds", seeds, "--out", str(out), *words]) == 0
    return (out / "report.html").stat().st_size


@pytest.mark.slow
@pytest.mark.timeout(900)  # up to 36 short runs, two at a time, on a busy machine
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=() if name in IN_SHORT else pytest.mark.nightly)
        for name in RUNNABLE
    ],
)
def test_a_smoke_of_three_arms_of_each_recipe_runs_to_its_page(recipe, tmp_path):
    first, second, *_, last = recipes.find(recipe).variants
    assert smoke(recipe, tmp_path, "--variants", first, second, last) > 10_000


@pytest.mark.nightly
@pytest.mark.timeout(1800)  # up to 336 short runs, two at a time
@pytest.mark.parametrize("recipe", RUNNABLE)
def test_a_smoke_of_each_whole_recipe_runs_to_its_page(recipe, tmp_path):
    assert smoke(recipe, tmp_path) > 10_000


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["INT", "TERM"],
)
@pytest.mark.slow
@pytest.mark.usefixtures("foreground")
def test_a_signal_ends_the_study_and_its_processes_without_a_traceback(number, status, tmp_path):
    study = start(tmp_path, plan=("--variants", "q,k,v", "--tasks", "sort"))
    under_way(tmp_path)
    members = family(study)
    study.send_signal(number)
    _, said = study.communicate(timeout=60)
    assert study.returncode == status, said
    assert "Traceback" not in said
    until(lambda: not alive(members))


def test_a_running_study_gives_a_preliminary_answer_each_time_its_seeds_have_doubled(
    tmp_path, capsys
):
    store = fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits", "sort"))
    progress = StudyProgress(Counter())
    progress.store = store
    for count in range(1, 5):
        progress.on_seeds(count, 5)
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "Preliminary" in line] == [
        "Preliminary, of the first seed of 5; the others go on.",
        "Preliminary, of the first 2 seeds of 5; the others go on.",
        "Preliminary, of the first 4 seeds of 5; the others go on.",
    ]
    # One seed has no interval, so it has no verdict.
    first, second = said.split("Preliminary")[1:3]
    assert "Nothing can be said yet" in first
    assert "±" not in first.split("Left out")[0]
    assert "±" in second.split("Left out")[0]


def test_a_mask_that_hides_nothing_of_a_task_is_noted(capsys):
    words = ["run", "--tasks", "lm-reviews", "--dry-run", "--variants", "q,k,v"]
    assert main([*words, "q,k,v+blocks64", "q,k,v+blocks16x4"]) == 0
    noted = capsys.readouterr().err
    assert "q,k,v+blocks64 hides no key of the 128 tokens of lm-reviews" in noted
    assert "blocks16x4" not in noted


def test_arms_that_compute_the_same_are_named_before_they_run(capsys):
    """Without RoPE nothing of it can be left out; beside uniform attention scores are no matter."""
    words = ["run", "--dry-run", "--seeds", "2", "--variants", "q,k,v", "q=k=0,v"]
    arms = ["q,k,v+nope", "q,k,v+ropebase500", "q=k=0,v+qknorm", "q,k,v~tied-embeddings"]
    arms.append("q,k,v+latentnorm")
    assert main([*words, *arms, "q,k,v~post-norm", "--tasks", "recall", "lm-reviews"]) == 0
    noted = capsys.readouterr().err.splitlines()
    assert [line.partition(", number")[0] for line in noted] == [
        "On recall q,k,v+nope computes what q,k,v does",
        "On recall q,k,v+ropebase500 computes what q,k,v does",
        "On recall q=k=0,v+qknorm computes what q=k=0,v does",
        "On recall q,k,v+latentnorm computes what q,k,v does",
        "On lm-reviews q=k=0,v+qknorm computes what q=k=0,v does",
        "On lm-reviews q,k,v+latentnorm computes what q,k,v does",
    ]
    words = ["run", "--dry-run", "--tasks", "translation", "--variants", "q,k,v"]
    assert main([*words, "q,k,v+window4@cross", "q,k=v@cross"]) == 0
    assert capsys.readouterr().err.count("computes what") == 1


def test_a_dry_run_of_a_recipe_ends_its_sentence(capsys):
    assert main(["run", "frontier", "--dry-run"]) == 0
    assert "has on lm-reviews in studies/. Arms" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--margin", "0.05", "DIR"], "DIR is first"),
        (["compare", "q,k=v", "q,k,v", "DIR"], "the folder comes first, then the arms"),
        (["evidence", "DIR", "q,k=v"], "the arm comes first, then the folders"),
    ],
)
def test_words_in_another_order_are_told_theirs(words, said, tmp_path, capsys):
    (tmp_path / "study.json").touch()
    assert main([str(tmp_path) if word == "DIR" else word for word in words]) == 2
    assert said in capsys.readouterr().err
