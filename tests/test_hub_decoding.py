"""A token decoded by the native kernel, inside a model of transformers, is that of torch."""

import contextlib
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicLayer

from native_kernel import needs_library
from qkv_mode_models import HEADS, LAYERS, inputs_of, model_of
from qkvbench import hub, native
from qkvbench.hub.code import write_code
from qkvbench.hub.growing_layer import GrowingLayer
from qkvbench.hub.growing_tensor import GROWTH
from qkvbench.native.library import NONE, VARIABLE
from test_hub_slim import gemma

pytestmark = needs_library

# A share of the largest logit: sums of fp32 in another order.
CLOSE = 1e-5
PROMPT, STEPS, PADDING = 7, 24, 3
# Heads of 16, as the kernel reads rows of whole vectors of 8 numbers.
WIDE = {
    **{kind: {"head_dim": 16} for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma")},
    **{kind: {"hidden_size": 64} for kind in ("phi", "gpt_neox")},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "max_position_embeddings": 60},
    "gpt2": {"n_embd": 64, "n_positions": 60},
    "marian": {"d_model": 64},
    "t5": {},
}
CASES = [
    *(("llama", mode) for mode in ("q,k=v", "q,k,v", "shared", "q,k=v+ropevalue")),
    ("mistral", "q,k=v"),
    ("gpt_neox", "q,k=v"),
    ("qwen3", "q,k=v+qkvnorm"),
    *(("gpt2", mode) for mode in ("q,k=v", "q,k=L(16),v=L(16)")),
]
MORE_CASES = [
    *((kind, "q,k=v") for kind in ("qwen2", "gemma", "phi", "opt")),
    *(("llama", mode) for mode in ("no-key", "q,k=v/2", "q,k=v+rootnorm", "q,k,v=M(k)")),
    *(("qwen3", mode) for mode in ("no-key", "q,k=v+rootnorm")),
    *(("gpt2", mode) for mode in ("q,k,v", "q,k,v=R(k)")),
]


def slow(*cases):
    """These cases, as slow ones."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture
def calls(monkeypatch):
    """The calls of the native kernel."""
    made = []
    run = native.Decoding.__call__

    def counted(self, *args):
        made.append(self.query_shape)
        return run(self, *args)

    monkeypatch.setattr(native.Decoding, "__call__", counted)
    return made


@contextlib.contextmanager
def torch_only():
    """Without kernels, as on a machine without the library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, NONE)
        yield


def wide(kind, mode="q,k=v", **more):
    """A small model whose heads the kernel reads."""
    return model_of(kind, qkv_mode=mode, **(WIDE[kind] | more))


@torch.no_grad()
def decode(model, cache=None, steps=STEPS, padding=PADDING, change=None, **options):
    """The logits of a prompt and of each token after it; padding is in front of the second text."""
    tokens = inputs_of("llama", batch=3, time=PROMPT + steps)["input_ids"]
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0
    places = (mask.cumsum(1) - 1).clamp_min(0)
    parts = [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + steps))]
    rows = []
    for first, last in parts:
        inputs = {"attention_mask": mask[:, :last], "position_ids": places[:, first:last]}
        if change is not None and first >= PROMPT:
            inputs |= change(inputs)
        if "opt" in model.config.model_type or "gpt2" in model.config.model_type:
            inputs |= {"position_ids": places[:, first:last]}
        step = model(tokens[:, first:last], cache=cache, use_cache=True, **inputs, **options)
        cache = step.cache
        rows.append(step.logits)
    seen = mask.bool()[..., None]
    return torch.where(seen, torch.cat(rows, 1), 0), cache


def assert_close(found, expected):
    """Equal up to the order of sums."""
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < CLOSE * expected.abs().max()


