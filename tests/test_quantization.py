"""Scores over a cache in few bits: the numbers that are lost, when, and what a study says of it."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fake_study
from qkvbench import tasks
from qkvbench.backends import torch as backend
from qkvbench.backends.torch.cache.quantize import dequantize, quantize
from qkvbench.backends.torch.models import quantized
from qkvbench.backends.torch.models.quantized import fake_quantize, quantized_stream, rotation
from qkvbench.cost import CACHE_FORMATS
from qkvbench.experiment import Experiment, from_json, to_json
from qkvbench.model.quantization import BITS, GROUP, SCHEMES, in_few_bits, parse_quantization
from qkvbench.recipes import find
from qkvbench.recipes.quantization import FORMS
from qkvbench.reports import quantization as report
from qkvbench.results.quantization import quantization_costs
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.task_ref import parse_task
from qkvbench.train.loop import score_test_split
from qkvbench.train.run_state import RunState
from qkvbench.variant import parse

ROOT = Path(__file__).parents[1]
TIME = 2 * GROUP + 5
EQUATIONS = ("q,k,v", "q,k=v", "q,k=v+ropevalue", "q,k=v/1", "q,k=L(20),v=L(20)+ropehead8")


def _network(equation: str) -> backend.Decoder:
    model = tasks.find("lm-reviews").model.with_variant(parse(equation))
    network = backend.build(model)
    assert isinstance(network, backend.Decoder)
    backend.start(network, model, 3)
    # Of initial values a small change says little.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.5)
    return network.eval()


def _tokens() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, TIME)))


def _stream(network: backend.Decoder, text: str) -> torch.Tensor:
    return quantized_stream(network, _tokens(), parse_quantization(text))


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_in_few_bits_are_those_of_the_cache_that_stores_them(bits: int) -> None:
    rows = torch.randn(2, 3, 5, 48, generator=torch.Generator().manual_seed(0))
    format = CACHE_FORMATS[f"int{bits}"]
    stored = dequantize(*quantize(rows, format), torch.float32, format, 48)
    torch.testing.assert_close(fake_quantize(rows, bits), stored, rtol=0, atol=1e-6)


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("rows", ["int8", "int4"])
def test_a_score_by_token_is_that_of_decoding_over_the_stored_cache(
    equation: str, rows: str
) -> None:
    """The whole text at once, and token by token over rows that really have so few bits."""
    network, tokens = _network(equation), _tokens()
    stream = _stream(network, rows)
    with torch.no_grad():
        cache = network.new_cache(3, TIME, rows=rows)
        logits = torch.stack([network.step(column, cache) for column in tokens.T], dim=1)
        # A number that lies between two steps may be rounded to either: a few are, of all.
        missed = (network.head(stream) - logits).norm()
        assert missed < 0.05 * (network(tokens) - logits).norm()


@pytest.mark.parametrize("equation", EQUATIONS)
def test_the_newest_rows_of_a_scheme_by_channel_stay_as_they_are(equation: str) -> None:
    """The first group reads nothing else, so its stream is the whole pass's; later ones' is not."""
    network = _network(equation)
    with torch.no_grad():
        whole = network.hidden(_tokens())
    for scheme in ("channel", "kivi", "late"):
        stream = _stream(network, f"int3:{scheme}")
        torch.testing.assert_close(stream[:, :GROUP], whole[:, :GROUP], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(stream[:, GROUP:], whole[:, GROUP:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rows", ["int8", "int4"])
def test_small_rows_in_half_precision_have_scales(rows: str) -> None:
    """Computed in fp16 a scale of 1e-6 / 127 is zero, and one of 1e-5 a few steps from it."""
    wide = 1e-6 * torch.randn(1, 1, 8, 64, generator=torch.Generator().manual_seed(0))
    half, form = wide.half(), CACHE_FORMATS[rows]
    found = dequantize(*quantize(half, form), torch.float32, form, 64)
    exact = dequantize(*quantize(half.float(), form), torch.float32, form, 64)
    assert torch.equal(found, exact)
    assert (found - half.float()).norm() < 0.2 * half.float().norm()


def test_a_shared_tensor_is_stored_by_token_where_k_and_v_would_differ() -> None:
    own, shared = _network("q,k,v"), _network("q,k=v")
    assert not torch.equal(_stream(own, "int4:kivi"), _stream(own, "int4:late"))
    assert torch.equal(_stream(shared, "int4:kivi"), _stream(shared, "int4:late"))


def test_schemes_of_rope_change_what_has_rope_alone() -> None:
    own, shared = _network("q,k,v"), _network("q,k=v")
    latent = _network("q,k=L(20),v=L(20)+ropehead8")
    assert not torch.equal(_stream(own, "int4:before-rope"), _stream(own, "int4"))
    # A shared root is cached before RoPE already.
    assert torch.equal(_stream(shared, "int4:before-rope"), _stream(shared, "int4"))
    assert torch.equal(_stream(own, "int4:nope"), _stream(own, "int4"))
    assert not torch.equal(_stream(latent, "int4:nope"), _stream(latent, "int4"))


@pytest.mark.parametrize("width", [1, 16, 24, 20, 7])
def test_the_rotation_is_orthogonal_and_spreads_a_channel(width: int) -> None:
    turn = rotation(width)
    torch.testing.assert_close(turn @ turn.T, torch.eye(width, dtype=turn.dtype))
    # No number of a row of one channel keeps more than twice its even share.
    assert (turn**2).max() <= 2 / width + 1e-12


def test_a_channel_that_is_large_costs_less_after_the_rotation() -> None:
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    rows[:, 5] *= 30
    turn = rotation(64).to(rows)
    plain = (fake_quantize(rows, 4) - rows).norm()
    turned = (fake_quantize(rows @ turn, 4) @ turn.T - rows).norm()
    assert turned < plain


@pytest.mark.parametrize("text", ["w8", "w4"])
def test_matrices_in_few_bits_are_there_for_the_score_alone(text: str) -> None:
    network = _network("q,k=v")
    before = {name: each.clone() for name, each in network.named_parameters()}
    stream = _stream(network, text)
    with torch.no_grad():
        assert not torch.equal(stream, network.hidden(_tokens()))
    assert all(torch.equal(each, before[name]) for name, each in network.named_parameters())


@pytest.mark.parametrize("equation", ["q,k=L(20),v=L(20)", "q,k,v=M(k)", "q,k,v+outputrank8x2"])
def test_maps_of_heads_are_among_the_matrices(equation: str) -> None:
    """Otherwise arms that have some would keep a part of their attention whole."""
    network = _network(equation)
    maps = [each for block in network.layers() for each in block.attention.maps.values()]
    before = [each.detach().clone() for each in maps]
    with torch.no_grad(), quantized._matrices_in(network, 4):
        rounded = [each.detach().clone() for each in maps]
    assert maps
    for now, old, few in zip(maps, before, rounded, strict=True):
        assert torch.equal(now, old)
        assert torch.equal(few, fake_quantize(old, 4))
        assert not torch.equal(few, old)


def test_a_long_text_is_read_in_pieces_that_change_nothing(monkeypatch) -> None:
    """Scores of all tokens with all others at once would grow with the square of the length."""
    network = _network("q,k=v")
    whole = _stream(network, "int4")
    monkeypatch.setattr(quantized, "MOST_AT_ONCE", 7)
    torch.testing.assert_close(_stream(network, "int4"), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", FORMS)
def test_every_form_of_the_recipe_is_read(text: str) -> None:
    how = parse_quantization(text)
    assert how.bits in (*BITS, None)
    assert how.scheme in SCHEMES


@pytest.mark.parametrize("text", ["", "int5", "int4:", "int4:rows", "int4+", "+w8", "w5", "int4w8"])
def test_other_texts_are_refused_with_those_that_are_read(text: str) -> None:
    with pytest.raises(ValueError, match=":channel"):
        parse_quantization(text)


def test_a_record_has_the_score_in_each_form() -> None:
    task = tasks.find("lm-reviews")
    experiment = Experiment(
        task.model, parse_task("lm-reviews"), 1, replace(task.training, scored=8), seed=0
    )
    experiment = replace(experiment, quantizations=("int8", "int2"))
    assert from_json(to_json(experiment)) == experiment
    assert experiment.id != replace(experiment, quantizations=()).id
    learner, state = backend.Learner(experiment), RunState(started="now")
    score_test_split(task, task.load(), learner, experiment, state)
    metrics = state.metrics
    assert metrics["bits_per_byte@plain"] == metrics["bits_per_byte"]
    assert metrics["bits_per_byte@int8"] == pytest.approx(metrics["bits_per_byte"], abs=1e-3)
    assert metrics["bits_per_byte@int2"] != metrics["bits_per_byte"]


@pytest.mark.parametrize(
    ("task", "variant", "changed"),
    [
        ("lm-reviews", "q,k,v+elu", {}),
        ("lm-reviews", "q,k,v", {"backend": "jax"}),
        ("digits", "q,k,v", {}),
        ("translation", "q,k,v", {}),
    ],
)
def test_models_without_rows_in_a_cache_are_refused(
    task: str, variant: str, changed: dict[str, str]
) -> None:
    found = tasks.find(task)
    model = found.model.with_variant(parse(variant))
    with pytest.raises(ValueError, match="leave out --quantize"):
        Experiment(
            model, parse_task(task), 1, found.training, 0, quantizations=("int8",), **changed
        )


def _study(tmp_path, cost):
    """Six seeds of three arms with made-up costs, which `cost` gives by arm and form.

    A cost that is not finite leaves the form without a score, as a run does.
    """
    rng = np.random.default_rng(0)
    study = replace(
        find("quantization"),
        variants=("q,k,v", "q,k=v", "q,k,v/1", "q,k=L(48),v=L(48)+ropehead16"),
        seeds={"lm-reviews": 6},
        quantizations=("int8", "int4", "int4:late", "int4:channel"),
    )
    made_runs = []
    for experiment in study.experiments():
        score = 2.4 + 0.05 * rng.normal()
        made = fake_study.record(experiment, score)
        metrics = {**made.metrics, "bits_per_byte@plain": score}
        for form in study.quantizations:
            lost = cost(experiment.arm, form) + 0.002 * rng.normal()
            if np.isfinite(lost):
                metrics[in_few_bits("bits_per_byte", form)] = score + lost
        made_runs.append(made.model_copy(update={"metrics": metrics}))
    return fake_study.small(tmp_path, made_runs, arms=study.variants, tasks=("lm-reviews",))


def test_the_costs_that_are_put_in_come_out_and_only_they_are_marked(tmp_path) -> None:
    """The spread of scores is 25 times that of costs, which are of the same weights."""

    def cost(arm: str, form: str) -> float:
        large = 0.03 if arm == "q,k=v" and form == "int4" else 0.0
        return 0.01 * form.startswith("int4") - 0.004 * form.endswith("channel") + large

    found = _study(tmp_path, cost)
    (task,) = quantization_costs(found)
    assert task.costs["int4"]["q,k=v"].value == pytest.approx(0.04, abs=0.004)
    marked = {
        (form, arm)
        for form, cells in task.costs.items()
        for arm, each in cells.items()
        if each.p is not None and each.p < 0.05
    }
    assert marked == {("int4", "q,k=v")}
    contrast = task.contrasts["int4:channel", "int4:late"]
    assert contrast["q,k,v"].value == pytest.approx(-0.004, abs=0.004)
    text = report.render(found)
    assert "q,k=v against q,k,v: int4 by +0.0" in text
    assert "(d): q,k=L(48),v=L(48)+ropehead16" in text
    assert "q,k,v/1 against q,k,v: no form is seen to cost it more, or less." in text


def test_a_form_without_a_score_in_a_run_has_no_cost_for_its_arm(tmp_path) -> None:
    """The other runs alone would make it look cheaper."""
    left = iter([np.nan])

    def cost(arm: str, form: str) -> float:
        return next(left, 0.01) if (arm, form) == ("q,k=v", "int4") else 0.01

    found = _study(tmp_path, cost)
    (task,) = quantization_costs(found)
    assert set(task.costs["int4"]) == {"q,k,v", "q,k,v/1", "q,k=L(48),v=L(48)+ropehead16"}
    assert "q,k=v" in task.costs["int8"]
    assert "— a run has no" in report.render(found)


def test_an_arm_of_which_a_run_diverged_has_no_cost(tmp_path) -> None:
    found = _study(tmp_path, lambda arm, form: 0.01)
    lost = next(run for run in found.runs if run.arm == "q,k=v")
    record = fake_study.record(lost.parsed_experiment, status="diverged", reason="no number")
    store = Store(tmp_path)
    (tmp_path / "runs" / f"{lost.id}.json").unlink()
    store.write_run(record)
    (task,) = quantization_costs(view(store))
    assert "q,k=v" not in task.costs["int8"]
    assert "q,k,v" in task.costs["int8"]


def test_a_study_without_scores_in_few_bits_says_what_makes_them(tmp_path) -> None:
    assert "--quantize" in report.render(view(fake_study.build(tmp_path)))


def _checkpoint_losses() -> dict[tuple[str, str], list[float]]:
    """The losses of each window, by model and form."""
    file = ROOT / "studies" / "benchmarks" / "quantized-smollm2-135m.jsonl"
    lines = map(json.loads, file.read_text().splitlines())
    return {(line["equation"], line["form"]): line["losses"] for line in lines}


def _lost(losses: dict[tuple[str, str], list[float]], model: str, form: str) -> str:
    """The nats that a form loses, as the page writes them; empty if it was not measured."""
    if (model, form) not in losses:
        return ""
    pairs = zip(losses[model, form], losses[model, "as it is"], strict=True)
    lost = [one - other for one, other in pairs]
    places = 3 if statistics.fmean(lost) < 1 else 2
    mean, error = statistics.fmean(lost), statistics.stdev(lost) / len(lost) ** 0.5
    texts = (f"{mean:+.{places}f}", f"{error:.{places}f}")
    return " ± ".join(each.replace("0.", ".", 1) for each in texts)


def _is_written(page: str, row: str) -> bool:
    """Whether the page has this row, whatever is in bold."""
    row = row.replace("-", "−").replace("|  |", "| |").replace("|  |", "| |")
    return row in page.replace("**", "").replace("refitted-", "refitted−")


def test_the_table_of_a_checkpoint_is_that_of_its_record() -> None:
    columns = ["q,k,v", "latent-of-equal-bytes-0-0", "latent-of-equal-bytes-98304-0"]
    columns += ["q,k=v", "q-k=v-refitted-98304-0", "q,k,v/1"]
    losses = _checkpoint_losses()
    page = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    for form in dict.fromkeys(form for _, form in losses if form != "as it is"):
        cells = [_lost(losses, column, form) for column in columns]
        assert _is_written(page, f"| `{form}` | {' | '.join(cells)} |"), form


def test_the_table_of_ties_for_few_bits_is_that_of_its_record() -> None:
    losses = _checkpoint_losses()
    page = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    forms = ("int8", "int4", "int4:late", "int4:channel", "int4:hadamard")
    models = [name for name, form in losses if form == "as it is" and ", refitted" in name]
    assert len(models) >= 6
    for model in models:
        whole = f"{statistics.fmean(losses[model, 'as it is']):.3f}"
        cells = [whole, *(_lost(losses, model, form) for form in forms)]
        equation, _, start = model.partition(", ")
        assert _is_written(page, f"| `{equation}`, {start} | {' | '.join(cells)} |"), model
