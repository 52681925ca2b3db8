"""`qkvbench doctor`: what is here, what works, and what really runs. Every failure is a row."""

import json
import os
import pkgutil
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkvbench import data
from qkvbench.cli.parser import Request
from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.data.cache import cache_folder, sha256_of
from qkvbench.data.wheel import Wheel
from qkvbench.experiment import PRECISIONS, Precision

if TYPE_CHECKING:
    from qkvbench.backends import Backend

# Without one of these, nothing runs.
NEEDED = ("jaxtyping", "jinja2", "numpy", "psutil", "pydantic", "rich", "safetensors")
NEEDED += ("scikit-learn", "scipy", "torch")
# The name under which a package is imported, where it is not its own.
IMPORTED = {
    "scikit-learn": "sklearn",
    "import-linter": "importlinter",
    "mlflow-skinny": "mlflow",
    "pytest-timeout": "pytest_timeout",
    "pytest-xdist": "xdist",
    # An extra that brings another extra names this package.
    "qkv-ablation-bench": "qkvbench",
}
# Imports modules, and writes down how each went before it goes to the next.
IMPORTING = """
import importlib, json, sys
told, modules = sys.argv[1:]
for name, module in json.loads(modules).items():
    try:
        importlib.import_module(module)
        failed = None
    except BaseException as error:
        failed = type(error).__name__, str(error)
    with open(told, "a") as file:
        file.write(json.dumps([name, failed]) + "\\n")
"""
IMPORT_TIMEOUT_S = 120
PRODUCT_SIZE = 512
LOW_MEMORY = 2 * 2**30
LOW_DISK = 2**30
WIDTH = 100

