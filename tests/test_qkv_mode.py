import copy
import dataclasses
import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qkv_mode_models import (
    D_MODEL,
    DECODERS,
    HEAD,
    HEADS,
    LAYERS,
    VOCABULARY,
    config_of,
    inputs_of,
    model_of,
    outputs_of,
    repeated,
    tie,
)
from qkvbench import hub
from qkvbench.backends.torch import Attention, build, named_weights
from qkvbench.hub.families import FAMILIES
from qkvbench.hub.fit.moments import collect
from qkvbench.hub.fit.tying import tie as fit
from qkvbench.hub.models import attention_layers, layer_plans
from qkvbench.hub.modes import MODES, equations, variants
from qkvbench.model import (
    Decoder,
    Encoder,
    FeedForward,
    Init,
    Learned,
    Rotary,
    Vectors,
    transformer,
)
from qkvbench.variant import parse, write
from qkvbench.variant.catalogue import CATALOGUE, named

# Sums of some hundred products in fp64 differ in their last digits.
EXACT = 1e-10
# The promise of the bench for a conversion, in fp32.
PROMISED = 1e-5

TIES = ["canonical", "shared", "no-key", "q,k=v", "q=k=v", ["q,k=v", "q,k,v=R(k)"], "q,k,v=M(k)"]
QUICK = (*DECODERS[:4], "gpt_neox", "gpt2", "bert", "vit", "t5")
every_family = pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES]
)
# Of those with rows like another's, the heavy tests are slow.
every_decoder = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=pytest.mark.slow) if k in ("gemma", "phi", "opt") else k
        for k in DECODERS
    ],
)
every_tie = pytest.mark.parametrize("mode", TIES, ids=str)


_logits = outputs_of


@every_tie
@every_family
def test_converting_weights_that_satisfy_a_tie_changes_no_output(kind, mode):
    plain = tie(model_of(kind), mode)
    mode = repeated(kind, mode)
    ours = hub.convert(plain, mode)
    inputs = inputs_of(kind)
    logits, expected = _logits(ours, **inputs), _logits(plain, **inputs)
    assert expected.abs().max() > 0.1
    assert (logits - expected).abs().max() < PROMISED
    assert ours.config.qkv_mode == equations(mode)


@every_family
def test_weights_that_do_not_satisfy_a_tie_are_refused_by_layer_and_role(kind):
    plain = tie(model_of(kind), ["q,k=v", "q,k,v"])
    with pytest.raises(ValueError, match=r"Layer 1: v is not what .*\n(.|\n)*healing") as refused:
        hub.convert(plain, "q,k=v")
    assert len(str(refused.value).splitlines()) <= 6


def test_a_norm_of_heads_is_part_of_a_tie():
    plain = tie(model_of("qwen3"), "no-key")
    with torch.no_grad():
        plain.model.layers[0].self_attn.k_norm.weight += 0.01
    with pytest.raises(ValueError, match="Layer 0: k is not"):
        hub.convert(plain, "no-key")


@pytest.mark.parametrize("mode", ["shared", "no-key", "q=k=x,v", "q,k,v=R(q)"])
def test_a_tie_that_head_sharing_forbids_is_refused_with_equations_that_would_work(mode):
    with pytest.raises(ValueError, match="both need as many heads") as refused:
        config_of("llama", num_key_value_heads=2, qkv_mode=mode)
    message = str(refused.value)
    offered = [part for part in message.splitlines()[-1].split("'") if "," in part and "q" in part]
    offered = [part for part in offered if part[0] in "qkv"]
    assert len(offered) == 2
    for equation in offered:
        config = config_of("llama", num_key_value_heads=2, qkv_mode=equation)
        assert layer_plans(config)[0].geometry.kv_heads in (2, HEADS)


def test_a_mode_is_a_name_or_an_equation_for_all_layers_or_for_each():
    for name in MODES:
        config, equation = config_of("gpt2", qkv_mode=name), write(named(name))
        assert config.qkv_mode == equation
        assert {write(plan.variant) for plan in layer_plans(config)} == {equation}
    config = config_of("gpt2", qkv_mode=["no-key", " v = k , q "])
    assert config.qkv_mode == ["q=k,v", "q,k=v"]
    with pytest.raises(ValueError, match=r"3 equations, and the model has 2 layers"):
        config_of("gpt2", qkv_mode=["q,k,v"] * 3)
    with pytest.raises(ValueError, match=r"Besides equations there are 'canonical'"):
        config_of("gpt2", qkv_mode="share")
    with pytest.raises(ValueError, match=r"says more than where.*\n.*'q,k=v'"):
        config_of("gpt2", qkv_mode="q,k=v+2d")
    for text in ("q=L(8),k,v", "q,k=K(-1),v=V(-1)", "q=k=0,v", "none"):
        with pytest.raises(ValueError, match="which qkv_mode does not support"):
            config_of("gpt2", qkv_mode=text)


