"""A decode kernel computes what torch does, and runs no plan that it does not support."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path

import pytest
import torch

from laws.cases import (
    LONGEST,
    decoder,
    every_case,
    plan_of,
    sized,
    suffixed,
)
from native_kernel import needs_library
from qkvbench import native
from qkvbench.backends.common.decode_support import missing_natively
from qkvbench.backends.jax.kernels import pallas_decode
from qkvbench.backends.torch import Decoding, Growing, Reserved, build, start
from qkvbench.backends.torch.kernels.decode import CPU_FEATURES, CpuDecodeKernel
from qkvbench.model import Alibi, Learned, Rotary, Tokens, with_source
from qkvbench.variant import AlibiBias, Mask, Plan, Scale, parse

ROOT = Path(__file__).parents[2]
# Sums of tens of numbers of size one in fp32, in another order.
CLOSE = 3e-5
# bf16 rounds the attention weights, and torch the queries too: half a step each, of 2^-8.
ROUNDED = 0.05
# Wide enough for the vectors of any processor.
WIDE = sized(48, 2)
FORMATS = ("fp32", "bf16", "fp16", "int8")


def _network(variant, position=Rotary(), layers=1, model=None):
    model = model or decoder(variant, position, WIDE, layers)
    network = build(model).eval()
    start(network, model, 0)
    return network


@torch.inference_mode()
def _both(network, new_cache, steps=3, padding=(0, 3, 7), time=8):
    """Logits of steps by the kernel and by torch's operations, over equal caches."""
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randint(13, (len(padding), time), generator=rng)
    further = torch.randint(13, (steps, len(padding)), generator=rng)
    found = []
    for kernels in (True, False):
        cache = new_cache()
        network.prefill(prompts, cache, torch.tensor(padding))
        for layer in cache.layers:
            layer.decode_kernel = layer.decode_kernel if kernels else None
        found.append(torch.stack([network.step(tokens, cache) for tokens in further]))
    return found


def _difference(found):
    return (found[0] - found[1]).abs().max().item() / max(1.0, found[1].abs().max().item())


def _runs(plan):
    """True if the native kernel runs a plan here, by what `qkvbench show` says of it."""
    return native.missing_requirement() is None and not missing_natively(plan, "fp32")


@every_case("distinct", "position", "suffix", "storage", nightly=300)
def test_the_native_kernel_runs_the_plans_that_it_supports_as_torch_does(case):
    position = Learned(32) if case.position == Learned(LONGEST) else case.position
    try:
        plan = plan_of(case.full, position, size=WIDE)
    except ValueError:
        return
    network = _network(case.full, position)
    storage = Growing(5) if case.storage == "growing" else Reserved()
    (layer,) = network.new_cache(1, 4).layers
    assert isinstance(layer.decode_kernel, CpuDecodeKernel) == _runs(plan)
    if layer.decode_kernel:
        assert _difference(_both(network, lambda: network.new_cache(3, 20, storage))) < CLOSE


@needs_library
@pytest.mark.parametrize("rows", FORMATS)
@pytest.mark.parametrize("text", ["q,k,v", "q,k=v", "q,k=v/1+window4", "q,k=R(q),v=R(q)"])
def test_the_native_kernel_reads_rows_of_every_format(text, rows):
    for position in (Rotary(share=1 / 2), Alibi()):
        network = _network(text, position)
        assert network.new_cache(3, 20, Growing(4), rows).layers[0].decode_kernel
        found = _both(network, lambda n=network: n.new_cache(3, 20, Growing(4), rows))
        assert _difference(found) < (ROUNDED if rows == "bf16" else CLOSE)


UNSUPPORTED = ["+2d", "++", "-diag", "+softcap3"]


@pytest.mark.parametrize("suffix", UNSUPPORTED)
def test_a_plan_with_an_unsupported_feature_has_no_kernel(suffix):
    for variant in ("q,k,v", "q,k=v"):
        plan = plan_of(f"{variant}{suffix}", Rotary(), size=WIDE)
        assert plan.features - CPU_FEATURES
        (layer,) = _network(f"{variant}{suffix}").new_cache(1, 4).layers
        assert layer.decode_kernel is None
        assert pallas_decode.chosen(plan) is None


def test_a_new_field_of_a_plan_or_mask_is_a_feature_that_no_kernel_supports():
    plan = plan_of("q,k=v", Rotary(), size=WIDE)
    assert pallas_decode.chosen(plan)
    new_mask = make_dataclass("NewMask", [("dilation", int, 1)], bases=(Mask,), frozen=True)
    mask = new_mask(**{each.name: getattr(plan.mask, each.name) for each in fields(Mask)})
    assert replace(plan, mask=mask).features == plan.features
    dilated = replace(plan, mask=replace(mask, dilation=2))
    assert dilated.features - plan.features == {"mask.dilation"}
    assert pallas_decode.chosen(dilated) is None

    new_plan = make_dataclass("NewPlan", [("softcap", float, 0.0)], bases=(Plan,), frozen=True)
    capped = new_plan(**{each.name: getattr(plan, each.name) for each in fields(Plan)}, softcap=5.0)
    assert capped.features - plan.features == {"softcap"}
    assert not capped.features <= CPU_FEATURES
    assert pallas_decode.chosen(capped) is None


