"""The linear model recovers the effects of simulated scores."""

from dataclasses import replace

import numpy as np
import pytest

import fake_study
from qkvbench import tasks
from qkvbench.recipes import find
from qkvbench.reports import effects as report
from qkvbench.results.effects import effects
from qkvbench.results.store import Store
from qkvbench.results.view import view

STUDY = replace(
    find("hundreds"),
    variants=("q,k,v", "q,k=v", "q=x,k,v", "q,k=x,v", "q,k=R(q),v", "q,k,v/1", "q,k=v/1"),
    seeds={f"recall@{scheme}": 1 for scheme in ("learned", "rotary", "none")},
)
FUNCTION = {"q,k,v": 0.0, "q,k=v": -0.2, "q=x,k,v": 0.05, "q,k=x,v": -0.1, "q,k=R(q),v": 0.0}
POSITIONS = {"learned": 0.0, "rotary": -0.15, "none": 0.1}


def records(noise, seeds=1):
    """Runs whose scores are sums of what is put in; under rotary, `k=x` costs more."""
    rng = np.random.default_rng(3)
    made = []
    study = replace(STUDY, seeds=dict.fromkeys(STUDY.seeds, seeds))
    for experiment in study.experiments():
        function, _, heads = experiment.variant.partition("/")
        scheme = experiment.task.position
        score = 0.6 + FUNCTION[function] + POSITIONS[scheme] - 0.1 * bool(heads)
        score -= 0.3 * (function == "q,k=x,v" and scheme == "rotary")
        made.append(fake_study.record(experiment, score + noise * rng.normal()))
    return made


def test_the_effects_of_simulated_scores_are_recovered():
    (found,) = effects(records(0.001))
    assert (found.task, found.runs, found.unscored) == ("recall", 21, 0)
    value = {(each.factor, each.level): each for each in found.effects}
    assert value["heads", "1"].value == pytest.approx(-0.1, abs=0.005)
    assert value["function", "q,k=v"].value == pytest.approx(-0.2, abs=0.005)
    # A mean over three schemes, of which one costs 0.3 more.
    assert value["function", "q,k=x,v"].value == pytest.approx(-0.1 - 0.3 / 3, abs=0.005)
    assert value["function", "q,k=v"].significant
    assert not value["function", "q,k=R(q),v"].significant
    mixed = {(each.factor, each.level): each for each in found.interactions if each.significant}
    assert set(mixed) == {("k x", "rotary")}
    assert mixed["k x", "rotary"].value == pytest.approx(-0.3, abs=0.01)
    # What is left over is the noise that was put in.
    assert 0.0003 < found.residual_deviation < 0.003


def test_a_scheme_of_positions_at_which_attention_is_worth_nothing_is_left_out():
    made = records(0.001)
    floors = [
        fake_study.record(each, 0.0 if each.task.position != "rotary" else 0.9)
        for each in replace(STUDY, variants=("none",)).experiments()
    ]
    (found,) = effects([*made, *floors])
    assert (found.at_floor, found.runs, found.unscored) == (("rotary",), 14, 0)
    # So the choice that costs more under rotary alone costs what it costs elsewhere.
    value = {(each.factor, each.level): each.value for each in found.effects}
    assert value["function", "q,k=x,v"] == pytest.approx(-0.1, abs=0.005)


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
    def shifted(by):
        return [
            each.model_copy(update={"metrics": {"accuracy": each.score + by * each.seed}})
            for each in records(0.001, seeds=2)
        ]

    (still,), (moved,) = effects(shifted(0.0)), effects(shifted(0.3))
    assert moved.residual_deviation == pytest.approx(still.residual_deviation, rel=1e-6)
    assert [each.value for each in moved.effects] == pytest.approx(
        [each.value for each in still.effects], abs=1e-9
    )


def test_runs_without_a_score_are_counted_and_left_out():
    made = records(0.001)
    made[5] = fake_study.record(STUDY.experiments()[5], status="diverged", reason="no number")
    (found,) = effects(made)
    assert (found.runs, found.unscored) == (20, 1)


def test_runs_of_other_blocks_have_a_score_and_are_counted_apart():
    study = replace(STUDY, variants=(*STUDY.variants, "q,k,v~rms"))
    others = [each for each in study.experiments() if each.arm == "q,k,v~rms"]
    made = [*records(0.001), *(fake_study.record(each, 0.6) for each in others)]
    (found,) = effects(made)
    assert (found.runs, found.unscored, found.unplain) == (21, 0, len(others))


def test_the_report_has_the_residual_or_says_that_there_is_none(tmp_path):
    store = Store(tmp_path)
    for made in records(0.001):
        store.write_run(made)
    said = report.render(view(store))
    assert "k x, under rotary" in said
    assert "noise of a run and interactions" in said
    few = Store(tmp_path / "few")
    few.write_run(records(0.001)[0])
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
