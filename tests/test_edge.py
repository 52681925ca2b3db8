"""The program without Python: it writes the text that torch writes, and no file makes it crash."""

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qkvbench.backends import torch as backend
from qkvbench.cli import main
from qkvbench.cost import CACHE_FORMATS, cache_bytes_per_token
from qkvbench.export import ExportError, Options, WeightDtype, edge
from qkvbench.export.stepping import Stepping
from qkvbench.model import PRESETS, Decoder, Init, position_named
from qkvbench.model.cycle import parse_cycle
from qkvbench.native.program import build_program
from qkvbench.variant.catalogue import named

CONTEXT = 1100
EXACT = Options()
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# More than a step of the program reads.
PROMPT, WRITTEN = 21, 24


def _network(
    equation: str, position: str = "rotary", changes: tuple[str, ...] = (), *, tied: bool = False
) -> backend.Decoder:
    model = PRESETS["small-decoder"]().with_variant(parse_cycle(equation, named))
    model = replace(model, position=position_named(position, CONTEXT), changes=changes)
    # With tied matrices and large embeddings, a token would be followed by itself.
    model = replace(model, architecture=Decoder(256, tied=tied), init=Init(0.05, 0.05))
    network = backend.build(model)
    assert isinstance(network, backend.Decoder)
    backend.start(network, model, 0)
    return network


def _written(network: backend.Decoder, folder: Path, options: Options = EXACT) -> Path:
    path = folder / "model.safetensors"
    edge.write(Stepping(network, CONTEXT), path, options)
    return path


def _by_torch(network: backend.Decoder, prompt: np.ndarray) -> list[int]:
    """Greedy text by whole passes, without any cache."""
    tokens = torch.from_numpy(prompt)[None]
    with torch.no_grad():
        for _ in range(WRITTEN):
            tokens = torch.cat([tokens, network(tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens[0, len(prompt) :].tolist()


def _prompt(tokens: int = PROMPT) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, tokens)


def _run(program: Path, *words: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, *map(str, words)], capture_output=True, timeout=60)


def _ids(program: Path, path: Path, prompt: np.ndarray, *words: object) -> list[int]:
    tokens = " ".join(map(str, prompt))
    done = _run(program, path, "--tokens", tokens, "--count", WRITTEN, "--ids", *words)
    assert done.returncode == 0, done.stderr
    return [int(token) for token in done.stdout.split()]


def test_the_file_is_a_safetensors_file_that_says_what_is_cached(tmp_path: Path) -> None:
    with safe_open(_written(_network("q,k=v"), tmp_path), "pt") as file:
        about = json.loads(file.metadata()["qkvbench"])
        assert file.get_tensor("embedding.table").shape == (256, 96)
    layer = about["layers"][0]
    assert layer["cached"] == [{"name": "k", "matrix": "k", "rope": False}]
    assert layer["rope_on_read"]
    assert [each["name"] for each in layer["matrices"]] == ["q", "k"]


@pytest.mark.parametrize(
    ("equation", "position", "changes", "reason"),
    [
        ("q,k,v=R(k)", "rotary", (), "a map of V"),
        ("q,k=L(24),v=L(24)", "learned", (), "a map or a scale of K"),
        ("q,k,v+window8", "rotary", (), "mask.window"),
        ("q,k=v+softcap30", "rotary", (), "soft cap on scores"),
        ("q=x,k,v", "rotary", (), "that is the input itself"),
        ("q,k,v+qknorm", "rotary", (), "operation Normalize on heads"),
        ("q,k,v;q,k=K(-1),v=V(-1)", "rotary", (), "of a layer below"),
        ("q,k=v+gate", "rotary", (), "an output gate"),
        ("q,k,v", "alibi", (), "bias.AlibiBias"),
        ("q,k=v", "rotary-inverse", (), "RoPE on V"),
        ("q,k,v", "rotary", ("parallel",), "parallel parts"),
        ("q,k,v", "rotary", ("relu2",), "the feed-forward ReLU2"),
    ],
)
def test_what_the_program_lacks_is_refused_with_what_works_instead(
    equation: str, position: str, changes: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as refused:
        _written(_network(equation, position, changes), tmp_path)
    said = str(refused.value)
    assert reason in said
    assert equation.partition(";")[0] in said
    assert "--to onnx" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--to", "edge", "--out", "a.edge"], "--out a.safetensors"),
        (
            ["--to", "torch-export", "--out", "a.pt2", "--weights", "int8"],
            "--to onnx has int8, and --to edge int8 and int4",
        ),
        (["--to", "torch-export", "--out", "a.pt2", "--program", "p"], "goes with --to edge"),
        (["--to", "edge", "--out", "a.safetensors", "--program", "b/p"], "b does not exist"),
    ],
)
def test_a_wrong_request_says_what_to_write(
    words: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "small-decoder", *words]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_does_not_start_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-compiler")
    words = ["--to", "edge", "--out", "a.safetensors", "--program", "p"]
    assert main(["export", "small-decoder", *words]) == 2
    said = capsys.readouterr().err
    assert "not the program: no-compiler does not start" in said
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("equation", "position", "changes", "tied"),
    [
        ("q,k,v", "rotary", (), False),
        ("q,k=v", "rotary", (), False),
        ("q,k=v/1", "rotary", (), False),
        ("q,k,v/2", "rotary/0.5", (), False),
        ("q,k=v", "rotary/0.25", (), True),
        ("q=k,v", "rotary", ("rms",), False),
        ("q=k=v", "learned", ("swiglu",), False),
        ("q,k=v/2", "learned", ("rms", "swiglu"), True),
        ("q,k,v;q,k=v", "sinusoidal", (), False),
        ("q,k,v+ropebase500", "rotary", (), False),
    ],
)
def test_the_program_writes_what_torch_writes(
    equation: str,
    position: str,
    changes: tuple[str, ...],
    tied: bool,  # noqa: FBT001
    program: Path,
    tmp_path: Path,
) -> None:
    network = _network(equation, position, changes, tied=tied)
    expected = _by_torch(network, _prompt())
    path = _written(network, tmp_path)
    assert len(set(expected)) > 2
    assert _ids(program, path, _prompt()) == expected
    assert _ids(program, path, _prompt(), "--threads", 2) == expected
    # As bytes.
    prompt = "A prompt of letters."
    done = _run(program, path, "--prompt", prompt, "--count", WRITTEN)
    assert list(done.stdout) == _by_torch(network, np.array(list(prompt.encode())))