Verdict = Literal["ok", "missing", "note", "broken"]
MARKS: dict[Verdict, str] = {"ok": "✓", "missing": "–", "note": "!", "broken": "✗"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `remedy` is the way out where there is something to do.

    ``verdict`` is broken where the main job cannot run, missing where something optional is not
    there, note where a person should know.
    """

    topic: str
    what: str
    verdict: Verdict
    found: str
    remedy: str = ""


def answer(request: Request) -> int:
    """Look at everything and say what was found; 1 where the main job cannot run."""
    findings = [finding for look in LOOKS for finding in _safely(look)]
    if request.json:
        print(json.dumps([asdict(each) for each in findings], indent=1, ensure_ascii=False))
    else:
        print(_text(findings), end="")
    return 1 if any(each.verdict == "broken" for each in findings) else 0


def _safely(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; where it fails, that."""
    try:
        yield from look()
    except Exception as error:
        # A doctor does not fall ill: whatever happens is a row.
        topic = look.__name__.strip("_")
        yield Finding(
            topic,
            topic,
            "note",
            f"could not be looked at: {_first_line(error)}",
            "please report this line",
        )


def _installed() -> Iterator[Finding]:
    try:
        own = version("qkv-ablation-bench")
    except PackageNotFoundError:
        own = "from a folder, not installed"
    yield Finding("installed", "qkvbench", "ok", own)
    python = f"{platform.python_version()} ({sys.executable})"
    yield Finding("installed", "Python", "ok", python)
    for name, found in _imports(NEEDED).items():
        yield _package(name, found, "broken")


def _extras() -> Iterator[Finding]:
    """The optional packages, by the extra that brings them."""
    try:
        wanted = metadata("qkv-ablation-bench").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        yield Finding(
            "extras", "all", "note", "unknown: qkvbench is not installed", "run ./qkv setup"
        )
        return
    by_extra: dict[str, list[str]] = {}
    for line in wanted:
        requirement, _, marker = line.partition(";")
        if "extra ==" in marker:
            name = requirement.strip().split(">")[0].split("=")[0].split("[")[0].strip()
            extra = marker.split("extra ==")[1].strip().strip("'\" ")
            by_extra.setdefault(extra, []).append(name)
    imports = _imports([name for names in by_extra.values() for name in names])
    for extra, names in by_extra.items():
        looked = [_package(name, imports[name], "missing") for name in names]
        absent = [each for each in looked if each.verdict != "ok"]
        present = f"{len(names) - len(absent)} of {len(names)} packages import"
        if absent:
            # A package that is there and does not import is told with its error.
            found = f"{present}; not: {', '.join(f'{each.what} ({each.found})' for each in absent)}"
            yield Finding("extras", extra, "missing", found, f"./qkv setup {extra}")
        else:
            yield Finding("extras", extra, "ok", present)


def _machine() -> Iterator[Finding]:
    from qkvbench.measure.machine import activity, cores, machine, others

    before = activity()
    yield Finding("machine", "processor", "ok", machine("").platform)
    memory = psutil.virtual_memory()
    held = f"{bytes_text(memory.available)} of {bytes_text(memory.total)} free"
    if memory.available < LOW_MEMORY:
        yield Finding("machine", "memory", "note", held, "use --jobs 1, or end other programs")
    else:
        yield Finding("machine", "memory", "ok", held)
    time.sleep(0.5)
    busy = others(before, activity())
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    found = f"{cores()}; load {load}" + ("" if busy is None else f"; others use {busy:g}")
    if busy is not None and busy >= 0.5:
        yield Finding("machine", "cores", "note", found, "timings will be disturbed")
    else:
        yield Finding("machine", "cores", "ok", found)


def _backends() -> Iterator[Finding]:
    """The device, and for each precision: does it work, how fast is it, what does attention."""
    from qkvbench.backends import find

    try:
        backend = find("torch")
        device = str(backend.device())
    except Exception as error:
        # A torch that is broken can fail in any way when it is imported.
        found = f"does not start: {_first_line(error)}"
        yield Finding("torch", "backend", "broken", found, "./qkv setup, or remove .venv first")
        return
    yield Finding("torch", "device", "ok", device)
    intra, inter = backend.threads()
    yield Finding("torch", "threads", "ok", f"{intra} in an operation, {inter} between")
    backend.prepare(1)
    plain_s: float | None = None
    for precision in PRECISIONS:
        try:
            seconds = backend.matmul_seconds(precision, PRODUCT_SIZE)
        except Exception as error:
            # What a type cannot do, torch says in many kinds of errors.
            yield _unable(precision, "product", error)
            continue
        plain_s = plain_s or seconds
        yield _product(precision, seconds, plain_s)
        yield from _kernels(backend, precision)


def _jax() -> Iterator[Finding]:
    """The second backend: its device, and the rate of a product in each precision."""
    from qkvbench.backends import find, lacking

    if (reason := lacking("jax")) is not None:
        yield Finding("jax", "backend", "missing", reason, "./qkv setup jax")
        return
    backend = find("jax")
    # Before it computes: its threads are chosen once.
    backend.prepare(1)
    yield Finding("jax", "device", "ok", str(backend.device()))
    for precision in PRECISIONS:
        seconds = backend.matmul_seconds(precision, PRODUCT_SIZE)
        rate = count_text(2 * PRODUCT_SIZE**3 / seconds)
        text = f"observed: {rate}FLOP/s on one thread ({seconds_text(seconds)})"
        yield Finding("jax", f"{precision} product", "ok", text)


def _unable(precision: Precision, use: str, error: Exception) -> Finding:
    """What a precision cannot do here; without the first of them nothing runs."""
    first, second, *_ = PRECISIONS
    verdict: Verdict = "broken" if precision == first else "missing"
    remedy = f"use --precision {second if precision == first else first}"
    return Finding("torch", f"{precision} {use}", verdict, _first_line(error), remedy)


def _product(precision: Precision, seconds: float, plain_s: float) -> Finding:
    rate = count_text(2 * PRODUCT_SIZE**3 / seconds)
    times = "" if precision == PRECISIONS[0] else f", {plain_s / seconds:.2g} times fp32's rate"
    text = f"observed: {rate}FLOP/s on one thread ({seconds_text(seconds)}){times}"
    slow = seconds > 1.1 * plain_s
    remedy = f"slower than fp32 here: {precision} saves memory, not time" if slow else ""
    return Finding("torch", f"{precision} product", "note" if slow else "ok", text, remedy)


def _kernels(backend: "Backend", precision: Precision) -> Iterator[Finding]:
    try:
        kernels = backend.attention_kernels(precision)
    except Exception as error:
        # Here as well.
        yield _unable(precision, "attention", error)
        return
    for use, kernel in kernels.items():
        fallback = "fallback" in kernel
        remedy = "no fused kernel for this type here: slower, and memory grows with T × T"
        yield Finding(
            "torch",
            f"{precision} {use}",
            "note" if fallback else "ok",
            kernel,
            remedy if fallback else "",
        )


def _compiler() -> Iterator[Finding]:
    """What `run --compile` will ask before it begins."""
    from qkvbench.backends import find

    lacking = find("torch").compile_error()
    if lacking is None:
        found = "its compiler is there; nothing was compiled to try it"
        yield Finding("torch", "torch.compile", "ok", found)
    else:
        remedy = "install it to use --compile; nothing else needs it"
        yield Finding("torch", "torch.compile", "missing", lacking, remedy)


def _native() -> Iterator[Finding]:
    """The instruction set of the native decoding kernel, or the reason why there is none."""
    from qkvbench import native

    if (missing := native.missing_requirement()) is None:
        found = f"{native.select_isa()}; this machine runs {', '.join(native.supported_isas())}"
        yield Finding("native", "decoding kernel", "ok", found)
    else:
        remedy = "python -m qkvbench.native builds it; without it torch decodes, more slowly"
        yield Finding("native", "decoding kernel", "missing", missing, remedy)


def _precisions() -> Iterator[Finding]:
    """What runs in which type in training."""
    from qkvbench.backends import find

    for part, kinds in find("torch").types().items():
        text = ", ".join(f"{precision}: {kind}" for precision, kind in kinds.items())
        yield Finding("types", part, "ok", text)


def _data() -> Iterator[Finding]:
    """The cache folder, and whether the wheels in it are whole."""
    yield _writable()
    for wheel in _wheels():
        path = cache_folder() / wheel.file
        what = f"{wheel.name} {wheel.version}"
        if not path.exists():
            yield Finding("data", what, "missing", "not here yet", "a run that needs it fetches it")
        elif sha256_of(path) == wheel.sha256:
            found = f"{bytes_text(path.stat().st_size)}, its hash is right"
            yield Finding("data", what, "ok", found)
        else:
            remedy = "a run that needs it sets it aside and fetches it again"
            yield Finding("data", what, "note", f"{path} is damaged", remedy)


def _wheels() -> list[Wheel]:
    """Every wheel that a module of data names: by itself, or as part of a source."""
    found: dict[str, Wheel] = {}
    for module in pkgutil.iter_modules(data.__path__, f"{data.__name__}."):
        for value in vars(import_module(module.name)).values():
            wheel = getattr(value, "wheel", value)
            if isinstance(wheel, Wheel):
                found[wheel.file] = wheel
    return list(found.values())


def _writable() -> Finding:
    folder = cache_folder()
    remedy = "name another folder: QKVBENCH_CACHE=FOLDER"
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir():
        return Finding("data", "cache folder", "note", f"{existing} is a file", remedy)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("data", "cache folder", "note", f"{existing} cannot be written", remedy)
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing).free
    found = f"{folder}: holds {bytes_text(held)}, {bytes_text(free)} free"
    if free < LOW_DISK:
        return Finding("data", "cache folder", "note", found, f"make room, or {remedy}")
    return Finding("data", "cache folder", "ok", found)