@pytest.mark.parametrize(("kind", "mode"), [*CASES, *slow(*MORE_CASES)])
def test_tokens_decoded_by_the_kernel_have_the_logits_of_torch(kind, mode, calls):
    model = wide(kind, mode)
    found, _ = decode(model)
    assert len(calls) == LAYERS * STEPS
    with torch_only():
        expected, _ = decode(model)
    assert len(calls) == LAYERS * STEPS
    assert_close(found, expected)


@pytest.mark.parametrize(
    "more",
    [
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0}
         | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
         | {"original_max_position_embeddings": 32}},
    ],
    ids=str,
)  # fmt: skip
def test_head_sharing_and_scaled_rope_go_through_the_kernel(more, calls):
    model = wide("llama", **more)
    found, _ = decode(model)
    assert len(calls) == LAYERS * STEPS
    with torch_only():
        assert_close(found, decode(model)[0])


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("llama", "q,k=v"),
        ("mistral", "q,k=v"),
        ("llama", "q,k,v"),
        *slow(("llama", "q,k=v+ropevalue"), ("mistral", "q,k,v")),
    ],
)
def test_a_static_cache_is_read_up_to_its_last_token(kind, mode, calls):
    model, slots = wide(kind, mode), 200
    found, _ = decode(model, transformers.StaticCache(model.config, max_cache_len=slots))
    assert len(calls) == LAYERS * STEPS
    with torch_only():
        other = transformers.StaticCache(model.config, max_cache_len=slots)
        assert_close(found, decode(model, other)[0])


def test_slots_behind_the_last_token_of_a_static_cache_are_not_read(calls):
    model = wide("llama")
    cache = transformers.StaticCache(model.config, max_cache_len=200)
    decode(model, cache, steps=3, padding=0)
    for layer in cache.layers:
        layer.keys[:, :, PROMPT + 4 :] = torch.nan
    with torch.no_grad():
        token = torch.ones(3, 1, dtype=torch.long)
        assert model(token, cache=cache, use_cache=True).logits.isfinite().all()
    assert len(calls) == LAYERS * 4


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("llama", {"num_beams": 3}),
        ("llama", {"do_sample": True}),
        ("marian", {"num_beams": 3}),
        *slow(
            *product(["mistral", "gpt2"], [{"num_beams": 3}, {}]), ("marian", {"do_sample": True})
        ),
    ],
    ids=str,
)
def test_generate_writes_the_tokens_of_torch(kind, how, calls):
    model = wide(kind)
    tokens = inputs_of("llama")["input_ids"]
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    texts = []
    for kernels in (contextlib.nullcontext, torch_only):
        torch.manual_seed(3)
        with kernels():
            texts.append(
                model.generate(
                    tokens, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, **how
                )
            )
    assert torch.equal(*texts)
    # Of Marian each step has two layers with a cache, of which one reads the encoder's rows.
    assert len(calls) >= LAYERS * 18


def test_assisted_decoding_takes_tokens_back_from_a_growing_cache(calls):
    model, assistant = wide("llama"), wide("llama", seed=1)
    tokens = inputs_of("llama", batch=1)["input_ids"]
    told = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    found = model.generate(tokens, assistant_model=assistant, **told)
    assert calls
    with torch_only():
        assert torch.equal(found, model.generate(tokens, **told))


@pytest.mark.parametrize("mode", ["q,k=v", "q,k,v"])
def test_in_bf16_the_kernel_is_as_near_to_the_exact_logits_as_torch(mode, calls):
    model = wide("llama", mode).to(torch.bfloat16)
    found, cache = decode(model)
    assert len(calls) == LAYERS * STEPS
    assert cache.layers[0].keys.dtype == torch.bfloat16
    with torch_only():
        rounded, _ = decode(model)
        exact, _ = decode(copy.deepcopy(model).double())
    # The linear layers round most, and each rounding is another draw.
    assert (found - exact).square().mean() < 1.25 * (rounded - exact).square().mean()


