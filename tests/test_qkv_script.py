"""./qkv makes .venv when it must, at no other time, and gets out of the way.

A stand-in for Python writes down what it was asked, so that nothing is installed here.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYPROJECT = """
[project.optional-dependencies]
dev = ["pytest"]
hf = ["transformers"]

[tool.other]
no-extra = ["x"]
"""

STAND_IN = """#!/bin/sh
case "$*" in
    *version_info*ensurepip*) [ -z "$TOO_OLD" ] || { echo 'is Python 3.9'; exit 1; } ;;
    *find_spec*) [ -z "$TORCH" ] || echo "$TORCH " ;;
    -V) echo 'Python 3.12.3' ;;
    '-m venv'*)
        echo "$*" >>"$ASKED"
        for venv; do :; done
        mkdir -p "$venv/bin"
        cp "$0" "$venv/bin/python"
        ;;
    '-P -m pip'*)
        echo "$*" >>"$ASKED"
        [ -z "$SLOW" ] || exec sleep "$SLOW"
        [ -z "$BROKEN" ] || { echo 'ERROR: No matching distribution found'; exit 1; }
        ;;
    '-P '*native/build.py)
        sleep 0.2
        [ -n "$NO_COMPILER" ] || echo built >"${2%build.py}_kernels.so"
        ;;
    '-P -m qkvbench'* | '-m pytest'*) printf '<%s>' "$@" ;;
