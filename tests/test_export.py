"""Exported decoders: they write the text that torch writes, with the cache of the plan."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from qkvbench import tasks
from qkvbench.backends import torch as backend
from qkvbench.cli import main
from qkvbench.cost import cache_bytes_per_token
from qkvbench.experiment import Experiment, to_json
from qkvbench.export import find, torch_export
from qkvbench.export.stepping import Stepping
from qkvbench.model import PRESETS, Model, position_named
from qkvbench.model.cycle import parse_cycle
from qkvbench.task_ref import TaskRef
from qkvbench.variant.catalogue import named

PROMPT, WRITTEN = 6, 10
SLOW = pytest.mark.slow
EQUATIONS = ("q,k,v", "q,k=v", "q,k=v/1")
OTHERS = (
    "q,k=L(24),v=L(24)+ropehead8",
    "q,k,v+window8+sinks2",
    "q,k,v=R(k)",
    "q,k,v;q,k=K(-1),v=V(-1)",
    "q,k=v+rootnorm",
    "q=k,v-diag",
    "q,k=L(2x12),v=L(2x12)",
    "q,k,v+firstvalue",
)
# A key of two parts, a learned rotation, and a layer without a cache of its own.
IN_SHORT = ("q,k=L(24),v=L(24)+ropehead8", "q,k,v=R(k)", "q,k,v;q,k=K(-1),v=V(-1)")


def _model(equation: str, position: str | None = None) -> Model:
    model = PRESETS["small-decoder"]().with_variant(parse_cycle(equation, named))
    return replace(model, position=position_named(position, 40)) if position else model


def _network(equation: str, position: str | None = None) -> backend.Decoder:
    model = _model(equation, position)
    network = backend.build(model)
    assert isinstance(network, backend.Decoder)
    backend.start(network, model, 0)
    return network


def _prompts() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, PROMPT)))


def _written(network: backend.Decoder, tokens: torch.Tensor) -> np.ndarray:
    """Greedy text by whole passes, without any cache."""
    with torch.no_grad():
        for _ in range(WRITTEN):
            tokens = torch.cat([tokens, network(tokens)[:, -1].argmax(-1)[:, None]], dim=1)
    return tokens[:, PROMPT:].numpy()


@pytest.mark.parametrize("equation", [*EQUATIONS, *OTHERS])
def test_a_step_reads_a_prompt_and_decodes_like_a_whole_pass(equation: str) -> None:
    """The function that is exported, in torch: prompts in two pieces, then token by token."""
    network, tokens = _network(equation), _prompts()
    stepping = Stepping(network, 32)
    with torch.no_grad():
        expected = network(tokens)
        _, *past = stepping(tokens[:, :2], *stepping.empty(3))
        logits, *past = stepping(tokens[:, 2:5], *past)
        torch.testing.assert_close(logits, expected[:, 4], rtol=1e-4, atol=1e-4)
        logits, *past = stepping(tokens[:, 5:], *past)
    torch.testing.assert_close(logits, expected[:, 5], rtol=1e-4, atol=1e-4)
    cached = sum(each.numel() for each in past)
    assert 2 * cached == 3 * PROMPT * (cache_bytes_per_token(network.model) or 0)


def _export(
    tmp_path: Path, equation: str, form: str, *words: str, home: Path | None = None
) -> Path:
    """The file that the command line writes for trained weights, in a process of its own."""
    network = _network(equation)
    task = tasks.find("lm-reviews")
    experiment = Experiment(network.model, TaskRef("lm-reviews"), 1, task.training, seed=0)
    (tmp_path / "own.json").write_text(json.dumps(to_json(experiment)))
    backend.save(network, tmp_path / "own.safetensors")
    out = tmp_path / f"own{find(form).SUFFIXES[0]}"
    command = [sys.executable, "-m", "qkvbench", "export", str(tmp_path / "own.json"), "--to", form]
    environment = os.environ | ({"HOME": str(home)} if home else {})
    done = subprocess.run(
        [*command, "--context", "64", "--out", str(out), *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "It caches" in done.stdout
    return out


def _by_onnxruntime(path: Path, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy text and the logits after the prompt, as docs/export.md writes it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map["qkvbench"])
    past = {
        each["past"]: np.zeros((len(tokens), each["heads"], 0, each["width"]), np.float32)
        for each in about["cached"]
    }
    texts, first = [], None
    for _ in range(WRITTEN):
        logits, *present = session.run(None, {"tokens": tokens, **past})
        first = logits if first is None else first
        past = dict(zip(past, present, strict=True))
        tokens = logits.argmax(-1)[:, None]
        texts.append(tokens)
    assert first is not None
    return np.concatenate(texts, axis=1), first


def test_onnx_writes_what_torch_writes_with_half_of_the_cache(tmp_path: Path) -> None:
    """`q,k=v` has one input and one output for each layer."""
    path = _export(tmp_path, "q,k=v", "onnx")
    network, tokens = _network("q,k=v"), _prompts()
    text, logits = _by_onnxruntime(path, tokens.numpy())
    assert (text == _written(network, tokens)).all()
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(tokens)[:, -1].numpy(), rtol=1e-4, atol=1e-4)
    import onnx

    inputs = [each.name for each in onnx.load(path).graph.input]
    assert inputs == ["tokens", "past.0.k", "past.1.k"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "equation",
    [
        "q,k,v",
        "q,k=v/1",
        *(
            # torch takes a third of a minute for each.
            pytest.param(each, marks=() if each in IN_SHORT else pytest.mark.nightly)
            for each in OTHERS
        ),
    ],
)
def test_onnx_writes_what_torch_writes(equation: str, tmp_path: Path) -> None:
    """Every kind of cached tensor."""
    text, _ = _by_onnxruntime(_export(tmp_path, equation, "onnx"), _prompts().numpy())
    assert (text == _written(_network(equation), _prompts())).all()


@pytest.mark.slow
def test_onnx_in_int8_is_a_quarter_of_the_size_and_near(tmp_path: Path) -> None:
    """Matrices are rounded row by row; the rest is as it was."""
    whole, _ = tmp_path / "whole", (tmp_path / "whole").mkdir()
    small = _export(tmp_path, "q,k=v", "onnx", "--weights", "int8")
    large = _export(whole, "q,k=v", "onnx")
    assert small.stat().st_size < 0.6 * large.stat().st_size
    _, exact = _by_onnxruntime(large, _prompts().numpy())
    _, near = _by_onnxruntime(small, _prompts().numpy())
    # onnxruntime rounds the rows of activations to eight bits as well; the largest error of single
    # logits was 17% of the largest logit here, so the mean square is held.
    error = np.square(exact - near).mean() ** 0.5
    assert 0 < error < 0.2 * np.square(exact).mean() ** 0.5


@pytest.mark.slow
def test_a_torch_program_needs_no_code_of_the_model(tmp_path: Path) -> None:
    """It is loaded where qkvbench cannot be imported."""
    path = _export(tmp_path, "q,k=v", "torch-export")
    program = (
        "import sys, torch\n"
        "sys.modules['qkvbench'] = None\n"
        f"run = torch.export.load({str(path)!r}).module()\n"
        "past = [torch.zeros(1, 4, 0, 24)] * 2\n"
        "logits, *past = run(torch.tensor([[1, 2, 3]]), *past)\n"
        "logits, *past = run(torch.tensor([[4]]), *past)\n"
        "print(logits.argmax().item(), *past[0].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    with torch.no_grad():
        expected = _network("q,k=v")(torch.tensor([[1, 2, 3, 4]]))[0, -1].argmax().item()
    assert done.stdout.split() == [str(expected), "1", "4", "4", "24"], done.stderr


@pytest.mark.parametrize("position", ["rotary", "learned", pytest.param("alibi", marks=SLOW)])
def test_a_torch_program_takes_as_many_sequences_and_tokens_as_it_says(position: str) -> None:
    """Tracing keeps no size of its example, nor one that a kernel or a table has."""
    network = _network("q,k=v", position)
    context = network.longest or 40
    stepping = Stepping(network, context)
    program = torch_export.traced(stepping).module()
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 9, 0), (9, 1, 7), (12, 16, 3), (1, context, 0), (1, 1, context - 1)]
    for sequences, new, cached in sizes:
        tokens = torch.randint(256, (sequences, new), generator=generator)
        past = [
            torch.randn(*each.shape[:2], cached, each.shape[3], generator=generator)
            for each in stepping.empty(sequences)
        ]
        with torch.no_grad():
            found, expected = program(tokens, *past), stepping(tokens, *past)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _by_openvino(path: Path, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy text and the logits after the prompt, as docs/export.md writes it."""
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(path)
    about = json.loads(model.get_rt_info("qkvbench").value)
    program = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    past = [
        np.zeros((len(tokens), each["heads"], 0, each["width"]), np.float32)
        for each in about["cached"]
    ]
    texts, first = [], None
    for _ in range(WRITTEN):
        logits, *past = program([tokens, *past]).values()
        first = logits if first is None else first
        tokens = logits.argmax(-1)[:, None]
        texts.append(tokens)
    assert first is not None
    return np.concatenate(texts, axis=1), first


