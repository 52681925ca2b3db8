"""Try to import packages, in subprocesses."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

# The import name of a package if it differs from its distribution's.
IMPORT_NAMES = {
    "scikit-learn": "sklearn",
    "import-linter": "importlinter",
    "mkdocs-material": "material",
    "mkdocstrings-python": "mkdocstrings",
    "mlflow-skinny": "mlflow",
    "pytest-timeout": "pytest_timeout",
    "pytest-xdist": "xdist",
    # An extra that includes another extra requires this package.
    "qkv-ablation-bench": "qkvbench",
}
# Imports modules, and appends the outcome of each to a file before it imports the next.
IMPORT_SCRIPT = """
import importlib, json, sys
log, modules = sys.argv[1:]
for name, module in json.loads(modules).items():
    try:
        importlib.import_module(module)
        failure = None
    except BaseException as error:
        failure = type(error).__name__, str(error)
    with open(log, "a") as file:
        file.write(json.dumps([name, failure]) + "\\n")
"""
IMPORT_TIMEOUT_S = 120


def import_errors(names: Sequence[str]) -> dict[str, str]:
    """The import error of each package; empty if it can be imported.

    Packages may replace the standard streams, start threads or crash while they are imported, so
    this is done in subprocesses.
    """
    errors: dict[str, str] = {}
    while left := [name for name in dict.fromkeys(names) if name not in errors]:
        modules = {
            name: IMPORT_NAMES.get(name, name.replace("-", "_"))
            for name in left
            # Stubs are not importable.
            if not name.endswith("-stubs")
        }
        errors |= dict.fromkeys([name for name in left if name not in modules], "")
        with TemporaryDirectory() as folder:
            log = Path(folder, "log")
            log.touch()
            command = [sys.executable, "-c", IMPORT_SCRIPT, str(log), json.dumps(modules)]
            try:
                status = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=IMPORT_TIMEOUT_S,
                ).returncode
                reason = f"the process that imports it ends with {status}"
            except subprocess.TimeoutExpired:
                reason = f"its import takes more than {IMPORT_TIMEOUT_S} s"
            for name, failure in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
                errors[name] = error_text(*failure) if failure else ""
        # The first module without an outcome ended the process; the loop goes on after it.
        crashed = [name for name in modules if name not in errors]
        if crashed:
            errors[crashed[0]] = reason
    return errors


def error_text(kind: str, text: str) -> str:
    """The type of an error and the first line of its message."""
    lines = text.strip().splitlines()
    return f"{kind}: {lines[0][:160]}" if lines else kind
