"""A Llama with one root for K and V: made, trained for a moment, saved, loaded, and written with.

Run     python examples/qkv_mode.py
Reads   nothing: tokens are drawn; nothing is downloaded
Expect  the bytes of both caches; the mode's is half as large and four bytes a token and layer
"""

import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import qkvbench.hub  # noqa: F401 (so that the library knows qkv_mode)

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def main() -> None:
    """Go the road once with the library's mode and once with a tie."""
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
        told = model.generate(
            tokens, max_new_tokens=8, min_new_tokens=8, return_dict_in_generate=True
        )
        kept = [tensor for layer in told.cache.layers for tensor in (layer.keys, layer.values)]
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept)
        print(f"{config.qkv_mode:8} {size:,} bytes of cache for {told.sequences.shape[1]} tokens")


if __name__ == "__main__":
    main()
