"""Slim caches of the library's other architectures: K alone, copied heads, an encoder's output."""

import copy

import pytest
import torch
import transformers

from qkvbench import hub
from qkvbench.hub.families import EXPANDED, LINEAR, SHARED_ROOT
from qkvbench.hub.slim_cache import SlimEncoderDecoderCache, storage_bytes
from qkvbench.hub.unmade import unmade

VOCABULARY, SOURCE, NEW = 37, 21, 12
# Sums in another order. `generate` returns logits in fp32.
CLOSE = {torch.float64: 1e-6, torch.float32: 2e-4}
# In fp64 the library's own BLOOM and MPT give NaN for padded texts, and its XGLM an error.
FP32 = ("bloom", "mpt", "xglm")
ENDS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
TEXT = {"vocab_size": VOCABULARY, **ENDS}
_ENCODER_DECODER = {
    "d_model": 20,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 90,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "scale_embedding": True,
    **TEXT,
}
_T5 = {
    "d_model": 20,
    "d_kv": 5,
    "num_heads": 4,
    # The library's cache has as many layers as the encoder.
    "num_layers": 3,
    "d_ff": 24,
    "decoder_start_token_id": 2,
    **TEXT,
}
# The class of each model, its settings, and the share of the library's bytes that may be left:
# half, and for copied heads one of so many copies; with an encoder, an eighth of 2·3 tensors more.
DECODERS = {
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": 20,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 7,
            "num_heads": 4,
            "max_position_embeddings": 90,
        },
        0.55,
    ),
    "bloom": ("Bloom", {"hidden_size": 24, "n_layer": 2, "n_head": 6}, 0.55),
    "mpt": (
        "Mpt",
        {
            "d_model": 24,
            "n_layers": 2,
            "n_heads": 6,
            "expansion_ratio": 2,
            "max_seq_len": 90,
            "use_cache": True,
        },
        0.55,
    ),
    "xglm": (
        "XGLM",
        {
            "d_model": 20,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 24,
            "max_position_embeddings": 90,
        },
        0.55,
    ),
    "biogpt": (
        "BioGpt",
        {
            "hidden_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 24,
            "max_position_embeddings": 90,
        },
        0.55,
    ),
    "falcon": (
        "Falcon",
        {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
        },
        0.36,
    ),
}
SEQUENCES = {
    "bart": ("BartForConditionalGeneration", "BartConfig", _ENCODER_DECODER),
    "mbart": ("MBartForConditionalGeneration", "MBartConfig", _ENCODER_DECODER),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", _ENCODER_DECODER),
    "marian": ("MarianMTModel", "MarianConfig", _ENCODER_DECODER),
    "m2m_100": ("M2M100ForConditionalGeneration", "M2M100Config", _ENCODER_DECODER),
    "blenderbot": ("BlenderbotForConditionalGeneration", "BlenderbotConfig", _ENCODER_DECODER),
    "blenderbot-small": (
        "BlenderbotSmallForConditionalGeneration",
        "BlenderbotSmallConfig",
        _ENCODER_DECODER,
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **_ENCODER_DECODER,
            "num_mel_bins": 8,
            "max_source_positions": SOURCE,
            "max_target_positions": 90,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "t5 with a W_K that is not square": (
        "T5ForConditionalGeneration",
        "T5Config",
        _T5 | {"d_kv": 3},
    ),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", _T5 | {"feed_forward_proj": "gated-gelu"}),
}
QUICK = ("bloom", "gpt_neo", "falcon", "bart", "t5 with a W_K that is not square", "whisper")


def _some(kinds):
    """Each kind, those of `QUICK` in the quick tests."""
    return [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in kinds]


@torch.no_grad()
def _randomized(model):
    """The model in fp64 with weights that matter: no flat scores, no bias of zero."""
    torch.manual_seed(4)
    for name, weight in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            weight.add_(torch.randn_like(weight), alpha=0.3)
        elif weight.ndim == 2:
            weight.normal_(0, 1.2 * weight.shape[-1] ** -0.5)
    model.generation_config.update(**ENDS)
    return model.double().eval()


def decoder(kind, **more):
    name, sizes, _ = DECODERS[kind]
    config = getattr(transformers, f"{name}Config")(**(TEXT | sizes | more))
    model = _randomized(getattr(transformers, f"{name}ForCausalLM")(config))
    return model.float() if kind in FP32 else model


def sequence_model(kind, **more):
    name, config, sizes = SEQUENCES[kind]
    config = getattr(transformers, config)(**(sizes | more))
    return _randomized(getattr(transformers, name)(config))


def inputs_of(model, batch=3, tokens=SOURCE):
    """A batch whose texts are padded: on the left for a decoder, on the right for an encoder."""
    rng = torch.Generator().manual_seed(7)
    if model.config.model_type == "whisper":
        return {"input_features": torch.randn(batch, 8, 2 * SOURCE, generator=rng).double()}
    ids = torch.randint(3, VOCABULARY, (batch, tokens), generator=rng)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        side = slice(-2 * row, None) if model.config.is_encoder_decoder else slice(2 * row)
        mask[row, side] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


DECODING = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "several of each": {"do_sample": True, "num_return_sequences": 2},
}


