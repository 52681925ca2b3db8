import pytest
import torch
import transformers

from qkv_mode_models import (
    PICTURES,
    SETTINGS,
    VOCABULARY,
    inputs_of,
    model_of,
    outputs_of,
    repeated,
    tie,
)
from qkvbench.backends.torch.cache.quantize import dequantize, quantize
from qkvbench.cost import CACHE_FORMATS
from qkvbench.hub.families import FAMILIES
from qkvbench.hub.fit import outputs, roots, starts
from qkvbench.hub.fit.calls import recording_calls
from qkvbench.hub.fit.moments import collect
from qkvbench.hub.fit.outputs import refit, refit_behind
from qkvbench.hub.fit.projections import layers_of
from qkvbench.hub.fit.tying import changes, fits
from qkvbench.hub.fit.tying import tie as fit
from qkvbench.hub.models import attention_layers, with_mode

# The promise of the bench for a conversion, in fp32.
PROMISED = 1e-5

every_family = pytest.mark.parametrize("kind", FAMILIES)
# Of each kind of layer one is quick: with RoPE, with a norm of heads, fused with biases.
a_few_families = pytest.mark.parametrize(
    "kind",
    [
        k if k in ("llama", "qwen3", "gpt2") else pytest.param(k, marks=pytest.mark.slow)
        for k in FAMILIES
    ],
)
every_start = pytest.mark.parametrize(
    "start",
    [
        s if s in ("keep-v", "aligned", "whitened") else pytest.param(s, marks=pytest.mark.slow)
        for s in starts.STARTS
    ],
)


def _output(model, inputs):
    return outputs_of(model, **inputs)


def _moments(model, inputs):
    return collect(model, [inputs])


@every_start
@a_few_families
def test_fitting_weights_that_satisfy_a_tie_changes_no_output(kind, start):
    plain = tie(model_of(kind), "q,k=v")
    inputs = inputs_of(kind)
    expected, moments = _output(plain, inputs), _moments(plain, inputs)
    ours = fit(plain, "q,k=v", moments, start)
    assert expected.abs().max() > 0.1
    assert (_output(ours, inputs) - expected).abs().max() < PROMISED * expected.abs().max()


@a_few_families
def test_an_orthogonal_map_of_v_folds_into_the_output_and_is_found_by_every_fitted_start(kind):
    plain = model_of(kind)
    rng = torch.Generator().manual_seed(3)
    for layer in layers_of(plain):
        weights = layer.read()
        width = weights.k.shape[1]
        turns = torch.linalg.qr(
            torch.randn(len(weights.k), width, width, generator=rng, dtype=torch.float64)
        )[0]
        layer.write(weights.replaced(v=turns @ weights.k))
    inputs = inputs_of(kind)
    expected, moments = _output(plain, inputs), _moments(plain, inputs)
    for start in starts.FITTED_STARTS:
        again = model_of(kind)
        again.load_state_dict(plain.state_dict())
        ours = fit(again, "q,k=v", moments, start)
        assert (_output(ours, inputs) - expected).abs().max() < 1e-4 * expected.abs().max(), start


@every_family
def test_a_fitted_layer_is_the_layer_of_its_mode_to_the_last_digits(kind):
    plain = model_of(kind).double()
    inputs = inputs_of(kind)
    if kind in PICTURES:
        inputs = {name: value.double() for name, value in inputs.items()}
    mode = repeated(kind, ["q,k=v", "q,k,v"])
    ours = fit(plain, mode, _moments(plain, inputs), "whitened")
    # `plain` itself has the tied weights, with a K and a V of its own.
    difference = (_output(ours, inputs) - _output(plain, inputs)).abs().max()
    # Norms of heads and angles are computed in fp32.
    assert difference < PROMISED
    assert ours.config.qkv_mode == mode
    layer = layers_of(plain)[0].read()
    assert torch.equal(layer.k, layer.v)


@pytest.mark.parametrize("mode", ["q,k,v/2", "q,k=v/1"])
@a_few_families
def test_merged_heads_are_heads_of_the_mode(kind, mode):
    plain = model_of(kind)
    inputs = inputs_of(kind)
    ours = fit(plain, mode, _moments(plain, inputs), "whitened")
    assert ours.config.qkv_mode.replace("+qknorm", "") == mode
    assert (_output(ours, inputs) - _output(plain, inputs)).abs().max() < 1e-4


