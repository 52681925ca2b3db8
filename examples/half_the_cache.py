"""Half the cache of a pretrained model, and the same text: ``half_the_cache.py [FOLDER]``.

FOLDER is a checkpoint that save_pretrained wrote. Without one, a small Gemma 4 with random weights
is saved and loaded.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from qkvbench import hub
from qkvbench.cost.units import bytes_text
from qkvbench.hub.slim_cache import SlimLayer, storage_bytes

NEW = 40


def random_gemma(folder: Path) -> Path:
    """A folder with a small Gemma 4 whose full-attention layers share K and V."""
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        vocab_size=500,
        vocab_size_per_layer_input=500,
        hidden_size_per_layer_input=0,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=64,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        eos_token_id=None,
    )
    Gemma4ForCausalLM(config).save_pretrained(folder)
    return folder


def compare(folder: Path) -> tuple[bool, int, int]:
    """Whether both generate the same tokens, and the bytes of the slim layers before and after."""
    model = hub.load(folder, dtype=torch.float32).eval()
    slim = hub.slim(copy.deepcopy(model))
    prompt = torch.randint(1, model.config.get_text_config().vocab_size, (2, 60))
    words = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    before = model.generate(prompt, attention_mask=torch.ones_like(prompt), **words)
    after = slim.generate(prompt, attention_mask=torch.ones_like(prompt), **words)
    pairs = zip(before["cache"].layers, after["cache"].layers, strict=True)
    both = [layer for layer, other in pairs if isinstance(other, SlimLayer)]
    held = storage_bytes([tensor for layer in both for tensor in (layer.keys, layer.values)])
    one = sum(layer.bytes for layer in after["cache"].slim_layers)
    return torch.equal(before["sequences"], after["sequences"]), held, one


def main(words: list[str] | None = None) -> None:
    """Print the bytes of both caches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as made:
        same, before, after = compare(asked.folder or random_gemma(Path(made)))
    text = "the same text" if same else "ANOTHER TEXT"
    print(f"{text}; layers that are slim keep {bytes_text(after)}, before {bytes_text(before)}")


if __name__ == "__main__":
    main()