def test_rows_grow_in_place_with_little_room(calls):
    model = wide("llama")
    with torch.no_grad():
        cache = model(inputs_of("llama", batch=1, time=400)["input_ids"], use_cache=True).cache
        token, places = torch.ones(1, 1, dtype=torch.long), set()
        for _ in range(13):
            model(token, cache=cache, use_cache=True)
            places.add(cache.layers[0].keys.data_ptr())
    # The first token is still the library's, the second moves the rows.
    assert len(places) == 2
    for layer in cache.layers:
        assert isinstance(layer, GrowingLayer)
        stored = layer.keys.untyped_storage().nbytes() / layer.keys.nbytes
        assert stored < 1 + 1 / GROWTH + 1 / 400


def test_a_growing_cache_can_be_copied_cropped_reordered_repeated_and_reset(calls):
    model = wide("llama")
    _, cache = decode(model, padding=0)
    # A layer whose kernel has never run leaves the library's cache as it is.
    with torch_only():
        _, other = decode(copy.deepcopy(model), padding=0)
    assert [type(each.layers[0]) for each in (cache, other)] == [GrowingLayer, DynamicLayer]
    kept = copy.deepcopy(cache)
    token = torch.full((3, 1), 5)

    def changed(one, order):
        one.crop(-4)
        one.reorder_cache(order)
        one.batch_repeat_interleave(2)
        one.batch_select_indices(torch.tensor([0, 2, 5]))
        with torch.no_grad():
            return [model(token, cache=one, use_cache=True).logits for _ in range(3)][-1]

    with torch.no_grad():
        before = model(token, cache=copy.deepcopy(kept), use_cache=True).logits
    order = torch.tensor([2, 0, 0])
    found = changed(cache, order)
    with torch_only():
        assert_close(found, changed(other, order))
    with torch.no_grad():
        # The copy has rows of its own.
        assert torch.equal(model(token, cache=kept, use_cache=True).logits, before)
        cache.reset()
        assert cache.get_seq_length() == 0
        tokens = inputs_of("llama")["input_ids"]
        assert_close(
            model(tokens, cache=cache, use_cache=True).logits, model(tokens, use_cache=True).logits
        )


def _hole(inputs):
    """A token in the midst that nobody sees."""
    mask = inputs["attention_mask"].clone()
    mask[:, 5] = 0
    return {"attention_mask": mask}


def _bias(inputs):
    """A mask of numbers that are added to the scores."""
    mask = inputs["attention_mask"]
    return {"attention_mask": torch.linspace(-1, 0, mask.shape[1]).expand(3, 1, 1, -1)}


def _by_head(inputs):
    """A mask for each head."""
    slots = inputs["attention_mask"].shape[1]
    mask = torch.ones(3, HEADS, 1, slots, dtype=torch.bool)
    mask[:, 0, :, 1] = False
    return {"attention_mask": mask}


def _gap(inputs):
    """Positions with a gap behind the prompt."""
    return {"position_ids": inputs["position_ids"] + 2}


@pytest.mark.parametrize("change", [_hole, _bias, _by_head, _gap])
def test_masks_and_positions_that_the_kernel_cannot_express_are_left_to_torch(change, calls):
    model = wide("llama")
    found, _ = decode(model, padding=0, change=change)
    assert not calls
    with torch_only():
        assert torch.equal(decode(model, padding=0, change=change)[0], found)
    # They do change something.
    assert (found - decode(model, padding=0)[0]).abs().max() > 0.01


@pytest.mark.parametrize(
    "prepared",
    [
        lambda model: model.set_attn_implementation("eager"),
        lambda model: model.set_attn_implementation("qkvbench"),
        lambda model: model.train(),
        lambda model: model.double(),
    ],
    ids=["eager", "weights", "training", "fp64"],
)
def test_whoever_wants_more_than_the_output_gets_torch(prepared, calls):
    model = wide("llama")
    prepared(model)
    decode(model, steps=3)
    assert not calls


