"""Learned plans: gates, budgets, the plain model that they become, and the rivals."""

import itertools
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from qkvbench import cost, tasks
from qkvbench import torch as qkv
from qkvbench.backends.torch import Learner, named_weights
from qkvbench.backends.torch.models.gated import GatedAttention
from qkvbench.backends.torch.training import loss as loss_module
from qkvbench.cli import main
from qkvbench.cost.budget import Budget, budget, changed_layers, least_damage, spread
from qkvbench.data.batch import Batch
from qkvbench.experiment import Experiment, Training, from_json, to_json
from qkvbench.model import (
    Decoder,
    Gates,
    Init,
    LossTarget,
    Model,
    Rotary,
    parse_target,
    transformer,
    with_layers,
)
from qkvbench.sweep.prune import Pruning
from qkvbench.task_ref import parse_task
from qkvbench.train.run import run
from qkvbench.variant import parse

SHORT = Training(steps=6, batch=8, learning_rate=1e-2, warmup=1, evaluations=1, scored=16)
GRIDS = (
    ("q,k,v", "q,k=v", "q,k,v/1", "none"),
    ("q,k,v", "q=k,v", "q,k=v/2", "q=k=v"),
    ("q,k,v", "q,k=R(q),v=R(q)", "q=k=x,v", "q=k=v=x"),
    ("q,k,v", "q,k=L(5),v=L(5)", "q,k,v+window3", "q=k=0,v"),
    ("q,k,v", "q,k=K(-1),v=V(-1)", "q,k,v=V(-1)", "none"),
)


def model(layers: int = 2) -> Model:
    return transformer(
        "tiny",
        Decoder(11),
        layers=layers,
        d_model=24,
        heads=4,
        position=Rotary(),
        init=Init(embedding_std=0.5, position_std=0.5),
    )


def gates(options=GRIDS[0], target="cache=50%") -> Gates:
    return Gates(tuple(map(parse, options)), parse_target(target).at_length(16))


def experiment(layers: int = 2, **changed) -> Experiment:
    base = Experiment(model(layers), parse_task("lm-reviews"), 1, SHORT, seed=0)
    return replace(base, **changed)


def batch(seed: int = 0) -> Batch:
    tokens = np.random.default_rng(seed).integers(11, size=(8, 17))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def every_choice(found: Budget):
    every = itertools.product(range(len(found.options)), repeat=len(found.costs))
    return filter(found.allows, every)


@pytest.mark.parametrize("options", GRIDS, ids=" ".join)
def test_the_plain_model_is_the_gated_one_with_hard_gates(options, tmp_path):
    learner = Learner(experiment(gates=gates(options, "params=99%")))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in named_weights(learner.network).values():
            weight += 0.1 * torch.randn(weight.shape, generator=rng)
    learner.save(tmp_path / "gated.safetensors")
    assert learner.gates is not None
    for choice in every_choice(learner.gates.budget):
        with torch.no_grad():
            learner.gates.logits.zero_()
            for layer, taken in enumerate(choice):
                learner.gates.logits[layer, taken] = 9.0
        layers = learner.gates.budget.layers(choice)
        # The budget has no say here: each option is to be compared.
        learner.network.eval()
        for layer, taken in zip(learner.gates.layers, choice, strict=True):
            layer.taken = taken
        tokens = torch.from_numpy(batch().inputs)
        with torch.no_grad():
            gated = learner.network(tokens)
        start = experiment()
        plain = Learner(
            experiment(model=with_layers(model(), layers), init_from=start, other_attention=True)
        )
        names = plain.load_matching(tmp_path / "gated.safetensors")
        assert set(names) == set(plain.weights())
        with torch.no_grad():
            found = plain.network.eval()(tokens)
        torch.testing.assert_close(found, gated, atol=1e-5, rtol=0)
        # Nothing of the other options is left.
        assert (
            sum(each.numel() for each in plain.weights().values())
            == cost.parameters(plain.experiment.model).total
        )


def test_the_cache_of_a_plan_is_smaller_by_what_its_target_says():
    found = budget(model(4), gates(target="cache=50%"))
    plan = found.rounded([[0.4, 0.3, 0.2, 0.1]] * 4)
    networks = [
        Learner(experiment(model=each)).network
        for each in (model(4), with_layers(model(4), found.layers(plan)))
    ]
    whole, small = (each.new_cache(2, 64).bytes for each in networks)
    assert small == found.share(plan) * whole
    assert small <= whole / 2


