"""Weights times few rows by a kernel of our own are what torch makes of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from native_kernel import missing, needs_library
from qkvbench import native
from qkvbench.backends.torch import Decoding
from qkvbench.backends.torch.bench.profile import profiled_operations
from qkvbench.backends.torch.cache.quantize import dequantize
from qkvbench.backends.torch.kernels.linear import NAMED, Linear, product
from qkvbench.cost import CACHE_FORMATS
from qkvbench.model import Decoder, Init, Rotary, transformer
from qkvbench.variant import parse

every_isa = pytest.mark.parametrize("isa", () if missing else tuple(native.supported_isas()))
# The type of rows, biases and outputs.
KINDS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
    "int4": torch.float32,
}


def drawn(kind, rows, inputs, outputs):
    """Rows, weights, biases, and the scales of weights in int8 and int4."""
    rng = torch.Generator().manual_seed(rows + inputs)
    sizes = ((rows, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(size, generator=rng).to(KINDS[kind]) for size in sizes)
    if kind in ("fp32", "bf16"):
        return x, weight, bias, None
    if kind == "int4":
        scales = torch.rand(outputs, inputs // 32, generator=rng)
        size = (outputs, inputs // 2)
        return x, torch.randint(256, size, generator=rng, dtype=torch.uint8), bias, scales
    scales = torch.rand(outputs, generator=rng)
    numbers = torch.randint(-128, 128, weight.shape, generator=rng, dtype=torch.int8)
    return x, numbers, bias, scales


def as_fp64(kind, weight, scales, inputs):
    """The matrix that the numbers and their scales mean."""
    if kind == "int4":
        return dequantize(weight, scales, torch.float64, CACHE_FORMATS["int4"], inputs)
    return weight.double() * (1 if scales is None else scales.double()[:, None])


def made(kind, x, weight, bias, threads=1, isa=None, scales=None):
    out = torch.full((len(x), len(weight)), torch.nan, dtype=x.dtype)
    native.linear(
        kind,
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        x.data_ptr(),
        out.data_ptr(),
        rows=len(x),
        inputs=x.shape[1],
        outputs=len(weight),
        scales=None if scales is None else scales.data_ptr(),
        threads=threads,
        isa=isa,
    )
    return out


@needs_library
@every_isa
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_times_weights_are_what_fp64_gives(isa, kind):
    for rows in (1, 2, 3, 4, 7, 8):
        whole_groups = ((32, 1), (64, 33), (96, 200))
        for inputs, outputs in (
            whole_groups if kind == "int4" else ((1, 1), (13, 7), (40, 33), (96, 200))
        ):
            x, weight, bias, scales = drawn(kind, rows, inputs, outputs)
            meant = as_fp64(kind, weight, scales, inputs)
            for added in (bias, None):
                exact = functional.linear(
                    x.double(), meant, None if added is None else added.double()
                )
                size = x.double().abs() @ meant.abs().T + bias.double().abs()
                # A sum of so many products in fp32, and one by the scale; bf16 rounds the result.
                near = (inputs + (scales is not None)) * 2**-24 * size
                if kind == "bf16":
                    near += 2**-8 * exact.abs()
                got = made(kind, x, weight, added, isa=isa, scales=scales)
                assert ((got.double() - exact).abs() <= near).all(), (rows, inputs, outputs)


@needs_library
@every_isa
@pytest.mark.parametrize("kind", KINDS)
def test_an_output_has_the_same_bits_with_any_threads_and_rows_beside_it(isa, kind):
    x, weight, bias, scales = drawn(kind, 8, 544 if kind == "int4" else 530, 1000)
    whole = made(kind, x, weight, bias, isa=isa, scales=scales)
    for threads in (2, 3):
        assert torch.equal(made(kind, x, weight, bias, threads, isa, scales), whole)
    for rows in (1, 2, 3, 5):
        some = made(kind, x[:rows], weight, bias, isa=isa, scales=scales)
        assert torch.equal(some, whole[:rows])


@needs_library
def test_numbers_that_are_none_stay_so_and_large_ones_round_to_infinity():
    x = torch.tensor([[torch.nan], [3.4e38]]).bfloat16()
    out = made("bf16", x, torch.ones(1, 1).bfloat16(), None)
    assert out[0].isnan().all()
    assert torch.equal(out[1], x[1])


def test_what_does_not_fit_is_refused_and_nothing_beside_it_is_read_or_written():
    layer = Linear(200, 400)
    with torch.no_grad():
        for width in (100, 300, 400):
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                layer(torch.ones(2, width))
        assert layer(torch.ones(2, 200)).shape == (2, 400)


def test_a_layer_without_gradients_gives_what_torch_gives():
    layer = Linear(300, 500)
    x = torch.randn(2, 1, 300, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Sums of 300 products of size one in another order.
        torch.testing.assert_close(
            layer(x), functional.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=0
        )


@needs_library
def test_where_others_look_on_the_product_is_torchs():
    layer = nn.Sequential(Linear(300, 500))
    x = torch.randn(1, 300)

    def ours(call):
        return any(one.name.startswith(NAMED) for one in profiled_operations(call))

    with torch.no_grad():
        assert ours(lambda: layer(x))
        assert not ours(lambda: layer(x.expand(9, 300)))
        assert not ours(lambda: product(x.double(), layer[0].weight.double()))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 300 * 500
        exported = torch.export.export(layer, (x,))
        assert "aten.linear" in str(exported.graph)
    assert not ours(lambda: layer(x))
    layer(x).sum().backward()
    assert layer[0].weight.grad is not None


@needs_library
def test_a_step_names_the_kernel_of_its_weights():
    model = transformer(
        "weights",
        Decoder(500),
        layers=1,
        d_model=192,
        heads=3,
        position=Rotary(),
        init=Init(1, 1),
    ).with_variant(parse("q,k=v"))
    for precision in ("fp32", "bf16"):
        named = Decoding(model, precision, context=9, batch=2).kernel()
        assert named.endswith(f"{NAMED} ({precision} weights, {native.select_isa()})")
        assert named.count("qkvbench::decode") == 1
