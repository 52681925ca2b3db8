"""The files that the project is made of."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "qkvbench"


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
