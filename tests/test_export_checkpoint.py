"""Exported checkpoints of transformers: our decoder's logits are theirs, and so is the text."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from qkv_mode_models import inputs_of, model_of
from qkvbench import hub
from qkvbench.cli import main
from qkvbench.export import Options, checkpoint, edge, find
from qkvbench.export.stepping import Stepping

# The promise of an exported program.
PROMISED = 1e-4
WRITTEN = 20
# A head of 16 numbers fits the native kernel; two of the four heads share K and V.
TINY = {"head_dim": 16, "num_key_value_heads": 2, "tie_word_embeddings": True}


def _saved(folder: Path, kind: str, **settings: object) -> object:
    model = model_of(kind, **settings)
    model.save_pretrained(folder)
    return model


def _by_transformers(model: object, tokens: torch.Tensor, count: int = WRITTEN) -> np.ndarray:
    """Greedy text by whole passes."""
    start = tokens.shape[1]
    with torch.no_grad():
        for _ in range(count):
            logits = model(input_ids=tokens, use_cache=False).logits
            tokens = torch.cat([tokens, logits[:, -1].argmax(-1)[:, None]], dim=1)
    return tokens[:, start:].numpy()


def _by_onnxruntime(path: Path, tokens: np.ndarray, count: int = WRITTEN) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map["qkvbench"])
    past = {
        each["past"]: np.zeros((len(tokens), each["heads"], 0, each["width"]), np.float32)
        for each in about["cached"]
    }
    text = []
    for _ in range(count):
        logits, *present = session.run(None, {"tokens": tokens, **past})
        past = dict(zip(past, present, strict=True))
        tokens = logits.argmax(-1)[:, None]
        text.append(tokens)
    return np.concatenate(text, axis=1)


def _by_program(program: Path, path: Path, tokens: list[int], count: int = WRITTEN) -> list[int]:
    words = ["--tokens", " ".join(map(str, tokens)), "--count", str(count)]
    done = subprocess.run([program, path, *words], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
        ("llama", {"qkv_mode": "q,k=v"}),
        ("llama", {"qkv_mode": ["q,k=v/1", "q,k,v=R(k)"]}),
        ("llama", {"qkv_mode": "q,k=L(24),v=L(24)"}),
        ("mistral", {"sliding_window": None, "qkv_mode": "q,k=v"}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3", {"qkv_mode": "q,k=v"}),
    ],
    ids=str,
)
def test_our_decoder_has_the_logits_of_transformers(
    kind: str, settings: dict[str, object], tmp_path: Path
) -> None:
    model = _saved(tmp_path, kind, **(TINY | settings))
    tokens = inputs_of(kind)["input_ids"]
    network = checkpoint.read(tmp_path)
    with torch.no_grad():
        expected, found = model(input_ids=tokens).logits, network(tokens)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=PROMISED)


def test_onnxruntime_writes_the_text_of_a_converted_llama_from_half_of_the_cache(
    tmp_path: Path,
) -> None:
    pytest.importorskip("onnx")
    model = _saved(tmp_path / "tiny", "llama", **TINY, qkv_mode="q,k=v")
    tokens = inputs_of("llama")["input_ids"]
    stepping = Stepping(checkpoint.read(tmp_path / "tiny"), 64)
    find("onnx").write(stepping, tmp_path / "tiny.onnx", Options())
    assert [each.past for each in stepping.inputs] == ["past.0.k", "past.1.k"]
    text = _by_onnxruntime(tmp_path / "tiny.onnx", tokens.numpy())
    assert (text == _by_transformers(model, tokens)).all()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["q,k,v", "q,k=v", "q,k=v/1"])
def test_the_program_writes_the_text_of_a_converted_llama(
    mode: str, program: Path, tmp_path: Path
) -> None:
    model = _saved(tmp_path / "tiny", "llama", **TINY, qkv_mode=mode)
    path = tmp_path / "tiny.safetensors"
    edge.write(Stepping(checkpoint.read(tmp_path / "tiny"), 64), path, Options())
    for tokens in inputs_of("llama")["input_ids"]:
        expected = _by_transformers(model, tokens[None])[0].tolist()
        assert _by_program(program, path, tokens.tolist()) == expected


@pytest.mark.parametrize(
    ("kind", "settings", "words", "text"),
    [
        ("gpt2", {}, [], "gpt2; checkpoints that are exported are of the Llama family: llama"),
        ("mistral", {}, [], "sliding windows"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            [],
            "rope_type=linear",
        ),
        ("llama", {"hidden_act": "gelu"}, [], "hidden_act=gelu"),
        ("llama", {}, ["--variant", "q,k=v"], "leave out --variant"),
        ("llama", {"qkv_mode": "q,k,v=R(k)"}, [], "a map of V, which the edge program lacks"),
        ("llama", {"head_dim": 12}, [], "heads of 12 numbers"),
    ],
    ids=str,
)
def test_another_checkpoint_is_refused_with_the_reason(
    kind: str,
    settings: dict[str, object],
    words: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    own = TINY if kind in checkpoint.KINDS else {}
    _saved(tmp_path / "tiny", kind, **(own | settings))
    out = tmp_path / "tiny.safetensors"
    assert main(["export", str(tmp_path / "tiny"), "--to", "edge", "--out", str(out), *words]) == 2
    assert text in capsys.readouterr().err
    assert not out.exists()


def test_matrices_in_int4_are_fitted_to_a_text_by_the_tokenizer_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TINY | {"hidden_size": 64, "vocab_size": 256}
    folder, text = tmp_path / "tiny", tmp_path / "text.txt"
    _saved(folder, "llama", **settings)
    text.write_text("the river runs over stones while a heron waits " * 20)
    words = ["export", str(folder), "--to", "edge", "--weights", "int4", "--context", "64"]
    read = ["--text", str(text)]
    assert main([*words, "--out", str(tmp_path / "none.safetensors"), *read]) == 2
    assert "no tokenizer" in capsys.readouterr().err
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: n for n, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    plain, fitted = tmp_path / "plain.safetensors", tmp_path / "fitted.safetensors"
    assert main([*words, "--out", str(plain)]) == 0
    assert main([*words, "--out", str(fitted), *read]) == 0
    name = "blocks.1.attention.o.weight_scale"
    assert not torch.equal(load_file(plain)[name], load_file(fitted)[name])


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", [None, "q,k=v"])
def test_smollm2_writes_the_text_of_transformers(
    mode: str | None, program: Path, tmp_path: Path
) -> None:
    """As it is, and converted by the means of K and V, which writes nonsense in both."""
    from qkvbench.hub.fit.source import packaged_folder

    folder = packaged_folder("smollm2-135m")
    name = "smollm2-135m"
    if mode:
        name = str(tmp_path / "converted")
        words = ["convert", "smollm2-135m", "--to", mode, "--start", "average", "--out", name]
        assert main(words) == 0
    model = hub.load(folder if mode is None else name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    expected = _by_transformers(model, tokens)
    for form in ("edge", "onnx"):
        out = tmp_path / f"model{find(form).SUFFIXES[0]}"
        command = [sys.executable, "-m", "qkvbench", "export", name, "--to", form]
        done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if form == "onnx":
            assert (_by_onnxruntime(out, tokens.numpy()) == expected).all()
        else:
            assert _by_program(program, out, tokens[0].tolist()) == expected[0].tolist()
