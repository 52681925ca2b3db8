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
from qkvbench.hub.fit.latency import Steps
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


@pytest.fixture
def words(place):
    words = ["prune", str(place / "model"), "--options", "q,k=v", "--window", "64"]
    words += ["--text", str(place / "text.txt"), "--tokens", "512", "--held-out-tokens", "256"]
    return [*words, "--out", str(place / "out")]


class StoppedError(Exception):
    """The process that learns a plan has ended here."""


def test_a_search_goes_on_where_it_was_stopped(words, place, monkeypatch, capsys):
    words = [*words, "--target", "cache=75%", "--steps", "40"]
    measured, steps = [], []
    option, update = learned.Trial.option, learned.LayerGates.update

    def stop_in_the_damages(trial, layer, change):
        if len(measured) == 2:
            raise StoppedError
        measured.append(layer)
        return option(trial, layer, change)

    def stop_in_the_gates(gates):
        update(gates)
        steps.append(len(steps))
        if len(steps) == 38:
            raise StoppedError

    monkeypatch.setattr(learned.Trial, "option", stop_in_the_damages)
    with pytest.raises(StoppedError):
        main(words)
    measured.append(None)
    monkeypatch.setattr(learned.LayerGates, "update", stop_in_the_gates)
    with pytest.raises(StoppedError):
        main(words)
    # Layers 0 and 1 are not measured again, and gates go on behind the last state that was saved.
    assert measured == [0, 1, None, 2, 3]
    assert main(words) == 0
    assert len(steps) == 38 + 40 - 32
    assert measured == [0, 1, None, 2, 3]
    resumed = json.loads((place / "out" / "plan.json").read_text())
    words[words.index(str(place / "out"))] = str(place / "whole")
    monkeypatch.setattr(learned.Trial, "option", option)
    monkeypatch.setattr(learned.LayerGates, "update", update)
    assert main(words) == 0
    assert json.loads((place / "whole" / "plan.json").read_text()) == resumed
    capsys.readouterr()


def _parameters(mode):
    """The parameters of the planted model with these equations; a tie drops W_V."""
    settings = SETTINGS["llama"] | {"num_key_value_heads": 2, "num_hidden_layers": LAYERS}
    config = transformers.LlamaConfig(**settings | {"vocab_size": 256})
    model = transformers.AutoModelForCausalLM.from_config(config)
    dropped = model.model.layers[0].self_attn.v_proj.weight.numel()
    whole = sum(each.numel() for each in model.parameters())
    return whole, (whole - dropped * mode.count("q,k=v")) / whole


def test_a_target_may_count_parameters_or_multiply_accumulates(words, place, capsys):
    whole, two = _parameters(["q,k=v"] * 2)
    assert main([*words, "--target", f"params={100 * two + 0.01:.2f}%", "--steps", "40"]) == 0
    found = json.loads((place / "out" / "plan.json").read_text())
    assert {layer for layer, each in enumerate(found["mode"]) if each == "q,k=v"} == set(FREE)
    assert found["share"] == pytest.approx(_parameters(found["mode"])[1])
    assert "of the parameters; it agrees" in capsys.readouterr().out
    # Of one token, multiply-accumulates are the matrices' numbers, and a score and a sum a layer.
    assert main([*words, "--target", "macs=99.9%@1", "--steps", "2"]) == 0
    found = json.loads((place / "out" / "plan.json").read_text())
    config = json.loads((place / "model" / "config.json").read_text())
    width = config["num_attention_heads"] * config["head_dim"]
    norms, table = (2 * LAYERS + 1) * config["hidden_size"], 256 * config["hidden_size"]
    macs = whole - norms - table + 2 * LAYERS * width
    dropped = whole * (1 - two) / 2
    changed = found["mode"].count("q,k=v")
    assert changed == 1
    assert found["share"] == pytest.approx(1 - changed * dropped / macs)
    assert found["target"] == "macs=99.9%@1"


