import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from qkv_mode_models import HEAD, SETTINGS, inputs_of, model_of, outputs_of, repeated, tie
from qkvbench.cli import main
from qkvbench.hub.fit.moments import collect
from qkvbench.hub.fit.road import runnable
from qkvbench.hub.fit.shards import INDEX, ShardWriter, Tensors
from qkvbench.hub.fit.streaming import LayerByLayer, StreamedModel
from qkvbench.hub.fit.tying import tie as fit

# Of each kind of layer one is quick.
a_few_families = pytest.mark.parametrize(
    "kind", [k if k in ("llama", "gpt2") else pytest.param(k, marks=pytest.mark.slow) for k in HEAD]
)


def _saved(kind, folder, mode=None):
    """A saved model of a family, and the same read from its files."""
    model = model_of(kind) if mode is None else tie(model_of(kind), mode)
    model.save_pretrained(folder, max_shard_size="60KB")
    # Loaded again, since Marian's positions are not saved.
    model = getattr(transformers, HEAD[kind]).from_pretrained(folder).eval()
    return model, StreamedModel(folder, HEAD[kind], transformers.AutoConfig.from_pretrained(folder))


def _output(model, inputs):
    return outputs_of(model, **inputs)


def _written(streamed, mode, folder, kind, text, start):
    folder.mkdir()
    tokens = LayerByLayer(streamed, mode, lambda _: None).write(folder, text, start)
    return tokens, getattr(transformers, HEAD[kind]).from_pretrained(folder).eval()


@a_few_families
def test_a_model_run_block_by_block_is_the_model_and_holds_nothing_afterwards(kind, tmp_path):
    model, streamed = _saved(kind, tmp_path)
    inputs = inputs_of(kind)
    with streamed.running() as running:
        found = _output(running, inputs)
    assert (found - _output(model, inputs)).abs().max() < 1e-5
    kept = {name for name, parameter in streamed.model.named_parameters() if not parameter.is_meta}
    assert not kept & set(streamed.stored)


@a_few_families
def test_a_conversion_layer_by_layer_is_that_of_the_whole_model(kind, tmp_path):
    model, streamed = _saved(kind, tmp_path)
    inputs = inputs_of(kind)
    text = None if "decoder_input_ids" in inputs else inputs.get("input_ids")
    start = "keep-k" if text is None else "refitted"
    tokens, ours = _written(streamed, "q,k=v", tmp_path / "new", kind, text, start)
    assert tokens == (0 if text is None else text.numel())
    rows = None if text is None else [{"input_ids": row[None]} for row in text]
    expected = fit(model, "q,k=v", None if rows is None else collect(model, rows), start)
    assert (_output(ours, inputs) - _output(expected, inputs)).abs().max() < 1e-5


@a_few_families
def test_layers_that_satisfy_their_tie_are_not_fitted_and_the_others_are(kind, tmp_path):
    mode = repeated(kind, ["q,k=v", "q,k,v"])
    model, streamed = _saved(kind, tmp_path, mode)
    work = LayerByLayer(streamed, "q,k=v", lambda _: None)
    assert set(work.changes) == {n for n, one in enumerate(mode) if one == "q,k,v"}
    inputs = inputs_of(kind)
    tokens, same = _written(streamed, mode, tmp_path / "a", kind, None, "whitened")
    assert tokens == 0
    assert (_output(same, inputs) - _output(model, inputs)).abs().max() < 1e-5
    with pytest.raises(ValueError, match="is fitted to a text: add --text"):
        _written(streamed, "q,k=v", tmp_path / "b", kind, None, "whitened")


def test_a_buffer_that_is_saved_is_read_and_written(tmp_path):
    model = tie(model_of("marian"), "q,k=v")
    model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(2))
    model.save_pretrained(tmp_path / "old")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "old")
    streamed, inputs = StreamedModel(tmp_path / "old", HEAD["marian"], config), inputs_of("marian")
    with streamed.running() as running:
        assert (_output(running, inputs) - _output(model, inputs)).abs().max() < 1e-5
    _, ours = _written(streamed, "q,k=v", tmp_path / "new", "marian", None, "whitened")
    assert (_output(ours, inputs) - _output(model, inputs)).abs().max() < 1e-5


