"""What all folders show of one arm: each run once, one verdict, and the effective speed-up."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fake_study
from qkvbench.claims.kit import evidence
from qkvbench.cli import main
from qkvbench.cli.evidence import every_run
from qkvbench.model import initial_value, model_parameters, parse_arm, write_arm
from qkvbench.recipes import Study
from qkvbench.reports import full
from qkvbench.reports.parts.evidence import lines
from qkvbench.results.evidence import Run, effective_speed, settings
from qkvbench.results.pair import pair
from qkvbench.results.record import Point
from qkvbench.results.stats import verdicts
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.variant import Normal

ARMS = ("q,k,v", "q,k=v")
STUDIES = Path(__file__).parents[1] / "studies"


def scored(task="digits", seeds=5, first=0, loss=0.05, noise=0.004, arms=ARMS):
    """Records of the two arms, the second of which loses so much."""
    rng = np.random.default_rng(first)
    return [
        fake_study.record(run, 0.9 - loss * arms.index(run.arm) + noise * rng.normal())
        for run in Study("made", arms, {task: seeds + first}).experiments()
        if run.seed >= first
    ]


def found(*folders, arm="q,k=v"):
    runs = [
        Run(f"folder {number}", record)
        for number, records in enumerate(folders)
        for record in records
    ]
    return settings(runs, arm=arm)


def test_a_run_that_two_folders_have_counts_once():
    once, twice = found(scored()), found(scored(), scored())
    assert once[0].result == twice[0].result
    assert once[0].seeds == twice[0].seeds == (5, 5)
    assert twice[0].folders == ("folder 0", "folder 1")


def test_seeds_of_several_folders_are_taken_together():
    (few,) = found(scored(seeds=3, loss=0.006))
    (all_,) = found(scored(seeds=3, loss=0.006), scored(seeds=17, first=3, loss=0.006))
    assert all_.seeds == (20, 20)
    assert few.verdict != "worse"
    assert all_.verdict == "worse"


def test_arms_need_not_have_the_same_seeds():
    records = scored(seeds=6)
    (each,) = found([run for run in records if run.arm == "q,k,v" or run.seed < 3])
    assert each.seeds == (6, 3)
    assert each.verdict in ("worse", "likely worse")


def test_one_experiment_under_two_names_of_its_task_is_one_setting():
    # The model of recall has four heads of 16 in any case.
    (each,) = found(scored("recall"), scored("recall@4x16"))
    assert each.names == ("recall", "recall@4x16")
    assert each.seeds == (5, 5)
    assert len(found(scored("recall"), scored("recall@1x64"))) == 2


def test_settings_differ_in_their_steps():
    longer = [
        fake_study.record(replace(run, training=replace(run.training, steps=5)), 0.9)
        for run in fake_study.experiments("digits", ARMS, 3)
    ]
    assert len(found(scored(), longer)) == 2


def test_the_verdict_is_that_of_a_report(tmp_path):
    store = Store(tmp_path)
    store.write_study(
        fake_study.info(ARMS, ("digits",)).model_copy(update={"seeds": {"digits": 5}})
    )
    for record in scored():
        store.write_run(record)
    (task,) = view(store).tasks
    (each,) = found(store.runs().good)
    assert each.verdict == verdicts(task.result, "higher")["q,k=v"]
    assert each.result.differences == task.result.differences


def test_a_run_that_failed_leaves_its_arm_without_a_verdict():
    records = scored()
    lost = records[-1].model_copy(update={"status": "oom", "metrics": {}, "curve": []})
    (each,) = found([*records[:-1], lost])
    assert each.verdict is None
    assert each.silence == "one arm"
    # Another folder has it.
    (mended,) = found([*records[:-1], lost], records)
    assert mended.verdict is not None


def test_a_control_that_lacks_a_run_takes_no_verdict_from_the_two_arms():
    records = scored()
    (lost,) = fake_study.experiments("lm-reviews", ("none",), 1)
    killed = fake_study.record(lost, status="oom")
    killed = killed.model_copy(update={"metrics": {}, "curve": []})
    (each,) = found([*records, killed])
    (without,) = found(records)
    assert each.verdict == without.verdict is not None


def curved(arm, losses, macs=None):
    """A record of lm-reviews whose validation loss falls over equal steps."""
    (run,) = fake_study.experiments("lm-reviews", (arm,), 1)
    made = fake_study.record(run, losses[-1])
    points = [
        Point(
            step=100 * (i + 1), train_loss=1.0, gradient_norm=1.0, metrics={"bits_per_byte": each}
        )
        for i, each in enumerate(losses)
    ]
    cost = made.cost.model_copy(update={"macs": macs or made.cost.macs})
    return made.model_copy(update={"curve": points, "cost": cost})


def test_the_effective_speed_up_is_read_off_the_curves():
    base = curved("q,k,v", [4.0, 3.0, 2.5, 2.0], macs=100)
    slower = curved("q,k=v", [5.0, 4.0, 3.5, 2.75], macs=100)
    # The baseline has 2.75 half way from its second to its third point, of four.
    assert effective_speed([base], [slower]) == pytest.approx(2.5 / 4)
    assert effective_speed([slower], [base]) == pytest.approx(4 / 2.5)
    # At half of the operations a step the same arm is twice as fast.
    cheap = curved("q,k=v", [5.0, 4.0, 3.5, 2.75], macs=50)
    assert effective_speed([base], [cheap]) == pytest.approx(2 * 2.5 / 4)


def test_the_command_says_first_what_is_known_in_one_sentence(tmp_path, capsys, monkeypatch):
    store = Store(tmp_path / "studies" / "made")
    store.write_study(fake_study.info(ARMS, ("digits",)))
    for record in scored():
        store.write_run(record)
    monkeypatch.chdir(tmp_path)
    assert main(["evidence", "shared-kv"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "q,k=v against q,k,v, in 1 setting: worse in 1."
    (at,) = [n for n, line in enumerate(rest) if line == "worse"]
    assert rest[at + 1].startswith("  digits, 600 steps")
    assert main(["evidence", "q,k=v", "studies/made", "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document["settings"][0]["verdict"] == "worse"


def test_a_narrow_terminal_gets_fewer_columns_and_is_told_so():
    folders = [STUDIES / name for name in ("quick-tuned", "recall-twenty", "budgets-1500")]
    known = settings(every_run(folders), arm="q,k=v", against="q,k,v", margins={})
    whole, narrow = (lines(known, "q,k=v", "q,k,v", width) for width in (None, 80))
    table = narrow[2 : next(n for n, line in enumerate(narrow) if line.startswith("Not shown"))]
    assert max(map(len, table)) <= 80
    assert "Not shown, for the width: p, seeds, speed, folders." in narrow
    assert not any(line.startswith("Not shown") for line in whole)
    assert all(line.startswith(each) for line, each in zip(whole[3:], table[1:], strict=False))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["q,k=v"], "There is no folder of results here"),
        (["q,k,v"], "compared with itself"),
        (["q,k=w"], "Did you mean"),
        (["q,k=v", "nowhere"], "nowhere is not a folder of results"),
    ],
)
def test_a_wrong_request_has_a_way_out(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evidence", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_same_arm_again_has_other_initial_values_and_nothing_else():
    arms = ("q,k,v", "q,k,v~again", "q,k,v~q,k=v~again")
    assert [write_arm(parse_arm(arm)) for arm in arms] == list(arms)
    once, again, _ = Study("a", arms, {"digits": 1}).experiments()
    assert (once.variant, again.variant, again.arm) == ("q,k,v", "q,k,v", "q,k,v~again")
    assert once.id != again.id
    plain = replace(again, model=replace(again.model, init=once.model.init))
    assert plain == once
    drawn = 0
    for parameter in model_parameters(once.model).values():
        first, second = (initial_value(each.model.init, 0, parameter) for each in (once, again))
        assert first.shape == second.shape
        if isinstance(parameter.init, Normal):
            drawn += 1
            assert not np.isclose(first, second).all()
            # Of the same distribution.
            assert first.std() == pytest.approx(second.std(), rel=0.3)
        else:
            assert (first == second).all()
    assert drawn > 4


def test_the_same_arm_again_is_an_arm_of_its_own_in_a_view(tmp_path):
    arms = ("q,k,v", "q,k,v~again")
    store = Store(tmp_path)
    store.write_study(fake_study.info(arms, ("digits",)))
    for record in scored(seeds=3, loss=0.0, arms=arms):
        store.write_run(record)
    (task,) = view(store).tasks
    assert [len(cell.runs) for cell in task.cells] == [3, 3]
    assert "q,k,v~again" in task.result.differences


def test_runs_that_divergence_left_decide_no_claim():
    """Three of five seeds diverged, and the two that did not look as good."""
    records = scored(loss=0.0)
    lost = [
        fake_study.record(each.parsed_experiment, status="diverged", reason="made for tests")
        for each in records[-3:]
    ]
    lost = [each.model_copy(update={"metrics": {}, "curve": []}) for each in lost]
    (setting,) = found([*records[:-3], *lost])
    assert setting.verdict == "diverged"
    assert "q,k=v" in setting.result.differences
    metric = fake_study.find("digits").metric
    assert evidence._outcome(setting, "q,k=v", "q,k,v", metric) is None


def test_two_arms_below_chance_are_compared_if_the_control_is_far_below(tmp_path):
    """As in a report: what a model without attention does not reach was learned."""
    arms = ("q,k,v", "q,k=v", "none")
    level = {"q,k,v": 8.2, "q,k=v": 8.3, "none": 9.5}
    rng = np.random.default_rng(0)
    runs = [
        fake_study.record(run, level[run.arm] + 0.002 * rng.normal())
        for run in Study("made", arms, {"lm-reviews": 3}).experiments()
    ]
    made = fake_study.small(tmp_path, runs, arms=arms, tasks=("lm-reviews",))
    (task,) = made.tasks
    assert task.metric.chance == 8
    assert task.result.standing == "compared"
    (compared,) = pair(made, "q,k,v", "q,k=v").tasks
    assert compared.standing == "compared"
    assert compared.verdict == task.result.differences["q,k=v"].verdict("lower")


def test_a_baseline_that_caches_nothing_has_a_report(tmp_path):
    arms = ("none", "q,k,v", "q,k=v")
    runs = scored("lm-reviews", arms=arms, loss=-0.5)
    made = fake_study.small(tmp_path, runs, arms=arms, tasks=("lm-reviews",))
    text = full.render(made)
    assert "Cache per token" not in text


def test_seeds_that_solved_a_task_are_shown_with_the_step_and_damaged_records_are_named(
    tmp_path, capsys
):
    runs = Study("made", ARMS, {"recall": 5}).experiments()
    steps = {"q,k,v": 400, "q,k=v": 250}
    records = [fake_study.record(run, 1.0, solved_step=steps[run.arm]) for run in runs]
    fake_study.small(tmp_path / "a", records, arms=ARMS, tasks=("recall",))
    store = Store(tmp_path / "a")
    (store.path / "runs" / f"{0:016x}.json").write_text("{")
    assert main(["evidence", "q,k=v", str(store.path)]) == 0
    captured = capsys.readouterr()
    assert "5/5 at 250, not 5/5 at 400" in captured.out
    assert f"Left out, damaged: {store.path}" in captured.err


def test_of_an_arm_whose_runs_failed_that_is_said_though_the_control_is_compared(tmp_path, capsys):
    arms = (*ARMS, "none")
    records = scored(arms=arms)
    records = [
        run.model_copy(update={"status": "oom", "metrics": {}, "curve": []})
        if (run.arm, run.seed) == ("q,k=v", 0)
        else run
        for run in records
    ]
    store = Store(tmp_path)
    for run in records:
        store.write_run(run)
    assert main(["evidence", "q,k=v", str(tmp_path)]) == 0
    assert "(runs failed)." in capsys.readouterr().out
    assert main(["evidence", "q,k=v", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == {"runs failed": 1}
