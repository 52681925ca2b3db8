"""Learning rates are tuned on validation, with equal effort for each arm, before the study runs."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fake_study
from qkvbench import tasks
from qkvbench.claims.kit.evidence import of_study
from qkvbench.cli import main
from qkvbench.cli.parser import parse_request
from qkvbench.cli.run import default_folder, requested_study
from qkvbench.recipes import Study
from qkvbench.recipes.study import Teacher
from qkvbench.reports import brief, full, page, summary
from qkvbench.results.evidence import runs_of
from qkvbench.results.record import Point
from qkvbench.results.store import Store
from qkvbench.results.tuning import FACTORS, FIRST_SEED, SEEDS, choose, sensitivities
from qkvbench.results.view import view
from qkvbench.sweep.study import info, runnable_experiments, tuning_plan, with_chosen_rates
from test_sweep import carried_out

BENCHMARKS = Path(__file__).parents[1] / "docs/benchmarks.md"
STUDY = Study("study", ("q,k,v", "none"), {"digits": 2}, tuned=True)
SMOKE = Study("test", ("q,k,v", "none"), {"sort": 1}, smoke=True, tuned=True)


def tuned_record(run, validation, *, test=0.5, metric=None, **changes):
    """A record whose last score on the validation split is this one."""
    made = fake_study.record(run, test, solved_step=changes.pop("solved_step", None))
    metrics = {metric or made.metric.name: validation}
    last = Point(step=run.training.steps, train_loss=1.0, gradient_norm=1.0, metrics=metrics)
    return made.model_copy(update={"curve": [*made.curve[:-1], last], **changes})


def diverged(run):
    return fake_study.record(run, status="diverged", reason="made for tests")


def chosen(study, score):
    """The rates that are chosen if each run's record is ``score(run, its factor)``."""
    return choose(tuning_plan(study), records(study, score))


def records(study, score):
    made = [
        score(run, factor)
        for arms in study.tuning_grid().values()
        for runs in arms.values()
        for run, factor in zip(runs, [f for f in FACTORS for _ in SEEDS], strict=True)
    ]
    return [each for each in made if each is not None]


def near(run, factor, best):
    """A record whose validation score falls with the distance from the best factor."""
    noise = 0.002 * (run.seed - FIRST_SEED)
    return tuned_record(run, 0.9 - 0.05 * abs(factor - best) + noise, test=0.1 * factor)


def tuned_store(folder, study, best):
    """A store with made-up tuning runs and the runs of the study at the chosen rates."""
    store = Store(folder)
    for made in records(study, lambda run, factor: near(run, factor, best[run.arm])):
        store.write_run(made)
    study = with_chosen_rates(study, store)
    store.write_study(info(study, "made for tests"))
    for run in study.experiments():
        store.write_run(fake_study.record(run, 0.9 + 0.01 * run.seed - 0.3 * (run.arm == "none")))
    return store


@pytest.fixture(name="stored", scope="module")
def _stored(tmp_path_factory):
    return tuned_store(tmp_path_factory.mktemp("tuned"), STUDY, {"q,k,v": 2.0, "none": 0.25})


def test_every_arm_is_tuned_with_the_same_rates_and_seeds_and_none_of_the_study_s():
    rates = {
        arm: [(run.training.learning_rate, run.seed) for run in runs]
        for arm, runs in STUDY.tuning_grid()["digits"].items()
    }
    own = STUDY.experiments()[0].training.learning_rate
    assert rates["q,k,v"] == rates["none"]
    assert rates["none"] == [(factor * own, seed) for factor in FACTORS for seed in SEEDS]
    assert not {run.seed for run in STUDY.experiments()} & set(SEEDS)
    assert replace(STUDY, tuned=False).tuning_experiments() == ()


def test_a_rate_changes_its_own_arm_s_runs_and_nothing_else_of_them():
    plain = {(run.arm, run.seed): run for run in STUDY.experiments()}
    rated = replace(STUDY, rates={"digits": {"none": 4.0, "q,k,v": 1.0}})
    for run in rated.experiments():
        before = plain[run.arm, run.seed]
        if run.arm == "q,k,v":
            assert run.id == before.id
        else:
            assert run.training.learning_rate == 4 * before.training.learning_rate
            assert replace(run, training=before.training) == before


