"""Tasks made from a person's own data: a path to text, JSON lines, a table or images."""

from functools import lru_cache
from pathlib import Path

from qkvbench.data import own
from qkvbench.data.cache import DataRefusedError
from qkvbench.tasks import Task
from qkvbench.tasks.own.images import image_task
from qkvbench.tasks.own.table import DELIMITERS, table_task
from qkvbench.tasks.own.text import text_task

Signature = tuple[tuple[str, int, int, int], ...]


def task(name: str) -> Task:
    """The task made of what lies at a path; its version comes from the content.

    Raises DataRefusedError where that cannot be a task, DataUnavailableError where the cache
    cannot be written.
    """
    if not name.isprintable():
        raise DataRefusedError(f"'{own.shown(name)}' has control characters; give it another name.")
    path = Path(name)
    if not path.exists():
        raise own.missing(path)
    return _task(path, Path.cwd(), _signature(path))


# A study asks for its tasks many times; what lies there is read once while it stays the same.
@lru_cache(maxsize=16)
def _task(path: Path, _folder: Path, _signature: Signature) -> Task:
    if path.is_dir():
        return image_task(path)
    if path.suffix.lower() in DELIMITERS:
        return table_task(path)
    return text_task(path)


def _signature(path: Path) -> Signature:
    """What changes when a file is written, or a folder or what lies in it is."""
    paths = sorted([path, *path.glob("*"), *path.glob("*/*")]) if path.is_dir() else [path]
    stats = [(str(each), each.stat()) for each in paths if each.exists()]
    return tuple((each, stat.st_size, stat.st_mtime_ns, stat.st_ino) for each, stat in stats)
