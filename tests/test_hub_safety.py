"""No code of a hostile folder runs: the folder is refused, or its code is ignored."""

import json
import pickle
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qkvbench import hub

TINY = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_layer": 1,
    "n_embd": 6,
    "n_head": 2,
    "vocab_size": 11,
    "n_positions": 5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


class _Touch:
    """An attacker's pickle, which makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path):
    """A file that hostile code would make; no test may end with it."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refused(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of a tiny GPT-2, as save_pretrained writes it."""
    import transformers

    place = tmp_path / "checkpoint"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY)).save_pretrained(place)
    return place


def _set(folder, file="config.json", **settings):
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | settings))


def _malicious(canary):
    return f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"


def test_an_honest_folder_is_loaded(folder):
    assert hub.load(folder).config.n_embd == TINY["n_embd"]


@pytest.mark.parametrize(
    "key", ["_attn_implementation_internal", "_experts_implementation_internal"]
)
@pytest.mark.parametrize("value", ["evil/kernel", "sdpa"])
@pytest.mark.parametrize("depth", [0, 1, 1200])
def test_a_key_that_made_older_versions_run_code_is_refused_at_any_depth(
    tmp_path, key, value, depth
):
    settings = {key: value}
    for _ in range(depth):
        settings = {"text_config": [settings]}
    with pytest.raises(hub.UnsafeFolderError, match=f"{key} in config.json|\\.\\.\\. in config"):
        hub.check_settings(settings)


@pytest.mark.parametrize(
    "value", ["evil/kernel", "evil/kernel@main:run", "paged|evil/kernel", {"": "a/b"}, ["a/b"]]
)
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_an_implementation_that_is_a_repository_is_refused(folder, key, value, file):
    _set(folder, file, text_config={key: value})
    with pytest.raises(hub.UnsafeFolderError, match=f"text_config.{key} in {file}"):
        hub.load(folder)


@pytest.mark.parametrize("name", ["sdpa", "eager", "flash_attention_2", "paged|sdpa"])
def test_an_implementation_of_the_library_is_not_refused(name):
    hub.check_settings({"_attn_implementation": name, "text_config": {"attn_implementation": name}})


def test_code_in_the_folder_is_ignored_if_the_library_knows_the_model(folder, canary):
    (folder / "evil.py").write_text(_malicious(canary))
    _set(folder, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    assert type(hub.load(folder)).__module__.startswith("transformers.")


def test_a_model_that_needs_code_of_the_folder_is_refused_without_trust(folder, canary):
    (folder / "evil.py").write_text(_malicious(canary))
    _set(folder, model_type="evil", auto_map={"AutoConfig": "evil.C"})
    with pytest.raises(hub.UnsafeFolderError, match="trust_code=True"):
        hub.load(folder)


@pytest.mark.parametrize(
    "name", ["org/repo--modeling.M", "../evil.M", "other.M", "/evil.M", "a/b.M", ".M"]
)
def test_trusted_code_must_be_in_the_folder(folder, name, canary):
    (folder.parent / "evil.py").write_text(_malicious(canary))
    _set(folder, auto_map={"AutoConfig": "evil.C", "AutoTokenizer": [None, name]})
    with pytest.raises(hub.UnsafeFolderError, match="code that is not in the folder"):
        hub.load(folder, trust_code=True)


@pytest.mark.parametrize("name", ["subfolder", "variant", "gguf_file"])
def test_files_that_are_not_checked_are_not_read(folder, name):
    """Beside them may lie what is refused above."""
    with pytest.raises(hub.UnsafeFolderError, match=f"{name}=other reads files"):
        hub.load(folder, **{name: "other"})


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.pkl", "flax_model.msgpack"]
)
def test_weights_in_a_pickle_are_not_read(folder, name, canary):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Touch(canary)))
    with pytest.raises(hub.UnsafeFolderError, match=name):
        hub.load(folder)


def test_a_pickle_beside_safetensors_is_not_read(folder, canary):
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(_Touch(canary)))
    hub.load(folder)


def test_generation_code_in_the_folder_does_not_run(folder, canary):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(_malicious(canary))
    model = hub.load(folder)
    model.generate(torch.tensor([[1, 2]]), max_new_tokens=1, do_sample=False)


def test_an_adapter_that_names_another_model_is_refused(folder):
    _set(folder, "adapter_config.json", base_model_name_or_path="evil/model")
    with pytest.raises(hub.UnsafeFolderError, match=r"adapter_config\.json"):
        hub.load(folder)


def test_quantization_settings_are_refused(folder):
    _set(folder, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(hub.UnsafeFolderError, match="quantization_config"):
        hub.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json", "sub/notes.txt", "sub"])
def test_a_link_out_of_the_folder_is_refused(folder, name):
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    link = folder / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(outside if name == "sub" else outside / "secret")
    with pytest.raises(hub.UnsafeFolderError, match="leads out of the folder"):
        hub.load(folder)


def test_a_snapshot_of_the_hubs_cache_is_read(folder, tmp_path):
    snapshot, blobs = (
        tmp_path / "models--a--b" / "snapshots" / "1f",
        tmp_path / "models--a--b/blobs",
    )
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        (blobs / f"hash-of-{file.name}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"hash-of-{file.name}")
    assert hub.load(snapshot).config.n_embd == TINY["n_embd"]


@pytest.mark.parametrize(
    "part", ["../weights.safetensors", "/weights.safetensors", "gone.safetensors"]
)
def test_an_index_whose_parts_are_elsewhere_is_refused(folder, part):
    save_file({"w": torch.zeros(2)}, folder.parent / "weights.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"w": part}}))
    with pytest.raises(hub.UnsafeFolderError, match="no file in the folder"):
        hub.load(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a\\b"])
def test_a_tokenizer_file_outside_of_the_folder_is_refused(folder, name):
    _set(folder, "tokenizer_config.json", tokenizer_file=name)
    with pytest.raises(hub.UnsafeFolderError, match="outside of the folder"):
        hub.check_folder(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"a": 1e', "\x00"])
def test_settings_that_are_not_an_object_are_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(hub.UnsafeFolderError, match=r"config\.json"):
        hub.check_folder(folder)


def test_a_list_in_another_file_is_read_for_unsafe_settings_only(folder):
    (folder / "data_config.json").write_text('[{"name": "texts", "lines": 1}]')
    hub.check_folder(folder)
    (folder / "data_config.json").write_text('[{"attn_implementation": "evil/kernel"}]')
    with pytest.raises(hub.UnsafeFolderError, match=r"data_config\.json"):
        hub.check_folder(folder)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(hub.UnsafeFolderError, match="There is no folder"):
        hub.check_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(hub.UnsafeFolderError, match=r"no config\.json"):
        hub.check_folder(tmp_path / "empty")


def test_an_error_prints_no_control_characters(folder):
    _set(folder, attn_implementation="a/\x1b[2J" + "x" * 500)
    with pytest.raises(hub.UnsafeFolderError) as refusal:
        hub.check_folder(folder)
    assert "\x1b" not in str(refusal.value)
    assert all(len(line) < 200 for line in str(refusal.value).splitlines())