def test_the_best_mean_on_validation_is_chosen_and_the_test_split_is_ignored():
    # The test score rises with the rate, and the second seed alone prefers the highest one.
    best = {"q,k,v": 2.0, "none": 0.5}
    rates = chosen(STUDY, lambda run, factor: near(run, factor, best[run.arm]))
    assert rates == {"digits": best}


def test_a_rate_at_which_a_seed_diverged_comes_last():
    def score(run, factor):
        worst = factor == 2.0 and run.seed == SEEDS[1]
        return diverged(run) if worst else near(run, factor, 2.0)

    assert chosen(STUDY, score)["digits"]["none"] == 1.0
    only = chosen(STUDY, lambda run, f: near(run, f, 8.0) if f == 0.25 else diverged(run))
    assert only["digits"]["none"] == 0.25


def test_of_equal_rates_the_nearest_to_the_task_s_own_is_chosen():
    assert chosen(STUDY, lambda run, _: tuned_record(run, 0.9))["digits"]["none"] == 1.0
    far = {0.25: 0.9, 0.5: 0.9, 1.0: 0.8, 2.0: 0.9, 4.0: 0.9, 8.0: 0.9}
    assert chosen(STUDY, lambda run, f: tuned_record(run, far[f]))["digits"]["none"] == 0.5


def test_no_rate_is_chosen_while_a_run_is_missing_or_failed():
    def all_but_one(run, factor, instead):
        last = (run.arm, factor, run.seed) == ("none", 8.0, SEEDS[1])
        return instead if last else near(run, factor, 1.0)

    assert chosen(STUDY, lambda *run: all_but_one(*run, None)) == {"digits": {"q,k,v": 1.0}}
    failed = fake_study.record(STUDY.tuning_grid()["digits"]["none"][-1], status="failed")
    assert chosen(STUDY, lambda *run: all_but_one(*run, failed)) == {"digits": {"q,k,v": 1.0}}


def test_where_seeds_are_counted_as_solved_the_earliest_rate_that_solves_most_is_chosen():
    study = Study("test", ("q,k,v",), {"recall": 1}, tuned=True)
    # By factor: the step at which each seed is solved, and the score at the end.
    outcomes = {
        0.25: ((None, None), 0.5),
        0.5: ((900, 700), 0.99),
        1.0: ((400, 500), 0.97),
        2.0: ((300, 600), 0.98),
        # Solved early, and lost again.
        4.0: ((100, 100), 0.6),
        8.0: ((50, None), 1.0),
    }

    def score(run, factor):
        steps, last = outcomes[factor]
        return tuned_record(run, last, solved_step=steps[run.seed - FIRST_SEED])

    # 1 and 2 have the same mean step: the better score decides.
    assert chosen(study, score) == {"recall": {"q,k,v": 2.0}}

    def diverging(run, factor):
        """At twice the rate the first seed solves it at once, and the other diverges."""
        if factor != 2.0:
            return score(run, factor)
        if run.seed == FIRST_SEED:
            return tuned_record(run, 1.0, solved_step=1)
        return fake_study.record(run, 0.5, status="diverged", reason="made for tests")

    assert chosen(study, diverging) == {"recall": {"q,k,v": 1.0}}


def test_a_metric_of_generated_texts_is_tuned_by_the_loss():
    study = Study("test", ("q,k,v",), {"translation": 1}, tuned=True)
    loss = {0.25: 3.0, 0.5: 2.0, 1.0: 1.5, 2.0: 1.2, 4.0: 1.4, 8.0: 5.0}
    made = records(study, lambda run, f: tuned_record(run, loss[f], metric="loss"))
    assert choose(tuning_plan(study), made) == {"translation": {"q,k,v": 2.0}}
    (found,) = sensitivities(tuning_plan(study), made)
    assert (found.metric, found.better) == ("loss", "lower")


def test_arms_of_different_rates_are_compared_and_tuning_runs_are_no_runs_of_the_study(stored):
    study = view(stored)
    assert [len(cell.runs) for cell in study.tasks[0].cells] == [2, 2]
    assert study.tasks[0].result.differences["none"].value == pytest.approx(-0.3, abs=1e-3)
    assert study.others == 0
    stored_info = stored.study()
    assert stored_info.tuning.chosen == {"digits": {"q,k,v": 2.0, "none": 0.25}}
    assert len(stored_info.tuning.ids) == 2 * len(FACTORS) * len(SEEDS)


