"""The doctor says what is here and what really runs; whatever fails is a row with a way out."""

import json
import subprocess
import sys

import pytest

from qkvbench.cli import doctor, main
from qkvbench.experiment import PRECISIONS


def findings(capsys):
    status = main(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)
    return status, {(row["topic"], row["what"]): row for row in rows}


@pytest.fixture
def quick(monkeypatch):
    """Without the looks that take a second."""
    monkeypatch.setattr(doctor, "LOOKS", (doctor._installed, doctor._data, doctor._compiler))


def test_everything_is_looked_at_and_the_main_job_can_run_here(capsys):
    status, rows = findings(capsys)
    assert status == 0
    for precision in PRECISIONS:
        assert "observed: " in rows["torch", f"{precision} product"]["found"]
        assert "rows read once" in rows["torch", f"{precision} decoding"]["found"]
        assert "scaled_dot_product" in rows["torch", f"{precision} training"]["found"]
    assert {"installed", "extras", "machine", "torch", "data"} <= {topic for topic, _ in rows}
    assert all(row["remedy"] for row in rows.values() if row["verdict"] != "ok")


def test_it_answers_as_text_from_the_command_line_without_a_traceback():
    command = [sys.executable, "-m", "qkvbench", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "The main job can run" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= doctor.WIDTH


def test_a_backend_that_does_not_start_is_a_row_and_ends_with_1(capsys, monkeypatch):
    def broken(name):
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr("qkvbench.backends.find", broken)
    monkeypatch.setattr(doctor, "LOOKS", (doctor._backends,))
    status, rows = findings(capsys)
    assert status == 1
    row = rows["torch", "backend"]
    assert row["verdict"] == "broken"
    assert "libtorch_cpu.so" in row["found"]
    assert "./qkv setup" in row["remedy"]


def test_a_precision_that_does_not_work_is_a_row_and_the_others_are_looked_at(capsys, monkeypatch):
    from qkvbench.backends import torch as backend

    def matmul_seconds(precision, size):
        if precision == "bf16":
            raise RuntimeError('"addmm_impl_cpu_" not implemented for BFloat16')
        return 0.001

    monkeypatch.setattr(backend, "product_s", matmul_seconds)
    monkeypatch.setattr(
        backend, "attention_kernels", lambda precision: {"training": "math fallback"}
    )
    monkeypatch.setattr(doctor, "LOOKS", (doctor._backends,))
    status, rows = findings(capsys)
    assert status == 0
    assert rows["torch", "bf16 product"]["verdict"] == "missing"
    assert rows["torch", "bf16 product"]["remedy"] == "use --precision fp32"
    assert rows["torch", "fp16 product"]["verdict"] == "ok"
    assert rows["torch", "fp32 training"]["verdict"] == "note"


def test_what_a_package_does_while_it_is_imported_is_not_done_to_this_process(
    tmp_path, monkeypatch
):
    modules = {
        "closes": "import sys; sys.stdout.close(); sys.__stdout__ = None",
        "exits": "raise SystemExit(3)",
        "dies": "import os; os._exit(9)",
        "breaks": "raise ImportError('no such symbol')",
        "works": "",
    }
    for name, code in modules.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor._imports([*modules, "no-such-package", "things-stubs"])
    assert found["closes"] == found["works"] == found["things-stubs"] == ""
    assert found["exits"] == "SystemExit: 3"
    assert found["dies"] == "the process that imports it ends with 9"
    assert found["breaks"] == "ImportError: no such symbol"
    assert found["no-such-package"].startswith("ModuleNotFoundError")
    assert not sys.stdout.closed


def test_a_look_that_fails_is_a_row(capsys, monkeypatch):
    def _broken():
        raise KeyError("surprise")
        yield

    monkeypatch.setattr(doctor, "LOOKS", (_broken,))
    status, rows = findings(capsys)
    assert status == 0
    assert "surprise" in rows["broken", "broken"]["found"]


@pytest.mark.usefixtures("quick")
def test_a_cache_that_is_a_file_is_told_with_a_way_out(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "file"))
    status, rows = findings(capsys)
    assert status == 0
    row = rows["data", "cache folder"]
    assert row["verdict"] == "note"
    assert "is a file" in row["found"]
    assert "QKVBENCH_CACHE=FOLDER" in row["remedy"]


@pytest.mark.usefixtures("quick")
def test_data_that_are_damaged_or_not_here_are_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path))
    _, rows = findings(capsys)
    wheels = {what: row for (topic, what), row in rows.items() if topic == "data"}
    assert wheels.pop("cache folder")["verdict"] == "ok"
    assert {row["verdict"] for row in wheels.values()} == {"missing"}
    for wheel in doctor._wheels():
        (tmp_path / wheel.file).write_text("damaged")
    _, rows = findings(capsys)
    assert all("damaged" in rows["data", what]["found"] for what in wheels)


def test_without_a_compiler_only_compiling_is_missing(capsys, monkeypatch):
    from qkvbench.backends import torch as backend

    # The answer is the one that `run --compile` is given.
    monkeypatch.setattr(backend, "cannot_compile", lambda: "--compile needs a compiler.")
    monkeypatch.setattr(doctor, "LOOKS", (doctor._compiler,))
    status, rows = findings(capsys)
    assert status == 0
    row = rows["torch", "torch.compile"]
    assert row["verdict"] == "missing"
    assert row["found"] == "--compile needs a compiler."


def test_the_native_isa_or_the_reason_for_none_is_reported(capsys, monkeypatch):
    from qkvbench import native

    monkeypatch.setattr(doctor, "LOOKS", (doctor._native,))
    monkeypatch.setattr(native, "missing_requirement", lambda: None)
    monkeypatch.setattr(native, "select_isa", lambda: "avx2")
    monkeypatch.setattr(native, "supported_isas", lambda: {"avx2": 2, "portable": 3})
    row = findings(capsys)[1]["native", "decoding kernel"]
    assert row["found"] == "avx2; this machine runs avx2, portable"
    monkeypatch.setattr(native, "missing_requirement", lambda: "not built")
    status, rows = findings(capsys)
    row = rows["native", "decoding kernel"]
    assert status == 0
    assert (row["verdict"], row["found"]) == ("missing", "not built")
    assert "python -m qkvbench.native" in row["remedy"]


def test_what_runs_in_which_type_is_the_backends_own_answer(capsys, monkeypatch):
    from qkvbench.backends import torch as backend

    monkeypatch.setattr(backend, "types", lambda: {"products": {"fp32": "float32"}})
    monkeypatch.setattr(doctor, "LOOKS", (doctor._precisions,))
    _, rows = findings(capsys)
    assert rows["types", "products"]["found"] == "fp32: float32"
