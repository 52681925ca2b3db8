"""The files of a checkpoint: a folder, a model that comes in a package, or a name on the Hub.

From the Hub only the files that are asked for are downloaded: for the settings, config.json.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from qkvbench.data.checkpoints import HUB_NAME, PACKAGED
from qkvbench.hub.fit.shards import INDEX, WHOLE, open_file, weight_files
from qkvbench.hub.fit.source import packaged_folder
from qkvbench.hub.safety import (
    UnsafeFolderError,
    check_folder,
    check_settings,
    printable,
    read_json,
)


class CheckpointFiles:
    """The settings and weights of a checkpoint in a folder, or on the Hub."""

    def __init__(self, source: str) -> None:
        """Read the settings; the weights are read when they are asked for."""
        self.repository: str | None = None
        packaged = source in PACKAGED and not Path(source).is_dir()
        if packaged or Path(source).is_dir():
            folder = check_folder(packaged_folder(source) if packaged else source)
            self.folder, self.settings = folder.path, folder.settings
            return
        if not HUB_NAME.fullmatch(source):
            raise UnsafeFolderError(
                f"There is no folder {printable(source)}.\nGive a folder that save_pretrained "
                "wrote, a name on the Hub such as openai-community/gpt2, or a model that comes in "
                f"a package: {', '.join(PACKAGED)}."
            )
        self.repository = source
        file = self._fetched("config.json")
        assert file is not None, "its absence is an error"
        content = read_json(file)
        check_settings(content)
        self.folder, self.settings = file.parent, content

    def tensors(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        """The wanted tensors, whose names are keys, with the wanted values as their names."""
        for file in self._weights(wanted):
            with open_file(file) as found:
                for key in found.keys():  # noqa: SIM118
                    if name := _match(key, wanted):
                        yield wanted[name], found.get_tensor(key)

    def _weights(self, wanted: Mapping[str, str]) -> list[Path]:
        """The files with the wanted tensors."""
        if self.repository is None:
            return weight_files(self.folder)
        index = self._fetched(INDEX, required=False)
        if index is None:
            names = {WHOLE}
        else:
            parts: dict[str, str] = read_json(index).get("weight_map", {})
            names = {str(file) for key, file in parts.items() if _match(key, wanted)}
        return [file for name in sorted(names) if (file := self._fetched(name)) is not None]

    def _fetched(self, name: str, *, required: bool = True) -> Path | None:
        """A file of the repository, downloaded into the Hub's own cache."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

        if Path(name).name != name:
            raise UnsafeFolderError(f"{printable(name)} is no bare name of a file.")
        try:
            return Path(hf_hub_download(str(self.repository), name))
        except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
            if not required and isinstance(error, EntryNotFoundError):
                return None
            first = printable(str(error).strip().partition("\n")[0])
            raise UnsafeFolderError(
                f"{name} of {self.repository} cannot be fetched: {first}\n"
                "It takes a network, and a token for a private repository. Without: copy the "
                "checkpoint into a folder and give that."
            ) from None


def _match(key: str, wanted: Mapping[str, str]) -> str | None:
    """The wanted name of a tensor in a file, whose head or body may have been saved alone."""
    return next(
        (
            name
            for name in wanted
            if key == name or name.endswith(f".{key}") or key.endswith(f".{name}")
        ),
        None,
    )