def test_without_its_study_a_store_s_tuning_runs_are_still_no_seeds(stored, tmp_path):
    bare = Store(tmp_path)
    for run in stored.runs().good:
        bare.write_run(run)
    assert {run.seed for run in view(bare).runs} == {0, 1}


def test_the_report_says_how_rates_were_chosen_and_which_are_at_the_edge(stored):
    study = view(stored)
    text = " ".join(full.render(study).split())
    assert "Learning rates: tuned per arm on validation (6 rates × 2 seeds each)" in text
    assert "a better one may lie beyond: none (digits, ×1/4)" in text
    assert "One setting" not in text
    html = page.render(study)
    section = html[html.index('<details id="rates">') : html.index('id="limits"')]
    assert section.count("✓") == 1 + 2
    assert "<strong>✓ 0.901</strong>" in section
    assert "×2 = 0.004" in section
    rows = json.loads(summary.render(study))["learning_rates"]
    assert [(row["arm"], row["chosen"], row["at_edge"]) for row in rows] == [
        ("q,k,v", 2.0, False),
        ("none", 0.25, True),
    ]
    assert [rate["factor"] for rate in rows[0]["rates"]] == list(FACTORS)


def test_another_study_takes_the_rates_over_and_its_report_says_from_where(stored, tmp_path):
    words = ["run", "--variants", "q,k,v", "none", "--tasks", "digits", "--seeds", "2"]
    longer = [*words, "--rates", str(stored.path)]
    study = requested_study(parse_request(longer))
    assert study.rates == {"digits": {"q,k,v": 2.0, "none": 0.25}}
    own = {
        run.arm: run.training.learning_rate
        for run in requested_study(parse_request(words)).experiments()
    }
    taken = {run.arm: run.training.learning_rate for run in study.experiments()}
    assert taken == {"q,k,v": 2 * own["q,k,v"], "none": own["none"] / 4}
    assert study.tuning_experiments() == ()
    store = Store(tmp_path)
    store.write_study(info(with_chosen_rates(study, store), "made for tests"))
    for run in study.experiments():
        store.write_run(fake_study.record(run, 0.9 + 0.01 * run.seed - 0.3 * (run.arm == "none")))
    found = view(store)
    # Arms with rates of their own are compared.
    assert found.tasks[0].result.differences["none"].value == pytest.approx(-0.3, abs=1e-3)
    text = " ".join(full.render(found).split())
    assert f"those that {stored.path.name} chose on validation" in text
    assert "none (digits, ×1/4)" in text
    assert "One setting" not in text
    assert f"Learning rate: each arm's as {stored.path.name} tuned it." in brief.render(found)
    rows = json.loads(summary.render(found))["learning_rates"]
    assert [(row["arm"], row["chosen"]) for row in rows] == [("q,k,v", 2.0), ("none", 0.25)]
    # A ledger of one study and of folders meet in one setting.
    assert {run.tuned for run in runs_of(store, "a")} == {True}
    assert of_study(found).runs[0].tuned


def test_the_rates_of_several_studies_are_taken_from_the_first_that_chose_one(stored, tmp_path):
    others = replace(STUDY, variants=("q,k,v", "q,k=v"))
    second = tuned_store(tmp_path / "others", others, {"q,k,v": 0.5, "q,k=v": 4.0})
    words = ["run", "--variants", "q,k,v", "q,k=v", "none", "--tasks", "digits", "--rates"]
    both = [str(stored.path), str(second.path)]
    study = requested_study(parse_request([*words, *both]))
    assert study.rates == {"digits": {"q,k,v": 2.0, "q,k=v": 4.0, "none": 0.25}}
    assert study.rates_of == f"{stored.path.name} and others"
    turned = requested_study(parse_request([*words, *reversed(both)]))
    assert turned.rates["digits"]["q,k,v"] == 0.5


def test_studies_that_tuned_with_other_seeds_or_steps_are_no_equal_tuning(stored, tmp_path, capsys):
    arms = {"q,k,v": 0.5, "none": 4.0}
    fewer = tuned_store(tmp_path / "fewer", STUDY, arms)
    held = fewer.study()
    seeds = held.tuning.model_copy(update={"seeds": held.tuning.seeds[:1]})
    fewer.write_study(held.model_copy(update={"tuning": seeds}))
    shorter = tuned_store(tmp_path / "shorter", replace(STUDY, budget=0.5), arms)
    words = ["run", "--variants", "q,k,v", "none", "--tasks", "digits", "--rates", str(stored.path)]
    for other in (fewer, shorter):
        assert main([*words, str(other.path)]) == 2
        assert "were not tuned equally" in capsys.readouterr().err
    alike = tuned_store(tmp_path / "alike", STUDY, arms)
    assert main([*words, str(alike.path), "--dry-run"]) == 0