def _by_executorch(path: Path, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of one sequence, whose prompt is read in two pieces."""
    runtime = pytest.importorskip("executorch.runtime")
    program = runtime.Runtime.get().load_program(path)
    about = json.loads(program.load_method("about").execute([])[0])
    assert about["pieces"] == 64
    step = program.load_method("forward")
    past = [torch.zeros(1, each["heads"], 0, each["width"]) for each in about["cached"]]
    # What a method returns lies in its own memory, which the next call writes again.
    _, *past = (each.clone() for each in step.execute([torch.from_numpy(tokens[:, :2]), *past]))
    new, texts, first = torch.from_numpy(tokens[:, 2:]), [], None
    for _ in range(WRITTEN):
        logits, *past = (each.clone() for each in step.execute([new, *past]))
        first = logits if first is None else first
        new = logits.argmax(-1)[:, None]
        texts.append(new)
    assert first is not None
    return torch.cat(texts, dim=1).numpy(), first.numpy()


@pytest.mark.nightly
@pytest.mark.timeout(300)
@pytest.mark.parametrize("equation", [*EQUATIONS, *OTHERS])
@pytest.mark.parametrize(
    ("form", "written_by"), [("openvino", _by_openvino), ("executorch", _by_executorch)]
)
def test_openvino_and_executorch_write_what_torch_writes(
    form: str, written_by: Callable, equation: str, tmp_path: Path
) -> None:
    """Every kind of cached tensor; and nothing is written, or sent, at the user's home."""
    pytest.importorskip(form)
    path = _export(tmp_path, equation, form, home=tmp_path / "home")
    network, tokens = _network(equation), _prompts()
    if form == "executorch":
        tokens = tokens[:1]
    text, logits = written_by(path, tokens.numpy())
    assert (text == _written(network, tokens)).all()
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(tokens)[:, -1].numpy(), rtol=1e-4, atol=1e-4)
    files = sorted(each.name for each in tmp_path.iterdir() if each.name != "home")
    beside = [f"own{suffix}" for suffix in find(form).SUFFIXES]
    assert files == sorted(["own.json", "own.safetensors", *beside])
    assert not list((tmp_path / "home").rglob("*intel*"))