def _round_matrices(network: backend.Decoder, path: Path, weights: WeightDtype) -> None:
    """Every matrix becomes what int8 with a scale for each row, or int4 in groups, can say.

    The scales of int4 are the file's: how they are found is another test's.
    """
    stored = load_file(path)
    tied_kv = network.model.variant == "q,k=v"
    for name, weight in backend.named_weights(network).items():
        if weight.dim() != 2 or "position" in name:
            continue
        scales = stored[f"{name}_scale"]
        # A matrix that makes K and V is no more in int4 than embeddings.
        coarse = name.startswith("blocks.") and not (
            tied_kv and name.endswith("attention.k.weight")
        )
        assert (scales.dim() == 2) == (weights == "int4" and coarse)
        groups = weight.detach().unflatten(1, (1, -1) if scales.dim() == 1 else (-1, 32))
        steps = scales.view(len(weight), -1, 1)
        if scales.dim() == 1:
            torch.testing.assert_close(steps, groups.abs().amax(2, keepdim=True) / 127)
        numbers = (groups / steps).round()
        if scales.dim() == 2:
            numbers = numbers.clamp(-8, 7)
        weight.data.copy_((numbers * steps).flatten(1))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize(
    ("equation", "position", "changes", "tied"),
    [
        ("q,k=v", "rotary", (), False),
        ("q,k,v/1", "learned", ("rms", "swiglu"), True),
    ],
)
def test_in_few_bits_it_writes_what_torch_writes_with_rounded_matrices(
    weights: WeightDtype,
    equation: str,
    position: str,
    changes: tuple[str, ...],
    tied: bool,  # noqa: FBT001
    program: Path,
    tmp_path: Path,
) -> None:
    """Embeddings, heads and tied ones; a part of the file stays in fp32."""
    network = _network(equation, position, changes, tied=tied)
    size = _written(network, tmp_path).stat().st_size
    path = _written(network, tmp_path, Options(weights))
    most = {"int8": 0.34, "int4": 0.25}[weights]
    assert path.stat().st_size < (0.65 if position == "learned" else most) * size
    before = _by_torch(network, _prompt())
    _round_matrices(network, path, weights)
    expected = _by_torch(network, _prompt())
    assert len(set(expected)) > 2
    assert _ids(program, path, _prompt()) == expected
    assert _ids(program, path, _prompt(), "--threads", 2) == expected
    # Rounding is seen in a text of this length, or the test would not tell the two apart.
    assert tied or before != expected


