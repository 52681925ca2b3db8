"""A slim model writes what it wrote before, and keeps half of what it kept."""

import copy
import math

import pytest
import torch

from policy.tree import ROOT
from qkvbench import hub

VOCABULARY = 37
# More than a tile of rows, so that what is missing is made in several.
PROMPT = 270
# Against transformers' own cache. In fp64 only its norms, which are fp32, round; in fp32 sums are
# taken in another order.
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4}


def gemma(**settings):
    """A small Gemma 4 whose whole-text layers make K and V of one projection."""
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
    return _drawn(model)


def gpt2(**settings):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_embd": 20, "n_head": 4, "n_layer": 2, "n_positions": 400}
    torch.manual_seed(1)
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return _drawn(GPT2LMHeadModel(GPT2Config(**(sizes | tokens | settings))).eval())


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
    return _drawn(OPTForCausalLM(OPTConfig(**(sizes | tokens | settings))).eval())


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
def _drawn(model):
    """Numbers that tell: scales that are not 1, biases that are not 0, scores that are not flat."""
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            weight.add_(torch.randn_like(weight), alpha=0.3)
        elif weight.ndim == 2:
            weight.mul_(4)
    return model


def _text(batch, tokens, padded):
    """Tokens, the mask of those that are no padding, and positions as `generate` makes them."""
    rng = torch.Generator().manual_seed(batch)
    ids = torch.randint(1, VOCABULARY, (batch, tokens), generator=rng)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(batch - 1):
            mask[row, : 11 * (row + 1)] = 0
    return ids * mask, mask, (mask.cumsum(1) - 1).clamp_min(0)


@torch.no_grad()
def _in_steps(model, cache, text, steps):
    """The logits of a text that is read in pieces, where they are no padding."""
    ids, mask, positions = text
    found, first = [], 0
    for tokens in steps:
        end = first + tokens
        piece = model(
            ids[:, first:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, first:end],
            cache=cache,
        ).logits
        found.append(piece[mask[:, first:end].bool()])
        first = end
    return torch.cat(found)


