"""Decoding by a kernel of our own gives what torch's operations give over the same cache."""

import os
import subprocess
import sys
from itertools import cycle

import numpy as np
import pytest
import torch

from laws.arms import POSITIONS, every_variant, suffixed
from qkvbench import native
from qkvbench.backends.torch import Growing, Reserved, build, start
from qkvbench.backends.torch.kernels.decode import CpuDecodeKernel
from qkvbench.model import Alibi, Decoder, Init, Learned, Rotary, Tokens, transformer, with_source
from qkvbench.variant import Normalize, parse

# Sums of tens of numbers of size one in fp32, in another order.
CLOSE = 3e-5
# bf16 rounds the shares of attention, and torch the queries too: half a step each, of 2^-8.
ROUNDED = 0.05
KERNELS = ("fp32", "bf16", "fp16", "int8")


def _model(variant, position=Rotary(), layers=2, **more):
    kept = Learned(32) if isinstance(position, Learned) else position
    return transformer(
        "one pass",
        Decoder(13),
        layers=layers,
        d_model=48,
        heads=2,
        position=kept,
        init=Init(0.5, 0.5),
        **more,
    ).with_variant(variant)


def _network(model):
    network = build(model).eval()
    start(network, model, 0)
    return network


@torch.inference_mode()
def _both(network, cache, steps=4, padding=(0, 3, 7), time=9):
    """Logits of steps by the kernels and by torch's operations, from caches that hold the same."""
    rng = np.random.default_rng(0)
    prompts = torch.from_numpy(rng.integers(0, 13, size=(len(padding), time)))
    further = torch.from_numpy(rng.integers(0, 13, size=(steps, len(padding))))
    found = []
    for kernels in (True, False):
        own = cache()
        network.prefill(prompts, own, torch.tensor(padding))
        for layer in own.layers:
            layer.decode_kernel = layer.decode_kernel if kernels else None
        found.append(torch.stack([network.step(tokens, own) for tokens in further]))
    return found


def _apart(found):
    return (found[0] - found[1]).abs().max().item() / max(1.0, found[1].abs().max().item())


@every_variant
def test_one_pass_is_what_torch_computes(variant):
    for position, storage in zip(POSITIONS, cycle((Reserved(), Growing(5))), strict=False):
        try:
            network = _network(_model(variant, position))
        except ValueError:
            continue
        layers = network.new_cache(1, 4).layers
        # Latents have a law of their own below: of some no kernel can make K.
        latent = network.layers()[0].attention.plan.lifted
        assert latent or all(isinstance(layer.decode_kernel, CpuDecodeKernel) for layer in layers)
        assert _apart(_both(network, lambda s=storage, n=network: n.new_cache(3, 20, s))) < CLOSE


@pytest.mark.parametrize("suffix", ["", "+qkvnorm"])
@pytest.mark.parametrize("text", ["q,k=L(16),v=L(16)", "q,k=v=L(16)", "q,k=L(8),v=R(k)/1"])
def test_a_latent_is_read_in_one_pass_for_all_heads_where_no_position_turns_its_keys(text, suffix):
    for position in (Learned(32), Alibi(), Rotary()):
        network = _network(_model(suffixed(parse(text), suffix), position))
        (layer, _) = network.new_cache(3, 20).layers
        assert isinstance(layer.decode_kernel, CpuDecodeKernel) == (position != Rotary())
        assert _apart(_both(network, lambda n=network: n.new_cache(3, 20, Growing(5)))) < CLOSE


@pytest.mark.parametrize("rows", KERNELS)
@pytest.mark.parametrize("text", ["q,k,v", "q,k=v", "q,k=v/1", "q,k=R(q),v=R(q)"])
def test_rows_of_every_type_are_read_in_one_pass(text, rows):
    for position in (Rotary(share=1 / 2), Alibi()):
        network = _network(_model(parse(text), position))
        found = _both(network, lambda n=network: n.new_cache(3, 20, Growing(4), rows))
        assert _apart(found) < (ROUNDED if rows == "bf16" else CLOSE)


