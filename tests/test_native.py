"""The native kernel matches the reference for every kind and shape, on every ISA."""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from native_kernel import missing, needs_library
from qkvbench import native, reference
from qkvbench.native import build, decode, library
from qkvbench.variant import CANONICAL, Rope, resolve, sized

ISAS = () if missing else tuple(native.supported_isas())
every_isa = pytest.mark.parametrize("isa", ISAS)
HEAD_DIMS = (8, 24, 32, 40, 48, 64, 80, 96, 128, 256)


def case_dim(kind, head_dim):
    """The smallest supported size from `head_dim` on."""
    return next(dim for dim in native.CAPABILITIES.head_dims[kind] if dim >= head_dim)


KINDS_AND_HEAD_DIMS = [
    (kind, head_dim)
    for kind, head_dim in product(native.KINDS, HEAD_DIMS)
    if native.CAPABILITIES.can_run(kind, head_dim)
]


# Unit roundoff of each type.
BF16, FP32 = 2.0**-9, 2.0**-24


def encode(numbers, kind):
    """An array as a cache stores it, its scales or None, and the stored numbers in fp64."""
    numbers = numbers.astype(np.float32)
    if kind == "bf16":
        bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
        return bits, None, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind == "fp16":
        half = numbers.astype(np.float16)
        return half, None, half.astype(np.float64)
    if kind == "int8":
        scales = np.abs(numbers).max(-1).astype(np.float32) / 127
        integers = np.rint(numbers / scales[..., None]).astype(np.int8)
        return integers, scales, integers * scales.astype(np.float64)[..., None]
    if kind == "int4":
        groups = numbers.reshape(*numbers.shape[:-1], -1, decode.GROUP)
        scales = np.abs(groups).max(-1).astype(np.float32) / 7
        integers = np.rint(groups / scales[..., None]).astype(np.int8)
        exact = (integers * scales.astype(np.float64)[..., None]).reshape(numbers.shape)
        nibbles = integers.reshape(numbers.shape).view(np.uint8) & 15
        return nibbles[..., ::2] | nibbles[..., 1::2] << 4, scales, exact
    return numbers, None, numbers.astype(np.float64)


