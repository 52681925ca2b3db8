"""A slim model generates the same text with half the cache."""

import copy
import math
import subprocess
import sys

import pytest
import torch

from policy.tree import ROOT
from qkvbench import hub
from qkvbench.hub.growing_tensor import GROWTH, GrowingTensor
from qkvbench.hub.key_only import values_from_keys
from qkvbench.hub.slim_cache import SlimLayer, storage_bytes
from qkvbench.variant import AlibiBias

VOCABULARY = 37
# More than a tile of rows, so that the missing tensor is made in several.
PROMPT = 270
# Against transformers' own cache. In fp64 only its fp32 norms round; in fp32 sums have another
# order.
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4}


def gemma(**settings):
    """A small Gemma 4 whose full-attention layers make K and V from one projection."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 20,
        "intermediate_size": 28,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 12,
        "global_head_dim": 32,
        "sliding_window": 9,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    torch.manual_seed(0)
    model = Gemma4ForCausalLM(Gemma4TextConfig(**(sizes | settings))).eval()
    # Its grouped products of experts do not take fp64.
    model.config._experts_implementation = "eager"
    return _randomize(model)


def gpt2(**settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_embd": 20, "n_head": 4, "n_layer": 2, "n_positions": 400}
    torch.manual_seed(1)
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return _randomize(GPT2LMHeadModel(GPT2Config(**(sizes | tokens | settings))).eval())


def opt(**settings):
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 20,
        "word_embed_proj_dim": 12,
        "ffn_dim": 28,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 400,
    }
    torch.manual_seed(2)
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return _randomize(OPTForCausalLM(OPTConfig(**(sizes | tokens | settings))).eval())


MODELS = {
    "dense": gemma,
    "experts": lambda: gemma(
        enable_moe_block=True, num_experts=3, top_k_experts=2, moe_intermediate_size=12
    ),
    "layers that share caches": lambda: gemma(
        num_hidden_layers=6,
        layer_types=["sliding_attention", "full_attention"] * 3,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=6,
    ),
    "whole rotation": lambda: gemma(
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        }
    ),
    "gpt2": gpt2,
    "opt": opt,
}


@torch.no_grad()
def _randomize(model):
    """Weights that matter: scales are not 1, biases are not 0, scores are not flat."""
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            weight.add_(torch.randn_like(weight), alpha=0.3)
        elif weight.ndim == 2:
            weight.mul_(4)
    return model


def _text(batch, tokens, padded):
    """Tokens, the mask of those that are not padding, and positions as `generate` makes them."""
    rng = torch.Generator().manual_seed(batch)
    ids = torch.randint(1, VOCABULARY, (batch, tokens), generator=rng)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(batch - 1):
            mask[row, : 11 * (row + 1)] = 0
    return ids * mask, mask, (mask.cumsum(1) - 1).clamp_min(0)


@torch.no_grad()
def _in_steps(model, cache, text, steps):
    """The logits of a text that is read in pieces, without those of padding."""
    ids, mask, positions = text
    logits, first = [], 0
    for tokens in steps:
        end = first + tokens
        piece = model(
            ids[:, first:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, first:end],
            cache=cache,
        ).logits
        logits.append(piece[mask[:, first:end].bool()])
        first = end
    return torch.cat(logits)


def _library_cache(model):
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _library_bytes(cache, slim_cache):
    """The library's bytes of the layers that are slim in the other cache."""
    pairs = zip(cache.layers, slim_cache.layers, strict=True)
    kept = [layer for layer, slim in pairs if isinstance(slim, SlimLayer)]
    return storage_bytes([tensor for layer in kept for tensor in (layer.keys, layer.values)])