def _library_cache(model):
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _library_bytes(cache, slim_cache):
    """What the library keeps in the layers that are slim in the other cache."""
    from qkvbench.hub.slim_cache import SlimLayer, storage_bytes

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
    meant = _in_steps(model, _library_cache(model), text, steps)
    found = _in_steps(slim, hub.SlimCache(slim), text, steps)
    assert meant.abs().max() > 0.1
    torch.testing.assert_close(found, meant, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("kind", ["dense", "gpt2"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_cache_alone_serves_every_attention_of_the_library(kind, implementation):
    model = MODELS[kind]().double()
    model.set_attn_implementation(implementation)
    steps = (7, 1, 1, 4)
    text = _text(3, sum(steps), padded=False)
    meant = _in_steps(model, _library_cache(model), text, steps)
    found = _in_steps(model, hub.SlimCache(model), text, steps)
    torch.testing.assert_close(found, meant, rtol=0, atol=CLOSE[torch.float64])


@pytest.mark.parametrize("kind", ["dense", "gpt2"])
def test_another_attention_implementation_may_be_chosen_while_a_text_is_read(kind):
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
    meant = _in_steps(model, _library_cache(model), text, (10, 1, 1, 1, 1))
    torch.testing.assert_close(torch.cat(pieces), meant, rtol=0, atol=CLOSE[torch.float64])


WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 7},
    "beams": {"do_sample": False, "num_beams": 3},
    "several of each": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("kind", ["dense", "layers that share caches", "gpt2", "opt"])
def test_generate_writes_the_same_text_and_keeps_half(kind):
    model = MODELS[kind]().double()
    slim = hub.slim(copy.deepcopy(model))
    ids, mask, _ = _text(3, 30, padded=True)
    for name, way in WAYS.items():
        written = []
        for each in (model, slim):
            torch.manual_seed(3)
            written.append(
                each.generate(
                    ids, attention_mask=mask, max_new_tokens=23, return_dict_in_generate=True, **way
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
    # A text that repeats itself, so that guesses from it are partly right.
    ids = torch.cat([ids, ids], dim=1)
    words = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 25, "do_sample": False}
    meant = model.generate(ids, **words)
    assert torch.equal(slim.generate(ids, prompt_lookup_num_tokens=4, **words), meant)
    assistant = hub.slim(copy.deepcopy(model))
    with torch.no_grad():
        assistant.get_output_embeddings().weight.mul_(0.5)
    assert torch.equal(slim.generate(ids, assistant_model=assistant, **words), meant)


@pytest.mark.parametrize("kind", ["dense", "gpt2"])
def test_a_cache_is_cropped_repeated_and_chosen_from_like_the_librarys(kind):
    model = MODELS[kind]().double()
    slim = hub.slim(copy.deepcopy(model))
    ids, mask, positions = _text(2, 8, padded=False)
    found = []
    for each, cache in ((model, _library_cache(model)), (slim, hub.SlimCache(slim))):
        _in_steps(each, cache, (ids, mask, positions), (7,))
        cache.crop(-2)
        cache.batch_repeat_interleave(3)
        cache.batch_select_indices(torch.tensor([5, 0, 3]))
        cache.reorder_cache(torch.tensor([2, 2, 0]))
        assert cache.get_seq_length(1) == 5
        with torch.no_grad():
            found.append(each(torch.tensor([[1], [2], [3]]), cache=cache).logits)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=CLOSE[torch.float64])


def test_a_slim_model_may_be_copied_trained_and_saved_as_before(tmp_path):
    slim = copy.deepcopy(hub.slim(gemma()))
    ids, _, _ = _text(2, 6, padded=False)
    slim(ids, labels=ids).loss.backward()
    assert slim.model.layers[1].self_attn.k_norm.weight.grad is not None
    slim.generate(ids, max_new_tokens=2)
    slim.save_pretrained(tmp_path)
    assert type(hub.load(tmp_path)) is type(slim)
    hub.slim(hub.load(tmp_path))


def test_what_lies_unused_is_a_small_part_however_long_a_text():
    from qkvbench.hub.rows import ROOM, Rows

    rows, moves, at = Rows(), 0, None
    for _ in range(2000):
        rows.append(torch.ones(1, 1, 1, 1))
        moves += rows.kept.data_ptr() != at and rows.length
        at = rows.kept.data_ptr()
        assert rows.bytes <= 4 * (rows.length + rows.length / ROOM + 1)
    # Each token pays for the moving of about ROOM rows, and not of all.
    assert moves / 2000 <= 1.5 * (ROOM + 1)
    reserved = Rows(reserve=50)
    reserved.append(torch.ones(1, 1, 3, 1))
    assert reserved.bytes == 4 * 50


def test_a_stand_in_is_no_number_to_whoever_reads_it():
    from qkvbench.hub.reading import stand_in

    nothing = stand_in(torch.ones(2, 3), None)
    assert nothing.isnan().all()
    assert nothing.untyped_storage().nbytes() == 4


REFUSED = {
    "static": "static cache keeps both",
    "offloaded": "offloaded cache keeps both",
    "quantized": "quantized cache keeps both",
}


@pytest.mark.parametrize("asked", REFUSED)
def test_a_cache_that_keeps_both_is_refused(asked):
    slim = hub.slim(gpt2())
    with pytest.raises(ValueError, match=REFUSED[asked]):
        slim.generate(torch.tensor([[1, 2]]), max_new_tokens=1, cache_implementation=asked)


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
    with pytest.raises(ValueError, match="keeps K turned by position"):
        hub.slim(llama)
    with pytest.raises(ValueError, match="keeps K turned by position"):
        hub.slim(gemma(attention_k_eq_v=False))


def test_an_encoder_is_told_its_conditions_and_refused_a_cache():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = BertModel(BertConfig(vocab_size=VOCABULARY, num_hidden_layers=3, **sizes))
    assert [one.layer for one in hub.conditions(encoder)] == [0, 1, 2]
    with pytest.raises(ValueError, match="it has no cache"):
        hub.slim(encoder)


def test_layers_with_badly_conditioned_weights_are_refused_by_name_and_number():
    model = gpt2(n_layer=3)
    with torch.no_grad():
        key = model.transformer.h[1].attn.c_attn.weight[:, 20:40]
        key[:, 0] = key[:, 1] * (1 + 1e-7)
    numbers = {one.layer: one.number for one in hub.conditions(model)}
    assert numbers[1] > 1e5 > max(numbers[0], numbers[2])
    with pytest.raises(ValueError, match="cannot be made of K") as refusal:
        hub.slim(model)
    assert f"1 ({numbers[1]:.2g})" in str(refusal.value)
    assert "layers=[0, 2]" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) <= 6

    slim = hub.slim(copy.deepcopy(model), layers=[0, 2])
    text = _text(2, 12, padded=True)
    meant = _in_steps(model, _library_cache(model), text, (10, 1, 1))
    found = _in_steps(slim, hub.SlimCache(slim), text, (10, 1, 1))
    torch.testing.assert_close(found, meant, rtol=0, atol=CLOSE[torch.float32])


def test_a_low_precision_is_refused_where_v_is_made_of_k():
    with pytest.raises(ValueError, match="Load the model in a wider type"):
        hub.slim(gpt2().bfloat16())


def test_weights_that_change_make_a_slim_model_refuse_until_it_is_slim_again():
    slim = hub.slim(opt())
    with torch.no_grad():
        slim.model.decoder.layers[0].self_attn.k_proj.weight.add_(0.1)
    with pytest.raises(ValueError, match="have changed"):
        hub.SlimCache(slim)
    with pytest.raises(ValueError, match="have changed"):
        hub.SlimCache(copy.deepcopy(slim))
    hub.SlimCache(hub.slim(slim))
    # A copy counts the changes of its weights anew; weights of another type need other maps.
    copied = copy.deepcopy(slim)
    copied.generate(torch.tensor([[1, 2]]), max_new_tokens=2)
    with pytest.raises(ValueError, match="have changed"):
        hub.SlimCache(copied.double())


def test_code_that_does_not_do_what_its_settings_say_is_noticed():
    slim = hub.slim(gemma())
    cache = hub.SlimCache(slim)
    key, value = torch.randn(1, 1, 3, 32), torch.randn(1, 1, 3, 32)
    with pytest.raises(ValueError, match="In layer 1 K is not V"):
        cache.update(key, value, 1, kwargs={"position_ids": torch.arange(3)[None]})
    with pytest.raises(ValueError, match="at which positions"):
        cache.update(key, value, 1)


def test_angles_that_change_while_a_text_grows_are_refused():
    model = gemma()
    model.model.rotary_emb.rope_type["full_attention"] = "dynamic"
    with pytest.raises(ValueError, match="angles change"):
        hub.slim(model)


def test_the_condition_number_bounds_what_v_is_off():
    from qkvbench.hub.key_only import key_only

    model = gpt2(n_layer=1)
    (condition,) = hub.conditions(model)
    how = key_only(model, (0,))[0]
    attention = model.transformer.h[0].attn
    with torch.no_grad():
        x = torch.randn(500, 20)
        _, key, value = attention.c_attn(x).split(20, dim=-1)
        made = (key - how.key_bias) @ how.map.transpose(0, 1).flatten(1) + how.value_bias.flatten()
    off = ((made - value).norm() / value.norm()).item()
    # Sums of 20 products round a few times more than the bound counts.
    assert 0 < off < 20 * condition.loss
    assert math.isclose(condition.loss, condition.number * torch.finfo(torch.float32).eps)


def test_the_example_writes_the_same_text_and_keeps_half(capsys):
    from importlib.util import module_from_spec, spec_from_file_location

    path = ROOT / "examples" / "half_the_cache.py"
    spec = spec_from_file_location(path.stem, path)
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main([])
    assert capsys.readouterr().out.startswith("the same text; ")
