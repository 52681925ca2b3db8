"""A cache in int8 or int4 inside a model of transformers: its bytes, its rounding, its kernel."""

import pytest
import torch
import transformers

from native_kernel import needs_library
from qkv_mode_models import LAYERS, inputs_of, model_of
from qkvbench import hub
from qkvbench.backends.torch.cache.quantize import dequantize, quantize
from qkvbench.cost import CACHE_FORMATS
from qkvbench.hub.growing_tensor import GROWTH
from test_hub_decoding import CLOSE, STEPS, WIDE, calls, decode, torch_only

__all__ = ["calls"]

# Heads of whole groups of 32 numbers, as the kernel reads int4.
HEADS_OF_32 = {
    **{kind: {"head_dim": 32} for kind in ("llama", "mistral", "qwen3")},
    "gpt_neox": {"hidden_size": 128},
    "gpt2": {"n_embd": 128, "n_positions": 60},
}
MODES = [
    ("llama", "q,k=v"),
    ("llama", "q,k,v"),
    ("llama", "q,k=v+ropevalue"),
    ("llama", "q,k=v/2"),
    ("mistral", "q,k=v"),
    ("gpt_neox", "q,k=v"),
    ("qwen3", "q,k=v+rootnorm"),
    ("gpt2", "q,k=v"),
]
ROWS = ("int8", "int4")


def model_with(kind, mode="q,k=v"):
    """A small model with heads of 32."""
    return model_of(kind, qkv_mode=mode, **(WIDE[kind] | HEADS_OF_32[kind]))


@needs_library
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_the_kernel_reads_integers_as_torch_does(kind, mode, rows, calls):
    model = model_with(kind, mode)
    found, _ = decode(model, hub.FewBitsCache(model, rows))
    assert len(calls) == LAYERS * STEPS
    with torch_only():
        expected, _ = decode(model, hub.FewBitsCache(model, rows))
    assert len(calls) == LAYERS * STEPS
    # Sums in another order differ in the last bit, and then a number may be rounded to another
    # step in the layer above.
    off = (found - expected).abs() / expected.abs().max()
    assert off.median() < CLOSE
    assert off.max() < 1e-3


@pytest.mark.parametrize("mode", ["q,k=v", "q,k,v", "q,k=L(32),v=L(32)"])
@pytest.mark.parametrize(("rows", "off"), [("int8", 0.02), ("int4", 0.4)])
def test_logits_are_those_of_the_whole_cache_but_for_rounding(mode, rows, off):
    model = model_with("llama", mode)
    whole, _ = decode(model)
    found, _ = decode(model, hub.FewBitsCache(model, rows))
    error = (found - whole).norm() / whole.norm()
    assert 1e-5 < error < off


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("mode", ["q,k=v", "q,k,v"])
@torch.no_grad()
def test_rows_are_those_of_the_bench_and_take_its_bytes(mode, rows):
    model, form = model_with("llama", mode), CACHE_FORMATS[rows]
    tokens = inputs_of("llama", batch=2, time=20)["input_ids"]
    whole = model(tokens, use_cache=True).cache.layers[0]
    cache = hub.FewBitsCache(model, rows)
    model(tokens, cache=cache, use_cache=True)
    layer, heads = cache.layers[0], whole.keys.shape[1]
    numbers = (whole.keys,) if mode == "q,k=v" else (whole.keys, whole.values)
    for found, exact in zip((layer.keys, layer.values), numbers, strict=False):
        expected = dequantize(*quantize(exact, form), torch.float32, form, 32)
        assert torch.equal(found, expected)
    if mode == "q,k=v":
        assert torch.equal(layer.values, whole.values)  # positions
    positions = 4 if mode == "q,k=v" else 0
    tokens_bytes = len(numbers) * heads * form.row_bytes(32) + positions
    assert cache.bytes == 2 * 20 * LAYERS * tokens_bytes
    assert cache.get_seq_length() == 20


@torch.no_grad()
def test_rows_grow_in_place():
    model = model_with("llama")
    cache = hub.FewBitsCache(model, "int4", reserve=40)
    tokens = inputs_of("llama", batch=1, time=40)["input_ids"]
    model(tokens[:, :8], cache=cache, use_cache=True)
    places = [tensor.rows.data_ptr() for tensor in cache.layers[0].tensors]
    for at in range(8, 40):
        model(tokens[:, at : at + 1], cache=cache, use_cache=True)
    assert [tensor.rows.data_ptr() for tensor in cache.layers[0].tensors] == places
    model(tokens[:, :1], cache=cache, use_cache=True)
    room = cache.layers[0].tensors[0]
    assert room.rows.data_ptr() != places[0]
    assert room.bytes <= room.rows.nbytes * (1 + 2 / GROWTH)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_generate_with_padding_writes_what_it_writes_token_by_token(how):
    model = model_with("llama")
    tokens = inputs_of("llama", batch=2, time=6)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0} | how
    texts = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        torch.manual_seed(0)
        cache = hub.FewBitsCache(model, "int8")
        texts.append(model.generate(tokens, attention_mask=mask, cache=cache, **settings))
    assert torch.equal(*texts)
    assert texts[0].shape == (2, 14)


@torch.no_grad()
def test_rows_that_are_cropped_come_back_alike():
    model = model_with("llama", "q,k,v")
    tokens = inputs_of("llama", batch=1, time=12)["input_ids"]
    cache = hub.FewBitsCache(model, "int4")
    model(tokens[:, :8], cache=cache, use_cache=True)
    first = model(tokens[:, 8:], cache=cache, use_cache=True).logits
    cache.crop(8)
    assert cache.get_seq_length() == 8
    assert torch.equal(model(tokens[:, 8:], cache=cache, use_cache=True).logits, first)


def test_what_cannot_be_is_refused_with_a_way_out():
    plain = transformers.LlamaForCausalLM(model_with("llama").config.__class__.__base__(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=20,
    ))  # fmt: skip
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has none.*\n.*canonical"):
        hub.FewBitsCache(plain)
    with pytest.raises(ValueError, match="has an encoder"):
        hub.FewBitsCache(model_of("t5", qkv_mode="q,k=v"))
    model = model_with("llama")
    with pytest.raises(ValueError, match="no rows in 'int2'; write int8 or int4"):
        hub.FewBitsCache(model, "int2")
    with pytest.raises(ValueError, match="without their gradients"):
        model(**inputs_of("llama"), cache=hub.FewBitsCache(model), use_cache=True)