def _written(model, **options):
    torch.manual_seed(3)
    return model.generate(
        **inputs_of(model),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def _watched(model):
    """The caches that the decoder is called with; Whisper returns a copy of its own."""
    seen = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["cache"]), with_kwargs=True
    )
    return seen


def _both(cache):
    """All keys and values of a cache of the library's own."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("kind", _some(DECODERS))
def test_a_decoder_writes_the_same_text_with_a_smaller_cache(kind):
    model = decoder(kind)
    slim = hub.slim(copy.deepcopy(model))
    for options in DECODING.values():
        expected, found = _written(model, **options), _written(slim, **options)
        assert torch.equal(found.sequences, expected.sequences)
        for ours, theirs in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=CLOSE[model.dtype])
        assert found.cache.bytes <= DECODERS[kind][2] * storage_bytes(_both(expected.cache))


@pytest.mark.parametrize("kind", _some(SEQUENCES))
def test_a_model_with_an_encoder_writes_the_same_text_and_keeps_the_encoder_s_output_once(kind):
    model = sequence_model(kind)
    slim = hub.slim(copy.deepcopy(model))
    theirs, ours = _watched(model), _watched(slim)
    for options in DECODING.values():
        expected, found = _written(model, **options), _written(slim, **options)
        assert torch.equal(found.sequences, expected.sequences)
        for logits, other in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(logits, other, rtol=0, atol=CLOSE[model.dtype])
        library, cache = theirs[-1], ours[-1]
        assert isinstance(cache, SlimEncoderDecoderCache)
        cross = storage_bytes(_both(library.cross_attention_cache))
        # K and V of a head of 3 are narrower than the stream.
        width = 20 / (12 if "not square" in kind else 20)
        # Three layers keep K and V.
        assert cache.cross_attention_cache.bytes == pytest.approx(cross * width / 6)
        own = storage_bytes(_both(library.self_attention_cache))
        assert cache.self_attention_cache.bytes <= (0.56 if "not square" not in kind else 1.0) * own


def test_every_class_in_the_tables_is_tested_here_or_in_the_other_files():
    folders = {"gpt2", "opt"} | set(DECODERS) | {each.split()[0] for each in SEQUENCES}
    tested = {folder.replace("_", "").replace("-", "") for folder in folders}
    known = {name.partition("Attention")[0].removesuffix("Self") for name in (*LINEAR, *EXPANDED)}
    assert {name.lower() for name in known} == tested


@pytest.mark.parametrize("kind", ["bart", "t5 with a W_K that is not square"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_slim_model_with_an_encoder_may_use_any_attention_of_the_library(kind, implementation):
    model = sequence_model(kind)
    slim = hub.slim(copy.deepcopy(model))
    slim.set_attn_implementation(implementation)
    options = DECODING["greedy"]
    assert torch.equal(_written(slim, **options).sequences, _written(model, **options).sequences)


def test_a_forward_pass_of_a_slim_model_with_an_encoder_makes_its_cache():
    model = sequence_model("bart")
    slim = hub.slim(copy.deepcopy(model))
    start = torch.tensor([[2, 5]] * 3)
    with torch.no_grad():
        expected = model(**inputs_of(model), decoder_input_ids=start)
        found = slim(**inputs_of(model), decoder_input_ids=start)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=CLOSE[model.dtype])
    assert isinstance(found.cache, SlimEncoderDecoderCache)
    found.cache.crop(-1)
    assert found.cache.get_seq_length() == 1
    slim(**inputs_of(model), decoder_input_ids=start, labels=start).loss.backward()


def test_a_changed_projection_of_cross_attention_is_noticed():
    slim = hub.slim(sequence_model("bart"))
    layer = slim.model.decoder.layers[1].encoder_attn
    with torch.no_grad():
        layer.k_proj.weight.mul_(1.1)
    # The maps are the weights themselves.
    _written(slim)
    layer.v_proj.register_forward_hook(lambda *a: a[-1] + 1)
    with pytest.raises(ValueError, match="In layer 1 V made from the cached tensor is off"):
        _written(slim)


def test_cross_attention_is_slim_in_low_precision_although_v_cannot_be_made_from_k():
    model = sequence_model("bart").bfloat16()
    with pytest.raises(ValueError, match=r"Write slim\(model, layers=\[\]\)"):
        hub.slim(model)
    slim = hub.slim(model, layers=[])
    found = _written(slim)
    assert found.cache.self_attention_cache.slim_layers == []
    assert found.cache.cross_attention_cache.bytes == 3 * SOURCE * 20 * 2


def test_a_cache_for_a_model_with_an_encoder_needs_a_slim_model():
    with pytest.raises(ValueError, match=r"Call slim\(model\) first"):
        hub.SlimEncoderDecoderCache(sequence_model("bart"))


def test_copied_heads_that_are_no_copies_are_refused():
    slim = hub.slim(decoder("falcon"))
    key = torch.randn(1, 6, 3, 4)
    with pytest.raises(ValueError, match="In layer 0 K made from the cached tensor is off"):
        hub.SlimCache(slim).update(key, key, 0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: decoder("mpt", attn_config={"clip_qkv": 2.0}), "K is clipped"),
        (lambda: decoder("falcon", new_decoder_architecture=False), "not known here"),
    ],
)
def test_a_layer_whose_k_is_no_linear_map_is_refused(model, reason):
    with pytest.raises(ValueError, match=reason):
        hub.slim(model())


def test_v_that_is_not_made_behaves_as_v_in_every_other_operation():
    model = decoder("gpt_neo")
    cache = hub.SlimCache(model)
    with torch.no_grad():
        model(**inputs_of(model), cache=cache)
    reader = cache.layers[0].reader
    value = unmade(reader.placeholders()[1], reader, 1)
    made = reader.materialize()[1]
    assert (value.shape, value.dtype) == (made.shape, made.dtype)
    assert torch.equal(value + 1, made + 1)
    assert torch.equal(value.mT, made.mT)
    assert torch.equal(torch.cat([value, value]), torch.cat([made, made]))
    assert torch.equal(torch.add(input=value, other=value), 2 * made)
    weights = torch.randn(3, 4, 2, SOURCE).double().softmax(-1)
    torch.testing.assert_close(weights @ value, weights @ made)
    many = torch.randn(3, 4, 40, SOURCE).double().softmax(-1)
    torch.testing.assert_close(many @ value, many @ made)


def _diffusion_gemma():
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 20,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 12,
        "global_head_dim": 32,
        "sliding_window": 9,
        "num_experts": 3,
        "top_k_experts": 2,
        "moe_intermediate_size": 12,
        "pad_token_id": 0,
    }
    model = transformers.DiffusionGemmaEncoderTextModel(
        transformers.DiffusionGemmaTextConfig(**text)
    )
    model.config._experts_implementation = "eager"
    return model


def test_diffusion_gemma_keeps_one_tensor_of_k_and_v():
    assert "DiffusionGemmaEncoderTextAttention" in SHARED_ROOT
    torch.manual_seed(5)
    model = _diffusion_gemma().double().eval()
    ids = torch.randint(3, VOCABULARY, (2, 30))
    states, caches = [], (transformers.DynamicCache(config=model.config), hub.SlimCache(model))
    with torch.no_grad():
        for cache in caches:
            pieces = [model(ids[:, a:b], cache=cache) for a, b in ((0, 20), (20, 21), (21, 30))]
            states.append(torch.cat([piece.last_hidden_state for piece in pieces], dim=1))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-6)
    theirs, ours = (cache.layers[1] for cache in caches)
    # What the decoder reads.
    torch.testing.assert_close(ours.keys, theirs.keys, rtol=0, atol=1e-6)
    assert ours.bytes <= 0.6 * storage_bytes([theirs.keys, theirs.values])
