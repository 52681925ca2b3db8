"""The native kernel gives what the reference gives, for every type and shape, on every target."""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from qkvbench import native, reference
from qkvbench.model import Rotary
from qkvbench.native import build, decode, library

lacking = native.lacking()
needs_library = pytest.mark.skipif(lacking is not None, reason=f"no native kernel: {lacking}")
TARGETS = () if lacking else tuple(native.targets())
every_target = pytest.mark.parametrize("target", TARGETS)
HEAD_DIMS = (8, 24, 32, 40, 48, 64, 80, 96, 128, 256)


def case_dim(kind, head_dim):
    """`head_dim`, or the nearest size above it that rows of this kind may have."""
    return next(dim for dim in native.CAPABILITIES.head_dims[kind] if dim >= head_dim)

# Half of the last place of each type.
BF16, FP32 = 2.0**-9, 2.0**-24


def stored(numbers, kind):
    """An array as it lies in a cache, its scales if it has them, and what it says in fp64."""
    numbers = numbers.astype(np.float32)
    if kind == "bf16":
        bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        return bits, None, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind == "fp16":
        half = numbers.astype(np.float16)
        return half, None, half.astype(np.float64)
    if kind == "int8":
        scales = np.abs(numbers).max(-1).astype(np.float32) / 127
        whole = np.rint(numbers / scales[..., None]).astype(np.int8)
        return whole, scales, whole * scales.astype(np.float64)[..., None]
    if kind == "int4":
        groups = numbers.reshape(*numbers.shape[:-1], -1, decode.GROUP)
        scales = np.abs(groups).max(-1).astype(np.float32) / 7
        whole = np.rint(groups / scales[..., None]).astype(np.int8)
        means = (whole * scales.astype(np.float64)[..., None]).reshape(numbers.shape)
        nibbles = whole.reshape(numbers.shape).view(np.uint8) & 15
        return nibbles[..., ::2] | nibbles[..., 1::2] << 4, scales, means
    return numbers, None, numbers.astype(np.float64)