def test_a_healed_plan_is_read_by_the_library_and_decodes_as_it_reads_a_whole_sequence(tmp_path):
    layers = tuple(map(parse, ("q,k,v", "q,k=K(-1),v=V(-1)", "q,k,v/1", "none")))
    healed = experiment(
        model=with_layers(model(4), layers), init_from=experiment(layers=4), other_attention=True
    )
    Learner(healed).save(tmp_path / "learned-0.safetensors")
    (tmp_path / "learned-0.json").write_text(json.dumps(to_json(healed)))
    run_of_file = from_json(json.loads((tmp_path / "learned-0.json").read_text()))
    network = qkv.build(run_of_file.model)
    qkv.load(network, qkv.read(tmp_path / "learned-0.safetensors"))
    prompt = batch().inputs[0, :5].tolist()
    (written,) = qkv.generate(network, [prompt], tokens=6)
    with torch.no_grad():
        logits = network.eval()(torch.tensor([prompt + written]))[0]
    assert written == logits.argmax(-1)[len(prompt) - 1 : -1].tolist()
    # Four heads of K and V, none of its own, one, and none: 5 of 16.
    whole = qkv.build(model(4)).new_cache(1, 64).bytes
    assert network.new_cache(1, 64).bytes == 5 / 16 * whole


@pytest.mark.slow
def test_measure_finds_the_cache_of_a_plan_as_small_as_its_target_says(capsys):
    plan = "q,k,v;q,k=K(-1),v=V(-1)"
    words = ["measure", "q,k,v", plan, "--context", "64", "--batch", "1", "--json"]
    assert main([*words, "--seconds", "60"]) == 0
    whole, small = json.loads(capsys.readouterr().out)["arms"]
    assert small["variant"] == plan
    assert small["cache_bytes"] * 2 == whole["cache_bytes"]


def test_a_state_has_no_share_of_the_cache_of_a_token():
    """One of many features is larger than the cache of many tokens."""
    options = ("q,k,v", "q,k,v+favor256")
    with pytest.raises(ValueError, match="keeps a state"):
        budget(model(3), gates(options, "cache=50%"))
    assert budget(model(3), gates(options, "macs=99%@100000")).bounds


@pytest.mark.parametrize("options", GRIDS, ids=" ".join)
@pytest.mark.parametrize("quantity", ["cache", "params", "macs"])
def test_the_budget_is_met_and_one_more_whole_layer_would_exceed_it(options, quantity):
    shares = np.random.default_rng(0).dirichlet([0.3] * 4, size=(6, 3))
    for percent, probabilities in zip((55, 70, 80, 90, 95, 99), shares, strict=True):
        wanted = gates(options, f"{quantity}={percent}%")
        least, _ = budget(model(3), replace(wanted, target=replace(wanted.target, share=1))).bounds
        if percent / 100 < least:
            with pytest.raises(ValueError, match="cannot be reached"):
                budget(model(3), wanted)
            continue
        found = budget(model(3), wanted)
        plan = found.rounded(probabilities.tolist())
        limit = percent / 100 + 1e-9
        assert found.share(plan) <= limit
        for layer in range(3):
            whole = (*plan[:layer], 0, *plan[layer + 1 :])
            assert whole == plan or found.share(whole) > limit


def test_the_likeliest_plan_is_taken_and_layers_are_whole_where_that_fits():
    found = budget(model(3), gates(target="cache=60%"))
    # q,k=v; q,k,v; none is half of the cache. What is left would pay for q,k,v/1, but not for a
    # whole layer, and what is dearer need not be better.
    sure = [[0.0, 1.0, 0.0, 0.0], [0.97, 0.01, 0.01, 0.01], [0.01, 0.01, 0.01, 0.97]]
    assert found.rounded(sure) == (1, 0, 3)
    # Gates that save more than they must: one layer is whole, the one that is likeliest to be.
    cheap = [[0.01, 0.0, 0.0, 0.99], [0.1, 0.0, 0.0, 0.9], [0.01, 0.0, 0.0, 0.99]]
    assert found.rounded(cheap) == (3, 0, 3)