def test_rope_that_depends_on_the_length_is_refused_if_roots_are_rotated_on_read():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    with pytest.raises(ValueError, match="rope_type='dynamic'"):
        config_of("llama", rope_parameters=rope, qkv_mode="q,k=v")
    config_of("llama", rope_parameters=rope, qkv_mode="no-key")


@every_family
def test_every_setting_of_a_config_is_known_or_refused_by_name(kind):
    family = FAMILIES[kind]
    family.check(config_of(kind))
    library = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    fields = {field.name for field in dataclasses.fields(type(config_of(kind)))} - library
    strange = config_of(kind, attention_sinks=4)
    for refuse in (family.check, lambda config: hub.with_mode(config, "q,k=v")):
        with pytest.raises(ValueError, match="attention_sinks=4"):
            refuse(strange)
    for name, allowed in family.only.items():
        config = config_of(kind)
        other = {bool: True, int: 3, str: "relative"}[type(allowed[0])]
        other = not allowed[0] if isinstance(other, bool) else other
        setattr(config, name, other)
        with pytest.raises(ValueError, match=f"{name}={other!r}"):
            family.check(config)
    # A setting that a later transformers adds is in no table yet, and fails here.
    assert fields <= {
        *family.handled,
        *family.elsewhere,
        *family.only,
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("initializer_range", "use_cache", "tie_word_embeddings", "classifier_dropout"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    }


def test_an_architecture_that_is_not_built_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"built for llama, .*not for bloom"):
        hub.with_mode(transformers.BloomConfig(), "shared")


@pytest.mark.parametrize("mode", ["shared", ["q,k=v", "q=k,v"]], ids=str)
@every_family
def test_a_saved_model_loads_as_the_same_model(kind, mode, tmp_path):
    mode = repeated(kind, mode)
    model = model_of(kind, qkv_mode=mode)
    model.save_pretrained(tmp_path)
    again = getattr(transformers, HEAD[kind]).from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert json.loads((tmp_path / "config.json").read_text())["qkv_mode"] == equations(mode)
    inputs = inputs_of(kind)
    assert torch.equal(_logits(again, **inputs), _logits(model, **inputs))
    if again.config.to_dict().get("tie_word_embeddings"):
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    # Each weight is in the file once, and none of a role that has no matrix.
    # Of the model as it was made: the library's loading lets gradients reach Marian's sines.
    learned = [each for each in model.parameters() if each.requires_grad]
    buffers = dict(again.named_buffers())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name not in buffers]  # noqa: SIM118
        stored = sum(file.get_tensor(name).numel() for name in names)
    assert stored == sum(parameter.numel() for parameter in learned)