@pytest.mark.parametrize(
    ("kind", "dtype", "batch"),
    [
        *((kind, torch.float64, 4) for kind in MODELS),
        ("dense", torch.float64, 1),
        ("gpt2", torch.float64, 1),
        *((kind, torch.float32, 4) for kind in ("dense", "experts", "gpt2", "opt")),
    ],
)
def test_logits_are_the_librarys_token_by_token(kind, dtype, batch):
    model = MODELS[kind]().to(dtype)
    slim = hub.slim(copy.deepcopy(model))
    # A prompt, single tokens, a few at once as in assisted decoding, and a second prompt.
    steps = (PROMPT, *[1] * 6, 5, 40, 1)
    text = _text(batch, sum(steps), padded=batch > 1)
    expected = _in_steps(model, _library_cache(model), text, steps)
    logits = _in_steps(slim, hub.SlimCache(slim), text, steps)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("kind", ["dense", "gpt2"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_cache_alone_works_with_every_attention_of_the_library(kind, implementation):
    model = MODELS[kind]().double()
    model.set_attn_implementation(implementation)
    steps = (7, 1, 1, 4)
    text = _text(3, sum(steps), padded=False)
    expected = _in_steps(model, _library_cache(model), text, steps)
    logits = _in_steps(model, hub.SlimCache(model), text, steps)
    torch.testing.assert_close(logits, expected, rtol=0, atol=CLOSE[torch.float64])


@pytest.mark.parametrize("kind", ["dense", "gpt2"])
def test_the_attention_implementation_may_change_while_a_text_is_read(kind):
    model = MODELS[kind]().double()
    slim = hub.slim(copy.deepcopy(model))
    ours = slim.config._attn_implementation
    text = _text(2, 14, padded=True)
    cache, pieces = hub.SlimCache(slim), []
    with torch.no_grad():
        for first, implementation in (
            (0, ours),
            (10, ours),
            (11, "eager"),
            (12, "sdpa"),
            (13, ours),
        ):
            slim.set_attn_implementation(implementation)
            end = 10 if not first else first + 1
            ids, mask, positions = text
            pieces.append(
                slim(
                    ids[:, first:end],
                    attention_mask=mask[:, :end],
                    position_ids=positions[:, first:end],
                    cache=cache,
                ).logits[mask[:, first:end].bool()]
            )
    expected = _in_steps(model, _library_cache(model), text, (10, 1, 1, 1, 1))
    torch.testing.assert_close(torch.cat(pieces), expected, rtol=0, atol=CLOSE[torch.float64])


DECODING = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 7},
    "beams": {"do_sample": False, "num_beams": 3},
    "several of each": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("kind", ["dense", "layers that share caches", "gpt2", "opt"])
def test_generate_writes_the_same_text_with_half_the_bytes(kind):
    model = MODELS[kind]().double()
    slim = hub.slim(copy.deepcopy(model))
    ids, mask, _ = _text(3, 30, padded=True)
    for name, options in DECODING.items():
        written = []
        for each in (model, slim):
            torch.manual_seed(3)
            written.append(
                each.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=23,
                    return_dict_in_generate=True,
                    **options,
                )
            )
        assert torch.equal(written[0].sequences, written[1].sequences), name
        before, cache = _library_bytes(written[0].cache, written[1].cache), written[1].cache
        assert before > 0
        assert sum(layer.bytes for layer in cache.slim_layers) <= 0.55 * before, name
        assert cache.bytes >= sum(layer.bytes for layer in cache.slim_layers)


@pytest.mark.parametrize("kind", ["dense", "gpt2"])
def test_assisted_decoding_writes_the_same_text(kind):
    model = MODELS[kind]().double()
    slim = hub.slim(copy.deepcopy(model))
    ids, _, _ = _text(1, 30, padded=False)
    # A text that repeats itself, so that lookup drafts are partly right.
    ids = torch.cat([ids, ids], dim=1)
    words = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 25, "do_sample": False}
    expected = model.generate(ids, **words)
    assert torch.equal(slim.generate(ids, prompt_lookup_num_tokens=4, **words), expected)
    assistant = hub.slim(copy.deepcopy(model))
    with torch.no_grad():
        assistant.get_output_embeddings().weight.mul_(0.5)
    assert torch.equal(slim.generate(ids, assistant_model=assistant, **words), expected)


@pytest.mark.parametrize("kind", ["dense", "gpt2"])
def test_a_cache_can_be_cropped_repeated_and_reordered_like_the_librarys(kind):
    model = MODELS[kind]().double()
    slim = hub.slim(copy.deepcopy(model))
    ids, mask, positions = _text(2, 8, padded=False)
    logits = []
    for each, cache in ((model, _library_cache(model)), (slim, hub.SlimCache(slim))):
        _in_steps(each, cache, (ids, mask, positions), (7,))
        cache.crop(-2)
        cache.batch_repeat_interleave(3)
        cache.batch_select_indices(torch.tensor([5, 0, 3]))
        cache.reorder_cache(torch.tensor([2, 2, 0]))
        assert cache.get_seq_length(1) == 5
        with torch.no_grad():
            logits.append(each(torch.tensor([[1], [2], [3]]), cache=cache).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=CLOSE[torch.float64])


