"""Tensors of a checkpoint on the disk: read one at a time, written in shards with an index."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# Most bytes of a shard that is written, unless one tensor is larger. It is held in memory twice.
SHARD_BYTES = 256_000_000
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What a shard is called before the number of shards is known.
_PART = "part-{:05d}.safetensors"


@contextmanager
def open_file(file: Path) -> Iterator[Any]:
    """A safetensors file; ValueError if it is none, or is cut off."""
    try:
        with safe_open(file, "pt") as found:
            yield found
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file: {error}") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that the library reads of a folder, which may hold others.

    One file, or those of its index; all of them if there is neither. ValueError if one that the
    index names is missing, or lies elsewhere.
    """
    whole, index = folder / WHOLE, folder / INDEX
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index} is no index of safetensors files.") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{index} names the file {name!r}, which is not beside it.")
    return [folder / name for name in names]


class Tensors:
    """The tensors in the safetensors files of a folder; one file is open at a time."""

    def __init__(self, folder: Path) -> None:
        """Read the names of all tensors, and no tensor; ValueError if a file is damaged."""
        self._files: dict[str, Path] = {}
        self._open: tuple[Path, Any] | None = None
        for file in weight_files(folder):
            with open_file(file) as found:
                self._files |= dict.fromkeys(found.keys(), file)

    @property
    def names(self) -> list[str]:
        """The names, file by file, so that each file is opened once if they are read in order."""
        return list(self._files)

    def read(self, name: str) -> Tensor:
        """The tensor of this name. Its memory is the file's until another file is read."""
        file = self._files[name]
        if self._open is None or self._open[0] != file:
            self._open = file, safe_open(file, "pt")
        return self._open[1].get_tensor(name)

    @property
    def shard_bytes(self) -> int:
        """The size of the largest file."""
        return max(file.stat().st_size for file in self._files.values())

    def numel(self) -> int:
        """Numbers of all tensors, read from the headers."""
        count = 0
        for file in dict.fromkeys(self._files.values()):
            with open_file(file) as found:
                for name in found.keys():  # noqa: SIM118
                    size = 1
                    for length in found.get_slice(name).get_shape():
                        size *= length
                    count += size
        return count


def weights_hash(model: Any) -> str:
    """A hash of all weights of a model of torch, names included."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class ShardWriter:
    """Writes tensors into shards of at most so many bytes, each when it is full.

    The files get their names, and the index is written, when the block ends without an error.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        """No file is written yet."""
        self.folder, self.limit = folder, limit
        self._full: list[list[str]] = []
        self._buffer: dict[str, Tensor] = {}
        self._bytes = self._total = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def add(self, name: str, tensor: Tensor) -> None:
        """Add one tensor, which is copied."""
        size = tensor.numel() * tensor.element_size()
        if self._buffer and self._bytes + size > self.limit:
            self._write()
        self._buffer[name] = tensor.detach().contiguous().clone()
        self._bytes += size
        self._total += size

    def _write(self) -> None:
        save_file(self._buffer, self.folder / _PART.format(len(self._full)), {"format": "pt"})
        self._full.append(list(self._buffer))
        self._buffer, self._bytes = {}, 0

    def _finish(self) -> None:
        if self._buffer:
            self._write()
        count = len(self._full)
        if count == 1:
            (self.folder / _PART.format(0)).rename(self.folder / WHOLE)
            return
        places = {}
        for number, names in enumerate(self._full):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self.folder / _PART.format(number)).rename(self.folder / file)
            places |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": places}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