def test_attention_weights_gradients_and_prompts_are_left_to_torch(calls):
    model = wide("llama")
    tokens = inputs_of("llama")["input_ids"]
    with torch.no_grad():
        cache = model(tokens, use_cache=True).cache
        model(tokens[:, :2], cache=copy.deepcopy(cache), use_cache=True)
        model(tokens[:, :1], cache=copy.deepcopy(cache), use_cache=True, output_attentions=True)
    assert not calls
    model(tokens[:, :1], cache=copy.deepcopy(cache), use_cache=True).logits.sum().backward()
    assert not calls
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    weights = []
    model.set_attn_implementation("eager")
    layer = model.model.layers[0].self_attn
    layer.register_forward_hook(lambda *told: weights.append(told[-1][1]))
    with torch.no_grad():
        model(tokens[:, :1], cache=cache, use_cache=True)
    assert not calls
    assert weights[0].shape == (3, HEADS, 1, 10)


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
def test_biases_of_scores_and_norms_on_read_are_left_to_torch(kind, calls):
    tokens = inputs_of("llama")["input_ids"]
    wide(kind).generate(tokens, max_new_tokens=4, min_new_tokens=4)
    assert not calls


def test_gradients_through_a_cache_that_has_grown_are_those_of_torch(calls):
    model = wide("llama")
    tokens, found = inputs_of("llama")["input_ids"], []
    for kernels in (contextlib.nullcontext, torch_only):
        with kernels():
            _, cache = decode(model, steps=3)
            model.zero_grad()
            for at in range(2):
                logits = model(tokens[:, at : at + 1], cache=cache, use_cache=True).logits
            logits.square().sum().backward()
            found.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    assert calls
    assert_close(*found)


@pytest.mark.slow
def test_a_compiled_model_goes_on_with_a_cache_that_has_grown(calls):
    model = wide("llama")
    _, cache = decode(model, steps=3)
    _, other = decode(model, steps=3)
    run, before = torch.compile(model, backend="eager"), len(calls)
    token = torch.full((3, 1), 5)
    with torch.no_grad():
        found = [run(token, cache=cache, use_cache=True).logits for _ in range(3)]
        assert len(calls) == before
        expected = [model(token, cache=other, use_cache=True).logits for _ in range(3)]
    for one, two in zip(found, expected, strict=True):
        assert_close(one, two)


def test_a_model_that_has_decoded_can_be_copied_and_pickled(calls):
    model = wide("llama")
    expected, _ = decode(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(decode(again)[0], expected)
    assert len(calls) == 3 * LAYERS * STEPS


def test_threads_may_decode_with_one_model_at_once(calls):
    model = wide("llama")
    expected = [decode(model, padding=padding)[0] for padding in (0, 3)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda n: decode(model, padding=(0, 3)[n % 2])[0], range(6)))
    for number, one in enumerate(found):
        assert torch.equal(one, expected[number % 2])
    assert len(calls) == 8 * LAYERS * STEPS


def test_a_window_over_a_cache_of_all_tokens_is_an_interval(calls):
    model = wide("mistral")
    found, _ = decode(model, transformers.DynamicCache())
    assert len(calls) == LAYERS * STEPS
    with torch_only():
        assert_close(found, decode(copy.deepcopy(model), transformers.DynamicCache())[0])


def test_code_in_a_folder_needs_no_library(tmp_path):
    model = wide("llama")
    model.save_pretrained(tmp_path)
    write_code(tmp_path, {})
    names = {file.name for file in tmp_path.glob("*.py")}
    assert "qkvbench_hub_no_kernel.py" in names
    assert not any("native" in name or "decoding" in name for name in names)


@pytest.mark.parametrize("width", [32, 24])
def test_a_slim_cache_of_a_shared_root_is_read_by_the_kernel(width, calls):
    slim = hub.slim(gemma(global_head_dim=width))
    found, _ = decode(slim)
    # Every second layer attends to the whole text.
    assert len(calls) == 2 * STEPS
    with torch_only():
        assert_close(found, decode(slim)[0])