@dataclasses.dataclass
class Case:
    """One call, and what it must give."""

    kind: str = "fp32"
    head_dim: int = 64
    group: int = 1
    roots: int = 3
    shared: bool = True
    lengths: tuple[int, ...] = (150, 37, 1)
    first: tuple[int, ...] = (0, 0, 0)
    page_rows: int = 64
    turned: int = 0
    key_scaled: bool = False
    slopes: bool = False
    sinks: int = 0
    threads: int = 1
    target: str | None = None
    loud: float = 1.0

    def __post_init__(self):
        self.head_dim = case_dim(self.kind, self.head_dim)
        rng = np.random.default_rng(7)
        batch, heads = len(self.lengths), self.roots * self.group
        pages = -(-max(self.lengths) // self.page_rows)
        # All pages of all sequences in any order: (page, root, row, head_dim).
        shape = (batch * pages, self.roots, self.page_rows, self.head_dim)
        order = rng.permutation(batch * pages).reshape(batch, pages)
        self.kept, self.meant = {}, {}
        for name in ("keys",) if self.shared else ("keys", "values"):
            lies, scales, says = stored(rng.standard_normal(shape), self.kind)
            addresses = lies.ctypes.data + order.astype(np.uint64) * lies[0].nbytes
            rows = native.Rows(addresses, lies[0, 0].size, lies.shape[-1])
            if scales is not None:
                where = scales.ctypes.data + order.astype(np.uint64) * scales[0].nbytes
                rows = dataclasses.replace(
                    rows,
                    scales=where,
                    scale_head_stride=scales[0, 0].size,
                    scale_row_stride=scales[0, 0, 0].size,
                )
            self.kept[name] = (rows, lies, scales)
            # Of shape: batch, slots, roots, head_dim.
            self.meant[name] = (
                says[order]
                .transpose(0, 1, 3, 2, 4)
                .reshape(batch, pages * self.page_rows, self.roots, self.head_dim)
            )
        self.query = self.loud * rng.standard_normal((batch, heads, self.head_dim))
        self.query = self.query.astype(np.float32).astype(np.float64)
        self.slope = (rng.random(heads) / 8).astype(np.float32)
        self.scale = (0.5 + rng.random(self.head_dim)).astype(np.float32)
        self.position = np.array(self.lengths) - 1

    def frequencies(self):
        half = self.turned // 2
        return Rotary().base ** (-np.arange(half) / half)

    def ready(self):
        """The kernel, set up for this case."""
        rows = {name: rows for name, (rows, _, _) in self.kept.items()}
        pages = rows["keys"].pages.shape[1]
        work = native.Decoding(
            self.kind,
            rows["keys"],
            rows.get("values"),
            head_dim=self.head_dim,
            roots=self.roots,
            group=self.group,
            page_rows=self.page_rows,
            turns=native.Turns(self.frequencies(), pages * self.page_rows) if self.turned else None,
            key_scale=self.scale if self.key_scaled else None,
            slopes=self.slope if self.slopes else None,
            sinks=self.sinks,
            threads=self.threads,
            on=self.target,
        )
        work.first[:], work.length[:], work.position[:] = self.first, self.lengths, self.position
        return work

    def got(self):
        """What the kernel gives: the sums (batch, heads, head_dim) and log-sums (batch, heads)."""
        work = self.ready()
        query = (self.query / np.sqrt(self.head_dim)).astype(np.float32)
        out = np.full(work.query_shape, np.nan, np.float32)
        log_sum = np.full(work.query_shape[:2], np.nan, np.float32)
        work(query.ctypes.data, out.ctypes.data, log_sum.ctypes.data)
        return out, log_sum

    def one(self, sequence):
        """What the reference gives for one sequence, and how far rounding may move it."""
        slots = np.arange(self.lengths[sequence])
        seen = slots[(slots < self.sinks) | (slots >= self.first[sequence])]
        root = self.meant["keys"][sequence, seen]
        k = root * self.scale if self.key_scaled else root
        if self.turned:
            # What is turned by the share of Rotary is turned here by `turned`, to have them all.
            k = np.concatenate(
                [
                    reference.turned(k[..., : self.turned], Rotary(), seen),
                    k[..., self.turned :],
                ],
                axis=-1,
            )
        v = root if self.shared else self.meant["values"][sequence, seen]
        away = np.abs(self.position[sequence] - seen)
        slope = self.slope if self.slopes else np.zeros(self.roots * self.group)
        shift = -slope[:, None, None].astype(np.float64) * away
        q = self.query[sequence][None]
        out = reference.attend(q, k, v, shift, {})[0]
        k, v = np.repeat(k, self.group, axis=1), np.repeat(v, self.group, axis=1)
        scores = np.einsum("hd,khd->hk", q[0], k) / np.sqrt(self.head_dim) + shift[:, 0]
        size = np.einsum("hd,khd->hk", np.abs(q[0]), np.abs(k)) / np.sqrt(self.head_dim)
        most = scores.max(-1, keepdims=True)
        log_sum = np.log(np.exp(scores - most).sum(-1)) + most[:, 0]
        shares = np.exp(scores - log_sum[:, None])
        spread = np.einsum("hk,khd->hd", shares, np.abs(v - out))
        off = self._score_error(size + np.abs(shift[:, 0]))
        # d out = sum of share · (v - out) · d score, and each weight is rounded beside.
        moved = np.einsum("hk,khd->hd", shares * off, np.abs(v - out))
        moved = moved + self._weight_error() * spread + 16 * FP32 * np.abs(v).max()
        return out, log_sum, moved, (shares * off).sum(-1) + self._weight_error() + 16 * FP32

    def _score_error(self, size):
        """How far a score may be off: `size` is the sum of the sizes of its products."""
        parts = 16 * FP32 + 2 * FP32 * self.turned
        if self.target == "avx512-bf16" and self.kind == "bf16" and not self.turned:
            # The query is rounded to bf16, or to two of them; products are added by pairs.
            parts += BF16 if self.group > 2 else BF16**2
        return parts * size

    def _weight_error(self):
        if self.target == "avx512-bf16" and self.kind == "bf16":
            # Rounded to bf16 in the sum and in what it is divided by.
            return 2 * BF16 + 16 * FP32
        return 16 * FP32


def holds(case):
    out, log_sum = case.got()
    for sequence in range(len(case.lengths)):
        want, want_log, near, near_log = case.one(sequence)
        assert np.all(np.abs(out[sequence] - want) <= near), (
            case,
            np.abs(out[sequence] - want).max(),
        )
        assert np.all(np.abs(log_sum[sequence] - want_log) <= near_log), case


def test_where_there_is_a_compiler_there_is_a_library():
    try:
        build.compiler()
    except build.CannotBuildError:
        pytest.skip("no C++ compiler, so torch decodes")
    there = library.HERE / build.LIBRARY
    assert there.exists(), "python -m qkvbench.native builds it"


@needs_library
def test_the_library_is_built_from_the_sources_that_are_here():
    assert library.library().qkv_sources().decode() == build.sources_hash()


@needs_library
def test_a_library_of_other_sources_is_not_called(monkeypatch):
    monkeypatch.setattr(library, "sources_hash", lambda: "of another day")
    with pytest.raises(native.UnavailableError, match=r"other sources.*qkvbench\.native"):
        library.library.__wrapped__()


@needs_library
@every_target
@pytest.mark.parametrize(("kind", "head_dim"), [*product(native.KINDS, HEAD_DIMS)])
def test_every_type_and_head_size_gives_what_the_reference_gives(target, kind, head_dim):
    for shared in (True, False):
        holds(Case(kind, head_dim, shared=shared, target=target))


@needs_library
@every_target
@pytest.mark.parametrize(("kind", "group"), [*product(native.KINDS, (1, 2, 3, 4, 6, 8, 11, 16))])
def test_any_number_of_query_heads_reads_one_root(target, kind, group):
    for head_dim in (48, 128):
        holds(Case(kind, head_dim, group, roots=2, target=target, lengths=(71, 5, 18)))


@needs_library
@every_target
@pytest.mark.parametrize(("kind", "page_rows"), [*product(native.KINDS, (1, 5, 16, 150))])
def test_rows_may_lie_in_pages_of_any_size_in_any_order(target, kind, page_rows):
    holds(Case(kind, 80, 2, page_rows=page_rows, target=target))
    holds(Case(kind, 48, 1, page_rows=page_rows, target=target, shared=False))


@needs_library
@every_target
@pytest.mark.parametrize("kind", native.KINDS)
def test_a_window_sees_its_slots_and_no_others(target, kind):
    case = Case(
        kind, 64, lengths=(2500, 1030, 40), first=(1100, 1022, 39), page_rows=512, target=target
    )
    holds(case)
    for _, lies, _ in case.kept.values():
        assert lies.size


@needs_library
@every_target
@pytest.mark.parametrize("kind", native.KINDS)
@pytest.mark.parametrize("sinks", [1, 4, 1030])
def test_sinks_are_visible_beside_the_window(target, kind, sinks):
    sizes = {"lengths": (2500, 1300, 40, 2), "first": (1100, 1022, 39, 0), "page_rows": 512}
    holds(Case(kind, 64, sinks=sinks, target=target, **sizes))
    holds(Case(kind, 64, 2, sinks=sinks, target=target, turned=64, slopes=True, **sizes))


@needs_library
@every_target
def test_pages_between_the_sinks_and_the_window_are_never_read(target):
    case = Case("int8", lengths=(700, 650), first=(600, 513), page_rows=32, sinks=33, target=target)
    out, log_sum = case.got()
    for rows, _, _ in case.kept.values():
        rows.pages[:, 2 : 513 // 32] = rows.scales[:, 2 : 513 // 32] = 0
    for one, other in zip((out, log_sum), case.got(), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_library
@every_target
def test_sinks_that_reach_the_window_are_one_interval_with_it(target):
    sizes = {"lengths": (2500, 90), "page_rows": 512, "target": target}
    whole = Case(first=(0, 0), **sizes).got()
    for one, other in zip(Case(first=(70, 64), sinks=70, **sizes).got(), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_library
@every_target
@pytest.mark.parametrize(("kind", "turned"), [*product(native.KINDS, (2, 16, 20, 48, 64, 80))])
def test_keys_are_turned_by_their_slots_as_they_are_read(target, kind, turned):
    for group in (1, 4, 8):
        case = Case(kind, 80, group, turned=turned, key_scaled=group != 4, target=target)
        holds(case)
    holds(
        Case(
            kind,
            96,
            lengths=(2300, 1400, 1024),
            first=(1159, 1100, 1023),
            page_rows=2500,
            turned=turned,
            roots=1,
            target=target,
        )
    )


@needs_library
@every_target
@pytest.mark.parametrize("kind", native.KINDS)
def test_slopes_and_a_scale_of_keys_are_heeded(target, kind):
    for group in (1, 3, 8):
        holds(Case(kind, 64, group, slopes=True, key_scaled=True, target=target))
    # A query may also stand before the last slot: distance counts both ways.
    case = Case(kind, 64, 2, slopes=True, target=target)
    case.position = case.position // 2
    holds(case)


@needs_library
@every_target
@pytest.mark.parametrize("kind", native.KINDS)
def test_a_score_far_above_the_others_does_not_overflow(target, kind):
    holds(Case(kind, 64, 1, target=target, loud=300.0))


@needs_library
@every_target
@pytest.mark.parametrize("kind", native.KINDS)
def test_the_sums_are_the_same_bits_with_any_number_of_threads(target, kind):
    sizes = {"lengths": (5000, 1025, 3), "page_rows": 700, "head_dim": 128, "group": 2}
    alone = Case(kind, target=target, **sizes).got()
    for threads in (2, 3, 8):
        together = Case(kind, target=target, threads=threads, **sizes).got()
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)


@needs_library
def test_a_process_that_was_forked_has_threads_of_its_own():
    script = """
import os, sys
import numpy as np
sys.path[:0] = {path!r}
from test_native import Case
case = Case("fp32", 128, lengths=(9000,), first=(0,), page_rows=9000, roots=2, threads=2)
before = case.got()[0]
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(case.got()[0], before) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script.format(path=sys.path)],
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@needs_library
def test_what_sees_nothing_is_zero():
    case = Case(lengths=(5, 3, 9), first=(5, 0, 9))
    out, log_sum = case.got()
    assert not out[0].any()
    assert not out[2].any()
    assert np.all(log_sum[[0, 2]] == -np.inf)
    assert np.isfinite(log_sum[1]).all()


@needs_library
def test_parts_are_joined_by_their_log_sums():
    whole, log_whole = Case(lengths=(90,), first=(0,)).got()
    # `first` and `length` cut one cache: the arrays are drawn alike.
    work = Case(lengths=(90,), first=(0,))
    one = dataclasses.replace(work, first=(40,)).got()
    ready = work.ready()
    ready.length[:] = 40
    query = (work.query / np.sqrt(work.head_dim)).astype(np.float32)
    out = np.empty(ready.query_shape, np.float32)
    log_sum = np.empty(ready.query_shape[:2], np.float32)
    ready(query.ctypes.data, out.ctypes.data, log_sum.ctypes.data)
    joined = (
        np.exp(one[1] - log_whole)[..., None] * one[0]
        + np.exp(log_sum - log_whole)[..., None] * out
    )
    np.testing.assert_allclose(joined, whole, atol=1e-6)


@needs_library
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"head_dim": 68}, "multiple of 8 up to 256"),
        ({"head_dim": 512}, "multiple of 8 up to 256"),
        ({"turns": native.Turns(np.ones(40), 999)}, "80 coordinates are to be turned, of 64"),
        ({"turns": native.Turns(np.ones(4), 9)}, "9 slots do not reach"),
        ({"key_scale": np.ones(3, np.float32)}, r"must be \(64,\)"),
        ({"threads": 0}, "count from 1"),
        ({"sinks": -1}, "sinks is -1"),
        ({"kind": "int4", "head_dim": 80}, "for int4 it must be a multiple of 32"),
        ({"on": "mmx"}, "does not run here; use .*portable"),
    ],
)
def test_what_cannot_be_is_said_in_words(change, says):
    rows, *_ = Case().kept["keys"]
    asked = {"kind": "fp32", "head_dim": 64, "roots": 3, "page_rows": 64} | change
    with pytest.raises(ValueError, match=says):
        native.Decoding(asked.pop("kind"), rows, **asked)


@needs_library
def test_slots_without_pages_are_refused_and_named():
    work = Case().ready()
    work.length[1] = 500
    with pytest.raises(IndexError, match="Sequence 1 sees slots 0 to 500; its pages hold 0 to 192"):
        work(0, 0)


@needs_library
def test_rows_of_int8_without_scales_are_refused():
    rows, *_ = Case().kept["keys"]
    with pytest.raises(ValueError, match="int8 and int4 have scales"):
        native.Decoding("int8", rows, head_dim=64, roots=3, page_rows=64)


@needs_library
def test_the_environment_chooses_a_target_or_none(monkeypatch):
    for name in native.targets():
        monkeypatch.setenv(library.VARIABLE, name)
        assert native.target() == name
    monkeypatch.setenv(library.VARIABLE, library.NONE)
    assert "switched off" in native.lacking()
    monkeypatch.setenv(library.VARIABLE, "mmx")
    assert "does not run here" in native.lacking()


@needs_library
def test_both_sides_of_the_library_have_the_same_constants():
    header = (build.SOURCES / "decode.h").read_text()
    for name in ("LANES", "TILE", "STRETCH", "MOST_DIM", "GROUP"):
        assert f"QKV_{name} = {getattr(decode, name)}," in header


def test_without_a_compiler_the_build_says_what_would_help(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(build.CannotBuildError, match="install g\\+\\+, clang or the package zig"):
        build.build(tmp_path)


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'fatal error: no <stdint.h>' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(build.CannotBuildError, match=r"no <stdint\.h>"):
        build.build(tmp_path)


def test_a_library_that_was_never_built_is_told_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "HERE", tmp_path)
    library.library.cache_clear()
    library.targets.cache_clear()
    try:
        assert "python -m qkvbench.native" in (native.lacking() or "")
    finally:
        library.library.cache_clear()
        library.targets.cache_clear()


def test_importing_it_loads_nothing():
    script = "import sys, qkvbench.native; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "False"


@pytest.mark.nightly
def test_on_arm_the_portable_target_gives_the_sums_of_the_reference(tmp_path):
    """Compiled for aarch64 and run by an emulator: no such machine was at hand."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("no emulator of aarch64: apt-get install qemu-user-static")
    if compiler := shutil.which("aarch64-linux-gnu-g++"):
        command = [compiler]
    elif importlib.util.find_spec("ziglang"):
        command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    else:
        pytest.skip("no compiler for aarch64: pip install ziglang")
    program = tmp_path / "portable_target"
    sources = [
        build.SOURCES / "target_portable.cpp",
        Path(__file__).with_name("portable_target.cpp"),
    ]
    words = ["-static", "-std=c++17", "-O3", "-ffp-contract=fast", f"-I{build.SOURCES}"]
    subprocess.run([*command, *words, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("neon: ")