def test_a_tied_output_matrix_is_saved_once_and_tied_again(tmp_path):
    model = model_of("llama", qkv_mode="q,k=v", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_checkpoint_of_another_mode_is_refused_when_it_is_loaded(tmp_path):
    model_of("llama", qkv_mode="q,k=v").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not that of qkv_mode"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, qkv_mode="shared")


def _own_gpt2(model, variant):
    """The same decoder in the bench's own backend, with the same weights."""
    spec = transformer(
        "gpt2",
        Decoder(VOCABULARY, tied=True),
        layers=LAYERS,
        d_model=D_MODEL,
        heads=HEADS,
        position=Learned(40),
        init=Init(embedding_std=0.02, position_std=0.02),
    ).with_variant(variant)
    network, theirs = build(spec).double().eval(), model.transformer
    named = {"embedding.table": theirs.wte.weight, "embedding.positions": theirs.wpe.weight}
    named |= _norm("norm", theirs.ln_f)
    for place, block in enumerate(theirs.h):
        at = f"blocks.{place}"
        named |= _norm(f"{at}.attention_norm", block.ln_1)
        named |= _norm(f"{at}.feed_forward_norm", block.ln_2)
        named |= _linear(f"{at}.feed_forward.up", block.mlp.c_fc.weight.T, block.mlp.c_fc.bias)
        named |= _linear(
            f"{at}.feed_forward.down", block.mlp.c_proj.weight.T, block.mlp.c_proj.bias
        )
        named |= _attention(f"{at}.attention.", block.attn)
    return _filled(network, named)


def _own_vit(model, variant):
    """The same vision encoder: patches are vectors; the first position is the class token's."""
    vit = model.vit
    spec = transformer(
        "vit",
        Encoder(Vectors(3 * 16), 3, "the whole", pooling="class token"),
        layers=LAYERS,
        d_model=D_MODEL,
        heads=HEADS,
        position=Learned(4),
        init=Init(embedding_std=0.02, position_std=0.02),
    ).with_variant(variant)
    # The preset has a feed-forward of four times d_model.
    spec = spec.with_blocks(lambda block: replace(block, feed_forward=FeedForward(56)))
    network, first = build(spec).double().eval(), vit.embeddings
    patches = first.patch_embeddings.projection
    named = _linear("embedding.vectors", patches.weight.flatten(1), patches.bias)
    named["embedding.class_token"] = first.cls_token[0] + first.position_embeddings[0, :1]
    named["embedding.positions"] = first.position_embeddings[0, 1:]
    named |= _norm("norm", vit.layernorm)
    named |= _linear("output", model.classifier.weight, model.classifier.bias)
    for place, layer in enumerate(vit.layers):
        at = f"blocks.{place}"
        named |= _norm(f"{at}.attention_norm", layer.layernorm_before)
        named |= _norm(f"{at}.feed_forward_norm", layer.layernorm_after)
        named |= _linear(f"{at}.feed_forward.up", layer.mlp.fc1.weight, layer.mlp.fc1.bias)
        named |= _linear(f"{at}.feed_forward.down", layer.mlp.fc2.weight, layer.mlp.fc2.bias)
        named |= _attention(f"{at}.attention.", layer.attention)
    return _filled(network, named)


def _attention(place, layer):
    """The weights of a layer of ours under the names that all backends share."""
    family, plan = layer.family, layer.plan
    named = {}
    for name, matrices in layer.projections.items():
        lengths = [plan.matrix_rows[matrix] for matrix in matrices]
        linear = layer.get_submodule(name)
        weight = linear.weight.T if family.transposed else linear.weight
        if layer.by_head:
            heads = weight.unflatten(0, (-1, len(matrices), layer.head_dim)).transpose(0, 1)
            weight = heads.flatten(0, 2)
            heads = linear.bias.unflatten(0, (-1, len(matrices), layer.head_dim))
            linear = SimpleNamespace(bias=heads.transpose(0, 1).flatten())
        for matrix, piece in zip(matrices, weight.split(lengths), strict=True):
            named[f"{place}{matrix}.weight"] = piece
        bias = torch.zeros(sum(lengths)) if linear.bias is None else linear.bias
        for matrix, piece in zip(matrices, bias.split(lengths), strict=True):
            named[f"{place}{matrix}.bias"] = piece
    if family.output:
        output = layer.get_submodule(family.output)
        weight = output.weight.T if family.transposed else output.weight
        named |= {f"{place}o.weight": weight}
        named |= {f"{place}o.bias": torch.zeros(D_MODEL) if output.bias is None else output.bias}
    named |= {f"{place}{role}.rotation": numbers for role, numbers in layer.rotation.items()}
    named |= {f"{place}{role}.up": matrices for role, matrices in layer.up.items()}
    named |= {f"{place}{role}.map": matrices for role, matrices in layer.map.items()}
    return named | {f"{place}{role}.scale": layer.scale(role) for role in layer.plan.scaled_roles}


def _norm(name, norm):
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _linear(name, weight, bias):
    return {f"{name}.weight": weight, f"{name}.bias": bias}


@torch.no_grad()
def _filled(network, named):
    own = named_weights(network)
    assert own.keys() == named.keys()
    for name, tensor in own.items():
        tensor.copy_(named[name])
    return network


EQUATIONS = ["q,k,v", "q,k=R(q),v=R(q)", "q=k,v", "q,k=v", "q=x,k,v=R(k)", "q,k=v/2", "q=k=v=x"]
EQUATIONS += ["q,k,v=M(k)", "q,k=L(20),v=L(20)", "q,k=v+rootnorm", "q,k=v+qklatenorm"]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_gpt2_is_the_decoder_of_our_own_backend(equation):
    # The bench's feed-forward has the exact GELU; GPT-2's own default is its approximation.
    model = model_of("gpt2", qkv_mode=equation, activation_function="gelu").double()
    tokens = inputs_of("gpt2")["input_ids"]
    found = _logits(model, input_ids=tokens)
    with torch.no_grad():
        expected = _own_gpt2(model, parse(equation))(tokens)
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < EXACT


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_vit_is_the_encoder_of_our_own_backend(equation):
    model = model_of("vit", qkv_mode=equation, layer_norm_eps=1e-5).double()
    images = inputs_of("vit")["pixel_values"].double()
    found = _logits(model, pixel_values=images)
    cut = images.unflatten(3, (2, 4)).unflatten(2, (2, 4))
    patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    with torch.no_grad():
        expected = _own_vit(model, parse(equation))(patches)[:, 0]
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < EXACT


TURNED = ["q,k=v+ropevalue", "q,k,v+ropevalue", "q,k=L(20),v=L(20)+ropevalue"]


@pytest.mark.parametrize("equation", EQUATIONS + TURNED)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_attention_of_a_llama_or_qwen_is_that_of_our_own_backend(kind, equation):
    # Of the layer, because attention alone is replaced.
    model = model_of(kind, qkv_mode=equation, head_dim=12).double()
    layer = attention_layers(model)[0][1]
    own = Attention(
        layer.plan.variant, D_MODEL, HEADS, head_dim=12, position=Rotary(), causal=True
    ).double()
    x = torch.randn(3, 9, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = torch.arange(9)[None]
    with torch.no_grad():
        for name, tensor in own.named_weights().items():
            tensor.copy_(_attention("", layer)[name])
        found, _ = layer(
            x,
            position_embeddings=model.model.rotary_emb(x, places),
            position_ids=places,
        )
        expected = own(x)
    assert expected.abs().max() > 0.1
    # The library makes angles in fp32.
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("equation", EQUATIONS)
def test_attention_of_a_bert_is_that_of_our_own_backend(equation):
    # BERT has post-norm, the bench pre-norm; and its output matrix is outside of the layer.
    model = model_of("bert", qkv_mode=equation).double()
    layer = attention_layers(model)[0][1]
    own = Attention(parse(equation), D_MODEL, HEADS).double()
    x = torch.randn(3, 9, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output = model.bert.encoder.layer[0].attention.output.dense
    named = _attention("", layer) | _linear("o", output.weight, output.bias)
    with torch.no_grad():
        for name, tensor in own.named_weights().items():
            tensor.copy_(named[name])
        found, expected = output(layer(x)[0]), own(x)
    assert (found - expected).abs().max() < EXACT


# The newer rows, for which one equation is quick.
NEWER = ("gemma", "phi", "gpt_neox", "opt", "marian", "clip_text_model", "clip_vision_model")
newer_family = pytest.mark.parametrize("kind", NEWER)


@pytest.mark.parametrize(
    "equation",
    [e if e == "q,k=v" else pytest.param(e, marks=pytest.mark.slow) for e in EQUATIONS],
)
@newer_family
def test_attention_of_every_other_family_is_that_of_our_own_backend(kind, equation):
    head_dim = D_MODEL // HEADS
    more = {"head_dim": head_dim} if kind == "gemma" else {}
    model = model_of(kind, qkv_mode=equation, **more).double()
    layer = attention_layers(model)[0][1]
    dims = {"gemma": head_dim, "phi": head_dim // 2, "gpt_neox": 4}.get(kind)
    rope = layer.plan.rope
    assert (rope.dims if rope else None) == dims
    positions = {"position": Rotary(share=dims / head_dim)} if dims else {}
    own = Attention(
        layer.plan.variant, D_MODEL, HEADS, causal=kind in DECODERS, **positions
    ).double()
    x = torch.randn(3, 9, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = torch.arange(9)[None]
    mask = None
    if kind == "opt":
        mask = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        for name, tensor in own.named_weights().items():
            tensor.copy_(_attention("", layer)[name])
        rotary = model.base_model.rotary_emb(x, places) if dims else None
        found, _ = layer(x, mask, position_embeddings=rotary, position_ids=places)
        expected = own(x)
    assert expected.abs().max() > 0.1
    # The library makes angles in fp32.
    assert (found - expected).abs().max() < (1e-5 if dims else EXACT)


LATENT = "q,k=L(20),v=L(20)"
CACHED_MODES = [
    LATENT,
    "q,k,v",
    "q,k=R(q),v=R(q)",
    "q=k,v",
    "q,k=v",
    "q,k=v+rootnorm",
    "q,k=v+qklatenorm",
    "q,k,v=R(k)/2",
    "q,k=M(v),v",
    ["q,k=v", "q=k=v"],
]


@pytest.mark.parametrize("mode", ["q,k=v", "q=k,v", "q,k=L(20),v=L(20)"])
@pytest.mark.parametrize("kind", ["marian", "t5"])
def test_generate_of_a_model_with_cross_attention_writes_the_library_s_tokens(kind, mode):
    inputs = inputs_of(kind)
    plain = model_of(kind)
    if "L" in mode:
        ours = fit(plain, mode, collect(plain, [inputs]))
    else:
        ours = hub.convert(tie(plain, mode), mode)
    tokens = []
    for model in (plain, ours):
        torch.manual_seed(0)
        tokens.append(
            model.double().generate(
                inputs["input_ids"], max_new_tokens=6, min_new_tokens=6, do_sample=True
            )
        )
    assert torch.equal(*tokens)
    assert len(set(tokens[0][:, 1:].flatten().tolist())) > 2


def test_biases_of_distance_reach_every_place_of_a_static_cache():
    inputs, ours = inputs_of("t5"), model_of("t5", qkv_mode="q,k=v").double()
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    plain = ours.generate(inputs["input_ids"], **settings)
    fixed = ours.generate(inputs["input_ids"], **settings, cache_implementation="static")
    assert torch.equal(plain, fixed)


@pytest.mark.parametrize("mode", TURNED)
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_decoding_with_rope_on_v_is_one_forward_pass_and_a_root_needs_no_positions(kind, mode):
    model = model_of(kind, qkv_mode=mode).double()
    tokens = inputs_of(kind, batch=2)["input_ids"]
    cache = transformers.DynamicCache()
    found = []
    with torch.no_grad():
        for place in range(tokens.shape[1]):
            step = model(tokens[:, place : place + 1], cache=cache, use_cache=True)
            found.append(step.logits)
    assert (cache.layers[0].values.numel() == 0) == (mode == "q,k=v+ropevalue")
    # The library makes angles in fp32.
    assert (torch.cat(found, 1) - _logits(model, input_ids=tokens)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rope_on_v_is_no_tie_of_a_checkpoint_and_not_for_models_without_rope(kind):
    plain = tie(model_of(kind), "q,k=v")
    with pytest.raises(ValueError, match=r"rotates V(.|\n)*(measures what is lost|'q,k=v')"):
        hub.convert(plain, "q,k=v+ropevalue")


@pytest.mark.parametrize("mode", CACHED_MODES, ids=str)
@every_decoder
def test_decoding_step_by_step_with_left_padding_is_one_forward_pass_without(kind, mode):
    model = model_of(kind, qkv_mode=mode).double()
    tokens = inputs_of(kind, batch=2)["input_ids"]
    padding, prompt = 3, 6
    padded = tokens.clone()
    padded[1, :padding] = 0
    mask = torch.ones_like(padded)
    mask[1, :padding] = 0
    places = (mask.cumsum(1) - 1).clamp_min(0)
    cache, rows = None, []
    for first, last in [(0, prompt), *((at, at + 1) for at in range(prompt, 9))]:
        with torch.no_grad():
            step = model(
                padded[:, first:last],
                attention_mask=mask[:, :last],
                position_ids=places[:, first:last],
                cache=cache,
                use_cache=True,
            )
        cache = step.cache
        rows.append(step.logits)
    found = torch.cat(rows, dim=1)
    for row, skipped in enumerate((0, padding)):
        alone = _logits(model, input_ids=padded[row : row + 1, skipped:])[0]
        assert (found[row, skipped:] - alone).abs().max() < EXACT


@pytest.mark.parametrize("how", ["greedy", "beams", "sampled"])
@pytest.mark.parametrize("mode", ["shared", "q,k=v"])
@every_decoder
def test_generate_writes_the_tokens_of_the_library_s_own_model(kind, mode, how):
    plain = tie(model_of(kind), mode).double()
    ours = hub.convert(plain, mode)
    tokens = inputs_of(kind)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    more = {"beams": {"num_beams": 3}, "sampled": {"do_sample": True}, "greedy": {}}[how]
    texts = []
    for model in (plain, ours):
        torch.manual_seed(3)
        told = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, **more}
        texts.append(model.generate(tokens, **told))
    assert torch.equal(*texts)


def _live_bytes(cache):
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    }
    return sum(storages.values())


@pytest.mark.parametrize(
    ("kind", "mode", "most"),
    [
        # One tensor of two, and four bytes for the position of a root that is rotated on read.
        ("gpt2", "q,k=v", 0.5),
        ("gpt2", "shared", 0.5),
        ("llama", "shared", 0.5 + 4 / (2 * 4 * D_MODEL)),
        ("llama", "q,k=v", 0.5 + 4 / (2 * 4 * D_MODEL)),
        # Normed, it is one tensor, too: K and V share the norm's scale.
        ("gpt2", "q,k=v+rootnorm", 0.5),
        ("llama", "q,k=v+rootnorm", 0.5 + 4 / (2 * 4 * D_MODEL)),
        ("llama", ["q,k=v", "q,k,v"], 0.75 + 4 / (4 * 4 * D_MODEL)),
        ("llama", "no-key", 1.0),
        ("llama", "q,k=v/1", 0.125 + 4 / (2 * 4 * D_MODEL)),
    ],
    ids=str,
)
def test_a_mode_caches_the_bytes_of_its_plan(kind, mode, most):
    kept = []
    for model in (model_of(kind), model_of(kind, qkv_mode=mode)):
        told = model.generate(
            **inputs_of(kind), max_new_tokens=12, min_new_tokens=12, return_dict_in_generate=True
        )
        kept.append(_live_bytes(told.cache))
    assert kept[1] / kept[0] == pytest.approx(most, abs=1e-9)


def test_a_cache_of_one_tensor_can_be_cropped_reordered_and_static():
    model = model_of("llama", qkv_mode="q,k=v").double()
    tokens = inputs_of("llama")["input_ids"]
    whole = _logits(model, input_ids=tokens)
    with torch.no_grad():
        told = model(tokens, use_cache=True)
        cache = told.cache
        cache.crop(-4)
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        again = model(tokens[[2, 0, 1], 5:], cache=cache).logits
        fixed = transformers.StaticCache(model.config, max_cache_len=12)
        model(tokens[:, :5], cache=fixed)
        rest = model(tokens[:, 5:], cache=fixed).logits
    assert (again - whole[[2, 0, 1], 5:]).abs().max() < EXACT
    assert (rest - whole[:, 5:]).abs().max() < EXACT


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_attention_implementations_agree_and_none_loses_the_padding(kind):
    model = model_of(kind, qkv_mode="q,k=v").double()
    tokens = inputs_of(kind)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    found = {}
    for name in ("eager", "sdpa", "qkvbench"):
        assert name == "eager" or name in ALL_ATTENTION_FUNCTIONS
        assert name in ALL_MASK_ATTENTION_FUNCTIONS
        model.set_attn_implementation(name)
        found[name] = _logits(model, input_ids=tokens, attention_mask=mask)
        changed = tokens.clone()
        changed[1, :4] = 3 + (changed[1, :4] + 1) % 20
        other = _logits(model, input_ids=changed, attention_mask=mask)
        assert torch.equal(other[1, 4:], found[name][1, 4:]), name
        assert not torch.equal(_logits(model, input_ids=changed)[1, 4:], found[name][1, 4:])
    for name in ("sdpa", "qkvbench"):
        # Outputs at padding mean nothing.
        error = ((found[name] - found["eager"]) * mask[..., None]).abs().max()
        assert error < EXACT, name


def test_attention_weights_are_returned_on_request():
    model = model_of("llama", qkv_mode="shared")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        told = model(**inputs_of("llama"), output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in told.attentions] == [(3, HEADS, 9, 9)] * LAYERS
    assert len(told.hidden_states) == LAYERS + 1
    for weights in told.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, HEADS, 9))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "vit"])
