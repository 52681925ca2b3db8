"""A Llama with one root for K and V: built, trained for 20 steps, saved, loaded, and sampled.

Run     python examples/qkv_mode.py
Reads   nothing: tokens are random; nothing is downloaded
Expect  the bytes of both caches; the mode's is half as large and four bytes a token and layer
"""

import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qkvbench import hub

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def main() -> None:
    """Compare the library's mode with a tie."""
    hub.register()
    torch.manual_seed(0)
    for mode in ("canonical", "q,k=v"):
        config = AutoConfig.for_model("qkv_llama", qkv_mode=mode, **SIZES)
        model = AutoModelForCausalLM.from_config(config)
        tokens = torch.randint(3, 50, (4, 16))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(20):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder)
        output = model.generate(
            tokens, max_new_tokens=8, min_new_tokens=8, return_dict_in_generate=True
        )
        cached = [tensor for layer in output.cache.layers for tensor in (layer.keys, layer.values)]
        size = sum(tensor.untyped_storage().nbytes() for tensor in cached)
        print(f"{config.qkv_mode:8} {size:,} bytes of cache for {output.sequences.shape[1]} tokens")


if __name__ == "__main__":
    main()
