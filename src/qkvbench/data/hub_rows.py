"""The rows of data sets of the Hugging Face Hub, streamed from Parquet files.

Of a data set's repository only Parquet files are read, by the library's own reader: no code of
anybody else runs, and no pickle is opened. Rows are streamed, so nothing but what a task prepares
is kept on disk. On a machine without a network a folder takes the place of the Hub (`FOLDER`).
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qkvbench.data.cache import DataUnavailableError
from qkvbench.data.hub import FOLDER, HubData

# As in train-00003-of-00014.parquet.
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.parquet")
_NO_DOWNLOAD = "The tasks digits, sort and recall need no download."


def rows(data: HubData, split: str, *, image: str | None = None) -> Iterator[Mapping[str, Any]]:
    """The rows of a split in the order of its files, with the columns of `data` alone.

    The column `image` comes as {"bytes": …, "path": …}: the file of the image, not decoded.
    Raises DataUnavailableError if they cannot be read, with the way out.
    """
    if find_spec("datasets") is None:
        raise DataUnavailableError(
            f"{data.repository} is read by the package datasets, which is not installed.\n"
            "Run ./qkv setup data, or pip install 'qkv-ablation-bench[data]'.\n" + _NO_DOWNLOAD
        )
    # Imported here: it takes seconds, and tasks are listed without it.
    import datasets

    files = _files(data, split)
    try:
        found = datasets.load_dataset(
            "parquet",
            data_files={split: files},
            split=split,
            streaming=True,
            columns=list(data.columns),
        )
        if image is not None:
            found = found.cast_column(image, datasets.Image(decode=False))
        yield from found
    # Any error of the libraries between here and the Hub: they have no common class.
    except Exception as error:
        raise DataUnavailableError(_unreadable(data, split, error)) from error


def _files(data: HubData, split: str) -> str:
    """The pattern of the files of a split: on the Hub, or in the folder that replaces it."""
    pattern = data.files[split]
    if not data.is_local:
        return f"hf://datasets/{data.repository}@{data.revision}/{pattern}"
    folder = _folder(data)
    found = [path.name for path in folder.glob(pattern)]
    missing = _missing(found)
    if missing or not found:
        lack = f"{', '.join(missing[:3])} of {pattern} are" if missing else f"there is no {pattern}"
        raise DataUnavailableError(
            f"{FOLDER} has no {data.repository}, or not all of it: {lack}"
            f"{' missing' if missing else ''} in {folder}.\n"
            f"On a machine with a network, this fetches it:\n  {download_command(data)}\n"
            + _NO_DOWNLOAD
        )
    return str(folder / pattern)


def _missing(names: Iterable[str]) -> list[str]:
    """The files that are not there, if the names of the others say how many there are."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in names:
        if match := _PART.fullmatch(name):
            stem, part, count = match.groups()
            found[stem, count].add(int(part))
    return [
        f"{stem}-{part:0{len(count)}}-of-{count}.parquet"
        for (stem, count), parts in found.items()
        for part in range(int(count))
        if part not in parts
    ]


def _folder(data: HubData) -> Path:
    return Path(os.environ.get(FOLDER) or "FOLDER").expanduser() / data.repository


def download_command(data: HubData) -> str:
    """The command of huggingface_hub that fetches the pinned files into a folder."""
    patterns = " ".join(f"'{pattern}'" for pattern in dict.fromkeys(data.files.values()))
    return (
        f"hf download {data.repository} --repo-type dataset --revision {data.revision} "
        f"--include {patterns} --local-dir {_folder(data)}"
    )


def _unreadable(data: HubData, split: str, error: Exception) -> str:
    """Why the rows cannot be read and what to do, in five lines."""
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
    first = f"The {split} split of {data.repository} could not be read: {reason}"
    if data.is_local:
        return f"{first}\nFetch it again:\n  {download_command(data)}\n{_NO_DOWNLOAD}"
    account = (
        f"It needs an account that has accepted its terms ({data.page}): hf auth login.\n"
        if data.gated
        else ""
    )
    return (
        f"{first}\n{account}Without a network, fetch it elsewhere and set {FOLDER}=FOLDER:\n"
        f"  {download_command(data)}\n{_NO_DOWNLOAD}"
    )
