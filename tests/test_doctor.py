"""The doctor lists what is installed and what really runs; a failure is a row with a remedy."""

import json
import sys

import pytest

from qkvbench import hardware, native
from qkvbench.backends.common import free_memory
from qkvbench.cli import doctor, main, packages
from qkvbench.cost.roofline import Conditions, work
from qkvbench.experiment import PRECISIONS
from qkvbench.measure import calibration


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


@pytest.fixture(name="container")
def _small_container(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("group")
    (folder / "memory.max").write_text(f"{2**30}\n")
    (folder / "memory.current").write_text(f"{2**28}\n")
    (folder / "memory.stat").write_text("inactive_file 0\n")
    monkeypatch.setattr(free_memory, "GROUP", folder)


@pytest.mark.usefixtures("container")
def test_memory_is_the_container_s(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (doctor._machine,))
    row = findings(capsys)[1]["machine", "memory"]
    assert row["verdict"] == "note"
    assert row["found"] == "768 MiB of 1 GiB free"


def _step_s(kind, model, precision, context, cache, batch):
    """The time of a step on a machine with a rate for each part."""
    step = work(model, kind, Conditions(context, batch, precision, precision, cache or precision))
    weights_s = step.weights.moved_bytes / 15e9 + step.weights.flops / 30e9
    attention_s = step.attention.moved_bytes / 10e9 + step.attention.flops / 20e9
    return 1e-4 + len(model.blocks) * 2e-5 + weights_s + attention_s


@pytest.fixture(name="machine")
def _machine(tmp_path, monkeypatch):
    """A machine of computed times; its `slower` are the factors of the next matching steps."""
    slower = []

    def step_s(timer, kind, model, precision, context, cache=None, batch=1):
        seconds = _step_s(kind, model, precision, context, cache, batch)
        if slower and slower[0][0](kind, model, context, batch):
            return seconds * slower.pop(0)[1]
        return seconds

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration.Timer, "step_s", step_s)
    monkeypatch.setattr(calibration, "_bandwidth", lambda threads: 2e10)
    monkeypatch.setattr(calibration, "_peak_rates", lambda threads: {"fp32": 1e11, "bf16": 1e11})
    return slower


# Steps whose time is taken away from a longer one's, and how much slower they are.
DISTURBED = {
    "rows": (lambda kind, model, context, batch: context == calibration.MIDDLE, 9),
    "weights": (
        lambda kind, model, context, batch: model.geometry.d_model == calibration.HEAD_DIM,
        40,
    ),
    "prefill": (
        lambda kind, model, context, batch: (
            kind == "prefill" and context == calibration.SHORT_PROMPT
        ),
        40,
    ),
    "products": (
        lambda kind, model, context, batch: (
            batch == 1 and (len(model.blocks), model.geometry.d_model) == (4, calibration.WIDE)
        ),
        40,
    ),
}


@pytest.mark.parametrize("part", DISTURBED)
def test_a_disturbed_time_is_taken_again(part, machine):
    undisturbed = calibration.calibrate("here", 1)
    machine += [DISTURBED[part]] * 2
    assert calibration.calibrate("here", 1) == undisturbed
    assert machine == []


@pytest.mark.parametrize("slower", DISTURBED.values(), ids=[*DISTURBED])
def test_a_machine_that_stays_busy_is_refused_and_nothing_is_written(
    slower, machine, capsys, tmp_path
):
    machine += [slower] * 100
    assert main(["doctor", "--calibrate", "here.toml"]) == 2
    assert "too busy" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_an_absurd_rate_is_refused_and_nothing_is_written(machine, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(calibration, "_bandwidth", lambda threads: 1e9)
    assert main(["doctor", "--calibrate", "here.toml"]) == 2
    assert "times bandwidth_bytes_per_s" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("machine", "container")
def test_a_calibration_as_json_is_the_record_alone(capsys):
    assert main(["doctor", "--calibrate", "here.toml", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    written = hardware.find("here.toml")
    assert record["name"] == written.name == "here"
    assert record["memory_bytes"]["value"] == 2**30
    assert written.memory_bytes.value == pytest.approx(2**30, rel=1e-3)


@pytest.mark.usefixtures("machine")
def test_a_record_that_cannot_be_written_after_all_is_told_in_words(monkeypatch, capsys, tmp_path):
    def calibrate(name, threads):
        (tmp_path / "here.toml").mkdir()
        return hardware.find("h100")

    monkeypatch.setattr(calibration, "calibrate", calibrate)
    assert main(["doctor", "--calibrate", "here.toml"]) == 2
    assert "here.toml cannot be written: Is a directory" in capsys.readouterr().err
