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
    """The task made from the data at a path; its version comes from their content.

    Raises DataRefusedError if they cannot be a task, DataUnavailableError if the cache cannot be
    written.
    """
    if not name.isprintable():
        raise DataRefusedError(f"'{own.shown(name)}' has control characters; give it another name.")
    path = Path(name)
    if not path.exists():
        raise own.missing_error(path)
    return _task(path, Path.cwd(), _signature(path))


# A study asks for its tasks many times; unchanged data are read once.
@lru_cache(maxsize=16)
def _task(path: Path, _folder: Path, _signature: Signature) -> Task:
    if path.is_dir():
        return image_task(path)
    if path.suffix.lower() in DELIMITERS:
        return table_task(path)
    return text_task(path)


def _signature(path: Path) -> Signature:
    """A value that changes when the file, or the folder or a file in it, is written."""
    paths = sorted([path, *path.glob("*"), *path.glob("*/*")]) if path.is_dir() else [path]
    stats = [(str(each), each.stat()) for each in paths if each.exists()]
    return tuple((each, stat.st_size, stat.st_mtime_ns, stat.st_ino) for each, stat in stats)
