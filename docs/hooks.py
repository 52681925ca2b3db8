"""The pages of the site that are made from something else, and the links between all of them.

README and its neighbours are pages as they are; the reference is read from the source, results from
the records, a notebook from its file. Links to files that are no page become plain text.
"""

import importlib
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from qkvbench import recipes
from qkvbench.reports import brief, page
from qkvbench.results.store import Store
from qkvbench.results.view import View, view

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "studies"

# The files of the repository outside docs/ that are pages.
NEIGHBOURS = {
    "README.md": "index.md",
    **{
        name: name
        for name in ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "NOTES.md", "STYLE.md")
    },
    **{
        f"examples/{name}.ipynb": f"notebooks/{name}.md"
        for name in ("own_equation", "reading_a_study")
    },
}
# Code, which is passed over whole, or a link, whose text may hold code: whichever begins first.
LINK = re.compile(
    r"(?m:^)```(?s:.*?)(?m:^```$)"
    r"|`(?:[^`\n]|\n(?!\n))*`"
    r"|(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)"
)

# The public door: what a page is about, and the objects on it with the members that are shown.
REFERENCE: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "qkvbench": (
        "The package's own names. Each is imported on first use, so that `import qkvbench` imports "
        "no framework: `qkvbench.torch` ([here](torch.md)), `qkvbench.jax` (the same in JAX), "
        "`qkvbench.hub` ([pretrained models](../pretrained.md)), `qkvbench.Experiment` and "
        "`qkvbench.Training` ([here](experiment.md)), and `qkvbench.run(experiment)`, which is:",
        [("qkvbench.train.dependencies.run_with_dependencies", "")],
    ),
    "qkvbench.torch": (
        "Layers and models in PyTorch. `qkvbench.torch.Attention(variant, ...)` is the function "
        "`attention` below, which returns the module.",
        [
            ("qkvbench.backends.torch.attention.layer", "attention Attention"),
            ("qkvbench.backends.torch.models.build", "decoder build"),
            ("qkvbench.backends.torch.models.decoder.Decoder", ""),
            ("qkvbench.backends.torch.models.encoder.Encoder", ""),
            ("qkvbench.backends.torch.cache.kv_cache.Cache", ""),
            ("qkvbench.backends.torch.generation.generate", "generate Greedy Sampling"),
            ("qkvbench.backends.torch.generation.beam_search.Beams", ""),
            ("qkvbench.backends.torch.models.weights", "save load read start named_weights"),
            # The shapes that signatures name.
            ("qkvbench.backends.torch.attention.layer.Stream", ""),
            ("qkvbench.backends.torch.attention.layer.SourceStream", ""),
            ("qkvbench.backends.torch.attention.layer.Lengths", ""),
            ("qkvbench.backends.torch.attention.ops.Heads", ""),
            ("qkvbench.backends.torch.models.decoder.Tokenized", ""),
            ("qkvbench.backends.torch.models.decoder.Counts", ""),
        ],
    ),
    "qkvbench.variant": (
        "Variants, their notation, and plans. Pure Python.",
        [
            ("qkvbench.variant.notation", "parse write"),
            ("qkvbench.variant.spec", ""),
            ("qkvbench.variant.scores", "Scores Relative Separable"),
            ("qkvbench.variant.resolve", "resolve resolve_cross"),
            ("qkvbench.variant.plan", ""),
            ("qkvbench.variant.mask", ""),
            ("qkvbench.variant.rope", ""),
            ("qkvbench.variant.parameter", ""),
        ],
    ),
    "qkvbench.model": (
        "Models as frozen values: blocks, architectures, positions, and every learned tensor.",
        [
            ("qkvbench.model.spec", ""),
            ("qkvbench.model.parts", ""),
            ("qkvbench.model.positions", ""),
            ("qkvbench.model.presets", ""),
            ("qkvbench.model.parameters", ""),
        ],
    ),
    "qkvbench.experiment": (
        "One run as a value. Its hash is its identity.",
        [("qkvbench.experiment", "Experiment Training to_json from_json alone")],
    ),
    "qkvbench.cost": (
        "Parameters, multiply-accumulates, cache bytes: computed from plans, never observed. A "
        "multiply-accumulate is two floating-point operations.",
        [
            ("qkvbench.cost.parameters", ""),
            ("qkvbench.cost.operations", ""),
            ("qkvbench.cost.cache", ""),
            ("qkvbench.cost.memory", ""),
        ],
    ),
    "qkvbench.results": (
        "Records, the store, statistics, and the view of a study from which every report is made.",
        [
            ("qkvbench.results.store", "Store Damaged FolderContents StoreError"),
            ("qkvbench.results.record", "Record Point Cost Observed Machine Measurement StudyInfo"),
            ("qkvbench.results.view", "view View TaskView Cell"),
            ("qkvbench.results.stats", "Estimate Difference Comparison Count Tally verdicts"),
            ("qkvbench.results.pair", "pair Pair PairTask"),
            ("qkvbench.results.evidence", "runs_of settings Setting Run"),
            ("qkvbench.results.margins", ""),
        ],
    ),
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for name, uri in NEIGHBOURS.items():
        path = ROOT / name
        content = _notebook(path) if path.suffix == ".ipynb" else path.read_text()
        files.append(File.generated(config, uri, content=content))
    for name, (about, objects) in REFERENCE.items():
        uri = f"reference/{name.rpartition('.')[2]}.md"
        files.append(File.generated(config, uri, content=_reference(name, about, objects)))
    folders = sorted(path.parent for path in STUDIES.glob("*/study.json"))
    views = {folder.name: view(Store(folder)) for folder in folders}
    files.append(File.generated(config, "results.md", content="".join(_results(views))))
    main = page.render(views["quick"])
    files.append(File.generated(config, "studies/quick.html", content=main))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links as they are between pages of the site; no column of links beside a single page."""
    here = page.file.src_uri
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    before = {uri: name for name, uri in NEIGHBOURS.items()}.get(here, f"docs/{here}")
    return LINK.sub(lambda found: _moved(found, before, here), markdown)


def _moved(link: re.Match[str], before: str, here: str) -> str:
    """A link of the file `before` as the page `here` has it."""
    bang, text, target, anchor = link.groups("")
    if not target:  # code
        return link[0]
    named = posixpath.normpath(posixpath.join(posixpath.dirname(before), target))
    uri = NEIGHBOURS.get(named, named.removeprefix("docs/") if named.startswith("docs/") else "")
    if not uri:
        # A file that is no page; a target that is nowhere is left for mkdocs to complain of.
        return text if (ROOT / named).exists() else link[0]
    return f"{bang}[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"


def _reference(name: str, about: str, objects: list[tuple[str, str]]) -> str:
    lines = [f"# {name}", "", about]
    for path, members in objects:
        lines += ["", f"::: {path}"]
        if members:
            lines += ["    options:", f"      members: [{', '.join(members.split())}]"]
    return "\n".join(lines)


def _results(views: dict[str, View]) -> Iterator[str]:
    """Each folder, the main study first: its question, its command, its answer."""
    yield (
        "# The studies\n\nMade from the records in `studies/` when this site was built; "
        "`./qkv report studies/NAME` prints the same, and `--full` every interval. "
        "[Reading the numbers](reading-the-numbers.md) says what each sign allows you to conclude, "
        "[common wrong conclusions](wrong-conclusions.md) what it does not.\n"
        "\n[The whole page of `quick`](studies/quick.html): picture, curves, layers, every run.\n"
    )
    for name, each in sorted(views.items(), key=lambda item: item[0] != "quick"):
        yield f"\n## {name}\n\n"
        if name in recipes.names():
            module = importlib.import_module(f"qkvbench.recipes.{name.replace('-', '_')}")
            yield f"{module.__doc__.splitlines()[0]}\n\n"
        yield f"```\n{each.command}\n```\n\n```\n{brief.render(each)}```\n"


def _notebook(path: Path) -> str:
    """A notebook as a page: its texts, its code, what the code printed or drew."""
    parts: list[str] = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(each) for each in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/svg+xml" in data:
        return f'<div class="drawn">{"".join(data["image/svg+xml"])}</div>'
    text = "".join(output.get("text") or data["text/plain"])
    return f"``` {{ .text .output }}\n{text.strip(chr(10))}\n```"