def _errors(model, fitted, inputs):
    """The squared error of each changed layer's output on the original's inputs, as a share."""
    layers, found = layers_of(model), {}
    with recording_calls(layers) as calls:
        model.base_model(**inputs)
    for (number, _), weights in fitted.items():
        layer, before = layers[number], layers[number].read()
        layer.write(weights)
        [call] = calls[number]
        off = layer.finished(call.again(layer.attention)) - call.output
        found[number] = float(off.square().sum() / call.output.square().sum())
        layer.write(before)
    return found


@pytest.mark.parametrize("mode", ["q,k=v", "q,k,v/2", "q,k=L(12),v=L(12)"])
@a_few_families
@torch.no_grad()
def test_a_refitted_output_lies_no_further_on_sequences_that_were_not_read(kind, mode):
    """Weights drawn at random leave little to find: what is fitted must not be the text's own."""
    plain = model_of(kind)
    before = {name: part.clone() for name, part in plain.state_dict().items()}
    text = collect(plain, [inputs_of(kind, batch=96)])
    found = {
        start: _errors(
            plain,
            fits(plain, changes(mode, plain), text, start),
            inputs_of(kind, batch=48, seed=6),
        )
        for start in starts.LEAST_ERROR
    }
    for number, whitened in found["whitened"].items():
        assert found["refitted"][number] <= 1.01 * whitened
    if kind in ("llama", "qwen3", "gpt2") and mode == "q,k=v":
        assert sum(found["refitted"].values()) < 0.97 * sum(found["whitened"].values())
    assert all(torch.equal(part, before[name]) for name, part in plain.state_dict().items())


@a_few_families
@torch.no_grad()
def test_an_output_projection_that_was_spoilt_is_found_again_and_by_one_sequence_left(
    kind, monkeypatch
):
    # So that one layer is fitted at a time.
    monkeypatch.setattr(outputs, "MOST_BYTES", 1)
    plain = model_of(kind)
    inputs = [inputs_of(kind, batch=96), inputs_of(kind, batch=48, seed=6)]
    rng, spoilt = torch.Generator().manual_seed(0), {}
    for layer in layers_of(plain):
        weights = layer.read()
        noise = torch.randn(weights.o.shape, generator=rng, dtype=torch.float64)
        spoilt[layer.number, "q,k,v"] = weights.replaced(o=weights.o + 0.25 * noise)
    found = refit(plain, layers_of(plain), spoilt, inputs[:1])
    for number, error in _errors(plain, found, inputs[1]).items():
        assert error < 0.001 < 0.1 < _errors(plain, spoilt, inputs[1])[number]
    layer = layers_of(plain)[0]
    one = {name: value[:1] for name, value in inputs[0].items()}
    with recording_calls([layer]) as calls:
        plain.base_model(**one)
    key = (layer.number, "q,k,v")
    assert refit_behind(layer, spoilt[key], calls[layer.number]) is spoilt[key]


@a_few_families
def test_a_latent_is_fitted_and_one_of_full_rank_changes_nothing(kind):
    plain = model_of(kind)
    inputs = inputs_of(kind)
    expected, moments = _output(plain, inputs), _moments(plain, inputs)
    distances = []
    for rank in (16, 32, 48):
        again = model_of(kind)
        ours = fit(again, f"q,k=L({rank}),v=L({rank})", moments, "whitened")
        assert (_output(ours, inputs) - _output(again, inputs)).abs().max() < 1e-4
        distances.append(float((_output(ours, inputs) - expected).square().mean()))
    # Below that the order is that of rounding.
    floored = [max(each, 1e-8) for each in distances]
    assert sorted(floored, reverse=True) == floored
    # K and V are 96 rows of a matrix of rank 48, or 49 with biases: what is lost of one of V is in
    # that of the output, and without RoPE one of K changes nothing.
    if not FAMILIES[kind].bias(plain.config) or layers_of(plain)[0].centred:
        assert distances[-1] < 1e-8
    if not FAMILIES[kind].bias(plain.config):
        ours = fit(model_of(kind), "q,k=L(48),v=L(48)", moments, "refitted")
        assert float((_output(ours, inputs) - expected).square().mean()) < 1e-8


