"""The site of documentation is built without a warning and needs nothing from outside; notebooks
run."""

import html
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

pytestmark = pytest.mark.slow


class _Fetched(HTMLParser):
    """The addresses that a browser fetches to show a page, without being asked."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "object"):
            self.addresses += filter(None, (attributes.get("src"), attributes.get("data")))
        if tag == "link" and attributes.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(attributes["href"])


@pytest.fixture(scope="module", name="site")
def _site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.timeout(900)  # every study is read, on a busy machine
def test_a_page_of_the_site_fetches_nothing_from_outside(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        parser = _Fetched()
        parser.feed(page.read_text())
        assert [each for each in parser.addresses if re.match(r"(\w+:)?//", each)] == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(\w+:)?//|@import", sheet.read_text()), sheet.name


def test_the_reference_has_the_signatures_shapes_errors_and_source_of_the_public_door(site):
    torch = (site / "reference" / "torch.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", torch))
    assert "Stream = Float[Tensor, 'batch time d_model']" in text
    assert "qkvbench.backends.torch.models.decoder.Decoder.forward" in torch
    cost = (site / "reference" / "cost.html").read_text()
    assert "qkvbench.cost.cache.cache_bytes_per_token" in cost
    assert "Source code in <code>src/qkvbench/cost/cache.py</code>" in cost
    variant = (site / "reference" / "variant.html").read_text()
    assert "Raises ValueError, with what to write instead" in variant
    for name in ("qkvbench", "variant", "model", "experiment", "results"):
        assert "doc-function" in (site / "reference" / f"{name}.html").read_text(), name


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_gives_as_many_outputs_as_are_committed(path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src")]))
    committed = nbformat.read(path, as_version=4)
    executed = nbformat.read(path, as_version=4)
    NotebookClient(
        executed, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    for before, after in zip(committed.cells, executed.cells, strict=True):
        outputs = [
            {kind for each in cell.get("outputs", []) for kind in each.get("data", {"text": ""})}
            for cell in (before, after)
        ]
        assert outputs[0] == outputs[1]
    assert any(cell.get("outputs") for cell in committed.cells)
