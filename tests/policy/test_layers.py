"""Arrows point down, and `import qkvbench` brings no framework."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from policy.tree import ROOT, SOURCE

FRAMEWORKS = ("torch", "jax", "transformers", "datasets")
LIGHT = (
    "qkvbench",
    "qkvbench.variant",
    "qkvbench.model",
    "qkvbench.experiment",
    "qkvbench.cost",
    "qkvbench.reference",
    "qkvbench.results",
    "qkvbench.claims",
    "qkvbench.reports",
    "qkvbench.reports.ledger",
    "qkvbench.cli",
)


def _lint(folder, *words):
    """import-linter's verdict on the package in `folder`, by the contracts of pyproject.toml."""
    command = [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml"]
    return subprocess.run(
        [*command, "--no-cache", "--no-logo", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_keeps_its_contracts():
    result = _lint(SOURCE.parent)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("contract", "stray", "line"),
    [
        ("layers", "utils", ""),
        ("layers", "variant.upward", "import qkvbench.experiment"),
        ("frameworks", "cost.heavy", "import torch"),
        ("frameworks", "claims.heavy", "import qkvbench.backends.torch"),
        ("frameworks", "model.heavy", "import qkvbench.backends.torch"),
        ("tasks", "tasks.heavy", "import torch"),
        ("backends", "backends.torch.stray", "import qkvbench.backends.jax"),
    ],
)
def test_a_stray_module_or_arrow_breaks_a_contract(tmp_path, contract, stray, line):
    copy = shutil.copytree(SOURCE, tmp_path / "qkvbench")
    copy.joinpath(*stray.split(".")).with_suffix(".py").write_text(f"{line}\n")

    result = _lint(tmp_path, "--contract", contract)

    assert result.returncode == 1
    assert f"qkvbench.{stray}" in result.stdout


def test_a_light_module_brings_no_framework():
    script = f"import sys, {', '.join(LIGHT)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(LIGHT) <= set(loaded)
    assert [name for name in FRAMEWORKS if name in loaded] == []