@torch.no_grad()
def test_what_a_latent_loses_of_the_mean_of_v_is_in_the_bias_of_the_output():
    plain, inputs = model_of("gpt2"), inputs_of("gpt2", batch=96)
    text = collect(plain, [inputs])
    found = fits(plain, changes("q,k=L(8),v=L(8)", plain), text, "whitened")
    first = layers_of(plain)[0]
    with recording_calls([first]) as calls:
        plain.base_model(**inputs)
    [call] = calls[first.number]
    before = first.read()
    for bias in (True, False):
        weights = found[first.number, "q,k=L(8),v=L(8)"]
        first.write(weights if bias else weights.replaced(output_bias=before.output_bias))
        apart = (first.finished(call.again(first.attention)) - call.output).flatten(0, 1)
        share = float(apart.mean(0).square().sum() / apart.square().sum(-1).mean())
        # Attention is another, so the mean of its errors is not exactly zero.
        assert share < 0.2 if bias else share > 0.5


def test_padding_is_refused_since_it_would_count_as_text():
    inputs = inputs_of("bert")
    mask = torch.ones_like(inputs["input_ids"])
    moments = collect(model_of("bert"), [inputs | {"attention_mask": mask}]).moments
    assert moments[0].tokens == mask.numel()
    mask[1, 5:] = 0
    with pytest.raises(ValueError, match="padding, which would count as text"):
        collect(model_of("bert"), [inputs | {"attention_mask": mask}])


@a_few_families
def test_heads_that_are_equal_are_merged_without_loss(kind):
    plain = model_of(kind)
    for layer in layers_of(plain):
        weights = layer.read()
        pairs = [weights.k[::2].repeat_interleave(2, 0), weights.v[::2].repeat_interleave(2, 0)]
        layer.write(weights.replaced(k=pairs[0], v=pairs[1]))
    inputs = inputs_of(kind)
    expected, moments = _output(plain, inputs), _moments(plain, inputs)
    ours = fit(plain, "q,k,v/2", moments, "whitened")
    assert (_output(ours, inputs) - expected).abs().max() < 1e-4 * expected.abs().max()


