"""`./qkv test` passes on a bare machine, however it is started."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import bare

ROOT = Path(__file__).parents[1]
INTERRUPTED = {
    "quick": (
        "tests/faults/test_interrupted_runs.py::"
        "test_a_run_that_is_asked_to_end_keeps_its_last_step_and_goes_on_there[Ctrl-C]",
        "tests/test_qkv_script.py::"
        "test_an_interrupted_installation_stops_at_once_and_is_repaired[INT]",
    ),
    "slow": (
        "tests/test_cli.py::"
        "test_a_signal_ends_the_study_and_its_processes_without_a_traceback[INT]",
    ),
}


# As a shell without job control begins a job in the background.
WITHOUT_INTERRUPTS = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")


def _assert_passes(*words, said, before=(), **environment):
    """These words of pytest pass, in a process of their own, and say this."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env=os.environ | {"QKVBENCH_CHECK_SHAPES": "0"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert said in done.stdout


@pytest.mark.timeout(900)  # a whole test run: minutes on a busy machine
@pytest.mark.parametrize("when", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_tests_of_ctrl_c_pass_in_a_job_in_the_background(when):
    tests = INTERRUPTED[when]
    _assert_passes(*tests, said=f"{len(tests)} passed", before=WITHOUT_INTERRUPTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_tests_pass_without_the_native_kernel():
    files = ["laws/test_kernels.py", "laws/test_linear.py", "test_native.py", "test_doctor.py"]
    words = ["-m", "not slow and not nightly", *(f"tests/{file}" for file in files)]
    _assert_passes(*words, said="no native kernel: switched off", QKVBENCH_NATIVE="none")


def test_only_the_quick_tests_extras_are_told_from_the_others():
    assert {"ray", "wandb", "tensorboard", "mlflow", "lm_eval"} <= bare.absent()
    assert not {"pytest", "transformers", "jax", "submitit", "torch"} & bare.absent()


@pytest.mark.skipif(os.environ["QKVBENCH_CASES"] != "quick", reason="other tests need extras")
def test_a_quick_test_finds_no_package_that_qkv_test_does_not_install():
    assert [name for name in sorted(bare.absent()) if find_spec(name) is not None] == []