def test_a_target_of_loss_finds_the_smallest_cache_that_loses_no_more(
    words, place, monkeypatch, capsys
):
    # Of what a model wrote itself, no other one has less loss.
    torch.manual_seed(3)
    model = source.find(str(place / "model")).model()
    written = model.generate(
        torch.randint(256, (240, 1)), do_sample=True, min_new_tokens=63, max_new_tokens=63, top_k=0
    )
    monkeypatch.setattr(learned.quality, "windows", lambda *_: written)
    words = [*words, "--held-out-tokens", "4096", "--steps", "40", "--target"]
    assert main([*words, "loss=0.01%"]) == 0
    # Two layers lose nothing, and each of the others does.
    found = json.loads((place / "out" / "plan.json").read_text())
    assert found["target"] == "cache=75%"
    assert {layer for layer, each in enumerate(found["mode"]) if each == "q,k=v"} == set(FREE)
    growths = {each["share"]: each["growth"] for each in found["tried"]}
    assert abs(growths[0.75]) < 1e-5
    assert growths[0.625] > 1e-4
    assert "cache=75% is the cheapest of" in capsys.readouterr().out
    assert main([*words, "loss=0.01%:params"]) == 0
    assert json.loads((place / "out" / "plan.json").read_text())["mode"] == found["mode"]


def test_a_latency_that_no_equation_saves_is_refused_with_the_times(
    words, place, monkeypatch, capsys
):
    measured = []

    def steps(model, equations, tokenizer, text, target, progress):
        measured.append(target.tokens)
        return Steps(target.tokens, (1.0,) * 8, {"q,k=v": (taken,) * 8})

    monkeypatch.setattr(learned, "steps_of", steps)
    taken = 1.5
    words = [*words, "--steps", "2", "--target"]
    assert main([*words, "latency=90%@200"]) == 2
    assert "no equation makes a step faster. After 200 tokens" in capsys.readouterr().err
    taken = 0.8
    assert main([*words, "latency=90%@100"]) == 0
    # The times that were measured first count, so the plan stays the same.
    taken = 0.9
    assert main([*words, "latency=90%@100"]) == 0
    assert measured == [200, 100]
    found = json.loads((place / "out" / "plan.json").read_text())
    assert found["mode"].count("q,k=v") == 2
    assert found["share"] == pytest.approx(0.9)


def test_layers_have_the_weights_of_the_start_that_is_asked_for(words, place, capsys):
    """Layers whose V is K lose nothing by keep-k, and by any other start; the others differ."""
    damages = {}
    words = [*words, "--target", "cache=75%", "--steps", "2"]
    for start in ("keep-k", "keep-v", "refitted:int8"):
        words[words.index("--out") + 1] = str(place / start.replace(":", "-"))
        assert main([*words, "--start", start]) == 0
        said = capsys.readouterr().out
        assert f"--start {start} " in said.splitlines()[-1]
        found = json.loads((place / start.replace(":", "-") / "plan.json").read_text())
        assert found["start"] == start
        damages[start] = [
            each["divergence"] for each in found["options"] if each["equation"] == "q,k=v"
        ]
    for each in damages.values():
        assert [each[layer] for layer in FREE] == pytest.approx([0, 0], abs=1e-3)
    assert damages["refitted:int8"][0] < damages["keep-v"][0] != damages["keep-k"][0]


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
        (["--target", "params=20%", *text, "--window", "64"], "The nearest target is params=9"),
        (["--target", "cache=75%", "--layers", "3", *text], "--layers: for the model of a task"),
        (["--target", "cache=40%", "--options", "q,k=v", *text, "--window", "64"], "50%"),
        (["--target", "cache=75%", *text, "--window", "32"], "write --window 64, or more"),
        (["--target", "cache=75%", *text, "--start", "keepk"], "Did you mean keep-k?"),
    ):
        assert main([*words, *more]) == 2
        assert why in capsys.readouterr().err
    for own in (["--steps", "9"], ["--start", "keep-k"]):
        assert main(["prune", "sort", "--target", "params=80%", *own, "--out", "o"]) == 2
        assert "add --text FILE" in capsys.readouterr().err