def test_gradient_checkpointing_changes_no_gradient(kind):
    gradients = []
    for checkpointed in (False, True):
        model = model_of(kind, qkv_mode="shared").double()
        if checkpointed:
            model.activation_checkpointing_enable()
        # In training mode, or the library would not checkpoint; without dropout, to compare.
        model.train()
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        for _, layer in attention_layers(model):
            layer.attention_dropout = 0.0
        # A cache, which the library uses in training too, changes the order of sums.
        more = {"use_cache": False} if kind in DECODERS else {}
        model(**inputs_of(kind), **more).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is None:
            assert gradients[1][name] is None
            continue
        assert torch.equal(gradient, gradients[1][name]), name
        if "rotation" in name:
            assert gradient.abs().max() > 0


@every_family
def test_projections_are_initialized_as_the_library_s(kind):
    models = []
    for more in ({}, {"qkv_mode": "q,k=v"}):
        torch.manual_seed(0)
        models.append(getattr(transformers, HEAD[kind]).from_config(config_of(kind, **more)))
    theirs = dict(models[0].named_parameters())
    for name, parameter in models[1].named_parameters():
        # Few numbers, such as T5's table of positions, have no standard deviation to compare.
        if parameter.numel() > 1000 and any(
            place in f".{name}" for place, _ in attention_layers(models[1])
        ):
            expected = theirs[name].detach().std().item()
            assert parameter.detach().std().item() == pytest.approx(expected, rel=0.1), name


