"""The linear model recovers the effects of simulated scores."""

from dataclasses import replace

import numpy as np
import pytest

import fake_study
from qkvbench import tasks
from qkvbench.recipes import find
from qkvbench.reports import effects as report
from qkvbench.results.effects import Run, _Model, _source, effects, levels
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.results.welch import unit_of
from qkvbench.variant import parse

STUDY = replace(
    find("hundreds"),
    variants=("q,k,v", "q,k=v", "q=x,k,v", "q,k=x,v", "q,k=R(q),v", "q,k,v/1", "q,k=v/1"),
    seeds={f"recall@{scheme}": 1 for scheme in ("learned", "rotary", "none")},
)
SEVEN = ("q,k,v", "q=k,v", "q,k=v", "q=k=v", "q=k=x,v", "q,k=R(q),v=R(q)", "q=k=v=x")
# Logits, as accuracies are analysed.
FUNCTION = {"q,k,v": 0.0, "q,k=v": -0.8, "q=x,k,v": 0.2, "q,k=x,v": -0.4, "q,k=R(q),v": 0.0}
POSITIONS = {"learned": 0.0, "rotary": -0.6, "none": 0.4}
SHARE = unit_of("share")


def records(noise, seeds=1, by_seed=0.0):
    """Runs whose logits are sums of what is put in; under rotary, `k=x` costs more."""
    rng = np.random.default_rng(3)
    made = []
    study = replace(STUDY, seeds=dict.fromkeys(STUDY.seeds, seeds))
    for experiment in study.experiments():
        function, _, heads = experiment.variant.partition("/")
        scheme = experiment.task.position
        score = 0.4 + FUNCTION[function] + POSITIONS[scheme] - 0.4 * bool(heads)
        score -= 1.2 * (function == "q,k=x,v" and scheme == "rotary")
        score += by_seed * experiment.seed + noise * rng.normal()
        made.append(fake_study.record(experiment, SHARE.restored(score)))
    return made


def logits(made, each, **against):
    """An effect on logits, if it is the change from the mean of the runs at these levels."""
    found = [
        float(SHARE.analysed([run.score])[0])
        for run in made
        if all(levels(run)[name] == level for name, level in against.items())
    ]
    base = np.mean(found)
    return SHARE.analysed([SHARE.restored(base) + each.value])[0] - base


def test_the_effects_of_simulated_scores_are_recovered():
    made = records(0.005)
    (found,) = effects(made)
    assert (found.task, found.runs, found.unscored) == ("recall", 21, 0)
    effect = {(each.factor, each.level): each for each in found.effects}

    def of_function(level):
        return logits(made, effect["function", level], function="q,k,v")

    assert logits(made, effect["heads", "1"], heads="4") == pytest.approx(-0.4, abs=0.02)
    assert of_function("q,k=v") == pytest.approx(-0.8, abs=0.02)
    # A mean over three schemes, of which one costs 1.2 more.
    assert of_function("q,k=x,v") == pytest.approx(-0.4 - 1.2 / 3, abs=0.02)
    assert effect["function", "q,k=v"].significant
    assert not effect["function", "q,k=R(q),v"].significant
    mixed = {(each.factor, each.level): each for each in found.interactions if each.significant}
    assert set(mixed) == {("k x", "rotary")}
    most = logits(made, mixed["k x", "rotary"], positions="learned", k="own")
    assert most == pytest.approx(-1.2, abs=0.04)
    # What is left over is the noise that was put in.
    assert 0.0003 < found.residual_deviation < 0.003


def test_a_scheme_of_positions_at_which_attention_is_worth_nothing_is_left_out():
    made = records(0.005)
    floors = [
        fake_study.record(each, 0.0 if each.task.position != "rotary" else 0.9)
        for each in replace(STUDY, variants=("none",)).experiments()
    ]
    (found,) = effects([*made, *floors])
    assert (found.at_floor, found.runs, found.unscored) == (("rotary",), 14, 0)
    # So the choice that costs more under rotary alone costs what it costs elsewhere.
    effect = {(each.factor, each.level): each for each in found.effects}
    left = [run for run in made if levels(run)["positions"] != "rotary"]
    change = logits(left, effect["function", "q,k=x,v"], function="q,k,v")
    assert change == pytest.approx(-0.4, abs=0.02)