def test_a_slim_model_may_be_copied_trained_and_saved_as_before(tmp_path):
    slim = copy.deepcopy(hub.slim(gemma()))
    ids, _, _ = _text(2, 6, padded=False)
    slim(ids, labels=ids).loss.backward()
    assert slim.model.layers[1].self_attn.k_norm.weight.grad is not None
    slim.generate(ids, max_new_tokens=2)
    slim.save_pretrained(tmp_path)
    assert type(hub.load(tmp_path)) is type(slim)
    hub.slim(hub.load(tmp_path))


def test_a_pickled_slim_model_is_slim_in_another_process(tmp_path):
    models = {kind: hub.slim(MODELS[kind]()) for kind in ("dense", "gpt2")}
    ids, _, _ = _text(2, 6, padded=False)
    words = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True}
    written = {kind: model.generate(ids, **words) for kind, model in models.items()}
    torch.save((models, ids, words), tmp_path / "models.pt")
    script = """
import sys, torch
models, ids, words = torch.load(sys.argv[1], weights_only=False)
written = {kind: model.generate(ids, **words) for kind, model in models.items()}
found = {kind: (each.sequences, each.cache.bytes) for kind, each in written.items()}
torch.save(found, sys.argv[2])
"""
    command = [sys.executable, "-c", script, tmp_path / "models.pt", tmp_path / "written.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for kind, (sequences, size) in torch.load(tmp_path / "written.pt").items():
        assert torch.equal(sequences, written[kind].sequences)
        assert size == written[kind].cache.bytes


def test_unused_room_is_a_small_part_at_every_length():
    tensor, moves, address = GrowingTensor(), 0, None
    for _ in range(2000):
        tensor.append(torch.ones(1, 1, 1, 1))
        moves += tensor.rows.data_ptr() != address and tensor.length
        address = tensor.rows.data_ptr()
        assert tensor.bytes <= 4 * (tensor.length + tensor.length / GROWTH + 1)
    # Each token costs the copy of about GROWTH rows, not of all.
    assert moves / 2000 <= 1.5 * (GROWTH + 1)
    reserved = GrowingTensor(reserve=50)
    reserved.append(torch.ones(1, 1, 3, 1))
    assert reserved.bytes == 4 * 50


def test_rows_that_somebody_else_made_are_never_written_to():
    theirs = torch.arange(6.0).reshape(1, 1, 6, 1)
    tensor, kept = GrowingTensor(), theirs.clone()
    tensor.replace(theirs)
    tensor.crop(2)
    tensor.append(torch.full((1, 1, 1, 1), 9.0))
    assert torch.equal(theirs, kept)
    assert tensor.rows.flatten().tolist() == [0, 1, 2, 3, 9]
    address = tensor.rows.data_ptr()
    tensor.crop(1)
    tensor.append(torch.full((1, 1, 1, 1), 8.0))
    assert tensor.rows.data_ptr() == address


def test_a_placeholder_is_nan_and_takes_no_memory():
    from qkvbench.hub.slim_attention import placeholder

    tensor = placeholder(torch.ones(1, 2, 3, 4), None)
    assert tensor.isnan().all()
    assert tensor.untyped_storage().nbytes() == 4


REFUSED = {
    "static": "static cache keeps both",
    "offloaded": "offloaded cache keeps both",
    "quantized": "quantized cache keeps both",
}


@pytest.mark.parametrize("implementation", REFUSED)
def test_a_cache_that_keeps_both_is_refused(implementation):
    slim = hub.slim(gpt2())
    with pytest.raises(ValueError, match=REFUSED[implementation]):
        slim.generate(torch.tensor([[1, 2]]), max_new_tokens=1, cache_implementation=implementation)


def test_gradients_through_a_cache_are_refused():
    slim = hub.slim(gpt2())
    with pytest.raises(ValueError, match="without their gradients"):
        slim(torch.tensor([[1, 2]]), cache=hub.SlimCache(slim))


def test_a_model_without_such_layers_is_refused_with_the_reason():
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    with pytest.raises(ValueError, match=r"caches K after RoPE(.|\n)*Gemma4(.|\n)*families\.py"):
        hub.slim(llama)
    with pytest.raises(ValueError, match="caches K after RoPE"):
        hub.slim(gemma(attention_k_eq_v=False))


def test_an_encoder_has_conditions_and_is_refused_a_cache():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = BertModel(BertConfig(vocab_size=VOCABULARY, num_hidden_layers=3, **sizes))
    assert [one.layer for one in hub.conditions(encoder)] == [0, 1, 2]
    with pytest.raises(ValueError, match="it is an encoder"):
        hub.slim(encoder)


def test_layers_with_badly_conditioned_weights_are_refused_by_name_and_number():
    model = gpt2(n_layer=3)
    with torch.no_grad():
        key = model.transformer.h[1].attn.c_attn.weight[:, 20:40]
        key[:, 0] = key[:, 1] * (1 + 1e-7)
    numbers = {one.layer: one.number for one in hub.conditions(model)}
    assert numbers[1] > 1e5 > max(numbers[0], numbers[2])
    with pytest.raises(ValueError, match="cannot be made from K") as refusal:
        hub.slim(model)
    assert f"1 ({numbers[1]:.2g})" in str(refusal.value)
    assert "layers=[0, 2]" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) <= 6

    slim = hub.slim(copy.deepcopy(model), layers=[0, 2])
    text = _text(2, 12, padded=True)
    expected = _in_steps(model, _library_cache(model), text, (10, 1, 1))
    logits = _in_steps(slim, hub.SlimCache(slim), text, (10, 1, 1))
    torch.testing.assert_close(logits, expected, rtol=0, atol=CLOSE[torch.float32])


