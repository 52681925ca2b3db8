"""The command line answers what it is asked, and says what to write instead of what it is not."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest

import fake_study
from qkvbench import recipes, reports, tasks
from qkvbench.cli import ls, main, names
from qkvbench.cli.parser import parsed
from qkvbench.cli.run import asked
from qkvbench.experiment import from_json
from qkvbench.model import POSITIONS, Learned, position_named, position_written
from qkvbench.results.view import view
from qkvbench.variant import Own, parse

RUN = [sys.executable, "-m", "qkvbench"]
# Runs the command line and fails where it has imported a framework on the way.
CHECKED = """
import sys
from qkvbench.cli import main
status = main(sys.argv[1:])
sys.exit(99 if {"torch", "jax"} & set(sys.modules) else status)
"""

WRONG = [
    ["bogus"],
    ["run"],
    ["run", "qick"],
    ["run", "quick", "--seed", "3"],
    ["run", "quick", "--seeds", "0"],
    ["run", "quick", "--seeds", "many"],
    ["run", "quick", "--jobs", "-1"],
    ["run", "quick", "--precision", "fp8"],
    ["run", "quick", "--micro-batches", "0"],
    ["run", "quick", "--micro-batches", "9"],
    ["run", "quick", "--backend", "tensorflow"],
    ["run", "quick", "--model", "gpt-300"],
    ["run", "quick", "--model="],
    ["run", "quick", "--variants", "q,k,v,x"],
    ["show", "q,k\n\n\n\n\n\n,w"],
    ["run", "quick", "--variants", "q,k=z"],
    ["run", "quick", "--variants", "q=k,v/2"],
    ["run", "quick", "--variants", "q,k,v/3"],
    ["run", "quick", "--tasks", "digit"],
    ["run", "--variants", "q,k,v"],
    ["run", "--variants", "q,k,v", "--tasks", "./none.txt"],
    ["run", "--variants", "q,k,v", "--tasks", "digits", "sort#bytes"],
    ["run", "--variants", "q,k,v", "--tasks", "lm-reviews#bpe-256"],
    ["run", "--variants", "q,k,v", "--tasks", "recal@1x64"],
    ["run", "--variants", "q,k,v", "--tasks", "recall@0x64"],
    ["run", "--variants", "q,k,v", "--tasks", "lm-reviews@1x7"],
    ["run", "heads", "--model", "small-decoder"],
    ["measure", "q,k,v", "--model", "recall@4x0"],
    ["ls", "variant"],
    ["ls"],
    ["show"],
    ["show", "sharedkv"],
    ["show", "q,k=v", "--tokens", "1.5"],
    ["show", "q,k=v/7"],
    ["show", "q,k=v", "--model", "gpt"],
    ["show", "q,k=v+3d"],
    ["show", "q,k=v", "--model", "gpt-300m", "--tokens", "2049"],
    ["show", "q,k=v+2d++"],
    ["show", "q,k=v", "--position", "rotery"],
    ["show", "q,k=v", "--position", "rotary/0.3"],
    ["run", "quick", "--position", "alibi/0.5"],
    ["run", "quick", "--position", "rotary/half"],
    ["measure", "q,k,v", "--seconds", "-1"],
    ["measure", "q,k,v", "--model", "nothing"],
    ["measure", "q,k,v", "--precision", "fp8"],
    ["measure", "q,k,v", "--model", "gpt-300m", "--context", "2048"],
    ["report", "no/such/folder"],
    ["analyse", "no/such/file.safetensors", "--heads", "4"],
    ["analyse", "model.safetensors"],
    ["claims", "no/such/folder"],
    ["claims", "study-cache-67"],
    ["claims", "--verdict", "true"],
    ["claims", "--source", "paper"],
    ["claims", "--json", "--out", "ledger.html"],
    ["report", "no/such/folder", "--as", "page", "--json"],
    ["run", "--variants", "q,k,v", "--tasks", ""],
    ["measure", "q,k,v", "--model", "digits#bpe-1024"],
    ["measure", "q,k,v", "--model", "./none.txt"],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_a_wrong_request_is_refused_in_six_lines_before_a_framework_is_imported(words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHECKED, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 6, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["run", "qick"], "quick"),
        (["run", "quick", "--seed", "3"], "--seeds"),
        (["run", "quick", "--tasks", "digit"], "digits"),
        (["show", "sharedkv"], "shared-kv"),
        (["ls", "variant"], "variants"),
        (["show", "q,k=v", "--model", "gpt-30"], "gpt-300m"),
        (["show", "q,k=v", "--position", "rotery"], "rotary"),
        (["show", "q,k=v+qknrm"], "+qknorm"),
        (["show", "shared-kvv"], "shared-kv"),
    ],
    ids=str,
)
def test_the_nearest_known_name_is_offered(words, meant, capsys):
    assert main(words) == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err


def test_help_imports_next_to_nothing():
    heavy = '"torch", "jax", "numpy", "pydantic", "rich", "tokenizers", "PIL"'
    code = CHECKED.replace('"torch", "jax"', heavy)
    for words in (["--help"], ["run", "--help"]):
        wrapped = code.replace(
            "status = main(sys.argv[1:])",
            ("try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code"),
        )
        done = subprocess.run([sys.executable, "-c", wrapped, *words], capture_output=True)
        assert done.returncode == 0


def test_a_variant_is_shown_with_what_is_computed_of_it(capsys):
    assert main(["show", "shared-kv", "--model", "gpt-300m", "--tokens", "2048", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["variant"] == "q,k=v"
    assert shown["model"] == "gpt-300m"
    assert shown["position"] == "learned"
    assert shown["parameters"]["total"] == 284_542_976
    assert shown["flops"] == 2 * shown["macs"]
    assert shown["cache"] == {"tensors": 20, "bytes_per_token": 40 * 2**10}


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


def test_a_picture_says_what_positions_and_suffixes_do(capsys):
    assert main(["show", "q,k=v+qknorm++-diag", "--position", "turned-back"]) == 0
    text = capsys.readouterr().out
    assert "┬── norm ── ·s_k ── turn ──▶ K" in text
    assert "softmax(a·Q·Kᵀ + g(distance))·V, no token on itself, ── turn back ── W_o" in text
    # V is taken before the norm and turned: one tensor does not do for both.
    assert "two tensors: K as k normed, scaled and turned by position, and V as k turned" in text
    assert main(["show", "q,k=v", "--position", "alibi"]) == 0
    assert "m_head·distance" in capsys.readouterr().out


@pytest.mark.parametrize("text", [*POSITIONS, "rotary/0.25", "turned-back/0.5"])
def test_positions_are_written_as_they_are_read(text):
    assert position_written(position_named(text, 7)) == text


def test_a_study_runs_with_the_positions_that_are_asked_for():
    request = parsed(["run", "quick", "--position", "learned"])
    models = {str(run.task): run.model for run in asked(request).experiments()}
    for name, model in models.items():
        assert model.position == Learned(tasks.find(name).tokens)


@pytest.mark.parametrize(
    "what", ["variants", "tasks", "recipes", "models", "positions", "reports", "claims"]
)
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
    assert names.model_or_task_s(path).name == "own-text"
    assert names.model_or_task_s("recall") == tasks.find("recall").model
    assert names.model_or_task_s(f"{path}#bpe-300").architecture.vocabulary == 300


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quick", "--dry-run"]) == 0
    assert "112 runs" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_results_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["run", "quick", "--smoke", "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_small_study_runs_to_a_table_and_a_page_and_reports_again_from_the_store(tmp_path):
    words = ["run", "--variants", "q,k,v", "shared-kv", "--tasks", "digits", "recall", "--smoke"]
    done = subprocess.run(
        [*RUN, *words, "--out", "out"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "[8/8]" in done.stderr
    assert "q,k=v" in done.stdout
    assert "What it cannot tell" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "q,k=v" in page
    (tmp_path / "out" / "report.html").unlink()

    code = [sys.executable, "-c", CHECKED, "report", "out"]
    again = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert (tmp_path / "out" / "report.html").read_text() == page

    # A damaged record is named and left alone; nothing else is lost.
    record = next((tmp_path / "out" / "runs").glob("*.json"))
    record.write_text(record.read_text()[:100])
    for strict, status in (([], 0), (["--strict"], 1)):
        damaged = subprocess.run(
            [*RUN, "report", "out", *strict], capture_output=True, text=True, cwd=tmp_path
        )
        assert damaged.returncode == status
        assert record.name in damaged.stderr
    assert len(record.read_text()) == 100
    resumed = subprocess.run(
        [*RUN, *words, "--out", "out"], capture_output=True, text=True, cwd=tmp_path
    )
    assert resumed.returncode == 0
    assert "7 of 8 runs are done already" in resumed.stderr
    assert record.with_name(f"{record.name}.damaged").exists()


def test_the_page_is_written_even_where_nobody_reads_the_table(tmp_path):
    from fake_study import build

    build(tmp_path / "store")
    command = f"{shlex.join(RUN)} report store | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "store" / "report.html").stat().st_size > 10_000


def test_a_store_of_someone_else_s_does_not_steer_the_terminal(tmp_path, capsys):
    store = fake_study.build(tmp_path)
    evil = "\x1b[2J"
    study = store.study().model_copy(update={"name": evil, "tasks": ["sort", evil]})
    store.write_study(study.model_copy(update={"seeds": {"sort": 3, evil: 3}}))
    for run in fake_study.scored("sort"):
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


def test_letters_that_a_terminal_lacks_stop_nothing(tmp_path):
    done = subprocess.run(
        [*RUN, "show", "q,k=v"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "softmax" in done.stdout


def test_a_study_with_a_run_that_fails_prints_its_row_and_ends_with_1(tmp_path):
    (tmp_path / "file").write_text("in the way")
    words = ["run", "--variants", "q,k,v", "--tasks", "lm-reviews", "recall", "--smoke"]
    done = subprocess.run(
        [*RUN, *words, "--seeds", "1", "--out", "out"],
        env={**os.environ, "QKVBENCH_CACHE": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    assert "lm-reviews cannot run. The cache folder cannot be" in done.stderr
    assert "1 failed" in done.stdout
    assert (tmp_path / "out" / "report.html").exists()
    shown = subprocess.run(
        [*RUN, "report", "out", "--json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert {task["task"] for task in json.loads(shown.stdout)["tasks"]} == {"lm-reviews", "recall"}


def test_another_study_gets_another_folder_and_more_seeds_do_not(capsys):
    places = []
    others = ["--precision bf16", "--precision fp16", "--compile", "--checkpointing"]
    others += ["--micro-batches 2", "--variants q,k,v"]
    for words in ("", "--seeds 9", *others):
        main(["run", "quick", "--dry-run", *words.split()])
        places.append(capsys.readouterr().out.splitlines()[0].rpartition(" in ")[2])
    assert places[0] == places[1] == "results/quick."
    assert len(set(places)) == 1 + len(others)


@pytest.mark.parametrize("name", reports.names())
def test_every_report_can_be_asked_for_by_name(name, tmp_path, capsys):
    from fake_study import build

    store = build(tmp_path / "store")
    assert main(["report", str(store.path), "--as", name]) == 0
    assert capsys.readouterr().out == reports.find(name).render(view(store))


def test_a_dry_run_says_how_runs_are_carried_out(capsys):
    words = ["--precision", "fp16", "--compile", "--checkpointing", "--micro-batches", "2"]
    assert main(["run", "quick", "--dry-run", *words]) == 0
    said = capsys.readouterr().out
    assert "fp16, compiled, checkpointing, 2 micro-batches" in said


def test_compiling_without_a_compiler_is_refused_before_anything_runs(tmp_path):
    words = ["run", "--variants", "q,k,v", "--tasks", "digits", "--smoke", "--compile"]
    done = subprocess.run(
        [*RUN, *words],
        env={**os.environ, "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert "'no-such-compiler' is not here" in done.stderr
    assert "Run without --compile" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 6
    assert list(tmp_path.iterdir()) == []


# What a compiled step must not do: compile. Places are scored in another number each time.
RECOMPILED = """
import numpy as np, torch
from qkvbench import tasks
from qkvbench.backends.torch import Learner, prepare
from qkvbench.data.batch import UNSCORED, Batch
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
    targets[:dropped, 8] = UNSCORED
    learner.gradients(Batch(batch.inputs, targets))
    learner.update(1e-3)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the compiler takes minutes on a busy machine