def test_pairs_change_the_integer_program_to_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    damages, costs = rng.random((4, 3)), rng.random((4, 3))
    pairs = {
        ((one, a), (other, b)): float(rng.normal())
        for one, other in itertools.combinations(range(4), 2)
        for a in (1, 2)
        for b in (1, 2)
    }

    def damage(choice):
        own = sum(damages[layer][taken] for layer, taken in enumerate(choice))
        taken = set(enumerate(choice))
        return own + sum(each for (a, b), each in pairs.items() if {a, b} <= taken)

    limit = 1.6
    allowed = [
        each
        for each in itertools.product(range(3), repeat=4)
        if sum(costs[layer][taken] for layer, taken in enumerate(each)) <= limit
    ]
    found = least_damage(damages.tolist(), costs.tolist(), limit, pairs=pairs)
    assert found == min(allowed, key=damage)
    plain = least_damage(damages.tolist(), costs.tolist(), limit)
    assert damage(found) < damage(plain)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-9])
def test_the_choice_is_exact_for_damages_of_any_size(size):
    rng = np.random.default_rng(0)
    for _ in range(10):
        damages = size * rng.random((6, 3)) * 10.0 ** rng.integers(-5, 2, (6, 3))
        costs = np.tile([1.0, 0.5, 0.25], (6, 1))
        found = least_damage(damages.tolist(), costs.tolist(), 3.0)
        allowed = [
            sum(damages[layer, taken] for layer, taken in enumerate(each))
            for each in itertools.product(range(3), repeat=6)
            if sum(costs[0][taken] for taken in each) <= 3.0
        ]
        ours = sum(damages[layer, taken] for layer, taken in enumerate(found))
        assert ours == pytest.approx(min(allowed), rel=1e-9)


