"""Data sets of the Hugging Face Hub as values: the Parquet files of one pinned commit."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

# The variable that names a folder with the same files: FOLDER/OWNER/NAME/PATH.
FOLDER = "QKVBENCH_HUB"


@dataclass(frozen=True)
class HubData:
    """A data set at one commit: the files of each split, and the columns that are read.

    ``prepared_bytes`` is about what a task keeps of it in the cache, in its default form, and
    ``download_bytes`` what is read over the network, as its card states it; None if it is not
    known. A ``gated`` data set asks for an account that has accepted its terms.
    """

    repository: str
    revision: str
    files: Mapping[str, str]
    columns: tuple[str, ...]
    prepared_bytes: float
    licence: str
    download_bytes: float | None = None
    gated: bool = False

    @property
    def page(self) -> str:
        """The address of its card."""
        return f"https://huggingface.co/datasets/{self.repository}"

    @property
    def is_local(self) -> bool:
        """Whether its files are read from a folder in place of the Hub."""
        return bool(os.environ.get(FOLDER))