@pytest.mark.parametrize("shard", ["60KB", "10GB"])
def test_only_the_files_that_the_library_reads_are_read(tmp_path, shard):
    model_of("llama", seed=1).save_pretrained(
        tmp_path, variant="fp16", max_shard_size="60KB" if shard == "10GB" else "10GB"
    )
    model = model_of("llama")
    model.save_pretrained(tmp_path, max_shard_size=shard)
    save_file({"odd": torch.zeros(3)}, tmp_path / "consolidated.safetensors")
    tensors = Tensors(tmp_path)
    assert "odd" not in tensors.names
    for name, part in model.state_dict().items():
        assert torch.equal(tensors.read(name), part), name
    if shard == "60KB":
        index = json.loads((tmp_path / INDEX).read_text())
        index["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
        (tmp_path / INDEX).write_text(json.dumps(index))
        with pytest.raises(ValueError, match="which is not beside it"):
            Tensors(tmp_path)


def test_a_checkpoint_in_16_bits_stays_in_16_bits_and_its_other_tensors_are_the_same(tmp_path):
    model = model_of("llama").bfloat16()
    model.save_pretrained(tmp_path / "old", max_shard_size="60KB")
    words = ["convert", str(tmp_path / "old"), "--to", "q,k=v", "--start", "keep-v"]
    assert main([*words, "--out", str(tmp_path / "new")]) == 0
    old, new = Tensors(tmp_path / "old"), Tensors(tmp_path / "new")
    gone = {name for name in old.names if name not in new.names}
    assert gone == {f"model.layers.{n}.self_attn.v_proj.weight" for n in range(2)}
    for name in new.names:
        assert new.read(name).dtype == torch.bfloat16
        if "self_attn" not in name:
            assert torch.equal(new.read(name), old.read(name)), name
    settings = json.loads((tmp_path / "new" / "config.json").read_text())
    assert settings["dtype"] == "bfloat16"
    assert settings["architectures"] == ["QkvLlamaForCausalLM"]


def test_files_of_shards_are_named_when_all_are_there(tmp_path):
    parts = {f"w{n}": torch.full((100,), float(n)) for n in range(5)}
    with ShardWriter(tmp_path, limit=1000) as writer:
        for name, part in parts.items():
            writer.add(name, part)
        assert not list(tmp_path.glob("model*"))
    index = json.loads((tmp_path / INDEX).read_text())
    assert sorted(set(index["weight_map"].values())) == [
        f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    assert index["metadata"]["total_size"] == 2000
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "pt") as opened:
            assert torch.equal(opened.get_tensor(name), parts[name])
    stopped = tmp_path / "stopped"
    stopped.mkdir()

    def stop():
        with ShardWriter(stopped, limit=100) as writer:
            for name, part in parts.items():
                writer.add(name, part)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert not list(stopped.glob("model*"))


def test_a_model_that_exceeds_its_memory_is_measured_from_its_files(tmp_path):
    model, _ = _saved("llama", tmp_path)
    inputs, expected = inputs_of("llama"), _output(model, inputs_of("llama"))
    for memory, whole in ((1_000, False), (10_000_000, True)):
        with runnable(tmp_path, HEAD["llama"], memory) as (found, timed):
            assert timed == whole
            assert next(found.model.layers.parameters()).is_meta != whole
            assert torch.equal(_output(found, inputs), expected)


_LIMITED = """
import re, resource, sys, torch, transformers
from pathlib import Path
from qkvbench import hub
from qkvbench.cli import main
from qkvbench.hub.fit.source import find
from qkvbench.hub.fit.streaming import LayerByLayer, StreamedModel
from qkvbench.hub.fit import road

hub.register()
torch.set_num_threads(1)
folder, how, allowed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
used = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + allowed, used + allowed))
checkpoint = find(str(folder))
if how == "whole":
    checkpoint.model()
elif how == "text":
    source = StreamedModel(folder, checkpoint.auto, checkpoint.config())
    out = folder.parent / "fitted"
    out.mkdir()
    text = torch.randint(90, (4, 32), generator=torch.Generator().manual_seed(0))
    assert LayerByLayer(source, "q,k=v", print).write(out, text, "whitened") == 128
else:
    words = ["convert", str(folder), "--to", "q,k=v", "--start", how]
    sys.exit(main([*words, "--out", str(folder.parent / how)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of Linux")
def test_converting_takes_the_memory_of_a_shard_and_a_layer_not_that_of_the_model(tmp_path):
    settings = SETTINGS["llama"] | {
        "hidden_size": 256,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "vocab_size": 100,
    }
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**settings))
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "large", max_shard_size="15MB")
    allowed = 100_000_000
    assert size > 2 * allowed

    def run(how):
        command = [sys.executable, "-c", _LIMITED, str(tmp_path / "large"), how, str(allowed)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for how in ("keep-k", "text"):
        done = run(how)
        assert done.returncode == 0, done.stderr
    # The limit is one: the whole model exceeds it.
    whole = run("whole")
    assert whole.returncode != 0
    assert "memory" in whole.stderr
    config = transformers.AutoConfig.from_pretrained(tmp_path / "keep-k")
    assert config.qkv_mode == "q,k=v"
    assert len(list((tmp_path / "keep-k").glob("model-*.safetensors"))) > 10