def test_a_config_of_the_library_gets_a_mode():
    plain = transformers.LlamaConfig(hidden_size=48, num_attention_heads=4)
    config = hub.with_mode(plain, "no-key")
    assert (config.model_type, config.qkv_mode, config.head_dim) == ("qkv_llama", "q=k,v", 12)
    assert [write(v) for v in variants(config.qkv_mode, 2)] == ["q=k,v"] * 2


@every_family
def test_a_plain_checkpoint_whose_config_has_a_mode_is_refused_by_load(kind, tmp_path):
    config = config_of(kind)
    config.qkv_mode = "shared"
    getattr(transformers, HEAD[kind]).from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"does not heed(.|\n)*with_mode(.|\n)*'qkv_{kind}'"):
        hub.load(tmp_path, auto=HEAD[kind])


@pytest.mark.parametrize("equation", ["q,k=R(q),v=R(q)", "q=k,v"])
def test_a_name_means_the_same_in_qkv_mode_and_in_the_catalogue(equation):
    name = {"q,k=R(q),v=R(q)": "shared", "q=k,v": "no-key"}[equation]
    assert write(named(name)) == equation == equations(name)


def test_names_and_aliases_of_the_catalogue_are_all_different():
    names = [name for entry in CATALOGUE for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names)


def test_trainer_decays_the_same_parameters_of_a_canonical_qwen3_as_of_the_library_s(tmp_path):
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    decayed = []
    for mode in ({}, {"qkv_mode": "canonical"}):
        model = model_of("qwen3", **mode)
        trainer = transformers.Trainer(model, arguments)
        decayed.append(set(trainer.get_decay_parameter_names(model)))
    assert decayed[0] == decayed[1]