@pytest.mark.parametrize("form", ["openvino", "executorch"])
def test_a_format_whose_package_is_not_installed_says_how_to_get_it(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 2, and no file."""
    monkeypatch.setattr("qkvbench.export.find_spec", lambda _: None)
    out = tmp_path / f"a{find(form).SUFFIXES[0]}"
    assert main(["export", "small-decoder", "--to", form, "--out", str(out)]) == 2
    assert f"{form} is needed and not installed: ./qkv setup {form}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_lie_beside_the_program_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's weights are a second file."""
    monkeypatch.setattr("qkvbench.export.find_spec", lambda _: True)
    (tmp_path / "a.bin").write_text("mine")
    words = ["export", "small-decoder", "--to", "openvino", "--out", str(tmp_path / "a.xml")]
    assert main(words) == 2
    assert "a.bin is there already" in capsys.readouterr().err
    assert (tmp_path / "a.bin").read_text() == "mine"


def test_weights_that_one_onnx_file_cannot_have_are_refused(tmp_path: Path) -> None:
    """The library writes a second file for them, whatever it is told."""
    pytest.importorskip("onnxscript")
    from qkvbench.export import ExportError
    from qkvbench.export.onnx import _save

    class Large:
        def save(self, path: str, *, external_data: bool) -> None:
            assert not external_data
            Path(path).touch()
            Path(f"{path}.data").touch()

    with pytest.raises(ExportError, match="2 GB"):
        _save(Large(), tmp_path / "large.onnx")


def test_a_state_that_has_no_tokens_is_not_exported() -> None:
    with pytest.raises(ValueError, match="keeps a state of its text"):
        Stepping(_network("q,k,v+elu"), 8)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["small-decoder", "--to", "onx", "--out", "a.onnx"], "There are edge, executorch, onnx"),
        (["small-decoder", "--to", "onnx", "--out", "a.pt2"], "--out a.onnx"),
        (["digits", "--to", "torch-export", "--out", "a.pt2"], "no decoder"),
        (
            ["small-decoder", "--variant", "q,k,v+elu", "--to", "torch-export", "--out", "a.pt2"],
            "keeps a state of its text",
        ),
        (
            ["small-decoder", "--variant", "none", "--to", "edge", "--out", "a.safetensors"],
            "caches nothing",
        ),
        (["none.json", "--to", "torch-export", "--out", "a.pt2"], "is not a file"),
        (["small-decoder", "--to", "torch-export", "--out", "b/a.pt2"], "make it first"),
        (
            ["gpt-300m", "--to", "torch-export", "--out", "a.pt2", "--context", "4096"],
            "--context 2048 or less",
        ),
    ],
)
def test_a_wrong_request_says_what_to_write(
    words: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit status 2, and no file."""
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a.safetensors", "--program", "./a.safetensors"], "are the same file"),
        (["--out", "folder.safetensors", "--force"], "is a folder"),
        (["--out", "a.safetensors", "--program", "folder.safetensors"], "is a folder"),
        (["--out", "a.safetensors", "--context", "100000000000"], "write a smaller --context"),
    ],
)
def test_places_and_lengths_that_cannot_be_are_refused(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    assert main(["export", "small-decoder", "--to", "edge", *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


def test_what_is_read_is_never_replaced(tmp_path, monkeypatch, capsys):
    """The program of edge and the weights that it is made of have one suffix."""
    monkeypatch.chdir(tmp_path)
    task = tasks.find("lm-reviews")
    run = Experiment(_model("q,k=v"), TaskRef("lm-reviews"), task.version, task.training, seed=0)
    Path("own.json").write_text(json.dumps(to_json(run)))
    backend.save(_network("q,k=v"), Path("own.safetensors"))
    before = Path("own.safetensors").read_bytes()
    words = ["export", "own.json", "--to", "edge", "--force", "--out"]
    assert main([*words, "./own.safetensors"]) == 2
    assert "is read for the export" in capsys.readouterr().err
    assert main([*words, "other.safetensors", "--program", "own.json"]) == 2
    assert "give --program another name" in capsys.readouterr().err
    assert Path("own.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.json", "own.safetensors"]


@pytest.mark.parametrize(
    ("form", "saves", "error"),
    [
        ("edge", "qkvbench.export.edge.save_file", SafetensorError("I/O error: File too large")),
        ("torch-export", "torch.export.save", RuntimeError("basic_ios::clear: iostream error")),
    ],
)
def test_a_full_disk_is_told_and_leaves_nothing(form, saves, error, tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(saves, full)
    out = tmp_path / f"a{find(form).SUFFIXES[0]}"
    words = ["export", "small-decoder", "--to", form, "--context", "8", "--out", str(out)]
    assert main(words) == 2
    assert f"{out.name} cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_for_elsewhere_can_be_read_by_others(tmp_path):
    out = tmp_path / "a.safetensors"
    assert (
        main(["export", "small-decoder", "--to", "edge", "--context", "8", "--out", str(out)]) == 0
    )
    before = os.umask(0o22)
    os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o666 & ~before