@dataclass(frozen=True)
class _NewOp(Scale):
    """An operation that no kernel knows."""


@dataclass(frozen=True)
class _NewBias(AlibiBias):
    """A bias that no kernel knows."""


def test_a_new_operation_on_read_and_a_new_bias_are_features_too():
    plan = plan_of("q,k=v", Rotary(), size=WIDE)
    read = replace(plan, key_ops_on_read=(*plan.key_ops_on_read, _NewOp("k", (WIDE.head_dim,))))
    assert read.features - CPU_FEATURES == {"read._NewOp"}
    biased = replace(plan, biases=(_NewBias(),))
    assert biased.features - CPU_FEATURES == {"bias._NewBias"}


@needs_library
@pytest.mark.parametrize("suffix", ["", "+qkvnorm"])
@pytest.mark.parametrize("text", ["q,k=L(16),v=L(16)", "q,k=v=L(16)", "q,k=L(8),v=R(k)/1"])
def test_a_latent_is_read_once_for_all_heads_unless_positions_rotate_its_keys(text, suffix):
    for position in (Alibi(), Rotary()):
        network = _network(suffixed(parse(text), suffix), position)
        (layer,) = network.new_cache(3, 20).layers
        assert isinstance(layer.decode_kernel, CpuDecodeKernel) == (position != Rotary())
        found = _both(network, lambda n=network: n.new_cache(3, 20, Growing(5)))
        assert _difference(found) < CLOSE


@needs_library
@torch.inference_mode()
def test_sequences_that_share_pages_and_a_source_are_read_by_the_kernel():
    model = with_source(decoder("q,k=v", Rotary(), WIDE), Tokens(11), Learned(6))
    network = _network("q,k=v", model=model)
    source = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
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
            cache.reorder(torch.tensor(parents))
        found.append(torch.stack(logits))
    assert _difference(found) < CLOSE


def test_fp64_weights_and_heads_narrower_than_a_vector_are_left_to_torch():
    (layer,) = _network("q,k=v").double().new_cache(1, 4).layers
    assert layer.decode_kernel is None
    narrow = decoder("q,k=v", Rotary(), sized(12, 2), layers=1)
    (layer,) = _network("q,k=v", model=narrow).new_cache(1, 4).layers
    assert layer.decode_kernel is None
    assert not native.CAPABILITIES.can_run("fp32", narrow.geometry.head_dim)


@needs_library
def test_a_profiler_sees_the_name_of_the_kernel():
    named = Decoding(decoder("q,k=v", Rotary(), WIDE), "bf16", context=9, batch=2).kernel()
    assert named == f"qkvbench::decode (bf16 rows read once, {native.library.select_isa(None)})"


@pytest.mark.nightly
@pytest.mark.parametrize("rows", FORMATS)
@pytest.mark.parametrize("text", ["q,k,v/1", "q,k=v", "q,k=v+qkvnorm", "q,k=R(q),v=R(q)"])
def test_in_its_interpreter_triton_computes_what_torch_does(text, rows):
    # In a process without the checks of types, which hide a kernel's text from its interpreter.
    program = f"from laws.test_kernels import by_triton; print(by_triton({text!r}, {rows!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < CLOSE


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_the_script_for_a_gpu_passes_its_own_checks_as_a_dry_run(tmp_path):
    out = tmp_path / "gpu.jsonl"
    parts = ["kernel", "passes", "decode"]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--dry-run", "--out", out, "--parts", *parts],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["part"] == "machine"
    assert rows[0]["dry_run"]
    assert {row["part"] for row in rows[1:]} == set(parts)
    assert all(row["passed"] for row in rows if row["part"] in ("kernel", "passes"))


def by_triton(text, rows):
    """The largest difference of the logits over three position schemes."""
    from qkvbench.backends.torch.kernels import decode
    from qkvbench.backends.torch.kernels.triton_decode import TritonDecodeKernel

    decode._kernel = lambda _keys, _plan: (TritonDecodeKernel, decode.GPU_FEATURES)
    differences = []
    for position in (Rotary(), Rotary(share=1 / 2), Alibi()):
        network = _network(text, position, layers=2)
        (layer, _) = network.new_cache(3, 20).layers
        assert isinstance(layer.decode_kernel, TritonDecodeKernel)
        both = _both(network, lambda n=network: n.new_cache(3, 120, Growing(7), rows), time=90)
        differences.append(_difference(both))
    return max(differences)