def test_a_low_precision_is_refused_if_v_is_made_from_k():
    with pytest.raises(ValueError, match="Load the model in a wider type"):
        hub.slim(gpt2().bfloat16())


# Columns of K in a fused projection of width 20; with all columns scaled, V is the same map of K.
KEYS = slice(20, 40)


def _scale_in_place(model):
    model.transformer.h[0].attn.c_attn.weight.data[:, KEYS] *= 1.1


def _replace_data(model):
    weight = model.transformer.h[0].attn.c_attn.weight
    weight.data = weight.data + 0.1


def _replace_parameter(model):
    projection = model.transformer.h[1].attn.c_attn
    weight = projection.weight.detach().clone()
    weight[:, KEYS] *= 1.1
    projection.weight = torch.nn.Parameter(weight)


def _steer(model):
    shift = torch.arange(60) >= KEYS.stop
    model.transformer.h[0].attn.c_attn.register_forward_hook(lambda *a: a[-1] + shift)


def _adapt(model):
    import peft

    lora = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    peft.get_peft_model(model, lora)


# PEFT uses an old name of transformers.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    "change", [_scale_in_place, _replace_data, _replace_parameter, _steer, _adapt]
)
def test_a_slim_model_whose_v_is_no_longer_made_from_k_is_refused(change, copied):
    slim = hub.slim(gpt2())
    slim = copy.deepcopy(slim) if copied else slim
    slim.generate(torch.tensor([[1, 2]]), max_new_tokens=2)
    change(slim)
    with pytest.raises(ValueError, match=r"V made from the cached tensor is off"):
        slim.generate(torch.tensor([[1, 2]]), max_new_tokens=2)


@torch.no_grad()
def test_a_change_while_a_text_is_read_is_noticed_at_the_next_token():
    slim = hub.slim(gpt2())
    cache = hub.SlimCache(slim)
    slim(torch.tensor([[1, 2]]), cache=cache)
    slim(torch.tensor([[3]]), cache=cache)
    _scale_in_place(slim)
    with pytest.raises(ValueError, match="In layer 0 V made from the cached tensor is off"):
        slim(torch.tensor([[4]]), cache=cache)


# PEFT uses an old name of transformers.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_weights_that_were_adapted_before_slim_are_refused_or_merged():
    import peft

    model = opt()
    lora = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora)
    with pytest.raises(ValueError, match="V made from the cached tensor is off"):
        hub.slim(adapted.base_model.model).generate(torch.tensor([[1, 2]]), max_new_tokens=2)
    merged = adapted.merge_and_unload()
    ids = torch.tensor([[1, 2, 3]])
    expected = merged(ids, use_cache=False).logits
    with torch.no_grad():
        cache = hub.SlimCache(hub.slim(merged))
        found = [merged(ids[:, each : each + 1], cache=cache).logits for each in range(3)]
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=CLOSE[torch.float32])


