"""The doctor lists what is installed and what really runs; a failure is a row with a remedy."""

import json
import sys

import pytest

from qkvbench import native
from qkvbench.cli import doctor, main, packages
from qkvbench.experiment import PRECISIONS


def findings(capsys):
    status = main(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)
    return status, {(row["topic"], row["what"]): row for row in rows}


@pytest.fixture
def quick(monkeypatch):
    """Without the checks that import packages, which takes many seconds."""
    checks = (doctor._machine, doctor._native, doctor._precisions, doctor._compiler, doctor._data)
    monkeypatch.setattr(doctor, "CHECKS", checks)


def test_every_precision_is_tried(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (doctor._backends,))
    status, rows = findings(capsys)
    assert status == 0
    decoding = "rows read once" if native.missing_requirement() is None else "over cached roots"
    for precision in PRECISIONS:
        assert "observed: " in rows["torch", f"{precision} product"]["found"]
        assert decoding in rows["torch", f"{precision} decoding"]["found"]
        assert "scaled_dot_product" in rows["torch", f"{precision} training"]["found"]


@pytest.mark.usefixtures("quick")
def test_findings_are_lines_of_text_and_a_conclusion(capsys):
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Studies can run: ./qkv run quick." in out
    assert max(map(len, out.splitlines())) <= doctor.WIDTH


@pytest.mark.slow
def test_everything_is_looked_at_and_the_main_job_can_run_here(capsys):
    status, rows = findings(capsys)
    assert status == 0
    assert {"installed", "extras", "machine", "torch", "data"} <= {topic for topic, _ in rows}
    assert all(row["remedy"] for row in rows.values() if row["verdict"] != "ok")


def test_a_backend_that_does_not_start_is_a_row_and_ends_with_1(capsys, monkeypatch):
    def broken(name):
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr("qkvbench.backends.find", broken)
    monkeypatch.setattr(doctor, "CHECKS", (doctor._backends,))
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

    monkeypatch.setattr(backend, "matmul_seconds", matmul_seconds)
    monkeypatch.setattr(
        backend, "attention_kernels", lambda precision: {"training": "math fallback"}
    )
    monkeypatch.setattr(doctor, "CHECKS", (doctor._backends,))
    status, rows = findings(capsys)
    assert status == 0
    assert rows["torch", "bf16 product"]["verdict"] == "missing"
    assert rows["torch", "bf16 product"]["remedy"] == "use --precision fp32"
    assert rows["torch", "fp16 product"]["verdict"] == "ok"
    assert rows["torch", "fp32 training"]["verdict"] == "note"


def test_a_package_that_misbehaves_while_it_is_imported_does_not_harm_this_process(
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
    found = packages.import_errors([*modules, "no-such-package", "things-stubs"])
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

    monkeypatch.setattr(doctor, "CHECKS", (_broken,))
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
    monkeypatch.setattr(backend, "compile_error", lambda: "--compile needs a compiler.")
    monkeypatch.setattr(doctor, "CHECKS", (doctor._compiler,))
    status, rows = findings(capsys)
    assert status == 0
    row = rows["torch", "torch.compile"]
    assert row["verdict"] == "missing"
    assert row["found"] == "--compile needs a compiler."


def test_the_native_isa_or_the_reason_for_none_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (doctor._native,))
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


def test_the_types_of_each_precision_are_the_backend_s_own_answer(capsys, monkeypatch):
    from qkvbench.backends import torch as backend

    monkeypatch.setattr(backend, "types", lambda: {"products": {"fp32": "float32"}})
    monkeypatch.setattr(doctor, "CHECKS", (doctor._precisions,))
    _, rows = findings(capsys)
    assert rows["types", "products"]["found"] == "fp32: float32"