class HardlyReadHalf:
    """A head of which half of K's coordinates are hardly read, so that V could be there."""

    def __init__(self, width=16, together=1, **fields):
        rng = torch.Generator().manual_seed(0)

        def drawn(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        rows = 3 * width
        sizes = torch.logspace(0, -3, rows, dtype=torch.float64)
        factors = [drawn(width, width) for _ in range(2 * together)]
        for factor in factors:
            factor[:, width // 2 :] *= 1e-3
        self.costs = [factor @ factor.T for factor in factors]
        matrices = [drawn(width, rows) for _ in range(2 * together)]
        self.problem = roots.Problem(
            matrices[:together],
            matrices[together:],
            self.costs[:together],
            self.costs[together:],
            torch.diag(sizes**2),
            "complex",
            torch.diag(sizes),
            **fields,
        )
        self.x = sizes[:, None] * drawn(rows, 4000)

    def errors(self, root, store):
        """The mean squared error of the output, as it is and with rows as they are stored."""
        held = root.matrix @ self.x
        wanted = [*self.problem.keys, *self.problem.values]
        return [
            sum(
                float(torch.einsum("it,ij,jt->", off, cost, off)) / self.x.shape[1]
                for made, matrix, cost in zip(root.maps, wanted, self.costs, strict=True)
                for off in [made @ each - matrix @ self.x]
            )
            for each in (held, store(held.T).T.double())
        ]


def test_a_root_needs_no_more_digits_than_bf16_has(monkeypatch):
    head = HardlyReadHalf()

    def bf16(rows):
        return rows.bfloat16()

    whole, rounded = head.errors(starts.whiten(head.problem), bf16)
    monkeypatch.setattr(starts, "RIDGES", starts.RIDGES[:1])
    exact, spoilt = head.errors(starts.whiten(head.problem), bf16)
    # Better by far, and in numbers that bf16 does not have.
    assert exact < whole / 100
    assert rounded < spoilt / 2


def stored_as(rows):
    """Rows as a cache of this format gives them back."""
    form = CACHE_FORMATS[rows]

    def stored(each):
        numbers, scales = quantize(each[None, None], form)
        return dequantize(numbers, scales, torch.float64, form, each.shape[-1])[0, 0]

    return stored


# Two heads in one lose most by being one.
@pytest.mark.parametrize(("together", "gain"), [(1, 3), (2, 1.4)])
@pytest.mark.parametrize("rows", ["int8", "int4"])
def test_a_root_for_few_bits_survives_them(rows, together, gain):
    plain = HardlyReadHalf(64, together)
    told = HardlyReadHalf(64, together, rounding=roots.ROUNDINGS[rows])
    _, spoilt = plain.errors(starts.whiten(plain.problem), stored_as(rows))
    root = starts.whiten(told.problem)
    whole, rounded = told.errors(root, stored_as(rows))
    assert rounded < spoilt / gain
    # What the fit expects of rounding is what rounding does.
    expected = roots.error(told.problem, root) + roots.rounding_error(told.problem, root)
    assert whole < rounded < 2 * expected
    assert rounded > expected / 2


@pytest.mark.parametrize("wrong", ["refitted:int2", "keep-v:int4", "fitted", "refitted:"])
def test_a_start_of_no_such_rows_is_refused(wrong):
    with pytest.raises(ValueError, match="There is no start"):
        starts.parse_start(wrong)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_the_expected_cost_of_an_error_of_k_is_that_of_the_output(kind):
    # OPT scales its queries before the attention function, the others in it.
    model = model_of(kind).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in model.parameters():
            if part.ndim > 1:
                part.normal_(0, 0.2, generator=draw)
    text = {"input_ids": torch.randint(3, VOCABULARY, (12, 32), generator=draw)}
    layer = layers_of(model)[1]
    found = collect(model, [text]).moments[1]
    with torch.no_grad(), recording_calls([layer]) as calls:
        model.base_model(**text)
        weights, [call] = layer.read(), calls[1]
        # Without constants of K if they change no softmax.
        form = starts._inputs(layer, weights, found)
        expected = moved = 0.0
        for _ in range(4):
            error = 1e-3 * torch.randn(weights.k.shape, dtype=torch.float64, generator=draw)
            expected += float(torch.einsum("hij,hia,ab,hjb->", found.queries, error, form, error))
            layer.write(weights.replaced(k=weights.k + error))
            again = layer.finished(call.again(layer.attention))
            layer.write(weights)
            moved += float((again - call.output).double().square().sum())
    # To first order, from drawn pairs.
    assert expected == pytest.approx(moved, rel=0.5)


def test_a_tie_without_maps_rounds_nothing_in_16_bits():
    model = model_of("llama", dtype=torch.bfloat16).eval()
    before = []
    with torch.no_grad():
        for layer in layers_of(model):
            layer.attention.k_proj.weight *= 37
            before.append(layer.attention.k_proj.weight.double())
    made = fit(model, "q,k=v", start="keep-k")
    for keys, (_, attention) in zip(before, attention_layers(made), strict=True):
        factors = (attention.k_proj.weight.detach().double() / keys).log2()
        assert torch.equal(factors, factors.round())
        assert factors.min() < -1


def test_rope_on_v_is_undone_if_cosines_and_sines_have_a_factor():
    yarn = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8}
    ropes = {"default": {"rope_type": "default"}, "yarn": yarn}
    tokens = torch.randint(3, VOCABULARY, (2, 1), generator=torch.Generator().manual_seed(0))
    outputs = {}
    for name, rope in ropes.items():
        config = SETTINGS["llama"] | {"rope_parameters": rope | {"rope_theta": 1e4}}
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            with_mode(transformers.LlamaConfig(**config), "q,k=v+ropevalue")
        ).eval()
        with torch.no_grad():
            outputs[name] = model(tokens).logits
    # One token attends to itself, whatever its score.
    torch.testing.assert_close(outputs["yarn"], outputs["default"], rtol=0, atol=1e-6)