def test_a_compiled_step_never_compiles_and_warming_up_changes_nothing():
    done = subprocess.run([sys.executable, "-c", RECOMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(900)  # up to 150 short runs, two at a time
@pytest.mark.parametrize("recipe", recipes.names())
def test_the_smoke_of_every_recipe_runs_to_its_page(recipe, tmp_path):
    # Of `quick` two seeds, so that the statistics go their road; of the others one is enough.
    more = [] if recipe == "quick" else ["--seeds", "1"]
    if recipe == "hundreds":
        # 24 runs of its 336: the others differ from them in their equations.
        more += ["--variants", "q,k,v", "q,k=v"]
    # A recipe with other variants would go into a folder of another name.
    words = ["run", recipe, "--smoke", *more, "--out", "study"]
    done = subprocess.run([*RUN, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "study" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_ends_the_study_and_its_processes_and_keeps_what_was_measured(
    number, status, tmp_path
):
    words = ["run", "--variants", "q,k,v", "--tasks", "lm-reviews", "--out", str(tmp_path)]
    with subprocess.Popen([*RUN, *words], stderr=subprocess.PIPE, text=True) as study:
        children = psutil.Process(study.pid).children
        while not any("forkserver" in " ".join(child.cmdline()) for child in children()):
            time.sleep(0.05)
        while not any(child.children() for child in children()):
            time.sleep(0.05)
        family = children(recursive=True)
        time.sleep(2)
        study.send_signal(number)
        said = study.stderr.read()
    assert study.returncode == status, said
    assert "Traceback" not in said
    psutil.wait_procs(family, timeout=10)
    assert not any(child.is_running() for child in family)