esac
"""


class Clone:
    """A copy of the script in a folder of its own, with a stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.asked_file = folder / "asked"
        self.python = folder / "python"
        self.root.mkdir()
        shutil.copy(ROOT / "qkv", self.root)
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        (self.root / "constraints.txt").write_text("numpy==2.4.6\ntorch==2.13.0\n")
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def start(self, *words, script=None, **environment):
        """The script, started."""
        return subprocess.Popen(
            [script or self.root / "qkv", *words],
            cwd=self.root.parent,
            env={
                "PATH": os.environ["PATH"],
                "ASKED": str(self.asked_file),
                "QKV_PYTHON": str(self.python),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words, **environment):
        """The script's exit status, and what it said on both streams."""
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def asked(self):
        """What Python was asked to install, in order."""
        lines = self.asked_file.read_text().splitlines() if self.asked_file.exists() else []
        self.asked_file.unlink(missing_ok=True)
        return lines

    def lock(self):
        return self.root / ".venv" / ".qkv" / "lock"


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_words_go_to_qkvbench_as_they_are_and_stdout_is_its_own(clone):
    status, out, err = clone("show", "q,k=R(q),v", "two words", "", "--json")
    assert status == 0
    assert out == "<-P><-m><qkvbench><show><q,k=R(q),v><two words><><--json>"
    assert "making .venv with Python 3.12.3" in err
    assert len(err.splitlines()) == 2


def test_no_words_go_to_qkvbench_too(clone):
    assert clone()[:2] == (0, "<-P><-m><qkvbench>")


def test_a_second_call_installs_nothing_and_says_nothing(clone):
    clone("ls")
    clone.asked()
    assert clone("ls") == (0, "<-P><-m><qkvbench><ls>", "")
    assert clone.asked() == []


def test_extras_add_up(clone):
    clone("setup", "hf")
    clone.asked()
    clone("test")
    assert f"-e {clone.root}[hf,data,dev,jax,onnx,slurm,sql]" in clone.asked()[-1]
    assert (
        clone("setup", "hf", "dev")[2]
        == "qkv: ready: .venv has the core and hf data dev jax onnx slurm sql\n"
    )
    assert clone.asked() == []


@pytest.mark.parametrize(
    ("words", "brought"),
    [
        ("run quick --backend jax", "[jax]"),
        ("run quick --backend=jax --engine ray", "[jax,ray]"),
        ("run quick --track wandb tensorboard --jobs 2", "[wandb,tensorboard]"),
        ("convert smollm2-135m --to q,k=v --out new", "[hf]"),
        ("advise smollm2-135m --cache 50% --text my.txt", "[hf]"),
        ("prune smollm2-135m --target cache=50% --out new", "[hf]"),
        ("export smollm2-135m --to edge --out new.safetensors", "[hf]"),
        ("run --variants q,k,v --tasks glue-sst2#bytes", "[data]"),
        ("run paper-as-written --backend jax", "[data,jax]"),
    ],
)
def test_words_bring_the_extras_that_they_ask_for(clone, words, brought):
    clone(*words.split())
    assert clone.asked()[-1].endswith(f"-e {clone.root}{brought}")


@pytest.mark.parametrize(
    "words",
    [
        "run jax --backend torch --engine local --out ray",
        # To read a claim takes no data.
        "claims article-flash-gpu-only",
        "report glue-study",
    ],
)
def test_words_that_ask_for_no_extra_bring_none(clone, words):
    clone(*words.split())
    assert clone.asked()[-1].endswith(f"-e {clone.root}")


def test_an_extra_that_does_not_exist_is_refused_with_those_that_do(clone):
    assert clone("setup", "no-extra") == (
        2,
        "",
        "qkv: there is no extra 'no-extra'; there are: dev hf\n",
    )
    assert clone.asked() == []


def test_other_pins_are_installed(clone):
    clone("ls")
    clone.asked()
    (clone.root / "constraints.txt").write_text("numpy==2.5.0\n")
    clone("ls")
    assert [line.split()[3] for line in clone.asked()] == ["install", "install"]


def test_a_clone_that_was_moved_is_made_again(clone):
    clone("setup", "dev")
    clone.asked()
    clone.root = clone.root.rename(clone.root.with_name("elsewhere"))
    assert clone("ls")[0] == 0
    made, *_, installed = clone.asked()
    assert made.startswith("-m venv")
    assert f"-e {clone.root}[dev]" in installed


def test_the_script_works_from_another_folder_through_links(clone, tmp_path):
    first = tmp_path / "first"
    second = tmp_path / "bin" / "second"
    second.parent.mkdir()
    first.symlink_to(Path("a clone") / "qkv")
    second.symlink_to(Path("..") / "first")
    out, _ = clone.start("ls", script=second).communicate(timeout=60)
    assert out == "<-P><-m><qkvbench><ls>"


def test_test_runs_the_chosen_tests(clone):
    quick = clone("test", "-k", "law")[1]
    assert "<-m><not slow and not nightly><-n><logical>" in quick
    assert "<--dist><loadfile>" in quick
    assert quick.endswith("<-k><law>")
    assert "<-m><slow and not nightly><-n><logical>" in clone("test", "--slow")[1]
    assert "<-m><nightly><-n><0>" in clone("test", "--nightly")[1]


def test_the_kernel_is_compiled_before_the_words_run_or_that_it_is_not_is_said(clone):
    native = clone.root / "src" / "qkvbench" / "native"
    native.mkdir(parents=True)
    (native / "build.py").touch()
    _, _, err = clone("ls", NO_COMPILER="yes")
    assert "the native kernel was not built" in err
    (clone.root / "constraints.txt").write_text("numpy==2.5.0\n")
    _, _, err = clone("ls")
    assert (native / "_kernels.so").exists()
    assert "kernel" not in err


def test_pip_leaves_out_bytecode_that_no_run_needs(clone):
    clone("ls")
    assert all("--no-compile" in line for line in clone.asked() if "-m pip" in line)


def test_a_python_that_is_not_there_is_named(clone):
    status, out, err = clone("ls", QKV_PYTHON="no-such-python")
    assert (status, out) == (1, "")
    assert err == (
        "qkv: QKV_PYTHON=no-such-python is not found; it must be Python 3.11 or later.\n"
    )


def test_a_python_that_is_too_old_is_refused(clone):
    status, _, err = clone("ls", TOO_OLD="yes")
    assert status == 1
    assert "is Python 3.9; it must be Python 3.11 or later" in err


def test_without_any_python_all_that_were_tried_are_named(clone, tmp_path):
    for tool in ("sh", "dirname", "readlink", "cat", "cksum", "mkdir", "ln", "rm", "find", "sed"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    status, _, err = clone("ls", QKV_PYTHON="", PATH=str(tmp_path))
    assert status == 1
    assert "needs Python 3.11 or later (python3 is not found, python3.13 is not found" in err


def test_a_torch_that_is_there_is_reused_and_its_version_left_alone(clone):
    _, _, err = clone("ls", TORCH="2.9.1")
    made, *installs = clone.asked()
    assert "whose torch 2.9.1 is reused" in err
    assert "--system-site-packages" in made
    pins = clone.root / ".venv" / ".qkv" / "constraints.txt"
    assert pins.read_text() == "numpy==2.4.6\n"
    assert all(str(pins) in line for line in installs)


def test_a_failure_of_pip_is_named_and_the_next_call_goes_on(clone):
    status, out, err = clone("ls", BROKEN="yes")
    assert (status, out) == (1, "")
    assert "pip could not install everything: No matching distribution found. Repeat this" in err
    assert clone("ls")[:2] == (0, "<-P><-m><qkvbench><ls>")


def test_an_installation_that_failed_forgets_no_extras(clone):
    clone("setup", "dev", "hf")
    clone.asked()
    (clone.root / "constraints.txt").write_text("numpy==2.5.0\n")
    assert clone("ls", BROKEN="yes")[0] == 1
    clone.asked()
    assert clone("ls")[0] == 0
    assert clone.asked()[-1].endswith(f"-e {clone.root}[dev,hf]")


def test_two_at_once_install_once(clone):
    both = [clone.start("ls", SLOW="0.2") for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == [
        "<-P><-m><qkvbench><ls>"
    ] * 2
    assert len(clone.asked()) == 3


@pytest.mark.usefixtures("foreground")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_an_interrupted_installation_stops_at_once_and_is_repaired(clone, number, status):
    process = clone.start("ls", SLOW="30")
    while not (clone.asked_file.exists() and "pip" in clone.asked_file.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == status
    assert not clone.lock().is_symlink()
    assert clone("ls")[:2] == (0, "<-P><-m><qkvbench><ls>")


def test_the_lock_of_a_dead_process_is_taken_over(clone):
    clone.lock().parent.mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    clone.lock().symlink_to(str(ended.pid))
    assert clone("ls")[:2] == (0, "<-P><-m><qkvbench><ls>")
    assert not clone.lock().is_symlink()


def test_the_lock_of_a_stranger_with_the_same_number_is_taken_over(clone):
    clone.lock().parent.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        clone.lock().symlink_to(str(stranger.pid))
        assert clone("ls")[0] == 0
        stranger.kill()


def test_something_in_the_way_of_the_folder_is_named(clone):
    (clone.root / ".venv").write_text("not a folder")
    status, _, err = clone("ls")
    assert status == 1
    assert f"cannot make the folder {clone.root}/.venv" in err


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_fresh_clone_runs_the_main_job(tmp_path):
    folder = tmp_path / "a fresh clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    environment = {name: text for name, text in os.environ.items() if name != "QKV_PYTHON"}
    command = [folder / "qkv", "run", "--smoke", "quick", "--out", tmp_path / "out"]
    subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "out" / "report.html").exists()
