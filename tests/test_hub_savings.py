"""`qkvbench slim`: its answer is what the two caches hold."""

import json
import shutil

import pytest
import torch
import transformers

import test_hub_slim
import test_hub_slim_families as families
from qkv_mode_models import model_of
from qkvbench import hub
from qkvbench.cli import main
from qkvbench.hub.slim_cache import new_cache, storage_bytes

CONTEXT = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function that saves a model into a folder."""

    def saved(model, name="model"):
        path = tmp_path_factory.mktemp("saved") / name
        model.save_pretrained(path)
        return path

    return saved


def _answer(path, capsys, *more):
    assert main(["slim", str(path), "--context", str(CONTEXT), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


@torch.no_grad()
def _held(model, cache):
    """The bytes of a cache after so many tokens of a real model."""
    model(torch.ones(1, CONTEXT, dtype=torch.long), cache=cache)
    return cache.bytes if hasattr(cache, "bytes") else storage_bytes(families._both(cache))


MODELS = {
    "gpt2": test_hub_slim.gpt2,
    "the body of a gpt2": lambda: test_hub_slim.gpt2().transformer,
    "gemma": test_hub_slim.gemma,
    "bloom": lambda: families.decoder("bloom"),
    "falcon": lambda: families.decoder("falcon").float(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_bytes_are_those_of_the_two_caches(kind, folder, capsys):
    model = MODELS[kind]()
    found = _answer(folder(model), capsys)
    library = transformers.DynamicCache(config=model.config)
    assert found["library_bytes"] == _held(model, library)
    assert found["slim_bytes"] == _held(hub.slim(model), new_cache(model))
    assert found["slim_bytes"] < 0.85 * found["library_bytes"]
    (part,) = found["parts"]
    assert part["slim_bytes_per_token"] < part["library_bytes_per_token"]
    assert part["tokens"] == CONTEXT


@pytest.mark.parametrize("kind", ["bart", "t5 with a W_K that is not square", "whisper"])
def test_a_model_with_an_encoder_keeps_its_output_once(kind, folder, capsys):
    found = _answer(folder(families.sequence_model(kind).float()), capsys)
    own, cross = found["parts"]
    # Three layers with K and V of 20 numbers, or of 12.
    width = 12 if "not square" in kind else 20
    assert cross["library_bytes_per_token"] == 3 * 2 * width * 4
    assert cross["slim_bytes_per_token"] == 20 * 4
    assert own["slim_bytes"] == own["library_bytes"] / (1 if "not square" in kind else 2)


def test_the_lines_of_code_make_the_model_slim(folder, capsys):
    path = folder(test_hub_slim.opt())
    assert main(["slim", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("OPTForCausalLM can do with 50% of its cache: K alone, V within")
    # As many tokens as it has positions for.
    assert "400 tokens" in lines[3]
    code = [line.strip() for line in lines[-2:]]
    names = {}
    exec("\n".join(code), names)
    names["model"].generate(torch.tensor([[1, 2]]), max_new_tokens=2)


def test_layers_that_cannot_be_slim_are_left_out_of_the_code(folder, capsys):
    model = test_hub_slim.gpt2(n_layer=3)
    with torch.no_grad():
        key = model.transformer.h[1].attn.c_attn.weight[:, 20:40]
        key[:, 0] = key[:, 1] * (1 + 1e-7)
    path = folder(model)
    found = _answer(path, capsys)
    assert found["layers"] == [0, 2]
    assert found["code"][-1].endswith("layers=[0, 2])")
    assert found["slim_bytes"] == pytest.approx(found["library_bytes"] * 4 / 6)
    assert main(["slim", str(path)]) == 0
    assert "Not everywhere: in 1 of 3 layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: model_of("llama"), "it caches K after RoPE"),
        (lambda: test_hub_slim.opt().bfloat16(), "K alone takes as many bytes as K and V in 16"),
    ],
)
def test_nothing_to_save_is_said_first_with_the_reason(model, reason, folder, capsys):
    path = folder(model())
    assert main(["slim", str(path)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("Nothing to save in ")
    assert reason in first
    assert "hub.slim" not in "\n".join(rest)
    assert _answer(path, capsys)["code"] == []


def test_a_checkpoint_in_the_hub_s_cache_is_read_by_its_name(folder, tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--some--gpt2"
    shutil.copytree(folder(test_hub_slim.gpt2()), place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "from_pretrained('some/gpt2'" in _answer("some/gpt2", capsys)["code"][-1]
    assert main(["slim", "some/other"]) == 2
    assert "cannot be fetched" in capsys.readouterr().err


def _without_network(path):
    shutil.rmtree(path)


def _unknown(path):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "mine"}))


def _pickled(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _other_names(path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, path / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_without_network, "There is no folder"),
        (_unknown, "has no model of type mine"),
        (_pickled, "is not read"),
        (_other_names, "not in the checkpoint under the names"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_a_wrong_request(damage, reason, folder, capsys):
    path = folder(test_hub_slim.gpt2())
    damage(path)
    assert main(["slim", str(path)]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 6
