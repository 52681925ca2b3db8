"""The package can be built, installed into an empty environment, cited, and type-checked."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from policy.tree import bibliography

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version_and_of_the_study():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    (study,) = citation["references"]
    (arxiv,) = (each["value"].removeprefix("arXiv:") for each in study["identifiers"])
    entry = bibliography()[arxiv]
    authors = [f"{each['family-names']}, {each['given-names']}" for each in study["authors"]]
    assert " and ".join(authors) == entry["author"]
    assert study["title"] == re.sub(r"[{}]", "", entry["title"])
    assert str(study["year"]) == entry["year"]


def _tracked() -> list[Path]:
    """The files that git has or would take, from the root."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).is_file()]


def _build(kind: str, tree: Path, into: Path, **environment) -> Path:
    """An sdist or a wheel of the project in `tree`, by the interpreter's own setuptools."""
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(into)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return into / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module", name="wheel")
def _wheel(tmp_path_factory) -> Path:
    """The wheel that is built from the sdist, without a compiler."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    for name in _tracked():
        if name.parts[0] not in ("studies", "tests"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    with tarfile.open(_build("sdist", tree, folder)) as archive:
        # The filter is newer than Python 3.11.2, and this archive is our own.
        extra = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **extra)
    (unpacked,) = folder.glob("*/PKG-INFO")
    return _build("wheel", unpacked.parent, folder, CXX="false")


@pytest.mark.slow
def test_a_wheel_made_from_the_sdist_has_every_file_of_the_package(wheel):
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("qkvbench/")}
    source = Path("src")
    wanted = {str(name.relative_to(source)) for name in _tracked() if source in name.parents}
    assert packed == wanted
    assert {"qkvbench/py.typed", "qkvbench/recipes/masked-diagonal.toml"} <= packed


# Its own packages and torch, or those of this interpreter, as `./qkv` reuses a torch.
SMALL = ("--variants", "q,k,v", "q,k=v", "none", "--seeds", "1")


@pytest.mark.slow
@pytest.mark.timeout(3600)  # an installation and up to 220 short runs, on a busy machine
@pytest.mark.parametrize(
    ("borrowed", "words"),
    [
        pytest.param(True, SMALL, id="with the packages that are here"),
        pytest.param(False, (), id="empty", marks=pytest.mark.nightly),
    ],
)
def test_a_wheel_in_a_new_environment_runs_the_main_job(wheel, tmp_path, borrowed, words):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if borrowed:
        (site,) = venv.glob("lib/python3*/site-packages")
        (site / "_borrowed.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python = venv / "bin" / "python"
    how = ["--no-deps"] if borrowed else ["-c", ROOT / "constraints.txt"]
    run(python, "-m", "pip", "install", *how, wheel)
    assert str(venv) in run(python, "-c", "import qkvbench; print(qkvbench.__file__)")
    run(venv / "bin" / "qkvbench", "run", "quick", "--smoke", "--out", "quick", *words)
    assert (tmp_path / "quick" / "report.html").stat().st_size > 10_000
