"""Learned plans of pretrained models: gates over layers and their fitted changes."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from qkv_mode_models import SETTINGS
from qkvbench.cli import main
from qkvbench.cost.budget import Budget
from qkvbench.hub.fit import learned, source
from qkvbench.hub.fit.projections import layers_of
from qkvbench.variant import CANONICAL, parse

LAYERS = 4
# Layers of the planted model in which V is K already.
FREE = (1, 2)


@pytest.fixture
def place(tmp_path):
    """A folder with a small Llama whose layers `FREE` lose nothing by a tie, and a text."""
    tokenizer = Tokenizer(
        models.BPE({mark: n for n, mark in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    settings = SETTINGS["llama"] | {"num_key_value_heads": 2, "num_hidden_layers": LAYERS}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**settings | {"vocab_size": 256, "initializer_range": 0.3})
    )
    for layer in (layers := layers_of(model)):
        weights = layer.read()
        layer.write(weights.replaced(v=weights.k) if layer.number in FREE else weights)
    assert len(layers) == LAYERS
    model.save_pretrained(tmp_path / "model")
    wrapped.save_pretrained(tmp_path / "model")
    letters = torch.randint(97, 123, (12000,), generator=torch.Generator().manual_seed(1))
    (tmp_path / "text.txt").write_text("".join(map(chr, letters.tolist())))
    return tmp_path


def _tied(model):
    """The layers, and weights of each with K in the place of V."""
    layers = layers_of(model)
    return layers, [[layer.read().replaced(v=layer.read().k)] for layer in layers]


def test_side_by_side_is_the_layer_with_each_weights_in_turn_and_then_as_before(place):
    model = source.find(str(place / "model")).model()
    tokens = torch.arange(20).view(2, 10)
    layers, fits = _tied(model)
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        expected = {}
        for number in (0, 3):
            own = layers[number].read()
            layers[number].write(fits[number][0])
            expected[number] = model(input_ids=tokens).logits
            layers[number].write(own)
        with learned.side_by_side(layers, fits) as options:
            torch.testing.assert_close(model(input_ids=tokens).logits, before)
            for number, wanted in expected.items():
                options[number].taken = 1
                torch.testing.assert_close(model(input_ids=tokens).logits, wanted)
                options[number].taken = 0
                # One sequence by each option.
                options[number].gates = torch.eye(2)
                mixed = model(input_ids=tokens).logits
                torch.testing.assert_close(mixed, torch.stack([before[0], wanted[1]]))
                options[number].gates = None
        assert (expected[0] - before).abs().max() > 0.1
        torch.testing.assert_close(model(input_ids=tokens).logits, before)


def test_gates_of_a_pretrained_model_tie_the_layers_that_lose_nothing(place):
    model = source.find(str(place / "model")).model()
    layers, fits = _tied(model)
    found = Budget((CANONICAL, parse("q,k=v")), ((0.0, -1.0),) * LAYERS, 8.0, 6.0)
    text = torch.randint(256, (8, 64), generator=torch.Generator().manual_seed(2))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with learned.side_by_side(layers, fits) as options:
        chosen, history = learned.learn_gates(model, options, found, text, 40, 0, lambda line: None)
    assert {layer for layer, taken in enumerate(chosen) if taken} == set(FREE)
    assert [step for step, _ in history] == [0, 10, 20, 30, 40]
    for name, each in model.state_dict().items():
        torch.testing.assert_close(each, before[name], rtol=0, atol=0)


@pytest.mark.slow
def test_the_command_writes_a_plan_that_convert_reads_and_compares_it_healed(place, capsys):
    words = ["prune", str(place / "model"), "--target", "cache=75%", "--options", "q,k=v"]
    words += ["--text", str(place / "text.txt"), "--window", "64", "--steps", "30"]
    assert main([*words, "--heal", "blocks=512", "--out", str(place / "out")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("cache=75%: the learned plan has 75.0% of the cache; ")
    found = json.loads((place / "out" / "plan.json").read_text())
    assert found["mode"].count("q,k=v") == 2
    assert set(found["plans"]) == {"learned", "integer program", "evenly spaced"}
    for each in found["plans"].values():
        assert each["mode"].count("q,k=v") == 2
        # What decides in healing keeps the start if nothing is better.
        assert each["after"]["divergence"] <= each["before"]["divergence"] + 0.05
    capsys.readouterr()
    convert = ["convert", str(place / "model"), "--layers", str(place / "out" / "plan.json")]
    convert += ["--text", str(place / "text.txt"), "--window", "64"]
    assert main([*convert, "--out", str(place / "smaller")]) == 0


def test_what_a_pretrained_model_cannot_be_planned_for_is_refused_before_it_is_read(place, capsys):
    words = ["prune", str(place / "model"), "--out", str(place / "out")]
    text = ["--text", str(place / "text.txt")]
    for more, why in (
        (["--target", "cache=75%"], "add --text FILE"),
        (["--target", "loss=1%", *text], "planned for its cache"),
        (["--target", "params=80%", *text], "planned for its cache"),
        (["--target", "cache=75%", "--layers", "3", *text], "--layers: for the model of a task"),
        (["--target", "cache=40%", "--options", "q,k=v", *text, "--window", "64"], "50%"),
    ):
        assert main([*words, *more]) == 2
        assert why in capsys.readouterr().err
    assert main(["prune", "sort", "--target", "params=80%", "--steps", "9", "--out", "o"]) == 2
    assert "add --text FILE" in capsys.readouterr().err