def test_deepseek_v4_is_refused_with_what_is_true_of_it():
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    with torch.device("meta"):
        sizes = {"num_hidden_layers": 1, "hidden_size": 64, "vocab_size": VOCABULARY}
        model = DeepseekV4ForCausalLM(DeepseekV4Config(**sizes))
    with pytest.raises(ValueError, match="its K is its V, and the library keeps that one tensor"):
        hub.slim(model)


def test_a_slim_model_that_was_cast_or_trained_can_be_made_slim_again():
    slim = hub.slim(opt()).double()
    with pytest.raises(ValueError, match="cast after slim"):
        slim.generate(torch.tensor([[1, 2]]), max_new_tokens=2)
    with torch.no_grad():
        slim.model.decoder.layers[0].self_attn.k_proj.weight.add_(0.1)
    hub.slim(slim).generate(torch.tensor([[1, 2]]), max_new_tokens=2)


def test_keys_in_low_precision_are_within_the_tolerance_of_a_shared_root():
    slim = hub.slim(gemma().bfloat16())
    ids, mask, _ = _text(3, 30, padded=True)
    slim.generate(ids, attention_mask=mask, max_new_tokens=3)


@pytest.mark.parametrize("layers", [[], [99], [-1]])
@pytest.mark.parametrize("model", [gemma, gpt2])
def test_layers_that_cannot_be_slim_are_refused(model, layers):
    with pytest.raises(ValueError, match="Those that can are"):
        hub.slim(model(), layers=layers)


def test_a_key_that_is_not_made_from_the_root_is_refused():
    slim = hub.slim(gemma())
    cache = hub.SlimCache(slim)
    key, value = torch.randn(1, 1, 3, 32), torch.randn(1, 1, 3, 32)
    with pytest.raises(ValueError, match="In layer 1 K made from"):
        cache.update(key, value, 1, kwargs={"position_ids": torch.arange(3)[None]})
    with pytest.raises(ValueError, match="passes no position_ids"):
        cache.update(key, value, 1)


def test_rope_that_depends_on_the_length_is_refused():
    model = gemma()
    model.model.rotary_emb.rope_type["full_attention"] = "dynamic"
    with pytest.raises(ValueError, match="depend on the length"):
        hub.slim(model)


def test_the_condition_number_bounds_the_error_of_v():
    model = gpt2(n_layer=1)
    (condition,) = hub.conditions(model)
    recipe = values_from_keys(model, (0,))[0]
    attention = model.transformer.h[0].attn
    with torch.no_grad():
        x = torch.randn(500, 20)
        _, key, value = attention.c_attn(x).split(20, dim=-1)
        mapped = (key - recipe.key_bias) @ recipe.value_map.flatten(0, 1).T
        made = mapped + recipe.value_bias.flatten()
    error = ((made - value).norm() / value.norm()).item()
    # Sums of 20 products round a few times more than the bound counts.
    assert 0 < error < 20 * condition.error_bound
    assert math.isclose(condition.error_bound, condition.number * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("heads", [1, 6, 8, 12, 14])
def test_alibi_has_the_slopes_of_bloom_and_mpt(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    slopes = torch.tensor(AlibiBias().slopes(heads))
    bloom = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)
    torch.testing.assert_close(bloom[:, 0], slopes[:, None] * torch.arange(3))
    mpt = build_mpt_alibi_tensor(heads, 3)
    torch.testing.assert_close(mpt[:, 0], slopes[:, None] * torch.arange(-2, 1))


def test_the_example_writes_the_same_text(capsys):
    from importlib.util import module_from_spec, spec_from_file_location

    path = ROOT / "examples" / "half_the_cache.py"
    spec = spec_from_file_location(path.stem, path)
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main([])
    assert capsys.readouterr().out.startswith("the same text; ")


def test_rows_that_were_repeated_in_inference_mode_are_written_outside_of_it():
    rows = GrowingTensor(reserve=8)
    with torch.inference_mode():
        rows.append(torch.ones(1, 2, 3, 4))
        rows.repeat(2)
    with torch.no_grad():
        rows.append(torch.zeros(2, 2, 1, 4))
    assert rows.rows.shape == (2, 2, 4, 4)
    assert rows.rows[:, :, :3].eq(1).all()
