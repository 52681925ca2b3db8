"""`qkvbench analyse` reads the usual names of tensors, and refuses others with the reason."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from laws.cases import decoder
from qkvbench.analysis import find_layers, measure_weights, read_weights
from qkvbench.analysis.conclusions import random_residual
from qkvbench.analysis.similarity import rotation_residual
from qkvbench.backends.torch import build, save, start
from qkvbench.cli import main


def checkpoint(path, tensors, kind=torch.float32):
    """A file of the format with random matrices of these shapes."""
    rng = torch.Generator().manual_seed(0)
    save_file(
        {name: torch.randn(shape, generator=rng).to(kind) for name, shape in tensors.items()},
        path,
    )
    return str(path)


def llama(layers=2, heads=4, kv_heads=2, head_dim=8, d_model=32):
    rows = {"q": heads, "k": kv_heads, "v": kv_heads}
    named = {
        f"model.layers.{layer}.self_attn.{role}_proj.weight": (count * head_dim, d_model)
        for layer in range(layers)
        for role, count in rows.items()
    }
    return {**named, "model.embed_tokens.weight": (50, d_model), "model.norm.weight": (d_model,)}


def answered(capsys, *words):
    status = main(["analyse", *words, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def heads_of(found, layer=0):
    return found["layers"][layer]["heads"]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_a_llama_checkpoint_is_analysed_layer_by_layer(tmp_path, capsys, kind):
    found = answered(capsys, checkpoint(tmp_path / "a.safetensors", llama(), kind), "--heads", "4")
    assert [row["heads"] for row in found["layers"]] == [{"q": 4, "k": 2, "v": 2}] * 2
    assert [row["layer"] for row in found["layers"]] == [
        "model.layers.0.self_attn",
        "model.layers.1.self_attn",
    ]
    for row in found["layers"]:
        # Independent matrices: eight of thirty-two directions are common by chance.
        assert row["kv_weight_overlap"] == pytest.approx(8 / 32, abs=0.12)
        assert abs(row["kv_weight_cosine"]) < 0.2
        assert 10 < row["k_weight_rank"] <= 16


def test_a_checkpoint_in_several_files_is_one(tmp_path, capsys):
    tensors = llama()
    names = sorted(tensors)
    half = len(names) // 2
    files = [
        checkpoint(tmp_path / f"{n}.safetensors", {name: tensors[name] for name in part})
        for n, part in enumerate((names[:half], names[half:]))
    ]
    assert len(answered(capsys, *files, "--heads", "4")["layers"]) == 2


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": 4, "num_key_value_heads": 2},
        {"n_head": 4},
        {"text_config": {"num_attention_heads": 4}, "num_attention_heads": 7},
    ],
)
def test_a_folder_is_read_with_the_heads_that_its_config_says(tmp_path, capsys, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = checkpoint(tmp_path / "model.safetensors", llama())
    for words in ([str(tmp_path)], [file]):
        assert heads_of(answered(capsys, *words)) == {"q": 4, "k": 2, "v": 2}
    # The person knows better.
    assert heads_of(answered(capsys, file, "--heads", "2", "--kv-heads", "1"))["q"] == 2


@pytest.mark.parametrize("config", ["[1]", "{", '{"num_attention_heads": "4"}', '{"n_head": 0}'])
def test_a_config_that_does_not_say_heads_is_named(tmp_path, capsys, config):
    (tmp_path / "config.json").write_text(config)
    checkpoint(tmp_path / "model.safetensors", llama())
    assert main(["analyse", str(tmp_path)]) == 2
    assert f"{tmp_path}/config.json does not say it; write --heads N" in capsys.readouterr().err


def test_a_gpt_2_checkpoint_has_its_three_matrices_side_by_side(tmp_path, capsys):
    tensors = {f"h.{n}.attn.c_attn.weight": (24, 72) for n in range(11)}
    found = answered(capsys, checkpoint(tmp_path / "g.safetensors", tensors), "--heads", "3")
    assert [row["layer"] for row in found["layers"]][-2:] == ["h.9.attn", "h.10.attn"]


def test_a_checkpoint_of_this_project_has_the_measures_of_its_network(tmp_path, capsys):
    network = build(decoder("q,k,v"))
    start(network, decoder("q,k,v"), 0)
    save(network, tmp_path / "own.safetensors")
    found = answered(capsys, str(tmp_path / "own.safetensors"), "--heads", "4")
    named = {
        name: tensor.detach().numpy()
        for name, tensor in network.blocks[1].attention.named_weights().items()
        if name in ("q.weight", "k.weight", "v.weight")
    }
    (layer,) = find_layers(f"blocks.1.attention.{name}" for name in named)
    weights = read_weights(layer, lambda name: named[name.split("attention.")[1]], heads=4)
    expected = measure_weights(weights)
    assert found["layers"][1] == {
        "layer": "blocks.1.attention",
        "heads": {"q": 4, "k": 4, "v": 4},
        **expected,
    }


def test_a_tied_role_is_named_as_missing_and_its_measures_stay_empty(tmp_path, capsys):
    network = build(decoder("q,k=v"))
    start(network, decoder("q,k=v"), 0)
    save(network, tmp_path / "tied.safetensors")
    assert main(["analyse", str(tmp_path / "tied.safetensors"), "--heads", "4"]) == 0
    out = capsys.readouterr().out
    assert "No matrix of its own in the file: V." in out
    row = answered(capsys, str(tmp_path / "tied.safetensors"), "--heads", "4")["layers"][0]
    assert row["kv_weight_cka"] is None
    assert row["qk_weight_symmetry"] is not None


def test_the_table_has_the_values_expected_by_chance(tmp_path, capsys):
    assert main(["analyse", checkpoint(tmp_path / "a", llama()), "--heads", "4"]) == 0
    out = capsys.readouterr().out
    assert "Layers: model.layers.….self_attn" in out
    assert "overlap 0.250" in out


@pytest.mark.parametrize(
    ("tensors", "words", "said"),
    [
        ({"wte.weight": (4, 4), "ln\x1b[2J.weight": (4,)}, ["--heads", "2"], "wte.weight"),
        (llama(), ["--heads", "5"], "cannot be divided into 5 heads"),
        (llama(), ["--heads", "4", "--kv-heads", "4"], "differ in size"),
        ({"a.q_proj.weight": (8,), "a.k_proj.weight": (8,)}, ["--heads", "2"], "not a matrix"),
        (llama(kv_heads=3), ["--heads", "4"], "cannot be shared equally"),
        ({"a.q_proj.weight": (0, 4), "a.k_proj.weight": (0, 4)}, ["--heads", "2"], "is empty"),
        ({"a.c_attn.weight": (40, 32)}, ["--heads", "8"], "--kv-heads N"),
    ],
)
def test_a_checkpoint_that_cannot_be_analysed_is_refused_with_the_reason(
    tmp_path, capsys, tensors, words, said
):
    assert main(["analyse", checkpoint(tmp_path / "a.safetensors", tensors), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) <= 6
    assert "\x1b" not in err


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 64])
def test_a_file_of_another_kind_is_refused(tmp_path, capsys, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert main(["analyse", str(tmp_path / "a.safetensors"), "--heads", "2"]) == 2
    assert "not a readable safetensors file" in capsys.readouterr().err


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    matrices = {f"a.{role}_proj.weight": torch.ones(4, 4) for role in "qkv"}
    matrices["a.v_proj.weight"][0, 0] = np.nan
    save_file(matrices, path)
    assert main(["analyse", str(path), "--heads", "2"]) == 2
    assert "a.v_proj.weight" in capsys.readouterr().err


def concluded(tmp_path, capsys, change):
    """The conclusions on random matrices of three layers after a change."""
    rng = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(shape, generator=rng) for name, shape in llama(3, kv_heads=4).items()
    }
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    return answered(capsys, str(tmp_path / "a.safetensors"), "--heads", "4")["conclusions"]


def named(layer, role):
    return f"model.layers.{layer}.self_attn.{role}_proj.weight"


def test_unrelated_matrices_suggest_no_tie(tmp_path, capsys):
    first, *_, last = concluded(tmp_path, capsys, lambda tensors: None)
    assert first.startswith("K and V are about as different as unrelated matrices in every layer")
    assert "no bound used here was tested against losses" in last


def test_the_layer_whose_v_is_a_rotation_of_k_is_named(tmp_path, capsys):
    def rotate(tensors):
        rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
        heads = tensors[named(1, "k")].reshape(4, 8, 32)
        tensors[named(1, "v")] = (rotation @ heads).reshape(32, 32).contiguous()

    first, *_ = concluded(tmp_path, capsys, rotate)
    assert first.startswith("K and V of layer 1 are nearly the same (residual 0.00;")


def test_related_matrices_are_not_called_the_same(tmp_path, capsys):
    def mix(tensors):
        tensors[named(2, "v")] = tensors[named(2, "v")] + tensors[named(2, "k")]

    first, *_ = concluded(tmp_path, capsys, mix)
    assert "related, but not the same; they are closest in layer 2" in first


def test_a_low_rank_and_symmetric_scores_are_said(tmp_path, capsys):
    def shrink(tensors):
        tensors[named(0, "k")] = tensors[named(0, "k")].clone()
        tensors[named(0, "k")][6:] *= 1e-3
        tensors[named(2, "q")] = tensors[named(2, "k")].clone()

    text = " ".join(concluded(tmp_path, capsys, shrink))
    assert "of K in layer 0 (" in text
    assert "Q and K of layer 2 make scores that are close to symmetric (1.00" in text


def test_the_conclusion_comes_before_the_table(tmp_path, capsys):
    file = checkpoint(tmp_path / "a.safetensors", llama())
    assert main(["analyse", file, "--heads", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("K and V are about as different")
    assert out.index("no bound used here") < out.index("CKA")


def test_a_multi_query_matrix_is_split_as_its_config_says(tmp_path, capsys):
    rng = torch.Generator().manual_seed(0)
    query, key = torch.randn(32, 32, generator=rng), torch.randn(4, 32, generator=rng)
    fused = torch.cat([query, key, key])
    save_file({"h.0.attn.c_attn.weight": fused}, tmp_path / "model.safetensors")
    config = {"model_type": "gpt_bigcode", "n_head": 8, "multi_query": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = answered(capsys, str(tmp_path))
    assert heads_of(found) == {"q": 8, "k": 1, "v": 1}
    assert found["layers"][0]["kv_weight_residual"] == pytest.approx(0, abs=1e-9)


def test_a_matrix_that_has_q_k_and_v_head_by_head_is_refused(tmp_path, capsys):
    checkpoint(tmp_path / "model.safetensors", {"h.0.attn.c_attn.weight": (96, 32)})
    config = {"model_type": "gpt_bigcode", "n_head": 8, "multi_query": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["analyse", str(tmp_path)]) == 2
    assert "side by side" in capsys.readouterr().err


def test_each_layer_is_judged_by_its_own_sizes(tmp_path, capsys):
    wide, narrow = (llama(1, 4, 4, head_dim, 4 * head_dim) for head_dim in (16, 8))
    tensors = {name.replace("layers.0", "layers.1"): shape for name, shape in narrow.items()}
    file = checkpoint(tmp_path / "a.safetensors", wide | tensors)
    assert main(["analyse", file, "--heads", "4"]) == 0
    out = capsys.readouterr().out
    assert "In layer 0: Heads: 4 of Q, 4 of K, 4 of V; head_dim 16, d_model 64." in out
    assert "In layer 1: Heads: 4 of Q, 4 of K, 4 of V; head_dim 8, d_model 32." in out
    # A full rank of 32 is half of the wide layer's, but low in no layer.
    assert "effective rank is at most half" not in out


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8])
def test_integers_are_refused_as_quantized(tmp_path, capsys, kind):
    path = tmp_path / "a.safetensors"
    save_file({f"a.{role}_proj.weight": torch.ones(512, 1, dtype=kind) for role in "qkv"}, path)
    assert main(["analyse", str(path), "--heads", "2"]) == 2
    assert "has integers" in capsys.readouterr().err


@pytest.mark.parametrize(("head_dim", "d_model"), [(64, 64), (8, 64), (1, 5), (48, 24)])
def test_the_residual_by_chance_is_that_of_random_matrices(head_dim, d_model):
    rng = np.random.default_rng(7)
    draws = [rng.standard_normal((2, d_model, head_dim)) for _ in range(200)]
    mean = np.mean([rotation_residual(*each) for each in draws])
    assert random_residual(head_dim, d_model) == pytest.approx(mean, abs=0.03)


def test_the_residual_by_chance_depends_on_the_proportion_alone():
    assert random_residual(64, 256) == pytest.approx(random_residual(4096, 16384), abs=0.01)


def test_a_matrix_of_zeros_is_said_to_be_the_reason(tmp_path, capsys):
    def clear(tensors):
        for layer in range(3):
            tensors[named(layer, "v")] = torch.zeros(32, 32)

    first, *_ = concluded(tmp_path, capsys, clear)
    assert first == (
        "K and V cannot be compared: in no layer do both have a matrix of one shape that is not "
        "zero."
    )


def test_k_and_v_of_cross_attention_are_compared_though_q_has_another_input(tmp_path, capsys):
    crossed = {f"d.0.cross.{role}_proj.weight": (32, 32 if role == "q" else 48) for role in "qkv"}
    own = {f"d.0.own.{role}_proj.weight": (32, 32) for role in "qkv"}
    file = checkpoint(tmp_path / "a.safetensors", crossed | own)
    found = answered(capsys, file, "--heads", "4")
    cross, own = found["layers"]
    assert cross["kv_weight_residual"] > 0.5
    assert cross["qk_weight_symmetry"] is None
    assert own["qk_weight_symmetry"] is not None
    assert any("widths (32 and 48), as in cross-attention" in said for said in found["conclusions"])


def test_a_layer_that_the_heads_do_not_fit_is_left_out_with_the_reason(tmp_path, capsys):
    other = {f"vision.{role}_proj.weight": (30, 30) for role in "qkv"}
    found = answered(capsys, checkpoint(tmp_path / "a", llama() | other), "--heads", "4")
    assert len(found["layers"]) == 2
    left = "Left out: layer vision. The 30 rows of vision.q_proj.weight cannot be divided"
    assert any(said.startswith(left) for said in found["conclusions"])