@pytest.mark.slow
def test_noise_alone_shows_nothing_more_often_than_the_level_says():
    # Of 40 studies without effects, 5% of which may show one: 8 or more have p = 0.001.
    shown = 0
    for number in range(40):
        rng = np.random.default_rng(number)
        made = [fake_study.record(each, 0.5 + 0.02 * rng.normal()) for each in STUDY.experiments()]
        (found,) = effects(made)
        shown += any(each.significant for each in found.effects)
    assert shown < 8


def test_seeds_are_blocks():
    (still,), (moved,) = (effects(records(0.005, seeds=2, by_seed=by)) for by in (0.0, 0.5))
    for one, other in ((still.terms, moved.terms), (still.interactions, moved.interactions)):
        assert [each.p for each in one] == pytest.approx([each.p for each in other], rel=1e-6)
        assert one


def test_runs_without_a_score_are_counted_and_left_out():
    made = records(0.005)
    made[5] = fake_study.record(STUDY.experiments()[5], status="diverged", reason="no number")
    (found,) = effects(made)
    assert (found.runs, found.unscored) == (20, 1)


@pytest.mark.parametrize("noisy", ["q,k,v", "q,k=v"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_an_arm_that_varies_five_times_as_much_adds_no_effects(noisy, seeds):
    # Pooled, the noise of all arms had an effect in 15 to 20% of such studies.
    rng = np.random.default_rng(0)
    sources = {arm: {role: _source(parse(arm).source(role)) for role in "qkv"} for arm in SEVEN}

    def study():
        return [
            Run(
                rng.normal() * (5 if arm == noisy else 1),
                {"function": arm, "heads": "4", "positions": "rotary", "seed": str(seed)}
                | sources[arm],
            )
            for arm in SEVEN
            for seed in range(seeds)
        ]

    studies = 100
    models = [_Model(study(), unit_of("bits")) for _ in range(studies)]
    effects_shown = sum(any(each.significant for each in one.main_effects()) for one in models)
    terms_shown = sum(any(each.p < 0.05 for each in one.terms()) for one in models)
    # Of 100 studies at 5%, 12 or more have p = 0.004.
    assert max(effects_shown, terms_shown) < 12


def test_runs_of_other_blocks_have_a_score_and_are_counted_apart():
    study = replace(STUDY, variants=(*STUDY.variants, "q,k,v~rms"))
    others = [each for each in study.experiments() if each.arm == "q,k,v~rms"]
    made = [*records(0.005), *(fake_study.record(each, 0.6) for each in others)]
    (found,) = effects(made)
    assert (found.runs, found.unscored, found.unplain) == (21, 0, len(others))


def test_the_report_has_the_residual_or_says_that_there_is_none(tmp_path):
    store = Store(tmp_path)
    for made in records(0.005):
        store.write_run(made)
    said = report.render(view(store))
    assert "k x, under rotary" in said
    assert "noise of a run and interactions" in said
    few = Store(tmp_path / "few")
    few.write_run(records(0.005)[0])
    assert report.NOTHING in report.render(view(few))


def test_hundreds_has_each_function_once_with_the_heads_that_it_can_have():
    study = find("hundreds")
    assert study.variants[0] == "q,k,v"
    *arms, floor = study.variants
    assert floor == "none"
    assert sum("/" not in arm for arm in arms) == 20
    assert len(set(study.variants)) == len(study.variants)
    runs = study.experiments()
    assert len(runs) >= 300
    assert len({run.id for run in runs}) == len(runs)
    assert {run.task.name for run in runs} == {"recall", "anomaly-pixels", "lm-reviews"}


@pytest.mark.parametrize("scheme", ["none", "learned", "rotary/0.5", "alibi"])
def test_a_position_changes_a_task_s_model_and_nothing_else(scheme):
    marked, own = tasks.find(f"digits@{scheme}"), tasks.find("digits")
    assert replace(marked, model=own.model) == own
    assert replace(marked.model, position=own.model.position) == own.model


def test_options_that_a_task_cannot_have_are_refused_in_words():
    from qkvbench.data import DataRefusedError

    with pytest.raises(DataRefusedError, match="Heads stand last"):
        tasks.find("recall@1x64@rotary")
    with pytest.raises(DataRefusedError, match="only rotary and rotary-inverse have a share"):
        tasks.find("recall@none/0.5")
