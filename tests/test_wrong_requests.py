"""A request that cannot be met is refused in a few lines that help, at once, and nothing runs."""

import io
import json
import os
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

import fake_study
from qkvbench.cli import main

LINES = 6
RUN = "run --variants q,k,v q,k=v --seeds 1 --tasks"
# Each request, and the words that its answer must have. The files are those of `folder`.
REQUESTS = {
    # Commands and flags.
    "bogus": ["bogus"],
    "rnu quick": ["rnu", "Did you mean run?"],
    "run": ["quick"],
    "run --variants q,k,v": ["--tasks"],
    "run qick": ["qick", "Did you mean quick?"],
    "run qiuck": ["qiuck", "Did you mean quick?"],
    "run quick --seed 3": ["--seed", "Did you mean --seeds?"],
    "run quick --sseds 2": ["--sseds", "Did you mean --seeds?"],
    "ls": ["required", "--help"],
    "ls variant": ["Did you mean variants?"],
    "show": ["variant"],
    "prune sort --target cache=50% --out x": ["no cache", "params=80%"],
    "prune lm-reviews --target cache=20% --out x": ["cannot be reached", "cache=25%"],
    "prune lm-reviews --target loss=0% --out x": ["loss=0%"],
    "prune lm-reviews --target cash=50% --out x": ["cash=50%", "cache=50%"],
    "prune lm-reviews --target cache=150% --out x": ["cache=150%", "between 0 and 100"],
    "prune captioning --target params=90% --out x": ["two inputs"],
    # Numbers.
    "run quick --seeds 0": ["--seeds", "'0'"],
    "run quick --seeds many": ["--seeds", "'many'"],
    "run quick --jobs -1": ["--jobs", "-1"],
    "run quick --micro-batches 0": ["--micro-batches", "'0'"],
    "run quick --micro-batches 9": ["9"],
    "run quick --seeds 1000000 --dry-run": ["runs; a study has at most 20,000"],
    "run quick --seeds 99999999999 --dry-run": ["runs; a study has at most 20,000"],
    "run quick --seeds 99999999999999999999": ["--seeds", "of at most 12 digits"],
    "advise smollm2-135m --cache 0.75 --text x": ["less than one percent", "75%"],
    "cost small-decoder --variants q,k,v 'q,k,v;q,k=v;none'": ["3 equations in turn", "has 2"],
    "show 'q,k,v;q,k=v;none'": ["3 equations in turn", "has 2"],
    "export small-decoder --to onnx --weights int4 --out a.onnx": ["--to edge has"],
    "report kept": ["did you mean results/kept?"],
    "show q,k": ["V comes from", "write 'q,k,v'"],
    "show q=k/2+window8": ["write 'q=k,v/2+window8'"],
    "show q,k,v=K(-1)": ["V as v", "q,k=K(-1),v=V(-1)"],
    "show q,k=v@cross": ["is an arm of a study", "show 'q,k=v'"],
    "run quick --jobs 100000": ["--jobs 100000", "or less"],
    "run quick --out ''": ["--out", "not empty"],
    "run quick --files ''": ["--files", "not empty"],
    "run quick --seeds-together": ["--seeds-together"],
    f"{RUN} digits --seeds 0": ["--seeds", "'0'"],
    f"{RUN} digits --seeds -3": ["--seeds", "-3"],
    f"{RUN} digits --seeds ''": ["--seeds", "''"],
    f"{RUN} digits --jobs two": ["--jobs", "'two'"],
    f"{RUN} digits --micro-batches 1e1": ["--micro-batches", "'1e1'"],
    "show q,k=v --tokens 1.5": ["--tokens", "'1.5'"],
    "show q,k=v --model gpt-300m --tokens 2049": ["2048"],
    "measure q,k,v --seconds -1": ["--seconds", "-1"],
    "measure q,k,v --model gpt-300m --context 2048": ["2048"],
    "report damaged --margin 1e-4x": ["1e-4x"],
    # Names.
    "run quick --precision fp8": ["fp8"],
    f"{RUN} digits --precision bf61": ["bf61", "Did you mean bf16?"],
    "run quick --backend tensorflow": ["tensorflow"],
    f"{RUN} digits --backend tourch": ["tourch", "Did you mean torch?"],
    "run quick --model gpt-300": ["gpt-300", "Did you mean gpt-300m?"],
    "run quick --model=": ["model"],
    "run heads --model small-decoder": ["recall@1x64"],
    f"{RUN} digits --model smal-decoder": ["smal-decoder", "Did you mean small-decoder?"],
    "show q,k=v --model gpt": ["gpt"],
    "show q,k=v --model gpt-30": ["Did you mean gpt-300m?"],
    "measure q,k,v --model nothing": ["nothing"],
    "measure q,k,v --precision fp8": ["fp8"],
    "show q,k=v --position rotery": ["rotery", "Did you mean rotary?"],
    "show q,k=v --position rotory": ["rotory", "Did you mean rotary?"],
    "show q,k=v --position rotary/0.3": ["0.3 of 24"],
    "run quick --position alibi/0.5": ["alibi/0.5"],
    "run quick --position rotary/half": ["rotary/half"],
    f"{RUN} digits --pooling means": ["means", "Did you mean mean?"],
    f"{RUN} digits --init-from recal": ["recal", "Did you mean recall?"],
    # Variants.
    "run quick --variants q,k,v,x": ["q,k,v,x"],
    "run quick --variants q,k=z": ["q,k=z"],
    "run quick --variants q=k,v/2": ["q=k,v/2"],
    "run quick --variants q,k,v/3": ["3", "4"],
    "run --variants q,k,v/3 --tasks digits --seeds 1": ["3", "4"],
    "run --variants q=k,v/1 --tasks digits --seeds 1": ["q=k,v/1"],
    "show 'q,k\n\n\n\n\n\n,w'": ["q,k"],
    "show q,k=w": ["q,k=w"],
    "show q,k=R(v),v": ["k=R(v)"],
    "show q,k=v/7": ["7"],
    "show q,k=v+3d": ["+3d"],
    "show q,k=v+2d++": ["+2d"],
    "show q,k=v+qknrm": ["Did you mean +qknorm?"],
    "show qkv": ["Did you mean q,k,v?"],
    "show sharedkv": ["sharedkv", "Did you mean shared-kv?"],
    "show shared-kvv": ["Did you mean shared-kv?"],
    "show shard-kv": ["Did you mean shared-kv?"],
    # Tasks and own data.
    "run quick --tasks digit": ["digit", "Did you mean digits?"],
    f"{RUN} digts": ["digts", "Did you mean digits?"],
    "run --variants q,k,v --tasks ''": ["''"],
    "run --variants q,k,v --tasks ./none.txt": ["none.txt"],
    "run --variants q,k,v --tasks digits sort#bytes": ["sort"],
    "run --variants q,k,v --tasks lm-reviews#bpe-256": ["256"],
    "run --variants q,k,v --tasks recal@1x64": ["recal"],
    "run --variants q,k,v --tasks recall@0x64": ["recall@0x64"],
    "run --variants q,k,v --tasks lm-reviews@1x7": ["lm-reviews"],
    "measure q,k,v --model recall@4x0": ["recall@1x64"],
    "measure q,k,v --model digits#bpe-1024": ["digits"],
    "measure q,k,v --model ./none.txt": ["none.txt"],
    "measure q,k,v --model checkpoint": ["pretrained checkpoint", "'qkvbench analyse checkpoint'"],
    "measure q,k,v --model ./checkpoint/model.safetensors": ["pretrained checkpoint"],
    f"{RUN} ./checkpoint": ["pretrained checkpoint"],
    f"{RUN} ./none.csv": ["none.csv"],
    f"{RUN} ./unlabelled.csv": ["unlabelled.csv"],
    f"{RUN} ./empty.csv": ["empty.csv"],
    # Results.
    f"{RUN} digits --smoke --out unlabelled.csv": ["unlabelled.csv", "is a file"],
    "run quick --smoke --out unlabelled.csv": ["unlabelled.csv", "is a file"],
    "run quick --dry-run --out unlabelled.csv": ["unlabelled.csv", "is a file"],
    "run quick --dry-run --out unlabelled.csv/deep": ["unlabelled.csv", "is a file"],
    "report no/such/folder": ["no/such/folder"],
    "report nothing --as page --json": ["--json"],
    "report nothing": ["no run"],
    "analyse no/such/file.safetensors --heads 4": ["no/such/file.safetensors"],
    "analyse nothing": ["no *.safetensors in nothing"],
    "analyse checkpoint": ["--heads", "checkpoint/config.json"],
    "analyse checkpoint/model.safetensors": ["--heads", "checkpoint/config.json"],
    "claims no/such/folder": ["no/such/folder"],
    "claims study-cache-67": ["study-cache-67"],
    "claims --verdict true": ["true"],
    "claims --source paper": ["paper"],
    "claims --json --out ledger.html": ["--json"],
    "doctor --threads 1": ["--calibrate my-laptop.toml --threads 1"],
    "doctor --calibrate here.toml --threads 999999999999": ["--threads 999,999,999,999", "cores"],
    "doctor --calibrate folder.toml": ["folder.toml", "no file"],
    "doctor --calibrate ''": ["my-laptop.toml"],
}
# Requests that are met, and what must not be imported for them.
FRAMEWORKS = {"torch", "jax", "transformers"}
HEAVY = FRAMEWORKS | {"numpy", "pydantic", "rich", "tokenizers", "PIL"}
MET = {
    "--help": HEAVY,
    "run --help": HEAVY,
    "ls tasks": FRAMEWORKS,
    "report study": FRAMEWORKS,
}
# Answers requests one after the other, and prints what has been imported after each of them.
ANSWERS = """
import io, json, shlex, sys, time
from contextlib import redirect_stderr, redirect_stdout
from qkvbench.cli import main

for request in json.load(sys.stdin):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            code = main(shlex.split(request))
        except SystemExit as end:
            code = end.code
    print(json.dumps([request, code, time.process_time(), list(sys.modules)]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the files that the requests name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unlabelled.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "empty.csv").write_text("\n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "results" / "kept").mkdir(parents=True)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "checkpoint" / "model.safetensors").touch()
    (tmp_path / "damaged" / "runs").mkdir(parents=True)
    (tmp_path / "damaged" / "runs" / f"{0:016x}.json").write_text('{"schema_version": 1, "id"')
    return tmp_path


@pytest.mark.parametrize(("request_", "expected"), REQUESTS.items(), ids=list(REQUESTS))
def test_a_wrong_request_is_refused_in_a_few_lines_that_help(request_, expected, folder):
    before = sorted(folder.rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(shlex.split(request_))
    answer = err.getvalue()
    assert code == 2, answer
    assert out.getvalue() == ""
    assert 1 <= len(answer.strip().splitlines()) <= LINES, answer
    assert "Traceback" not in answer
    for word in expected:
        assert word in answer
    assert sorted(folder.rglob("*")) == before


def test_a_command_starts_in_half_a_second_and_imports_no_framework_that_it_does_not_need(folder):
    fake_study.build(folder / "study", fake_study.ARMS[:2], ("digits",))
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS],
        input=json.dumps([*MET, *REQUESTS]),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [request for request, *_ in answers] == [*MET, *REQUESTS]
    for request, code, spent_s, modules in answers:
        assert code == (0 if request in MET else 2), request
        assert not MET.get(request, FRAMEWORKS) & set(modules), request
        if request == "run --help":
            # Of the processor, not of the clock: other tests run beside this one.
            assert spent_s < 0.5


def test_a_folder_that_is_not_there_is_refused_before_anything_is_imported():
    for command in ("report none", "plan none", "compare none a b", "texts none --out x"):
        done = subprocess.run(
            [sys.executable, "-c", ANSWERS],
            input=json.dumps([command]),
            capture_output=True,
            text=True,
            check=True,
        )
        _, code, _, modules = json.loads(done.stdout)
        assert code == 2
        assert not HEAVY & set(modules)


def test_a_number_of_threads_that_is_none_is_named_in_one_line_and_ignored(monkeypatch, capsys):
    for text, line in (
        ("zero", "OMP_NUM_THREADS is 'zero', which is no number of threads: ignored.\n"),
        ("0", "OMP_NUM_THREADS is '0', which is no number of threads: ignored.\n"),
        ("", "OMP_NUM_THREADS is '', which is no number of threads: ignored.\n"),
        ("4, 2", ""),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert main(["ls", "recipes"]) == 0
        assert capsys.readouterr().err == line
        assert ("OMP_NUM_THREADS" in os.environ) == (line == "")


def test_a_cache_that_cannot_be_used_is_refused_before_anything_runs(folder, monkeypatch, capsys):
    monkeypatch.setenv("QKVBENCH_CACHE", str(folder / "empty.csv"))
    words = ["run", "--variants", "q,k,v", "--seeds", "1", "--out", "out", "--tasks"]
    assert main([*words, "lm-reviews"]) == 2
    assert "The cache folder cannot be" in capsys.readouterr().err
    assert not (folder / "out").exists()
    # This one needs no cache.
    assert main([*words, "sort", "--dry-run"]) == 0


def test_a_dry_run_refuses_devices_that_the_run_would_refuse(folder, capsys):
    words = ["run", "quick", "--backend", "jax", "--devices", "2", "--sharding", "fsdp"]
    assert main([*words, "--dry-run"]) == 2
    assert "The backend jax runs on one device" in capsys.readouterr().err


def test_a_full_disk_under_the_output_is_named_without_a_traceback():
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        for request_ in ("ls tasks", "ls tasks --json", "show q,k=v"):
            done = subprocess.run(
                [sys.executable, "-m", "qkvbench", *request_.split()],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert done.stderr == "The output cannot be written: No space left on device.\n"