def test_the_norm_of_a_mode_has_the_eps_of_its_config():
    plain = model_of("qwen3", rms_norm_eps=0.3)
    inputs = inputs_of("qwen3")
    expected = _logits(plain, **inputs)
    assert (_logits(hub.convert(plain, "canonical"), **inputs) - expected).abs().max() < PROMISED
    other = _logits(hub.convert(model_of("qwen3"), "canonical"), **inputs)
    assert (other - expected).abs().max() > 100 * PROMISED


@every_decoder
def test_a_plain_checkpoint_loads_as_canonical(kind, tmp_path):
    plain = model_of(kind)
    plain.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    mode = {"model_type": f"qkv_{kind}", "qkv_mode": "canonical"}
    file.write_text(json.dumps(json.loads(file.read_text()) | mode))
    inputs = inputs_of(kind)
    found, expected = _logits(hub.load(tmp_path).eval(), **inputs), _logits(plain, **inputs)
    # OPT scales its queries before the product, which rounds otherwise.
    assert (found - expected).abs().max() <= (PROMISED if kind == "opt" else 0)


def test_a_mode_in_the_config_of_an_architecture_without_it_is_refused_by_load(tmp_path):
    config = transformers.BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=9)
    config.qkv_mode = "shared"
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'bloom' model does not heed"):
        hub.load(tmp_path)


