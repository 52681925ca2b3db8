"""The files that the project is made of."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "qkvbench"

ENTRY = re.compile(r"^@\w+\{(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*?)\},?$", re.MULTILINE | re.DOTALL)


def python_files(folder: Path) -> list[Path]:
    """All modules below `folder`."""
    return sorted(folder.rglob("*.py"))


def text_files() -> list[Path]:
    """All text files that git has or would take."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    return [path for path in files if b"\0" not in path.read_bytes()]


def where(path: Path, text: str, position: int) -> str:
    """A place in a file, as an editor takes it."""
    return f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, position) + 1}"


def bibliography() -> dict[str, dict[str, str]]:
    """The fields of each entry of the bibliography, by arXiv number."""
    text = (ROOT / "docs" / "references.bib").read_text()
    fields = [dict(FIELD.findall(entry["body"])) for entry in ENTRY.finditer(text)]
    return {entry.get("eprint", entry["title"]): entry for entry in fields}
