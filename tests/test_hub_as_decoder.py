"""`qkvbench cost` of a pretrained decoder: its sizes are those of the library's model."""

import json

import pytest

from qkv_mode_models import model_of, tie
from qkvbench import cost, hub
from qkvbench.cli import main
from qkvbench.hub.as_decoder import DECODERS, decoder_of

# Layers whose biases or second norm are not those of the family's usual one; OPT's table of
# positions begins with two rows that no token has.
NEARLY = {"qwen2", "gpt_neox", "phi", "opt"}


@pytest.fixture(name="saved")
def _saved(tmp_path):
    """A function that saves a model, and gives the folder as text."""

    def save(model):
        model.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


def costs(capsys, *words):
    assert main(["cost", *words, "--json"]) == 0
    return {row["variant"]: row for row in json.loads(capsys.readouterr().out)["costs"]}


@pytest.mark.parametrize("kind", DECODERS)
def test_the_weights_are_as_many_as_those_of_the_library(kind, saved):
    model = model_of(kind)
    library = sum(weights.numel() for weights in model.parameters())
    found = cost.parameters(decoder_of(saved(model))).total
    assert found == pytest.approx(library, rel=0.01 if kind in NEARLY else 0)


def test_the_checkpoint_as_it_is_comes_first_and_a_tie_holds_half_of_its_cache(saved, capsys):
    folder = saved(model_of("llama", num_key_value_heads=2))
    words = [folder, "--hardware", "h100", "--context", "1000000", "--variants"]
    rows = costs(capsys, *words, "q,k=v", "q,k,v")
    assert list(rows) == ["q,k,v", "q,k=v"]
    # Two heads of twelve numbers, in two layers, of K and of V.
    cached = 1_000_000 * 2 * 2 * 2 * 12 * 2
    assert rows["q,k,v"]["held_bytes"] == pytest.approx(cached, rel=1e-3)
    assert rows["q,k=v"]["held_bytes"] == pytest.approx(cached / 2, rel=1e-3)


def test_a_converted_checkpoint_is_compared_with_itself(saved, capsys):
    folder = saved(hub.convert(tie(model_of("llama"), "q,k=v"), "q,k=v"))
    assert list(costs(capsys, folder, "--hardware", "h100")) == [
        *("q,k=v", "q,k,v", "q,k,v/1", "q,k=v/1"),
    ]


def test_layers_of_several_kinds_are_the_checkpoint_as_it_is(saved, capsys):
    mode = ["q,k=v", "q,k,v"]
    folder = saved(hub.convert(tie(model_of("llama"), mode), mode))
    rows = costs(capsys, folder, "--hardware", "h100", "--variants", "q,k,v")
    assert list(rows) == ["as it is", "q,k,v"]
    assert rows["as it is"]["held_bytes"] < rows["q,k,v"]["held_bytes"]


def test_each_variant_has_the_windows_of_the_checkpoint(saved, capsys):
    """A window of five tokens holds five, however long the text is."""
    folder = saved(model_of("mistral"))
    words = [folder, "--hardware", "h100", "--variants", "q,k=v", "--context"]
    short, long = (costs(capsys, *words, length) for length in ("50", "50000"))
    assert list(short) == ["q,k,v+window5", "q,k=v"]
    for name in short:
        assert short[name]["held_bytes"] == long[name]["held_bytes"]
    assert "none" in costs(capsys, folder, "--hardware", "h100", "--variants", "none")


def test_embeddings_of_another_width_are_refused(saved, capsys):
    folder = saved(model_of("opt", word_embed_proj_dim=24))
    assert main(["cost", folder]) == 2
    assert "embeddings of 24 numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("bert", [], "is a model of the type bert; costs are computed of decoders"),
        ("llama", ["--position", "rotary"], "has its own"),
        ("gpt2", ["--context", "40"], "a decode step reads one more"),
        ("opt", ["--context", "40"], "write --context 39 or less"),
        ("llama", ["--variants", "q,k,v/3"], "3"),
    ],
)
def test_what_has_no_answer_is_refused(kind, words, said, saved, capsys):
    assert main(["cost", saved(model_of(kind)), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_narrow_terminal_leaves_out_the_training_step(saved, capsys, monkeypatch):
    folder = saved(model_of("llama"))
    tables = {}
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["cost", folder, "--hardware", "h100"]) == 0
        tables[columns] = capsys.readouterr().out
    assert max(map(len, tables[80].splitlines())) <= 80
    assert "training ≥" in tables[120]
    assert "training ≥" not in tables[80]
    assert "longest" in tables[80]