def test_a_saved_folder_says_what_loads_it(tmp_path):
    model_of("llama", qkv_mode="shared").save_pretrained(tmp_path)
    card, config = ((tmp_path / each).read_text() for each in ("README.md", "config.json"))
    assert "qkv-ablation-bench" in card
    assert "trust_remote_code" not in card
    assert "qkvbench.hub.load" in json.loads(config)["requires"]
    # A second save of another model into the folder says what it is now.
    model_of("llama", qkv_mode="q=k,v").save_pretrained(tmp_path, with_code=True)
    again = (tmp_path / "README.md").read_text()
    assert "`q=k,v`" in again
    assert "trust_remote_code" in again
    (tmp_path / "README.md").write_text("mine")
    model_of("llama", qkv_mode="shared").save_pretrained(tmp_path, with_code=True)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not [f for f in tmp_path.glob("*.py") if "jaxtyping import" in f.read_text()]


@pytest.mark.parametrize("fused", [False, True])
def test_a_pass_after_a_step_has_the_new_rotations(fused):
    """A fused optimizer, which is the Trainer's default, raises no version of a parameter."""
    model = model_of("llama", qkv_mode="q,k,v=R(k)").float().train()
    inputs = inputs_of("llama")
    before = _logits(model, **inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    after = _logits(model, **inputs)
    again = copy.deepcopy(model)
    for _, layer in attention_layers(again):
        layer._cached_rotations = None
    assert torch.equal(_logits(again, **inputs), after)
    with torch.no_grad():
        for _, layer in attention_layers(model):
            for numbers in layer.rotation.values():
                numbers.data.mul_(0.5)
    for _, layer in attention_layers(again):
        for numbers in layer.rotation.values():
            numbers.data.mul_(0.5)
        layer._cached_rotations = None
    assert not torch.equal(before, after)
    assert torch.equal(_logits(again, **inputs), _logits(model, **inputs))


def test_a_folder_is_saved_by_the_library_s_name_of_the_argument(tmp_path):
    model = model_of("llama", qkv_mode="shared")
    model.save_pretrained(save_directory=tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").is_file()
    with pytest.raises(ValueError, match="then upload the folder"):
        model.save_pretrained(tmp_path / "other", with_code=True, push_to_hub=True)
    assert not (tmp_path / "other").exists()


def test_continuous_batching_is_refused_and_not_empty():
    model = model_of("llama", qkv_mode="q,k=v")
    with pytest.raises(ValueError, match="Call generate"):
        model.generate_batch([[1, 2, 3]])


@pytest.mark.parametrize(
    ("kind", "older"),
    [
        ("gpt2", {"n_special": 0, "predict_special_tokens": True}),
        ("opt", {"activation_dropout": 0.0, "prefix": "</s>"}),
        ("bert", {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token"}),
        ("llama", {"is_llama_config": True, "transformers.js_config": {"dtype": "q4"}}),
        ("marian", {"add_bias_logits": False, "normalize_before": False, "num_beams": 6}),
        ("gemma", {"hidden_activation": None, "max_length": 20}),
    ],
)
def test_settings_of_older_files_that_mean_nothing_are_no_obstacle(kind, older):
    config = config_of(kind)
    for name, value in older.items():
        setattr(config, name, value)
    assert hub.with_mode(config, "canonical").qkv_mode == "q,k,v"
    config.attention_of_another_kind = True
    with pytest.raises(ValueError, match="does not know"):
        hub.with_mode(config, "canonical")


def test_a_converted_model_keeps_what_generates_and_attends(tmp_path):
    model = model_of("llama")
    model.set_attn_implementation("eager")
    converted = hub.convert(model, "canonical")
    assert converted.config._attn_implementation == "eager"
    converted.generation_config.max_new_tokens = 7
    assert model.generation_config.max_new_tokens != 7


def test_an_adapter_in_a_layer_is_to_be_merged_before_a_conversion():
    peft = pytest.importorskip("peft")
    model = model_of("llama")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["v_proj"]), model)
    with pytest.raises(ValueError, match="merge it first"):
        hub.convert(model, "canonical")


def test_a_model_of_ours_can_be_pickled():
    model = model_of("llama", qkv_mode="shared")
    again = pickle.loads(pickle.dumps(model))
    inputs = inputs_of("llama")
    assert torch.equal(_logits(again, **inputs), _logits(model, **inputs))


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "qkv-mode.md").read_text("utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    # Weights are random, and so is the width of the printed tokens.
    assert re.match(r"tensor\(\[\[ *5, +6, +7, ", capsys.readouterr().out)
    assert names["model"].config.qkv_mode == write(named("shared"))


def test_importing_the_package_imports_neither_torch_nor_transformers():
    script = """
import sys
import qkvbench.hub
qkvbench.hub.check_folder
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_the_package_leaves_transformers_as_it_is():
    script = """
import transformers
before = transformers.PreTrainedModel.__init__
import qkvbench.hub
assert transformers.PreTrainedModel.__init__ is before
assert "qkv_llama" not in transformers.CONFIG_MAPPING
qkvbench.hub.register()
assert transformers.PreTrainedModel.__init__ is before
assert "qkv_llama" in transformers.CONFIG_MAPPING
"""
    subprocess.run([sys.executable, "-c", script], check=True)