@pytest.mark.parametrize("suffix", ["", "+qknorm", "+qkvnorm", "+2d", "++", "-diag"])
@pytest.mark.parametrize("text", ["q,k,v", "q,k=v", "q=k,v"])
def test_what_no_kernel_can_do_is_left_to_torch(text, suffix):
    variant = suffixed(parse(text), suffix)
    network = _network(_model(variant))
    (layer, _) = network.new_cache(3, 20).layers
    plan = network.layers()[0].attention.plan
    on_read = any(isinstance(op, Normalize) for op in plan.key_ops_on_read)
    added = variant.scores.correction or not variant.scores.diagonal
    assert (layer.decode_kernel is None) == bool(added or on_read)
    assert _apart(_both(network, lambda: network.new_cache(3, 20))) < CLOSE


def test_a_window_is_read_in_one_pass():
    network = _network(_model(parse("q,k=v")).with_window(4))
    assert _apart(_both(network, lambda: network.new_cache(3, 20, Growing(2)))) < CLOSE


@torch.inference_mode()
def test_sequences_that_share_pages_and_a_source_are_read_in_one_pass():
    model = with_source(_model(parse("q,k=v")), Tokens(11), Learned(6))
    network = _network(model)
    rng = torch.Generator().manual_seed(0)
    source = torch.randint(11, (2, 6), generator=rng)
    found = []
    for kernels in (True, False):
        cache = network.new_cache(4, 12, Growing(2))
        network.read_source(source, torch.tensor([6, 3]), cache)
        for layer in cache.layers:
            assert isinstance(layer.cross.decode_kernel, CpuDecodeKernel)
            if not kernels:
                layer.decode_kernel = layer.cross.decode_kernel = None
        logits = []
        for parents in ([0, 0, 3, 2], [1, 0, 2, 2], [0, 1, 2, 3]):
            for token in (1, 2, 3):
                logits.append(network.step(torch.full((4,), token), cache))
            cache.follow(torch.tensor(parents))
        found.append(torch.stack(logits))
    assert _apart(found) < CLOSE


def test_exact_weights_and_heads_that_no_vector_holds_are_left_to_torch():
    (layer, _) = _network(_model(parse("q,k=v"))).double().new_cache(1, 4).layers
    assert layer.decode_kernel is None
    narrow = transformer(
        "narrow", Decoder(13), layers=1, d_model=12, heads=2, position=Rotary(), init=Init(1, 1)
    )
    (layer,) = _network(narrow).new_cache(1, 4).layers
    assert layer.decode_kernel is None
    assert not native.CAPABILITIES.can_run("bf16", narrow.geometry.head_dim)


def test_the_kernel_is_named_where_a_step_is_watched():
    from qkvbench.backends.torch import Decoding

    named = Decoding(_model(parse("q,k=v")), "bf16", context=9, batch=2).kernel()
    assert named == f"qkvbench::decode (bf16 rows read once, {native.select_isa()})"


@pytest.mark.nightly
@pytest.mark.parametrize("rows", KERNELS)
@pytest.mark.parametrize("text", ["q,k,v/1", "q,k=v", "q,k=v+qkvnorm", "q,k=R(q),v=R(q)"])
def test_in_its_interpreter_triton_computes_what_torch_does(text, rows):
    # In a process without the checks of types, which hide a kernel's text from its interpreter.
    program = f"from laws.test_one_pass import by_triton; print(by_triton({text!r}, {rows!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < CLOSE


def by_triton(text, rows):
    """How far apart the logits are at most, over three schemes of positions."""
    from qkvbench.backends.torch.kernels import decode as decode_kernel
    from qkvbench.backends.torch.kernels.triton_decode import TritonDecodeKernel

    decode_kernel._kernel = lambda _keys: TritonDecodeKernel
    apart = []
    for position in (Rotary(), Rotary(share=1 / 2), Alibi()):
        network = _network(_model(parse(text), position))
        (layer, _) = network.new_cache(3, 20).layers
        assert isinstance(layer.decode_kernel, TritonDecodeKernel)
        both = _both(network, lambda n=network: n.new_cache(3, 120, Growing(7), rows), time=90)
        apart.append(_apart(both))
    return max(apart)