LOOKS = (_installed, _extras, _machine, _backends, _jax, _compiler, _native, _precisions, _data)


def _imports(names: Sequence[str]) -> dict[str, str]:
    """For each package nothing where it imports, else why it does not.

    In processes of their own: what a package does while it is imported (replace the standard
    streams, start threads, die of a missing instruction) is not done to this one.
    """
    found: dict[str, str] = {}
    while left := [name for name in dict.fromkeys(names) if name not in found]:
        modules = {
            name: IMPORTED.get(name, name.replace("-", "_"))
            for name in left
            # Stubs are for a type checker alone.
            if not name.endswith("-stubs")
        }
        found |= dict.fromkeys([name for name in left if name not in modules], "")
        with TemporaryDirectory() as folder:
            told = Path(folder, "told")
            told.touch()
            command = [sys.executable, "-c", IMPORTING, str(told), json.dumps(modules)]
            try:
                # Its output goes nowhere: packages print what they like.
                status = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=IMPORT_TIMEOUT_S,
                ).returncode
                why = f"the process that imports it ends with {status}"
            except subprocess.TimeoutExpired:
                why = f"its import takes more than {IMPORT_TIMEOUT_S} s"
            for name, failed in map(json.loads, told.read_text().splitlines()):
                found[name] = _spoken(*failed) if failed else ""
        unsaid = [name for name in modules if name not in found]
        if unsaid:
            found[unsaid[0]] = why
    return found


def _package(name: str, found: str, otherwise: Verdict) -> Finding:
    """The version of a package that imports; `otherwise` why it does not, and what to do."""
    try:
        own = version(name)
    except PackageNotFoundError:
        return Finding("installed", name, otherwise, "not installed", "./qkv setup")
    if found:
        return Finding("installed", name, otherwise, found, "./qkv setup")
    return Finding("installed", name, "ok", own)


def _first_line(error: Exception) -> str:
    return _spoken(type(error).__name__, str(error))


def _spoken(kind: str, text: str) -> str:
    """An error by its kind and the first line of what it says."""
    lines = text.strip().splitlines()
    return f"{kind}: {lines[0][:160]}" if lines else kind


def _text(findings: Sequence[Finding]) -> str:
    file = StringIO()
    console = Console(file=file, width=WIDTH, color_system=None, legacy_windows=False)
    for topic in dict.fromkeys(each.topic for each in findings):
        console.print(Text(topic))
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(overflow="fold")
        for each in findings:
            if each.topic == topic:
                cell = Text(each.found)
                if each.remedy:
                    cell.append(f"\n→ {each.remedy}")
                table.add_row(Text(f" {MARKS[each.verdict]}"), Text(each.what), cell)
        console.print(table)
    verdict = (
        "The main job cannot run: see the lines with ✗."
        if any(each.verdict == "broken" for each in findings)
        else "The main job can run: ./qkv run quick."
    )
    console.print(Text(f"\n{verdict} No browser, compiler or accelerator is needed for it."))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