@dataclasses.dataclass
class Case:
    """One call of the kernel and its expected result."""

    kind: str = "fp32"
    head_dim: int = 64
    group: int = 1
    roots: int = 3
    shared: bool = True
    lengths: tuple[int, ...] = (150, 37, 1)
    first: tuple[int, ...] = (0, 0, 0)
    page_rows: int = 64
    rotary_dim: int = 0
    key_scaled: bool = False
    slopes: bool = False
    sinks: int = 0
    threads: int = 1
    isa: str | None = None
    query_scale: float = 1.0

    def __post_init__(self):
        self.head_dim = case_dim(self.kind, self.head_dim)
        rng = np.random.default_rng(7)
        batch, heads = len(self.lengths), self.roots * self.group
        pages = -(-max(self.lengths) // self.page_rows)
        # Pages of all sequences in random order: (page, root, row, head_dim).
        shape = (batch * pages, self.roots, self.page_rows, self.head_dim)
        order = rng.permutation(batch * pages).reshape(batch, pages)
        self.tensors, self.dequantized = {}, {}
        for name in ("keys",) if self.shared else ("keys", "values"):
            storage, scales, exact = encode(rng.standard_normal(shape), self.kind)
            addresses = storage.ctypes.data + order.astype(np.uint64) * storage[0].nbytes
            rows = native.PagedRows(addresses, storage[0, 0].size, storage.shape[-1])
            if scales is not None:
                scale_addresses = scales.ctypes.data + order.astype(np.uint64) * scales[0].nbytes
                rows = dataclasses.replace(
                    rows,
                    scales=scale_addresses,
                    scale_head_stride=scales[0, 0].size,
                    scale_row_stride=scales[0, 0, 0].size,
                )
            self.tensors[name] = (rows, storage, scales)
            # The shape is batch, slots, roots, head_dim.
            self.dequantized[name] = (
                exact[order]
                .transpose(0, 1, 3, 2, 4)
                .reshape(batch, pages * self.page_rows, self.roots, self.head_dim)
            )
        self.query = self.query_scale * rng.standard_normal((batch, heads, self.head_dim))
        self.query = self.query.astype(np.float32).astype(np.float64)
        self.slope = (rng.random(heads) / 8).astype(np.float32)
        self.scale = (0.5 + rng.random(self.head_dim)).astype(np.float32)
        self.position = np.array(self.lengths) - 1

    def frequencies(self):
        half = self.rotary_dim // 2
        return 10_000.0 ** (-np.arange(half) / half)

    def decoding(self):
        """The kernel, set up for this case."""
        rows = {name: rows for name, (rows, _, _) in self.tensors.items()}
        pages = rows["keys"].pages.shape[1]
        work = native.Decoding(
            self.kind,
            rows["keys"],
            rows.get("values"),
            head_dim=self.head_dim,
            roots=self.roots,
            group=self.group,
            page_rows=self.page_rows,
            rope=native.RopeTable(self.frequencies(), pages * self.page_rows)
            if self.rotary_dim
            else None,
            key_scale=self.scale if self.key_scaled else None,
            slopes=self.slope if self.slopes else None,
            sinks=self.sinks,
            threads=self.threads,
            isa=self.isa,
        )
        work.first[:], work.length[:], work.position[:] = self.first, self.lengths, self.position
        return work

    def run(self):
        """The kernel's output (batch, heads, head_dim) and log-sums (batch, heads)."""
        work = self.decoding()
        query = (self.query / np.sqrt(self.head_dim)).astype(np.float32)
        out = np.full(work.query_shape, np.nan, np.float32)
        log_sum = np.full(work.query_shape[:2], np.nan, np.float32)
        work(query.ctypes.data, out.ctypes.data, log_sum.ctypes.data)
        return out, log_sum

    def expected(self, sequence):
        """The reference's output and log-sums of one sequence, and the rounding error of each."""
        slots = np.arange(self.lengths[sequence])
        visible = slots[(slots < self.sinks) | (slots >= self.first[sequence])]
        root = self.dequantized["keys"][sequence, visible]
        k = root * self.scale if self.key_scaled else root
        if self.rotary_dim:
            k = reference.rope(k, Rope(10_000.0, self.rotary_dim), visible)
        v = root if self.shared else self.dequantized["values"][sequence, visible]
        away = np.abs(self.position[sequence] - visible)
        slope = self.slope if self.slopes else np.zeros(self.roots * self.group)
        shift = -slope[:, None, None].astype(np.float64) * away
        q = self.query[sequence][None]
        size = sized(self.head_dim * q.shape[1], q.shape[1], head_dim=self.head_dim)
        out = reference.attend(resolve(CANONICAL, size), {}, q, k, v, shift)[0]
        k, v = np.repeat(k, self.group, axis=1), np.repeat(v, self.group, axis=1)
        scores = np.einsum("hd,khd->hk", q[0], k) / np.sqrt(self.head_dim) + shift[:, 0]
        size = np.einsum("hd,khd->hk", np.abs(q[0]), np.abs(k)) / np.sqrt(self.head_dim)
        row_max = scores.max(-1, keepdims=True)
        log_sum = np.log(np.exp(scores - row_max).sum(-1)) + row_max[:, 0]
        weights = np.exp(scores - log_sum[:, None])
        spread = np.einsum("hk,khd->hd", weights, np.abs(v - out))
        off = self._score_error(size + np.abs(shift[:, 0]))
        # d out = sum of weight · (v - out) · d score; each weight has a rounding error, too.
        error = np.einsum("hk,khd->hd", weights * off, np.abs(v - out))
        error = error + self._weight_error() * spread + 16 * FP32 * np.abs(v).max()
        return out, log_sum, error, (weights * off).sum(-1) + self._weight_error() + 16 * FP32

    def _score_error(self, size):
        """The rounding error of a score; `size` is the sum of its products' magnitudes."""
        parts = 16 * FP32 + 2 * FP32 * self.rotary_dim
        if self.isa == "avx512-bf16" and self.kind == "bf16" and not self.rotary_dim:
            # The query is rounded to bf16, or to the sum of two.
            parts += BF16 if self.group > 2 else BF16**2
        return parts * size

    def _weight_error(self):
        if self.isa == "avx512-bf16" and self.kind == "bf16":
            # Weights are rounded to bf16, in the weighted sum and in its divisor.
            return 2 * BF16 + 16 * FP32
        return 16 * FP32


def assert_matches_reference(case):
    out, log_sum = case.run()
    for sequence in range(len(case.lengths)):
        want, want_log, error, log_error = case.expected(sequence)
        assert np.all(np.abs(out[sequence] - want) <= error), (
            case,
            np.abs(out[sequence] - want).max(),
        )
        assert np.all(np.abs(log_sum[sequence] - want_log) <= log_error), case


def test_the_library_is_built_if_there_is_a_compiler():
    try:
        command = build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    if shutil.which(command[0]) is None:
        pytest.skip(f"no C++ compiler: {command[0]} is not here")
    assert (library.HERE / build.LIBRARY).exists(), "python -m qkvbench.native builds it"


@needs_library
def test_the_library_is_built_from_these_sources():
    assert library.library().qkv_sources().decode().split()[0] == build.sources_hash()


@needs_library
def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(library, "sources_hash", lambda: "another hash")
    with pytest.raises(native.UnavailableError, match=r"other sources.*qkvbench\.native"):
        library.library.__wrapped__()


@needs_library
@every_isa
@pytest.mark.parametrize(("kind", "head_dim"), KINDS_AND_HEAD_DIMS)
def test_every_kind_and_head_size_matches_the_reference(isa, kind, head_dim):
    for shared in (True, False):
        assert_matches_reference(Case(kind, head_dim, shared=shared, isa=isa))


@needs_library
@every_isa
@pytest.mark.parametrize(("kind", "group"), [*product(native.KINDS, (1, 2, 3, 4, 6, 8, 11, 16))])
def test_any_number_of_query_heads_shares_a_root(isa, kind, group):
    for head_dim in (48, 128):
        assert_matches_reference(Case(kind, head_dim, group, roots=2, isa=isa, lengths=(71, 5, 18)))


@needs_library
@every_isa
@pytest.mark.parametrize(("kind", "page_rows"), [*product(native.KINDS, (1, 5, 16, 150))])
def test_pages_have_any_size_and_order(isa, kind, page_rows):
    assert_matches_reference(Case(kind, 80, 2, page_rows=page_rows, isa=isa))
    assert_matches_reference(Case(kind, 48, 1, page_rows=page_rows, isa=isa, shared=False))


@needs_library
@every_isa
@pytest.mark.parametrize("kind", native.KINDS)
def test_a_window_attends_to_its_slots_alone(isa, kind):
    case = Case(kind, 64, lengths=(2500, 1030, 40), first=(1100, 1022, 39), page_rows=512, isa=isa)
    assert_matches_reference(case)


@needs_library
@every_isa
@pytest.mark.parametrize(
    ("kind", "sinks"), [*product(native.KINDS, [4]), ("fp32", 1), ("fp32", 1030)]
)
def test_sinks_are_visible_beside_the_window(isa, kind, sinks):
    sizes = {"lengths": (2500, 1300, 40, 2), "first": (1100, 1022, 39, 0), "page_rows": 512}
    assert_matches_reference(Case(kind, 64, sinks=sinks, isa=isa, **sizes))
    assert_matches_reference(
        Case(kind, 64, 2, sinks=sinks, isa=isa, rotary_dim=64, slopes=True, **sizes)
    )


@needs_library
@every_isa
def test_pages_between_the_sinks_and_the_window_are_never_read(isa):
    case = Case("int8", lengths=(700, 650), first=(600, 513), page_rows=32, sinks=33, isa=isa)
    out, log_sum = case.run()
    for rows, _, _ in case.tensors.values():
        rows.pages[:, 2 : 513 // 32] = rows.scales[:, 2 : 513 // 32] = 0
    for one, other in zip((out, log_sum), case.run(), strict=True):
        np.testing.assert_array_equal(one, other)


@needs_library
@every_isa
def test_sinks_that_reach_the_window_are_one_interval_with_it(isa):
    sizes = {"lengths": (2500, 90), "page_rows": 512, "isa": isa}
    whole = Case(first=(0, 0), **sizes).run()
    for one, other in zip(Case(first=(70, 64), sinks=70, **sizes).run(), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_library
@every_isa
@pytest.mark.parametrize(("kind", "rotary_dim"), [*product(native.KINDS, (2, 16, 20, 48, 64, 80))])
def test_rope_is_applied_to_keys_by_their_slots(isa, kind, rotary_dim):
    for group in (1, 4, 8):
        case = Case(kind, 80, group, rotary_dim=rotary_dim, key_scaled=group != 4, isa=isa)
        assert_matches_reference(case)
    assert_matches_reference(
        Case(
            kind,
            96,
            lengths=(2300, 1400, 1024),
            first=(1159, 1100, 1023),
            page_rows=2500,
            rotary_dim=rotary_dim,
            roots=1,
            isa=isa,
        )
    )


@needs_library
@every_isa
@pytest.mark.parametrize(("kind", "group"), [*product(native.KINDS, (1, 2, 3, 4, 5, 9))])
def test_each_stream_of_a_chunk_has_queries_of_its_own_under_rope(isa, kind, group):
    # Whole chunks, whose streams would begin at multiples of 4096 bytes, and others.
    sizes = {"lengths": (2048, 1031, 700), "page_rows": 1100, "roots": 1, "isa": isa}
    for shared, rotary_dim in ((True, 64), (False, 64), (False, 36)):
        case = Case(kind, 64, group, rotary_dim=rotary_dim, shared=shared, **sizes)
        assert_matches_reference(case)


@needs_library
@every_isa
@pytest.mark.parametrize("kind", native.KINDS)
def test_alibi_slopes_and_a_key_scale_match_the_reference(isa, kind):
    for group in (1, 3, 8):
        assert_matches_reference(Case(kind, 64, group, slopes=True, key_scaled=True, isa=isa))
    # The query may also be before the last slot: the distance is absolute.
    case = Case(kind, 64, 2, slopes=True, isa=isa)
    case.position = case.position // 2
    assert_matches_reference(case)


@needs_library
@every_isa
@pytest.mark.parametrize("kind", native.KINDS)
def test_large_scores_do_not_overflow(isa, kind):
    assert_matches_reference(Case(kind, 64, 1, isa=isa, query_scale=300.0))


@needs_library
@every_isa
@pytest.mark.parametrize("kind", native.KINDS)
def test_the_bits_do_not_depend_on_the_number_of_threads(isa, kind):
    sizes = {"lengths": (5000, 1025, 3), "page_rows": 700, "head_dim": 128, "group": 2}
    alone = Case(kind, isa=isa, **sizes).run()
    for threads in (2, 3, 8):
        together = Case(kind, isa=isa, threads=threads, **sizes).run()
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)


@needs_library
def test_a_forked_process_has_its_own_threads():
    script = """
import os, sys
import numpy as np
sys.path[:0] = {path!r}
from test_native import Case
case = Case("fp32", 128, lengths=(9000,), first=(0,), page_rows=9000, roots=2, threads=2)
before = case.run()[0]
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(case.run()[0], before) else 1)
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
def test_output_is_zero_if_no_slot_is_visible():
    case = Case(lengths=(5, 3, 9), first=(5, 0, 9))
    out, log_sum = case.run()
    assert not out[0].any()
    assert not out[2].any()
    assert np.all(log_sum[[0, 2]] == -np.inf)
    assert np.isfinite(log_sum[1]).all()


@needs_library
def test_parts_are_combined_by_their_log_sums():
    whole, log_whole = Case(lengths=(90,), first=(0,)).run()
    # `first` and `length` select parts of the same cache: cases of one shape have equal arrays.
    work = Case(lengths=(90,), first=(0,))
    one = dataclasses.replace(work, first=(40,)).run()
    ready = work.decoding()
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
    ("change", "message"),
    [
        ({"head_dim": 68}, "multiple of 8 up to 256"),
        ({"head_dim": 512}, "multiple of 8 up to 256"),
        ({"rope": native.RopeTable(np.ones(40), 999)}, "rotates 80 coordinates of 64"),
        ({"rope": native.RopeTable(np.ones(4), 9)}, "9 slots does not reach"),
        ({"key_scale": np.ones(3, np.float32)}, r"must be \(64,\)"),
        ({"threads": 0}, "at least 1"),
        ({"sinks": -1}, "sinks is -1"),
        ({"kind": "int4", "head_dim": 80}, "for int4 it must be a multiple of 32"),
        ({"isa": "mmx"}, "does not run here; use .*portable"),
    ],
)
def test_arguments_that_the_kernel_cannot_run_are_refused(change, message):
    rows, *_ = Case().tensors["keys"]
    arguments = {"kind": "fp32", "head_dim": 64, "roots": 3, "page_rows": 64} | change
    with pytest.raises(ValueError, match=message):
        native.Decoding(arguments.pop("kind"), rows, **arguments)


@needs_library
def test_slots_without_pages_are_refused():
    work = Case().decoding()
    work.length[1] = 500
    with pytest.raises(
        IndexError, match="Sequence 1 attends to slots 0 to 500; its pages hold 0 to 192"
    ):
        work(0, 0)


@needs_library
def test_rows_of_int8_without_scales_are_refused():
    rows, *_ = Case().tensors["keys"]
    with pytest.raises(ValueError, match="int8 and int4 need scales"):
        native.Decoding("int8", rows, head_dim=64, roots=3, page_rows=64)


@needs_library
def test_the_environment_selects_an_isa_or_none(monkeypatch):
    for name in native.supported_isas():
        monkeypatch.setenv(library.VARIABLE, name)
        assert native.select_isa() == name
    monkeypatch.setenv(library.VARIABLE, library.NONE)
    assert "switched off" in native.missing_requirement()
    monkeypatch.setenv(library.VARIABLE, "mmx")
    assert "does not run here" in native.missing_requirement()


@needs_library
def test_python_and_cpp_have_the_same_constants():
    header = (build.SOURCES / "decode.h").read_text()
    for name in ("LANES", "TILE", "CHUNK", "MAX_HEAD_DIM", "GROUP"):
        assert f"QKV_{name} = {getattr(decode, name)}," in header


def test_a_build_without_a_compiler_names_the_packages_that_help(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match="install g\\+\\+, clang or the package zig"):
        build.build(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(build.BuildError, match="cannot be written"):
        build.build(tmp_path, tmp_path / "file" / "objects")


def test_the_message_of_a_failing_compiler_is_quoted(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'fatal error: no <stdint.h>' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(build.BuildError, match=r"no <stdint\.h>"):
        build.build(tmp_path)


@pytest.fixture(name="compiler")
def _compiler(tmp_path, monkeypatch):
    """A stand-in for a compiler: what it makes holds its arguments, or the objects it links."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f"""#!/bin/sh
echo "$@" >>"{tmp_path}/asked"
objects=
for word; do
    out=$word
    case $word in *.o) objects="$objects $word" ;; esac
done
if [ "$objects" ]; then cat $objects >"$out"; else echo "$@" >"$out"; fi
""")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return lambda: (tmp_path / "asked").read_text().splitlines()


def test_a_library_for_this_machine_does_not_pass_for_one_for_every_machine(tmp_path, compiler):
    for x86 in ({}, build.X86, {}):
        into = build.build(tmp_path / "built", x86=x86)
        assert ("isa_avx512_bf16" in into.read_text()) == bool(x86)


def test_two_builds_at_once_compile_once(tmp_path, compiler):
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: build.build(tmp_path / "built"), range(2)))
    assert len(compiler()) == len(build.X86) + len(build.PORTABLE) + 1


@needs_library
def test_the_system_lists_the_isas_that_the_library_finds():
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("the system does not list instructions")
    found = {f"isa_{name.replace('-', '_')}" for name in ISAS}
    assert found & set(build.X86) == set(build.x86_here())


def test_a_missing_library_is_reported_with_the_build_command(tmp_path, monkeypatch):
    monkeypatch.delenv("QKVBENCH_NATIVE", raising=False)
    monkeypatch.setattr(library, "HERE", tmp_path)
    library.library.cache_clear()
    library.supported_isas.cache_clear()
    try:
        assert "python -m qkvbench.native" in (native.missing_requirement() or "")
    finally:
        library.library.cache_clear()
        library.supported_isas.cache_clear()


def test_importing_the_package_does_not_load_torch():
    script = "import sys, qkvbench.native; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "False"


@pytest.mark.nightly
def test_the_portable_isa_matches_fp64_on_arm(tmp_path):
    """Compiled for aarch64 and run by an emulator."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("no aarch64 emulator: apt-get install qemu-user-static")
    if compiler := shutil.which("aarch64-linux-gnu-g++"):
        command = [compiler]
    elif importlib.util.find_spec("ziglang"):
        command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    else:
        pytest.skip("no compiler for aarch64: pip install ziglang")
    program = tmp_path / "portable_isa"
    sources = [
        build.SOURCES / "isa_portable.cpp",
        Path(__file__).with_name("portable_isa.cpp"),
    ]
    flags = ["-static", "-std=c++17", "-O3", "-ffp-contract=fast", f"-I{build.SOURCES}"]
    subprocess.run([*command, *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("neon: ")