def test_rates_of_a_smoke_test_are_refused(tmp_path, capsys):
    smoke = tuned_store(
        tmp_path, replace(STUDY, name="study-smoke", smoke=True), {"q,k,v": 0.5, "none": 4.0}
    )
    words = ["run", "--variants", "q,k,v", "none", "--tasks", "digits", "--rates", str(smoke.path)]
    assert main([*words, "--dry-run"]) == 2
    assert "which finds no rates" in capsys.readouterr().err
    assert main([*words, "--smoke", "--dry-run"]) == 0


def test_a_teacher_has_no_seed_of_tuning():
    study = Study("study", ("q,k,v", "none"), {"digits": 1}, teacher=Teacher("q,k,v"), tuned=True)
    taught = [*study.experiments(), *study.tuning_experiments()]
    assert {each.teacher.seed for each in taught} == {FIRST_SEED + len(SEEDS)}
    assert {each.seed for each in taught}.isdisjoint({FIRST_SEED + len(SEEDS)})
    # The runs of untuned studies stay what they were.
    untuned = replace(study, tuned=False).experiments()
    assert {each.teacher.seed for each in untuned} == {FIRST_SEED}


def test_a_tuned_folder_keeps_the_record_of_its_tuning(stored, capsys):
    words = ["run", "--variants", "q,k,v", "none", "--tasks", "digits", "--seeds", "2"]
    same = ["--rates", str(stored.path), "--out", str(stored.path), "--dry-run"]
    assert main([*words, *same]) == 2
    assert "its learning rates are tuned" in capsys.readouterr().err


def test_a_rate_falls_with_the_width_of_the_model(stored):
    words = ["run", "--variants", "q,k,v", "none", "--tasks", "digits", "--rates", str(stored.path)]
    own = requested_study(parse_request(words))
    wide = requested_study(parse_request([*words, "--model", "gpt-125m"]))
    (before,), (after,) = (
        {run.model.geometry.d_model for run in study.experiments()} for study in (own, wide)
    )
    assert before != after
    assert wide.rates["digits"]["q,k,v"] == pytest.approx(2.0 * before / after)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--variants", "q,k,v", "q,k=v", "--tasks", "digits"],
            "no learning rate for q,k=v on digits",
        ),
        (["--variants", "q,k,v", "none", "--tasks", "sort"], "for q,k,v on sort"),
        (["--variants", "q,k,v", "none", "--tasks", "digits", "--tune", "lr"], "leave out one"),
    ],
)
def test_rates_that_are_not_there_are_refused(words, said, stored, capsys):
    assert main(["run", *words, "--rates", str(stored.path)]) == 2
    assert said in capsys.readouterr().err


def test_rates_of_an_untuned_study_are_refused(tmp_path, capsys):
    fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits",))
    words = ["run", "--variants", "q,k,v", "none", "--tasks", "digits", "--rates", str(tmp_path)]
    assert main(words) == 2
    assert "has no tuned learning rates" in capsys.readouterr().err


