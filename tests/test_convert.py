import json
import math
import re
import shlex
import shutil
import time

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qkv_mode_models import SETTINGS, VOCABULARY, model_of
from qkvbench import hub
from qkvbench.cli import main
from qkvbench.data.reviews import reviews
from qkvbench.hub.fit import folder, moments, planning, progress, quality, source
from qkvbench.hub.fit.attentions import attentions
from qkvbench.hub.fit.counting import counting
from qkvbench.hub.fit.healing import Healer, Healing, Lessons, heal, parse_healing
from qkvbench.hub.fit.latency import Steps
from qkvbench.hub.fit.moments import collect
from qkvbench.hub.fit.planning import Option
from qkvbench.hub.fit.projections import layers_of
from qkvbench.hub.fit.shards import Tensors
from qkvbench.hub.fit.tying import tie as fit
from qkvbench.model import Target
from qkvbench.variant import parse

WORDS = "the river runs over stones while a heron waits beside some reeds under grey morning skies"
LAYERS = 3


def _text(sentences, seed):
    rng = torch.Generator().manual_seed(seed)
    words = WORDS.split()
    order = torch.randint(len(words), (sentences, 9), generator=rng)
    return "\n".join(" ".join(words[n] for n in row) + "." for row in order)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small Llama, trained a little on a text, and two texts."""
    place = tmp_path_factory.mktemp("road")
    (place / "text.txt").write_text(_text(600, 0))
    (place / "other.txt").write_text(_text(100, 1))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([_text(200, 2)], trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    settings = SETTINGS["llama"] | {"num_key_value_heads": 2, "num_hidden_layers": LAYERS}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        # The last is in configs that come from GGUF files.
        transformers.LlamaConfig(**settings | {"vocab_size": 320, "unk_token_id": 0})
    )
    windows = quality.windows(wrapped, _text(300, 3), 32, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        model(input_ids=windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(place / "model")
    wrapped.save_pretrained(place / "model")
    return place


SMALL = ["--window", "32", "--tokens", "512", "--held-out-tokens", "128"]


@pytest.fixture
def words(place, tmp_path):
    text = ["--text", str(place / "text.txt"), "--held-out", str(place / "other.txt")]
    return ["convert", str(place / "model"), "--out", str(tmp_path / "new"), *text, *SMALL]


def test_a_budget_of_parameters_counts_those_of_the_whole_model(place, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    text = ["--text", str(place / "text.txt"), "--out", str(plan), "--pairs", "1"]
    assert main(["advise", str(place / "model"), "--params", "97%", *text, *SMALL]) == 0
    found = json.loads(plan.read_text())
    assert found["target"]["quantity"] == "params"
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "model")
    whole = sum(parameter.numel() for parameter in model.parameters())
    changed = sum(equation == "q,k=v" for equation in found["mode"])
    # Each change drops W_V, of 2 heads of 12 numbers over 48.
    assert found["share"] == pytest.approx(1 - changed * 24 * 48 / whole)
    assert found["share"] <= 0.97 < found["share"] + 24 * 48 / whole
    assert "of the parameters costs" in capsys.readouterr().out


def test_a_budget_of_latency_says_first_that_nothing_is_to_be_gained(place, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    text = ["--text", str(place / "text.txt"), "--out", str(plan)]
    # K is made again from the latent at every step, for every past token.
    words = ["advise", str(place / "model"), *text, *SMALL, "--options", "q,k=L(48),v=L(48)"]
    assert main([*words, "--latency", "90%@600"]) == 0
    answer = capsys.readouterr().out
    assert answer.startswith("Nothing is to be gained: no equation makes a step faster. After 600")
    assert not plan.exists()
    assert main([*words, "--latency", "90%"]) == 2
    assert "write 90%@2048" in capsys.readouterr().err


def test_a_plan_for_a_latency_changes_as_many_layers_as_save_the_time():
    steps = Steps(100, (3.0,) * 8, {"q,k=v": (2.4,) * 8, "q,k=v/1": (3.3,) * 8})
    assert steps.is_faster("q,k=v")
    assert not steps.is_faster("q,k=v/1")
    target = Target("latency", 0.9, 100)
    layers = layers_of(model_of("llama", num_hidden_layers=3))
    counted = counting(None, layers, target, steps).of_layer
    variants = [planning.check_change(layers[0], parse(text)) for text in ("q,k=v", "q,k=v/1")]
    times = [counted(layers[0], each) for each in (None, *variants)]
    assert times == [10**9, 8 * 10**8, 11 * 10**8]


def test_a_converted_folder_is_a_normal_one_with_its_numbers(words, place, tmp_path, capsys):
    assert main([*words, "--to", "q,k=v"]) == 0
    assert "held-out perplexity" in capsys.readouterr().out
    new = tmp_path / "new"
    card, measured = (
        (new / "README.md").read_text(),
        json.loads((new / "measured.json").read_text()),
    )
    assert "`q,k=v`" in card
    assert "qkvbench " in card
    assert measured["mode"] == "q,k=v"
    assert measured["after"]["losses"] == measured["tied"]["losses"]
    hub.register()
    model = transformers.AutoModelForCausalLM.from_pretrained(new)
    tokenizer = transformers.AutoTokenizer.from_pretrained(new)
    held = quality.windows(tokenizer, (place / "other.txt").read_text(), 32, 4)
    assert quality.losses(model.eval(), held) == pytest.approx(measured["after"]["losses"])
    generator = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    written = generator("the river", max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    assert written[0]["generated_text"].startswith("the river")
    cache = {when: measured[when]["decoding"]["cache_bytes"] for when in ("before", "after")}
    # A root of 24 numbers and the position of each token, for K and V of 24 numbers each.
    assert cache["after"] / cache["before"] == pytest.approx((24 + 1) / 48)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("memory", ["1GB", "100kB"])
def test_what_is_fitted_for_few_bits_is_measured_with_them(words, place, tmp_path, capsys, memory):
    fitted = ["--to", "q,k=v", "--start", "refitted:int8", "--memory", memory]
    assert main([*words, *fitted]) == 0
    assert "held-out perplexity, in int8" in capsys.readouterr().out
    new = tmp_path / "new"
    card, measured = (
        (new / "README.md").read_text(),
        json.loads((new / "measured.json").read_text()),
    )
    assert 'FewBitsCache(model, "int8")' in card
    hub.register()
    model = transformers.AutoModelForCausalLM.from_pretrained(new).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(new)
    held = quality.windows(tokenizer, (place / "other.txt").read_text(), 32, 4)
    whole, stored = measured["after"], measured["after"]["stored"]
    found = quality.losses(model, held, lambda: hub.FewBitsCache(model, "int8"))
    assert found == pytest.approx(stored["losses"])
    assert quality.losses(model, held) == pytest.approx(whole["losses"])
    assert found != whole["losses"]
    # Heads of 12 numbers: 12 bytes and a scale of 4, and the position of each token.
    bytes_of = [each["decoding"]["cache_bytes"] for each in (whole, stored)]
    assert bytes_of[1] / bytes_of[0] == pytest.approx((2 * 16 + 4) / (2 * 48 + 4))


@pytest.mark.slow
# datasets opens a file that it does not close.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_the_harness_loads_a_converted_folder_and_scores_it_as_its_own_logits_say(words, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    assert main([*words, "--to", "q,k=L(24),v=L(24)"]) == 0
    new = tmp_path / "new"
    tokenizer = transformers.AutoTokenizer.from_pretrained(new)
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(new)
    documents = [
        {"text": text, "choices": [" river", " heron"], "answer": place % 2}
        for place, text in enumerate(["the", "over the grey", "reeds beside some", "morning skies"])
    ]
    file = tmp_path / "local.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": "local_words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    scores = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(new), "dtype": "float32", "trust_remote_code": True},
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    hub.register()
    model = transformers.AutoModelForCausalLM.from_pretrained(new).eval()

    def log_likelihood(text, choice):
        before, whole = (
            tokenizer(each, return_tensors="pt").input_ids for each in (text, text + choice)
        )
        with torch.no_grad():
            log_p = model(whole).logits.log_softmax(-1)[0, before.shape[1] - 1 : -1]
        return float(log_p.gather(1, whole[0, before.shape[1] :, None]).sum())

    for sample in scores["samples"]["local_words"]:
        document = sample["doc"]
        expected = [log_likelihood(document["text"], choice) for choice in document["choices"]]
        found = [answer[0][0] for answer in sample["resps"]]
        assert found == pytest.approx(expected, abs=1e-4)
    assert len(scores["samples"]["local_words"]) == len(documents)


def test_a_long_stage_says_how_many_parts_are_done_and_how_long_the_others_take(monkeypatch):
    lines = []
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    for _ in progress.counted(range(4), "windows", lines.append):
        time.sleep(0.001)
    assert len(lines) == 3
    for count, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"windows: {count} of 4, about \S+ s left", line)
    monkeypatch.setattr(progress, "EVERY_S", 60.0)
    assert list(progress.counted(range(4), "windows", lines.append)) == [0, 1, 2, 3]
    assert len(lines) == 3


def test_advice_becomes_a_plan_that_convert_follows(words, place, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    text = ["--text", str(place / "text.txt"), "--out", str(plan), "--pairs", "1"]
    assert main(["advise", str(place / "model"), "--cache", "70%", *text, *SMALL]) == 0
    answer = capsys.readouterr().out.splitlines()
    assert answer[0].startswith("67% of the cache costs")
    found = json.loads(plan.read_text())
    assert sorted(found["mode"]) == ["q,k,v", "q,k=v", "q,k=v"]
    least = sorted(o["divergence"] for o in found["options"] if o["equation"] == "q,k=v")
    assert found["effect"]["predicted"] == pytest.approx(sum(least[:2]))
    assert set(found["rivals"]) == {"uniform", "first", "last", "random"}
    assert main([*words, "--layers", str(plan)]) == 0
    settings = json.loads((tmp_path / "new" / "config.json").read_text())
    assert settings["qkv_mode"] == found["mode"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--to", "q=k,v"], "cannot be fitted"),
        (["--to", "q,k=v/3"], "cannot be merged into 3"),
        (["--to", "q,k=v", "--start", "whitend"], "Did you mean whitened"),
        (["--to", "q,k=v", "--layers", "0-7"], "layers from 0 to 2"),
        (["--to", "q,k=v", "--heal", "token=3"], "is not a setting of healing"),
        (["--to", "q,k,v", "--heal", "tokens=64"], "there is nothing to heal"),
        (["--to", "q,k,v+qknorm"], "has other norms of heads than the checkpoint"),
        (["--to", "q,k=v+qkvnorm"], "has other norms of heads than the checkpoint"),
        ([], "Write --to EQUATION"),
    ],
)
def test_a_wrong_conversion_says_what_to_write_and_writes_nothing(
    words, tmp_path, capsys, more, reason
):
    assert main([*words, *more]) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert len(message.splitlines()) <= 6
    assert not list(tmp_path.iterdir())


def test_a_text_of_one_window_cannot_heal_since_none_is_left_to_decide_by(
    words, place, tmp_path, capsys
):
    short = tmp_path / "short.txt"
    short.write_text((place / "text.txt").read_text()[:200])
    words[words.index("--text") + 1] = str(short)
    assert main([*words, "--to", "q,k=v", "--heal", "blocks=9"]) == 2
    said = capsys.readouterr().err
    assert "one window of 32 tokens" in said
    assert "measuring" not in said


def test_a_setting_that_would_be_ignored_is_refused_before_anything_is_measured(
    words, place, tmp_path, capsys
):
    shutil.copytree(place / "model", tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"warp_factor": 9}))
    words[1] = str(tmp_path / "odd")
    assert main([*words, "--to", "q,k=v"]) == 2
    said = capsys.readouterr().err
    assert "warp_factor=9" in said
    assert "measuring" not in said


def test_a_folder_that_is_there_is_kept_unless_it_is_forced(words, tmp_path, capsys):
    assert main([*words, "--to", "q,k=v/1", "--start", "keep-k"]) == 0
    old = (tmp_path / "new" / "config.json").read_text()
    assert main([*words, "--to", "q,k=v"]) == 2
    assert "is kept" in capsys.readouterr().err
    assert (tmp_path / "new" / "config.json").read_text() == old
    assert main([*words, "--to", "q,k=v", "--force"]) == 0
    assert (tmp_path / "new" / "config.json").read_text() != old
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no model's folder"):
        folder.check_place(tmp_path / "mine", 0, force=True)
    with pytest.raises(ValueError, match="are needed"):
        folder.check_place(tmp_path / "large", 2**62, force=False)


def test_an_interrupted_conversion_leaves_nothing_that_looks_finished(tmp_path):
    def write():
        with folder.replacement(tmp_path / "new") as making:
            (making / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


def test_a_folder_is_made_by_one_process_and_one_that_appears_meanwhile_is_kept(tmp_path):
    out = tmp_path / "new"
    with folder.replacement(out) as making:
        (making / "config.json").write_text("first")
        with (
            pytest.raises(ValueError, match="Another process is making"),
            folder.replacement(out),
        ):
            pytest.fail("two processes wrote one folder")
    assert (out / "config.json").read_text() == "first"

    def write(text, *, force):
        with folder.replacement(out, force=force) as making:
            (making / "config.json").write_text(text)

    with pytest.raises(ValueError, match=r"is kept.\nThe model is in .*new-2\."):
        write("second", force=False)
    assert (out / "config.json").read_text() == "first"
    assert (tmp_path / "new-2" / "config.json").read_text() == "second"
    write("third", force=True)
    assert (out / "config.json").read_text() == "third"
    assert {each.name for each in tmp_path.iterdir()} == {"new", "new-2"}


@pytest.mark.parametrize(
    ("tied", "start", "note"),
    [
        (False, "keep-k", "Changed with the start keep-k, which reads no text."),
        (False, "whitened", "Fitted to 512 tokens with the start whitened."),
        (True, "whitened", "The weights satisfied the tie"),
    ],
)
def test_the_card_says_how_the_weights_were_made(words, place, tmp_path, tied, start, note):
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "model")
    if tied:
        for layer in layers_of(model):
            weights = layer.read()
            layer.write(weights.replaced(v=weights.k))
    shutil.copytree(place / "model", tmp_path / "old")
    model.save_pretrained(tmp_path / "old")
    words[1] = str(tmp_path / "old")
    assert main([*words, "--to", "q,k=v", "--start", start]) == 0
    assert f"- {note}" in (tmp_path / "new" / "README.md").read_text()


def test_an_encoder_is_not_advised_on_though_it_predicts_tokens(place, tmp_path, capsys):
    model_of("bert").save_pretrained(tmp_path / "bert")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(place / "model" / file, tmp_path / "bert" / file)
    words = ["--text", str(place / "text.txt"), "--window", "32"]
    for command in (
        ["advise", str(tmp_path / "bert"), "--cache", "75%", "--out", str(tmp_path / "p.json")],
        ["prune", str(tmp_path / "bert"), "--target", "cache=75%", "--out", str(tmp_path / "p")],
    ):
        more = ["--window", "64"] if command[0] == "prune" else []
        # BERT has a table of 40 positions here.
        assert main([*command, *words, *more]) == 2
        said = capsys.readouterr().err
        assert ("40 positions" if more else "predicts no next token") in said


def test_a_budget_that_cannot_be_reached_is_refused_before_the_text_is_read(
    place, tmp_path, capsys
):
    words = ["--text", str(place / "text.txt"), "--out", str(tmp_path / "p.json"), *SMALL]
    assert main(["advise", str(place / "model"), "--params", "30%", *words]) == 2
    said = capsys.readouterr().err
    assert "The nearest target is params=9" in said
    assert "reading" not in said


def test_the_next_command_fits_as_the_plan_was_fitted(place, tmp_path, capsys):
    text = tmp_path / "my text.txt"
    shutil.copyfile(place / "text.txt", text)
    words = ["--text", str(text), "--out", str(tmp_path / "p.json"), *SMALL, "--pairs", "1"]
    assert (
        main(["advise", str(place / "model"), "--cache", "75%", "--start", "keep-v", *words]) == 0
    )
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["qkvbench", "convert"]
    assert command[-4:] == ["--window", "32", "--out", "DIR"]
    assert {str(text), "keep-v"} < {*command}


def test_layers_are_as_before_when_a_measurement_is_interrupted(place):
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "model").eval()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    allowed = planning.options_of(model, ["q,k=v"])
    text = torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(0))
    fitted = {
        (layer.number, "q,k=v"): layer.read().replaced(v=layer.read().k)
        for layer in layers_of(model)
    }
    trial = planning.Trial(model, text, attentions(model, fitted))
    trial._logits = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    plan = tuple(planning.Option(n, "q,k=v", 1) for n in range(LAYERS))
    for measure in (lambda: trial.option(1, allowed["q,k=v"]), lambda: trial.effect(plan)):
        with pytest.raises(KeyboardInterrupt):
            measure()
        after = model.state_dict()
        assert all(torch.equal(part, after[name]) for name, part in before.items())
        assert not any("forward" in vars(module) for module in model.modules())


DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gemma", "phi", "gpt_neox", "opt")


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        pytest.param(kind, rows, marks=[] if kind in ("llama", "gpt2") else pytest.mark.slow)
        for kind in DECODERS
        for rows in ("bf16", "int4")
    ],
)
def test_a_plan_is_judged_as_the_model_that_conversion_makes(kind, rows):
    equations = ["q,k=v", "q,k,v/2"]
    if SETTINGS[kind].get("rope_parameters") is None and kind in ("llama", "mistral"):
        equations.append("q,k=v+ropevalue")
    model = model_of(kind).eval()
    draw = torch.Generator().manual_seed(0)
    read, judged = (torch.randint(3, VOCABULARY, (3, 12), generator=draw) for _ in range(2))
    start = "refitted" if rows == "bf16" else f"refitted:{rows}"
    calibration = collect(model, [{"input_ids": read}])
    allowed = planning.options_of(model, equations)
    fitted = planning.every_fit(model, allowed, calibration, start)
    trial = planning.Trial(model, judged, attentions(model, fitted, rows))
    as_they_are = trial.unchanged(0), trial.unchanged(1)
    options = [trial.option(1, change) for change in allowed.values()]
    plans = [(as_they_are[0], one) for one in options] + [as_they_are]
    with torch.no_grad():
        whole = model(input_ids=judged).logits[:, :-1].log_softmax(-1)
        for plan in plans:
            source_model = model_of(kind).eval()
            made = fit(source_model, planning.mode_of(plan), calibration, start)
            found = quality.logits(made, judged, quality.cache_of(made, rows))[:, :-1]
            apart = (whole.exp() * (whole - found.log_softmax(-1))).sum(-1).mean()
            effect = trial.effect(plan)
            assert effect.divergence == pytest.approx(float(apart), rel=2e-3, abs=2e-7)
            assert effect.predicted == pytest.approx(effect.divergence, rel=2e-3, abs=2e-7)
    # A cache in few bits alone moves the predictions; whole rows do not.
    assert (trial.unchanged_effect.divergence > 0) == (rows == "int4")


def test_advice_for_rows_in_few_bits_says_what_they_cost_alone(place, tmp_path, capsys):
    text = ["--text", str(place / "text.txt"), "--out", str(tmp_path / "p.json"), "--pairs", "1"]
    words = ["advise", str(place / "model"), "--cache", "75%", *text, *SMALL]
    assert main([*words, "--start", "refitted:int4"]) == 0
    said = capsys.readouterr().out
    document = json.loads((tmp_path / "p.json").read_text())
    assert document["unchanged"]["divergence"] > 0
    assert f"The cache is in int4, which alone costs {document['unchanged']['loss']:+.3f}" in said
    assert main(words) == 0
    assert "The cache is in" not in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text())["unchanged"]["divergence"] == 0


def test_norms_that_a_checkpoint_lacks_are_refused_by_every_road():
    qwen, llama = model_of("qwen3").eval(), model_of("llama").eval()
    tokens = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = hub.convert(qwen, "q,k,v+qknorm")
        assert torch.equal(own(tokens).logits, hub.convert(qwen, "q,k,v")(tokens).logits)
    for model, norm in ((qwen, "+qkvnorm"), (qwen, "+qklatenorm"), (llama, "+qknorm")):
        with pytest.raises(ValueError, match="other norms of heads than the checkpoint"):
            hub.convert(model, f"q,k,v{norm}")
        with pytest.raises(ValueError, match="other norms of heads than the checkpoint"):
            planning.options_of(model, [f"q,k=v{norm}"])


def test_the_longest_window_of_a_table_of_positions_can_be_measured(place, tmp_path, capsys):
    model = model_of("gpt2", vocab_size=320, n_positions=64)
    model.save_pretrained(tmp_path / "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(place / "model" / name, tmp_path / "gpt2" / name)
    words = [str(tmp_path / "gpt2"), "--text", str(place / "text.txt"), "--window", "64"]
    small = ["--tokens", "256", "--held-out-tokens", "128"]
    to = ["--to", "q,k=v", "--out", str(tmp_path / "new")]
    assert main(["convert", *words, *small, *to]) == 0
    plan = ["--out", str(tmp_path / "plan.json"), "--latency", "90%@64"]
    assert main(["advise", *words, *small, *plan]) == 2
    assert "Write @46, or less." in capsys.readouterr().err


def test_recall_is_of_words_with_a_tokenizer_that_writes_blanks_as_its_own_sign():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([_text(200, 2), "a b c"], trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    found = quality._words(wrapped, len(wrapped), 8)
    names = wrapped.convert_ids_to_tokens(found)
    assert len(names) == 8
    assert all(re.fullmatch("▁[a-z]{4,8}", name) for name in names)
    # Never a token that the model has no embedding of.
    assert max(quality._words(wrapped, 60)) < 60


def test_a_tokenizer_of_another_model_is_named_in_a_sentence(words, place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "small")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    model.resize_token_embeddings(100)
    model.save_pretrained(tmp_path / "small")
    words[1] = str(tmp_path / "small")
    assert main([*words, "--to", "q,k=v"]) == 2
    assert "the model has embeddings of 100" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_named_by_their_layer(words, place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "nan")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "nan")
    model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = math.nan
    model.save_pretrained(tmp_path / "nan")
    words[1] = str(tmp_path / "nan")
    for more in (["--to", "q,k=v"], ["--to", "q,k=v", "--start", "keep-k"]):
        assert main([*words, *more]) == 2
        assert "Attention layer 1 has NaN" in capsys.readouterr().err


def test_a_text_of_few_windows_leaves_two_for_the_output_projection(words, place, tmp_path):
    short = tmp_path / "short.txt"
    at, held = words.index("--text") + 1, words.index("--held-out")
    del words[held : held + 2]
    words[at] = str(short)
    cards = {}
    for characters in (200, 400, 900):
        short.write_text((place / "text.txt").read_text()[:characters])
        assert main([*words, "--to", "q,k=v", "--force"]) == 0
        cards[characters] = (tmp_path / "new" / "README.md").read_text()
    assert "was not fitted again" in cards[200]
    assert "Not measured: the text has one window" in cards[200]
    assert "was not fitted again" not in cards[900]
    assert "Measured on" in cards[400]


def test_a_plan_that_changes_nothing_says_so(words, tmp_path, capsys):
    assert main([*words, "--to", "q,k,v/2"]) == 0
    assert re.search(r"layers changed +none", capsys.readouterr().out)


def test_a_place_below_a_file_is_refused_before_anything_is_measured(words, place, capsys):
    words[words.index("--out") + 1] = str(place / "text.txt" / "new")
    assert main([*words, "--to", "q,k=v"]) == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "measuring" not in said


def test_a_matrix_of_two_names_is_one_in_a_healed_checkpoint_of_16_bits(tmp_path):
    model = model_of("llama", tie_word_embeddings=True, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    folder.replace_weights(model.float(), tmp_path)
    tensors = Tensors(tmp_path)
    assert "lm_head.weight" not in tensors.names
    assert {tensors.read(name).dtype for name in tensors.names} == {torch.bfloat16}


def test_a_share_of_whole_costs_is_met_by_a_plan_of_exactly_that_share():
    # In floating point .7 · 11,520 is 8,063.999…
    assert planning.whole_limit(0.7, 11_520, 0) == 8_064
    assert planning.whole_limit(0.7, 11_000, 520) == 7_544
    assert planning.whole_limit(0.5, 11, 0) == 5


def test_queries_of_a_long_window_are_drawn_by_their_weight(monkeypatch):
    monkeypatch.setattr(moments, "MOST_CATEGORIES", 3)
    weight = torch.tensor([[0.0, 1.0, 0.0, 3.0], [1.0, 0.0, 0.0, 0.0]])
    rng = torch.Generator().manual_seed(0)
    drawn = torch.cat([moments._draw(weight, rng) for _ in range(40)], dim=1)
    assert drawn.shape[1] == 40 * moments.PAIRS
    share = (drawn[:, :, None] == torch.arange(4)).double().mean(1)
    assert (share - weight / weight.sum(1, keepdim=True)).abs().max() < 0.02


def test_damaged_weights_are_named_in_a_sentence(place, tmp_path, capsys):
    folder_ = tmp_path / "cut"
    shutil.copytree(place / "model", folder_)
    weights = folder_ / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    text = str(place / "text.txt")
    for words in (
        [
            "advise",
            str(folder_),
            "--cache",
            "75%",
            "--text",
            text,
            "--out",
            str(tmp_path / "p.json"),
        ],
        ["convert", str(folder_), "--to", "q,k=v", "--text", text, "--out", str(tmp_path / "new")],
    ):
        assert main(words) == 2
        assert re.search("is no whole safetensors file|are damaged", capsys.readouterr().err)


def test_a_plan_without_a_place_is_refused_before_anything_is_read(tmp_path, capsys):
    place = str(tmp_path / "missing" / "plan.json")
    words = ["advise", "no-such-model", "--cache", "75%", "--text", __file__, "--out", place]
    assert main(words) == 2
    assert "no folder that can be written" in capsys.readouterr().err


def _healed(
    place, state, healing, mode="q,k=v", interrupt=None, teacher=None, by="", moved=0.0, window=32
):
    folder_ = place / "model"
    original = transformers.AutoModelForCausalLM.from_pretrained(folder_).eval()
    original.get_input_embeddings().weight.data += moved
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder_).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_)
    text = quality.windows(tokenizer, (place / "text.txt").read_text(), window, 1280 // window)
    model = fit(plain, mode, None, "average")
    progress = interrupt or (lambda _: None)
    history = heal(model, original, text[2:], text[:2], healing, state, progress, teacher, by)
    return model, history


@pytest.mark.parametrize(
    ("phase", "lora"),
    [
        ("blocks", 4),
        ("logits", 0),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [("blocks", 0), ("logits", 4)]),
    ],
)
def test_healing_brings_a_model_nearer_to_its_original(place, tmp_path, phase, lora):
    healing = Healing(**{phase: 1600}, lora=lora, blocks_lr=3e-3, logits_lr=3e-3)
    model, history = _healed(place, tmp_path, healing)
    assert min(value for _, _, value in history[1:]) < 0.7 * history[0][2]
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


@pytest.mark.parametrize("phase", ["blocks", "logits"])
def test_healing_in_bf16_keeps_weights_in_fp32_and_brings_as_near(place, tmp_path, phase):
    rates = {"blocks_lr": 3e-3, "logits_lr": 3e-3}
    nearest = {}
    for precision in ("fp32", "bf16"):
        healing = Healing(**{phase: 1600}, **rates, precision=precision)
        model, history = _healed(place, tmp_path / precision, healing)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        nearest[precision] = min(value for _, _, value in history)
    assert nearest["bf16"] != nearest["fp32"]
    assert nearest["bf16"] == pytest.approx(nearest["fp32"], rel=0.1)


def test_models_healed_side_by_side_share_the_lessons_of_one_original(place, tmp_path):
    healing, folder_ = Healing(blocks=640), place / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_)
    text = quality.windows(tokenizer, (place / "text.txt").read_text(), 32, 40)
    models = [transformers.AutoModelForCausalLM.from_pretrained(folder_).eval() for _ in range(3)]
    lessons, passes = Lessons(models.pop()), []
    lessons.original.base_model.register_forward_hook(lambda *_: passes.append(1))
    modes = ["q,k=v", ["q,k,v", "q,k=v", "q,k,v"]]
    healers = [
        Healer(fit(model, mode, None, "average"), lessons, text[2:], text[:2], healing,
               tmp_path / str(number), lambda _: None)
        for number, (model, mode) in enumerate(zip(models, modes, strict=True))
    ]  # fmt: skip
    passes.clear()
    steps = len(list(zip(*(healer.steps() for healer in healers), strict=True)))
    assert len(passes) == steps > 1
    alone, history = _healed(place, tmp_path / "alone", healing)
    assert healers[0].history == history
    for one, other in zip(alone.parameters(), healers[0].model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_interrupted_healing_resumes_to_the_same_weights(place, tmp_path):
    healing = Healing(blocks=640, logits=640)

    def stop(line):
        if "by logits" in line:
            raise KeyboardInterrupt

    whole, expected = _healed(place, tmp_path / "a", healing)
    with pytest.raises(KeyboardInterrupt):
        _healed(place, tmp_path / "b", healing, interrupt=stop)
    resumed, history = _healed(place, tmp_path / "b", healing)
    assert history == expected
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for other in (
        {"healing": Healing(blocks=640, logits=960)},
        {"window": 64},
        {"by": "whitened"},
        # Another model of the same shapes.
        {"moved": 0.01},
    ):
        with pytest.raises(ValueError, match="state of another healing"):
            _healed(place, tmp_path / "b", **{"healing": healing} | other)


def test_a_larger_teacher_of_another_family_teaches_its_predictions(words, place, tmp_path, capsys):
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    sizes = {"n_embd": 60, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 384}
    torch.manual_seed(1)
    large = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    )
    for name in ("large", "strange"):
        large.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        tokenizer.add_tokens(["heronry"])
    healing = ["--heal", "logits=960", "logits_lr=3e-3", "blocks=0"]
    heal_by = [*words, "--to", "q,k=v", *healing]
    assert main([*heal_by, f"teacher={tmp_path / 'strange'}"]) == 2
    assert "has another vocabulary: 1 tokens" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([*heal_by, f"teacher={tmp_path / 'large'}"]) == 0
    measured = json.loads((tmp_path / "new" / "measured.json").read_text())
    distances = [value for _, _, value in measured["healing"]["distances"]]
    assert min(distances) < 0.9 * distances[0]
    assert measured["healing"]["teacher"] == str(tmp_path / "large")
    # Towards a teacher that knows nothing, so away from the text.
    assert sum(measured["after"]["losses"]) > sum(measured["tied"]["losses"])


def test_only_the_attention_of_changed_layers_is_healed(place, tmp_path):
    model, _ = _healed(place, tmp_path, Healing(blocks=640), mode=["q,k,v", "q,k=v", "q,k,v"])
    original = transformers.AutoModelForCausalLM.from_pretrained(place / "model")
    ours, theirs = dict(model.named_parameters()), dict(original.named_parameters())
    changed = {
        name for name in ours if name in theirs and not torch.equal(ours[name], theirs[name])
    }
    assert changed == {f"model.layers.1.self_attn.{part}_proj.weight" for part in "qko"}


@pytest.mark.parametrize("lora", [0, 2])
def test_an_output_projection_outside_of_the_attention_class_is_healed(tmp_path, lora):
    original = model_of("bert")
    text = torch.randint(3, VOCABULARY, (12, 16), generator=torch.Generator().manual_seed(1))
    model = fit(model_of("bert"), "q,k=v", None, "average")
    before = {name: one.clone() for name, one in model.named_parameters()}
    healing = Healing(blocks=320, lora=lora, blocks_lr=1e-3)
    heal(model, original, text[2:], text[:2], healing, tmp_path)
    after = dict(model.named_parameters())
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    layer = "bert.encoder.layer.0.attention."
    parts = {name.removeprefix(layer) for name in changed if name.startswith(layer)}
    assert {"self.query.weight", "output.dense.weight"} < parts
    assert all(part.startswith(("self.", "output.dense.")) for part in parts)


def test_words_of_a_healing_are_split_between_its_phases():
    assert parse_healing(["tokens=100k"]) == Healing(blocks=50_000, logits=50_000)
    assert parse_healing(["tokens=1.5M", "blocks=0", "lora=8"]) == Healing(
        blocks=0, logits=1_500_000, lora=8
    )
    assert parse_healing(["blocks=1k", "precision=fp32"]).precision == "fp32"
    wrong = ("tokens", "tokens=-1", "tokens=x", "tokens=1e400", "temperature=0", "speed=1")
    for word in (*wrong, "precision=fp8"):
        with pytest.raises(ValueError, match="is not a setting"):
            parse_healing([word])


def _options(damages):
    """Three equations in each layer, of 4, 2 and 1 cached numbers."""
    return [
        Option(layer, equation, values, divergence=damage)
        for layer, row in enumerate(damages)
        for equation, values, damage in zip(
            (planning.UNCHANGED, "q,k=v", "q,k=v/1"), (4, 2, 1), (0.0, *row), strict=True
        )
    ]


def test_the_plan_is_the_best_of_all_plans_within_its_budget():
    rng = torch.Generator().manual_seed(0)
    damages = torch.rand(5, 2, generator=rng).sort(dim=1).values.tolist()
    options = _options(damages)
    choices = torch.cartesian_prod(*[torch.arange(3)] * 5)
    by_layer = [[o for o in options if o.layer == layer] for layer in range(5)]
    for budget in range(5, 21):
        plan = planning.best_plan(options, budget)
        assert planning.total(plan) <= budget
        every = [[by_layer[n][c] for n, c in enumerate(row)] for row in choices.tolist()]
        best = min(sum(o.divergence for o in one) for one in every if planning.total(one) <= budget)
        assert sum(o.divergence for o in plan) == pytest.approx(best)


def test_a_budget_below_every_plan_is_refused_with_what_could_be_reached():
    with pytest.raises(ValueError, match=r"10% cannot be reached: .*smallest is 25%"):
        planning.best_plan(_options([[0.1, 0.2]] * 5), 2)


@pytest.mark.parametrize("how", ["uniform", "first", "last", "random"])
def test_a_plan_that_ignores_damages_is_of_the_same_size(how):
    options = _options([[0.1, 0.2]] * 6)
    for budget in (22, 18, 14, 12):
        assert planning.total(planning.spread(options, budget, how)) == budget
    # Below two numbers a layer, the next equation is taken.
    assert planning.total(planning.spread(options, 6, how)) == 6


def test_an_unsupported_family_is_refused_with_those_that_are_and_how_to_add_one(tmp_path, capsys):
    settings = transformers.BloomConfig(
        hidden_size=16, n_layer=1, n_head=2, vocab_size=20, bos_token_id=1, eos_token_id=2
    )
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "bloom")
    words = ["convert", str(tmp_path / "bloom"), "--to", "q,k=v", "--out", str(tmp_path / "new")]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "'bloom', which is not supported" in message
    assert "llama, mistral, qwen2, qwen3, gemma, phi, gpt_neox, opt, gpt2" in message
    assert "one row of qkvbench/hub/families.py" in message


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_real_checkpoint_keeps_its_words_after_a_fitted_tie_and_loses_them_after_a_naive_one():
    checkpoint = source.find("smollm2-135m")
    tokenizer = checkpoint.tokenizer()
    text = bytes(reviews().train[:8000]).decode(errors="ignore").replace("\0", "\n\n")
    read = quality.windows(tokenizer, text, 256, 5)
    losses = {}
    for start in ("", "keep-k", "whitened"):
        model = checkpoint.model()
        if start:
            fits = collect(model, [{"input_ids": row[None]} for row in read[:4]])
            model = fit(model, "q,k=v", fits, start)
        else:
            prompt = tokenizer("The capital of France is", return_tensors="pt")
            written = model.generate(**prompt, max_new_tokens=1, do_sample=False)
            assert tokenizer.decode(written[0]).endswith(" Paris")
        losses[start] = quality.loss(model, read[4:])
    # Halfway between the original and the naive tie would be some six nats.
    assert losses["whitened"] - losses[""] < 1.5
    assert losses["keep-k"] - losses[""] > 4


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_embeddings_of_a_real_encoder_stay_near_after_a_fitted_tie():
    checkpoint = source.find("minilm-l6")
    tokenizer, model = checkpoint.tokenizer(), checkpoint.model()
    text = bytes(reviews().train[:20_000]).decode(errors="ignore").replace("\0", "\n\n")
    read = quality.windows(tokenizer, text, 64, 40)
    before = quality.embeddings(model, read[32:])
    moments = collect(model, [{"input_ids": row[None]} for row in read[:32]])
    found = {}
    for start in ("keep-k", "whitened"):
        ours = fit(checkpoint.model(), "q,k=v", moments, start)
        found[start] = quality.similarity(before, quality.embeddings(ours, read[32:]))
    assert found["whitened"] > found["keep-k"] + 0.1
    assert found["whitened"] > 0.8