@pytest.mark.parametrize("steps", [6, 501, 502, 503])
def test_a_learned_plan_has_as_many_steps_as_its_rivals(steps):
    trained = experiment(training=replace(SHORT, steps=steps, warmup=steps // 7))
    study = Pruning((trained,), gates(("q,k,v", "q,k=v"), "cache=51%"), draws=0, pairs=0)
    gated = study.gated(trained)
    plan = (0,) * len(study.budget.costs)
    healed, rival = study.healed(plan, gated), study.healed(plan, trained)
    for name in ("steps", "warmup"):
        parts = [getattr(each.training, name) for each in (gated, healed, rival)]
        assert parts[0] + parts[1] == parts[2]
    assert rival.training == study.continued(trained).training


def test_under_a_tight_budget_gates_move_to_the_cheap_option_and_under_none_they_do_not():
    def gradient(target):
        learner = Learner(experiment(gates=gates(("q,k,v", "q,k=v"), target)))
        learner.gates.ascent[1] = SHORT.steps
        learner.gates.ascent[0] = 20.0
        learner.gates.penalty().backward()
        return learner.gates.penalty(), learner.gates.logits.grad

    penalty, tight = gradient("cache=51%")
    # Steps go against the gradient: to the second option, half the cache.
    assert penalty > 0
    assert (tight[:, 1] < 0).all()
    assert (tight[:, 0] > 0).all()
    slack, loose = gradient("cache=99%")
    assert slack < 0
    assert loose.abs().max() < 1e-2 * tight.abs().max()


def test_options_share_what_has_their_name_and_shape():
    learner = Learner(experiment(gates=gates()))
    layer = learner.network.blocks.layers()[0].attention
    assert isinstance(layer, GatedAttention)
    # W_q and W_o are one; K and V of one head are others than those of four.
    assert set(layer.named_weights()) == {
        f"{name}.{part}" for name in ("q", "k", "v", "o") for part in ("weight", "bias")
    } | {"k.weight@6x24", "k.bias@6", "v.weight@6x24", "v.bias@6"}


def test_fewer_heads_begin_as_the_means_of_those_that_they_replace(tmp_path):
    whole = Learner(experiment())
    whole.save(tmp_path / "whole.safetensors")
    changed = experiment(
        model=model().with_variant(parse("q,k,v/2")), init_from=experiment(), other_attention=True
    )
    learner = Learner(changed)
    learner.load_matching(tmp_path / "whole.safetensors")
    name = "blocks.1.attention.k.weight"
    heads = whole.weights()[name].view(4, 6, 24)
    expected = torch.cat([heads[:2].mean(0), heads[2:].mean(0)])
    torch.testing.assert_close(learner.weights()[name], expected)
    torch.testing.assert_close(
        learner.weights()["blocks.1.attention.q.weight"],
        whole.weights()["blocks.1.attention.q.weight"],
    )


def test_a_resumed_search_has_the_bits_of_one_that_was_not_interrupted():
    wanted = experiment(gates=gates())

    def steps(learner, numbers):
        return [(learner.gradients(batch(n)), learner.update(1e-2))[0] for n in numbers]

    whole = Learner(wanted)
    steps(whole, range(3))
    # A copy: the arrays are live.
    state = {name: array.copy() for name, array in whole.state().items()}
    expected = steps(whole, range(3, 6))
    ended = {name: array.copy() for name, array in whole.state().items()}
    # All learners of a process draw from one generator, whose state is part of theirs.
    resumed = Learner(wanted)
    resumed.restore(state)
    assert steps(resumed, range(3, 6)) == expected
    for name, array in resumed.state().items():
        np.testing.assert_array_equal(array, ended[name])
    assert float(resumed.gates.ascent[1]) == 6


def test_an_experiment_with_gates_is_the_same_after_json_and_another_without_them():
    wanted = experiment(gates=gates())
    assert from_json(to_json(wanted)) == wanted
    assert wanted.id != experiment().id
    assert experiment().id == replace(wanted, gates=None).id


def test_gates_need_torch_on_one_device_and_a_model_of_one_input():
    with pytest.raises(ValueError, match="torch on one device"):
        experiment(gates=gates(), backend="jax")
    two = tasks.find("captioning").model
    with pytest.raises(ValueError, match="two inputs"):
        experiment(model=two, gates=gates())
    with pytest.raises(ValueError, match="the next one below only"):
        gates(("q,k,v", "q,k=K(-2),v=V(-2)"))


BELOW = ("q,k,v", "q,k=K(-1),v=V(-1)", "q,k,v/2", "none")


def test_a_layer_reads_k_and_v_below_only_in_plans_in_which_the_layer_below_has_its_own():
    found = budget(model(4), gates(BELOW, "cache=50%"))
    # Half of the cache is a row of K and V in every second layer.
    eager = [[0.01, 0.97, 0.01, 0.01]] * 4
    plan = found.rounded(eager)
    assert found.allows(plan)
    assert found.within(plan)
    assert plan == (0, 1, 0, 1)
    assert not found.allows((2, 1, 0, 1))
    assert not found.allows((0, 1, 1, 0))
    # Without `none` no plan has less than half.
    with pytest.raises(ValueError, match=r"leave 50\.0%"):
        budget(model(4), gates(BELOW[:2], "cache=40%"))


def test_damages_of_plans_that_read_below_are_least_among_those_that_can_be():
    rng = np.random.default_rng(3)
    found = budget(model(4), gates(BELOW, "params=90%"))
    damages = rng.random((4, 4)).tolist()

    def damage(choice):
        return sum(damages[layer][taken] for layer, taken in enumerate(choice))

    plan = least_damage(damages, found.costs, found.left, borrowed=found.borrowed)
    allowed = filter(found.within, every_choice(found))
    assert plan == min(allowed, key=damage)
    free = least_damage(damages, found.costs, found.left)
    assert damage(free) < damage(plan)


def test_a_target_of_loss_names_the_cost_that_it_makes_small():
    assert parse_target("loss=1%") == LossTarget(0.01, "cache")
    assert parse_target("loss=0.5%:latency@8192") == LossTarget(0.005, "latency", 8192)
    for text in ("loss=1%", "loss=2.5%:params", "loss=1%:macs@64"):
        assert parse_target(str(parse_target(text))) == parse_target(text)
    for text in ("loss=0%", "loss=1%:loss", "loss=1%:cache@8192", "loss=1%:", "loss=1"):
        with pytest.raises(ValueError, match="write cache=50%"):
            parse_target(text)


@pytest.mark.parametrize("options", GRIDS, ids=" ".join)
def test_the_costs_that_are_tried_for_a_loss_are_the_costs_that_plans_have(options):
    found = budget(model(3), gates(options, "params=99.9%"))
    levels = found.levels()
    shares = sorted({round(found.share(each), 9) for each in every_choice(found)})
    step = (1 - shares[0]) / 64
    assert levels[0] == pytest.approx(shares[0])
    if not found.borrowed:
        assert all(min(abs(level - share) for share in shares) < 1e-8 for level in levels)
    # Every cheaper plan has a level that it meets, and that is at most a 64th above it.
    for share in shares[:-1]:
        assert min(level - share for level in levels if level > share - 1e-8) < step * 1.1


def test_options_that_save_nothing_are_refused_before_anything_is_trained(tmp_path, capsys):
    found = Budget((parse("q,k,v"), parse("q=k,v")), ((0.0, 0.0),) * 3, 100.0, 100.0, ())
    assert found.levels() == []
    words = ["prune", "lm-reviews", "--target", "loss=1%", "--options", "q=k,v"]
    assert main([*words, "--out", str(tmp_path / "new")]) == 2
    assert "no option costs less" in capsys.readouterr().err
    assert not (tmp_path / "new" / "runs").exists()


def test_a_teacher_that_predicts_the_same_halves_the_loss_and_another_adds_its_divergence(tmp_path):
    plain, teacher = Learner(experiment()), Learner(experiment(seed=1))
    plain.save(tmp_path / "same.safetensors")
    teacher.save(tmp_path / "other.safetensors")
    own, _ = plain.gradients(batch())

    def loss(path):
        learner = Learner(experiment(teacher=experiment(seed=1)))
        learner.load_teacher(path)
        return learner.gradients(batch())[0]

    tokens = torch.from_numpy(batch().inputs)
    with torch.no_grad():
        logs, wanted = (
            each.network.eval()(tokens).double().log_softmax(-1) for each in (plain, teacher)
        )
    divergence = float((wanted.exp() * (wanted - logs)).sum(-1).mean())
    assert loss(tmp_path / "same.safetensors") == pytest.approx(own / 2, rel=1e-5)
    assert divergence > 0.01
    assert loss(tmp_path / "other.safetensors") == pytest.approx((own + divergence) / 2, rel=1e-5)


def test_divergence_in_parts_has_the_value_and_gradient_of_all_places_together(monkeypatch):
    network, teacher = (Learner(experiment(seed=seed)).network for seed in (0, 1))
    found = []
    # Seven places of eleven classes: at once, and three at a time.
    for logits in (2**20, 33):
        monkeypatch.setattr(loss_module, "CHUNK_LOGITS", logits)
        hidden, expected = torch.from_numpy(
            np.random.default_rng(0).normal(size=(2, 7, 24)).astype(np.float32)
        )
        hidden.requires_grad_()
        value = loss_module.mean_divergence(network, hidden, teacher, expected)
        value.backward()
        found.append((value.detach(), hidden.grad))
    torch.testing.assert_close(found[0], found[1])


def test_a_model_learns_from_a_teacher_of_its_own_task():
    other = replace(experiment(), task=parse_task("lm-docs"))
    with pytest.raises(ValueError, match="A teacher predicts"):
        experiment(teacher=other)
    assert experiment(teacher=experiment()).first == (experiment(),)
    assert from_json(to_json(experiment(teacher=experiment()))) == experiment(teacher=experiment())


def test_a_run_with_gates_ends_with_the_scores_of_the_plan_and_the_history_of_its_layers():
    task = tasks.find("sort")
    wanted = Experiment(
        task.model,
        parse_task("sort"),
        task.version,
        SHORT,
        seed=0,
        gates=gates(target="params=95%"),
    )
    record = run(wanted)
    assert record.status == "done", record.reason
    last = record.snapshots[-1]
    assert last.step == SHORT.steps
    assert set(last.measures) == set(GRIDS[0])
    for layer in range(2):
        assert sum(row[layer] for row in last.measures.values()) == pytest.approx(1, abs=1e-5)


# Layers of the planted model in which V is K already.
FREE = (1, 2)


def planted(tmp_path):
    """A model whose tie is free in some layers and ruinous in the others, and batches of its own.

    Its targets are its own predictions, so that no change can help.
    """
    learner = Learner(experiment(layers=4))
    with torch.no_grad():
        weights = learner.weights()
        weights["output.weight"] *= 8
        for layer in FREE:
            for part in ("weight", "bias"):
                name = f"blocks.{layer}.attention"
                weights[f"{name}.v.{part}"].copy_(weights[f"{name}.k.{part}"])
    learner.save(tmp_path / "planted.safetensors")
    batches = []
    for seed in range(60):
        drawn = batch(seed)
        batches.append(Batch(drawn.inputs, learner.predict(drawn).predicted.reshape(8, 16)))
    return tmp_path / "planted.safetensors", batches


def test_where_ties_are_free_and_where_they_ruin_the_model_is_learned_and_not_met_by_chance(
    tmp_path,
):
    path, batches = planted(tmp_path)
    wanted = experiment(
        layers=4,
        gates=gates(("q,k,v", "q,k=v"), "cache=75%"),
        training=replace(SHORT, steps=len(batches)),
    )
    learner = Learner(wanted)
    learner.load_matching(path)
    for each in batches:
        learner.gradients(each)
        # So small a rate that no tie heals.
        learner.update(1e-6)
    found = learner.gates.choose()
    assert {layer for layer, taken in enumerate(found) if taken} == set(FREE)

    def loss(choice):
        for layer, taken in zip(learner.gates.layers, choice, strict=True):
            layer.taken = taken
        with torch.no_grad():
            logits = learner.network.eval()(torch.from_numpy(batches[0].inputs))
        targets = torch.from_numpy(batches[0].targets)
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))

    own = loss((0,) * 4)
    assert changed_layers(learner.gates.budget.costs, learner.gates.budget.left) == {1: 2}
    drawn = {spread(4, 1, 2, "random", seed) for seed in range(20)}
    assert loss(found) < own + 1e-3
    assert sum(map(loss, drawn)) / len(drawn) > own + 0.3


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_interrupted_and_writes_a_model_that_loads(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["prune", "sort", "--target", "params=90%", "--options", "q,k=v", "none"]
    words += ["--seeds", "1", "--draws", "1", "--smoke", "--jobs", "1", "--out", str(out)]
    assert main(words) == 0
    text = capsys.readouterr().out
    found = json.loads((out / "prune.json").read_text())
    assert text.startswith("params=90%: ")
    assert found["arms"]["learned"]["seeds"][0][0]["share"] <= 0.9
    # What gates left is what healing began with.
    runs = [json.loads(each.read_text()) for each in sorted((out / "runs").glob("*.json"))]
    gated = next(each for each in runs if each["experiment"]["gates"])
    before = found["arms"]["learned"]["seeds"][0][0]["before"]
    assert before == pytest.approx(gated["metrics"]["loss"], abs=1e-5)
    # The file is read by an ordinary learner.
    wanted = from_json(json.loads((out / "learned-0.json").read_text()))
    learner = Learner(replace(wanted, init_from=None, other_attention=False))
    names = learner.load_matching(out / "learned-0.safetensors")
    assert set(names) == set(learner.weights())
    # One record is lost: it alone is made again, and nothing else is.
    records = {each: each.read_text() for each in (out / "runs").glob("*.json")}
    lost = next(each for each, text in records.items() if "loss_before" in text)
    lost.unlink()
    assert main(words) == 0
    again = {each: each.read_text() for each in (out / "runs").glob("*.json")}
    assert {each for each in records if again[each] != records[each]} <= {lost}
    assert json.loads((out / "prune.json").read_text()) == found


@pytest.mark.slow
def test_a_target_of_loss_ends_at_a_cost_that_is_within_it_and_all_later_runs_are_taught(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["prune", "sort", "--options", "none", "--seeds", "1", "--draws", "1", "--pairs", "1"]
    words += ["--smoke", "--jobs", "1", "--out", str(out), "--distill"]
    # Models of so few steps lose nothing by attention, and any plan is within a large growth.
    assert main([*words, "--target", "loss=90%:params"]) == 0
    text = capsys.readouterr().out
    found = json.loads((out / "prune.json").read_text())
    assert text.startswith("loss=90%:params: params=")
    within = [each for each in found["tried"] if each["growth"] <= 0.9]
    assert found["share"] == min(within, key=lambda each: each["cost"])["share"]
    runs = [json.loads(each.read_text()) for each in sorted((out / "runs").glob("*.json"))]
    # Of all runs only the first has no teacher.
    assert sum(each["experiment"]["teacher"] is None for each in runs) == 1


@pytest.mark.slow
def test_a_search_begins_with_the_weights_of_a_file_which_are_scored_and_not_trained(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("QKVBENCH_CACHE", str(tmp_path / "cache"))
    task = tasks.find("sort")
    start = Experiment(task.model, parse_task("sort"), task.version, SHORT, seed=3)
    (tmp_path / "model.json").write_text(json.dumps(to_json(start)))
    Learner(start).save(tmp_path / "model.safetensors")
    words = ["prune", str(tmp_path / "model.json"), "--options", "none", "--pairs", "1"]
    words += ["--draws", "1", "--jobs", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--target", "params=90%"]) == 0
    runs = [json.loads(each.read_text()) for each in (tmp_path / "out" / "runs").glob("*.json")]
    assert [each["curve"] for each in runs if each["id"] == start.id] == [[]]
    assert all(each["curve"] for each in runs if each["id"] != start.id)
    found = json.loads((tmp_path / "out" / "prune.json").read_text())
    assert found["seeds"] == [3]
    # Of a model without such layers no weights can be taken.
    deeper = replace(start, model=replace(task.model, blocks=task.model.blocks * 2))
    (tmp_path / "model.json").write_text(json.dumps(to_json(deeper)))
    assert main([*words, "--target", "params=90%"]) == 2


def result_of(share, seeds=(0, 1), **changed):
    """A result as the command writes it, with made-up losses."""

    def arm(cost, above):
        afters = [1.0 + above * (0.9 + 0.2 * n) for n in range(len(seeds))]
        outcomes = [
            {"layers": ["q,k,v"] * 2, "share": cost, "before": 2.0, "after": each}
            for each in afters
        ]
        return {"seeds": [[each] for each in outcomes]}

    return {
        "version": 1,
        "task": "lm-<b>",
        "model": "tiny",
        "layers": 2,
        "options": ["q,k,v", "none"],
        "target": f"cache={share:.0%}",
        "share": share,
        "seeds": list(seeds),
        "learned": ["q,k,v;none"] * len(seeds),
        "integer_program": ["none;q,k,v"] * len(seeds),
        "best_rival": "random",
        "agreement": {"of_seeds": 1.0, "with_integer_program": 0.0},
        "arms": {
            "all layers as they are": arm(1.0, 0.0),
            "learned": arm(share, 0.1),
            "integer program": arm(share, 0.05),
            "random": arm(share, 9.0),
        },
        "history": [[{"step": n, "probabilities": [[0.75, 0.25]] * 2} for n in (0, 5)]]
        * len(seeds),
        **changed,
    }


def folders_of(tmp_path, *results):
    found = []
    for number, each in enumerate(results):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "prune.json").write_text(json.dumps(each))
        found.append(str(folder))
    return found


def test_the_page_of_several_folders_has_every_arm_of_each_and_escapes_what_they_say(
    tmp_path, capsys
):
    folders = folders_of(tmp_path, result_of(0.5), result_of(0.75))
    assert main(["report", *folders]) == 0
    assert capsys.readouterr().out == f"The page: {folders[0]}/report.html\n"
    text = (tmp_path / "0" / "report.html").read_text()
    assert "lm-<b>" not in text
    # One figure of costs with a point for each arm of each folder, and one of gates for each.
    pictures = [ElementTree.fromstring(each) for each in re.findall(r"<svg.*?</svg>", text)]
    assert len(pictures) == 3
    titles = [each.text for each in pictures[0].iter("title")][1:]
    # Two seeds that are apart by a fifth: 12.7 standard errors on either side.
    expected = ("learned: +0.1000 ± 0.1271", "integer program: +0.0500 ± 0.0635")
    assert sorted(titles) == sorted(2 * [*expected, "random: +9.0000 ± 11.4356"])
    # What is far above the figure is a triangle at its edge, and no circle.
    assert sum(each.get("r") == "4" for each in pictures[0].iter()) == 4


def test_a_result_that_contradicts_itself_and_mixed_folders_are_refused(tmp_path, capsys):
    (folder,) = folders_of(tmp_path, result_of(0.5, learned=["q,k,v;none;none"] * 2))
    assert main(["report", folder]) == 2
    assert "do not agree" in capsys.readouterr().err
    (tmp_path / "study").mkdir()
    assert main(["report", folder, str(tmp_path / "study")]) == 2
    assert "has no prune.json" in capsys.readouterr().err