@pytest.mark.slow
@pytest.mark.parametrize("equation", ["q,k,v", "q,k=v"])
def test_a_text_of_two_chunks_is_read_as_torch_reads_it(
    equation: str, program: Path, tmp_path: Path
) -> None:
    """The kernel cuts a context at 1,024 slots, and rotates by chunks on reading."""
    network, prompt = _network(equation), _prompt(1050)
    assert _ids(program, _written(network, tmp_path), prompt) == _by_torch(network, prompt)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_program_for_aarch64_writes_the_same_text_in_an_emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool, package in ((CROSS, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; Debian's package is {package}")
    monkeypatch.setenv("CXX", CROSS)
    program = tmp_path / "qkvbench-edge"
    assert build_program(program) == "aarch64-linux-gnu"
    for equation in ("q,k,v", "q,k=v", "q,k=v/1"):
        network = _network(equation)
        path = _written(network, tmp_path)
        words = ["--tokens", " ".join(map(str, _prompt())), "--count", str(WRITTEN), "--ids"]
        command = [EMULATOR, program, path, *words, "--report"]
        done = subprocess.run(command, capture_output=True, timeout=200)
        assert json.loads(done.stderr)["isa"] == "neon"
        assert list(map(int, done.stdout.split())) == _by_torch(network, _prompt())


@pytest.mark.slow
def test_the_cache_is_that_of_the_plan(program: Path, tmp_path: Path) -> None:
    for equation in ("q,k,v", "q,k=v", "q,k=v/1"):
        network = _network(equation)
        path = _written(network, tmp_path)
        done = _run(program, path, "--prompt", "abcde", "--count", 8, "--report")
        row = cache_bytes_per_token(network.model, CACHE_FORMATS["fp32"])
        assert json.loads(done.stderr)["cache_bytes"] == 12 * (row or 0)


@pytest.mark.slow
def test_a_seed_repeats_a_sample_and_a_low_temperature_is_greedy(
    program: Path, tmp_path: Path
) -> None:
    network = _network("q,k=v")
    path = _written(network, tmp_path)
    greedy = _ids(program, path, _prompt())
    warm = [
        _ids(program, path, _prompt(), "--temperature", 1, "--seed", seed) for seed in (1, 1, 2)
    ]
    assert warm[0] == warm[1] != warm[2]
    assert greedy not in warm
    assert _ids(program, path, _prompt(), "--temperature", 1e-6) == greedy


@pytest.mark.slow
def test_samples_have_the_probabilities_of_the_model(program: Path, tmp_path: Path) -> None:
    """One token after a prompt, 400 times."""
    network = _network("q,k=v")
    path, prompt = _written(network, tmp_path), _prompt(5)
    tokens = " ".join(map(str, prompt))
    words = ("--tokens", tokens, "--count", 1, "--temperature", 0.7, "--ids", "--seed")
    drawn = [int(_run(program, path, *words, seed).stdout) for seed in range(400)]
    with torch.no_grad():
        expected = (network(torch.from_numpy(prompt)[None])[0, -1] / 0.7).softmax(-1)
    likely = expected.argmax().item()
    share = float(expected[likely])
    assert 0.02 < share < 0.98
    # Four standard errors of a share.
    assert abs(np.mean(np.array(drawn) == likely) - share) < 4 * (share * (1 - share) / 400) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_no_damaged_file_makes_it_crash(
    weights: WeightDtype, program: Path, tmp_path: Path
) -> None:
    """Cut anywhere, or with any byte of the header changed: exit status 2 and one sentence."""
    whole = _written(_network("q,k=v"), tmp_path, Options(weights)).read_bytes()
    header = int.from_bytes(whole[:8], "little")
    bad = tmp_path / "bad.safetensors"
    rng = np.random.default_rng(0)
    cut = [0, 1, 7, 8, 9, 8 + header - 1, 8 + header, len(whole) - 1]
    cut += rng.integers(0, len(whole), 30).tolist()
    for length in cut:
        bad.write_bytes(whole[:length])
        done = _run(program, bad, "--prompt", "abc", "--count", 2)
        assert done.returncode == 2, length
        assert done.stderr.decode().startswith(f"{bad} cannot be run: ")
        assert done.stderr.count(b"\n") == 1
    bad.write_bytes(whole + b"\0")
    assert _run(program, bad, "--prompt", "abc", "--count", 2).returncode == 2
    survived = 0
    for at in [*range(8), *rng.integers(8, 8 + header, 300).tolist()]:
        changed = bytearray(whole)
        changed[at] = rng.integers(0, 256)
        bad.write_bytes(changed)
        done = _run(program, bad, "--prompt", "abc", "--count", 2)
        # A digit of an eps or of a frequency gives another model, and that is no damage to see.
        assert done.returncode in (0, 2), (at, done.returncode, done.stderr)
        survived += done.returncode == 0
    assert survived < 150


@pytest.mark.slow
def test_sizes_that_do_not_agree_are_refused(program: Path, tmp_path: Path) -> None:
    whole = _written(_network("q,k=v"), tmp_path).read_bytes()
    header = int.from_bytes(whole[:8], "little")
    text = whole[8 : 8 + header].decode()
    bad = tmp_path / "bad.safetensors"
    changes = {
        r"\"heads\": 4, \"kv_heads\"": r"\"heads\": 8, \"kv_heads\"",
        r"\"head_dim\": 24": r"\"head_dim\": 48",
        r"\"width\": 384": r"\"width\": 385",
        r"\"vocabulary\": 256": r"\"vocabulary\": 999",
        r"\"version\": 1": r"\"version\": 2",
        r"\"query\": \"q\"": r"\"query\": \"z\"",
        r"\"kind\": \"gelu\"": r"\"kind\": \"gulp\"",
        '"dtype":"F32"': '"dtype":"I32"',
        '"shape":[96]': '"shape":[69]',
    }
    for old, new in changes.items():
        assert old in text, old
        changed = text.replace(old, new, 1).encode()
        bad.write_bytes(len(changed).to_bytes(8, "little") + changed + whole[8 + header :])
        done = _run(program, bad, "--prompt", "abc", "--count", 2)
        assert done.returncode == 2, new
        assert b"cannot be run" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "either --prompt TEXT or --tokens"),
        (["--prompt", ""], "at least one token"),
        (["--prompt", "a", "--count", "1100"], "texts of 1100 tokens"),
        (["--tokens", "256"], "from 0 to 255"),
        (["--prompt", "a", "--count", "none"], "no number"),
        (["--prompt", "a", "--many"], "no option '--many'"),
        (["--prompt"], "needs a value"),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(
    words: list[str], text: str, program: Path, tmp_path: Path
) -> None:
    done = _run(program, _written(_network("q,k=v"), tmp_path), *words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert text in done.stderr.decode()
    assert _run(program, tmp_path / "none.safetensors", "--prompt", "a").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_and_a_pipe_are_refused(
    temperature: float, program: Path, tmp_path: Path
) -> None:
    network = _network("q,k=v")
    matrix = backend.named_weights(network)["output.weight"]
    with torch.no_grad():
        matrix[5] = torch.nan
    path = _written(network, tmp_path)
    done = _run(program, path, "--prompt", "abc", "--count", 2, "--temperature", temperature)
    assert done.returncode == 2
    assert b"no finite numbers" in done.stderr
    os.mkfifo(tmp_path / "pipe")
    done = _run(program, tmp_path / "pipe", "--prompt", "abc")
    assert done.returncode == 2
    assert b"not a regular file" in done.stderr