def test_a_study_with_one_rate_says_so(tmp_path):
    study = view(fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits",)))
    assert "the arms of a task share learning rate" in " ".join(full.render(study).split())
    assert 'id="rates"' not in page.render(study)
    assert json.loads(summary.render(study))["learning_rates"] == []


def best_rates(run, factor):
    """A record of a tuning run: 2 is best for one arm, 1/4 for the other, and 8 diverges."""
    best = {"q,k,v": 2.0, "none": 0.25}
    return diverged(run) if factor == 8.0 else near(run, factor, best[run.arm])


@pytest.fixture(name="carried", scope="module")
def _carried(tmp_path_factory):
    """SMOKE carried out, all of its tuning runs but one having been there; and the events."""
    store = Store(tmp_path_factory.mktemp("tuned-smoke"))
    lost = SMOKE.tuning_experiments()[0]
    for made in records(SMOKE, best_rates):
        if made.id != lost.id:
            store.write_run(made)
    return store, lost, carried_out(SMOKE, store.path)


def test_a_tuned_study_tunes_first_and_repeats_no_run_also_none_that_diverged(carried):
    store, lost, noted = carried
    assert noted.tuned == [(1, 24)]
    assert noted.plans == [(2, 2)]
    assert noted.endings[0].id == lost.id
    assert {run.id for run in noted.endings[1:]} == set(store.study().runs)
    rates = store.study().tuning.chosen["sort"]
    assert rates == {"q,k,v": 2.0, "none": 0.25}
    own = {run.arm: run.training.learning_rate for run in SMOKE.experiments()}
    for run in noted.endings[1:]:
        assert run.experiment["training"]["learning_rate"] == rates[run.arm] * own[run.arm]


def test_the_same_call_again_runs_nothing(carried):
    store, *_ = carried
    again = carried_out(SMOKE, store.path)
    assert again.tuned == again.endings == []
    assert again.plans == [(0, 2)]
    assert view(store).others == 0


@pytest.mark.slow
def test_a_tuned_study_runs_from_an_empty_store(tmp_path):
    noted = carried_out(SMOKE, tmp_path)
    assert (noted.tuned, noted.plans) == ([(24, 24)], [(2, 2)])
    assert {run.status for run in noted.endings} == {"done"}
    assert Store(tmp_path).study().tuning.chosen["sort"].keys() == {"q,k,v", "none"}


def no_data(_task):
    return "The data are lost (made for tests).", 0


def ended(_task):
    """As if the system had killed the process that reads the data."""
    os._exit(9)


@pytest.mark.parametrize("fault", [no_data, ended])
def test_an_arm_whose_tuning_runs_failed_does_not_run(tmp_path, monkeypatch, fault):
    monkeypatch.setattr("qkvbench.sweep.study.data_error", fault)
    noted = carried_out(SMOKE, tmp_path)
    assert ("sort", "q,k,v") in noted.lacked
    assert noted.plans == [(0, 0)]
    assert {run.seed for run in Store(tmp_path).runs().good} == set(SEEDS)
    assert runnable_experiments(with_chosen_rates(SMOKE, Store(tmp_path))) == ()


def test_a_tuned_study_has_a_folder_of_its_own():
    plain, tuned, other = (
        default_folder(requested_study(parse_request(["run", "quick", *words.split()])))
        for words in ("", "--tune lr", "--tune lr --variants q,k,v")
    )
    assert (plain, tuned) == ("quick", "quick-tuned")
    assert other.endswith("-tuned")
    assert other != tuned


def test_a_dry_run_counts_the_tuning_runs(tmp_path, capsys):
    words = ["--variants", "q,k,v", "none", "--tasks", "digits", "--seeds", "2", "--tune", "lr"]
    assert main(["run", *words, "--dry-run", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "4 runs, of which 0 are done" in said
    assert "Tuning 24 runs come first, 6 learning rates × 2 seeds for each arm and task" in said
    (row,) = [line.split() for line in said.splitlines() if line.startswith("digits")]
    assert row[1:3] == ["28", "28"]


def test_files_are_written_of_the_runs_whose_rate_is_known(stored, tmp_path, capsys):
    words = ["--variants", "q,k,v", "none", "--tasks", "digits", "--seeds", "2", "--tune", "lr"]
    new = ["--files", str(tmp_path / "files"), "--out", str(tmp_path / "out")]
    assert main(["run", *words, *new]) == 0
    assert "The runs of 2 arms are not among them" in capsys.readouterr().out
    assert len(list((tmp_path / "files").iterdir())) == 24
    known = ["--files", str(tmp_path / "all"), "--out", str(stored.path)]
    assert main(["run", *words, *known]) == 0
    assert len(list((tmp_path / "all").iterdir())) == 24 + 4


def test_the_documentation_states_the_rate_of_every_task():
    rows = re.findall(r"^\| (0\.\d+) \| (`.*`) \|", BENCHMARKS.read_text(), re.MULTILINE)
    stated = [(task, float(rate)) for rate, cell in rows for task in re.findall("`(.*?)`", cell)]
    own = [(task, tasks.find(task).training.learning_rate) for task in tasks.names()]
    assert sorted(stated) == sorted(own)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run quick --tune momentum", ["momentum", "lr"]),
        ("run quick --tune lr --seeds 1001", ["1000", "leave out --tune"]),
    ],
)
def test_what_cannot_be_tuned_is_refused(words, said, capsys):
    assert main(words.split()) == 2
    answer = capsys.readouterr().err
    assert all(each in answer for each in said)
