"""Hypotheses are stored before the first run, and the report judges them as they were stored."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

import fake_study
from qkvbench import recipes
from qkvbench.cli import main
from qkvbench.cli.parser import RequestError, parse_request
from qkvbench.cli.progress import StudyProgress
from qkvbench.cli.registration import registration, registration_of
from qkvbench.cli.run import requested_study
from qkvbench.recipes import Study
from qkvbench.reports import full, page, summary
from qkvbench.results.pair import pair_on_task
from qkvbench.results.preregistration import (
    CONFIRMING,
    MEANS_TEST,
    Shown,
    judge_hypotheses,
    outcome,
    parse_registration,
)
from qkvbench.results.record import Expectation
from qkvbench.results.stats import VERDICTS
from qkvbench.results.store import Store
from qkvbench.results.view import view
from qkvbench.sweep.study import info

RECIPES = Path(recipes.__file__).parent
DOCUMENT = Path(__file__).parents[1] / "docs/preregistration.md"
ARMS = ("q,k,v", "q=k,v", "q,k=v")
# What each arm loses on digits, to the last digit but for a little noise.
LOSS = {"q,k,v": 0.0, "q=k,v": 0.1, "q,k=v": 0.0}
STUDY = Study("test", ARMS, {"digits": 5})
TIME = "2025-01-01T00:00:00+00:00"


def text(*hypotheses, question="Is it so?"):
    """A file with these hypotheses, each a dictionary of its fields."""
    parts = [f'question = "{question}"']
    for each in hypotheses:
        lines = [f"{field} = {json.dumps(value)}" for field, value in each.items()]
        parts.append("\n".join(["[[hypothesis]]", *lines]))
    return "\n\n".join(parts) + "\n"


def expected(arm, expect, task="digits", **fields):
    return {"arm": arm, "expect": expect, "task": task, **fields}


@pytest.fixture(name="written")
def _written(tmp_path):
    """A function that writes a file with these hypotheses and gives its path."""

    def write(*hypotheses, name="hypotheses.toml", **fields):
        place = tmp_path / name
        place.write_text(text(*hypotheses, **fields))
        return place

    return write


def registered(place, folder, *, seeds=5, study=STUDY):
    """The view of a store whose study was registered and run with this number of seeds."""
    store = Store(folder)
    run = Study(study.name, study.variants, dict.fromkeys(study.seeds, seeds))
    stored = registration(place, study, TIME)
    store.write_study(info(run, "made for tests", stored))
    for each in run.experiments():
        noise = 0.001 * ((7 * each.seed + 3 * ARMS.index(each.arm)) % 5 - 2)
        store.write_run(fake_study.record(each, 0.9 - LOSS[each.arm] + noise))
    return view(store)


def outcomes(study):
    return [each.outcome for each in judge_hypotheses(study)]


def test_hypotheses_are_confirmed_contradicted_or_not_decided(written, tmp_path):
    place = written(
        expected("q=k,v", "worse"),
        expected("q=k,v", "not worse"),
        expected("q,k=v", "matches", margin=0.02),
        expected("q,k=v", "worse", margin=0.02),
        expected("q,k=v", "better", margin=1e-6),
        expected("q=k,v", "worse", against="q,k=v"),
        expected("q,k=v", "better", against="q=k,v"),
    )
    assert outcomes(registered(place, tmp_path / "store")) == [
        "confirmed",
        "contradicted",
        "confirmed",
        "contradicted",
        "not decided",
        "confirmed",
        "confirmed",
    ]


def test_an_expectation_is_decided_by_certain_verdicts_only():
    for expect in get_args(Expectation):
        decided = {word for word in VERDICTS if outcome(expect, Shown(word)) != "not decided"}
        assert not any(word.startswith("likely") for word in decided)
        assert "not distinguishable" not in decided
        assert outcome(expect, Shown(expect)) == "confirmed"
        assert outcome(expect, Shown("one seed", decided=False)) == "not decided"
    for word in ("matches", "better"):
        assert outcome("not worse", Shown(word)) == "confirmed"
    # A difference contradicts a margin if it is certainly larger, and none if the margin is wide.
    for expect, word in (("matches", "better"), ("matches", "worse"), ("not worse", "worse")):
        assert outcome(expect, Shown(word)) == "not decided"
        assert outcome(expect, Shown(word, is_beyond_margin=True)) == "contradicted"
    # It is counted and not tested.
    assert all(outcome(each, Shown("diverged")) == "not decided" for each in get_args(Expectation))
    assert {word for words in CONFIRMING.values() for word in words} <= set(VERDICTS)


def test_a_small_loss_within_the_margin_confirms_a_match():
    within = frozenset(["matches", "not worse"])
    assert outcome("matches", Shown("worse", within_margin=within)) == "confirmed"
    assert outcome("not worse", Shown("worse", within_margin=within)) == "confirmed"
    assert outcome("worse", Shown("worse", within_margin=within)) == "confirmed"
    assert outcome("better", Shown("worse", within_margin=within)) == "contradicted"


def test_a_true_expectation_within_its_margin_is_not_contradicted(written, tmp_path):
    # q=k,v loses .1 of accuracy or more, for certain.
    margins = {"not decided": 0.1, "contradicted": 0.01}
    place = written(*(expected("q=k,v", "not worse", margin=each) for each in margins.values()))
    study = registered(place, tmp_path / "store")
    found = pair_on_task(study.tasks[0], "q,k,v", "q=k,v").difference
    assert 0.01 < -found.certain[1] < 0.1 < -found.certain[0]
    assert outcomes(study) == [*margins]


def test_a_hypothesis_on_several_tasks_needs_all_of_them(written, tmp_path):
    study = Study("test", ARMS, {"digits": 5, "sort": 5})
    place = written(expected("q=k,v", "worse", ["digits", "sort"]))
    view_ = registered(place, tmp_path / "store", study=study)
    assert outcomes(view_) == ["confirmed"]
    store = Store(tmp_path / "store")
    for run in store.runs().good:
        if run.task == "sort" and run.arm == "q=k,v" and run.seed == 4:
            (tmp_path / "store" / "runs" / f"{run.id}.json").unlink()
    (judged,) = judge_hypotheses(view(store))
    assert judged.outcome == "not decided"
    assert [each.outcome for each in judged.tasks] == ["confirmed", "not decided"]
    assert judged.tasks[1].shown.word == "seeds are missing or failed"
    assert (judged.tasks[1].seeds, judged.tasks[1].registered_seeds) == (4, 5)


def test_a_registered_study_gives_no_answer_before_its_end(written, tmp_path, capsys):
    registered(written(expected("q,k=v", "matches")), tmp_path / "store")
    progress = StudyProgress(Counter())
    progress.store = Store(tmp_path / "store")
    progress.on_seeds(2, 5)
    assert capsys.readouterr().err == ""


def test_the_margin_is_the_registered_one_whatever_the_report_s(written, tmp_path, capsys):
    place = written(expected("q,k=v", "matches", margin=0.02))
    registered(place, tmp_path / "store")
    words = ["report", str(tmp_path / "store"), "--margin", "0.000001", "--json"]
    assert main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["preregistered"]["hypotheses"][0]["outcome"] == "confirmed"
    assert shown["preregistered"]["hypotheses"][0]["margins"] == {"digits": 0.02}
    assert shown["tasks"][0]["verdicts"]["q,k=v"] != "matches"


def test_the_report_judges_the_hypotheses_and_calls_the_rest_exploratory(written, tmp_path):
    place = written(expected("q=k,v", "worse"), expected("q,k=v", "matches", margin=0.02))
    study = registered(place, tmp_path / "store")
    said = " ".join(full.render(study).split())
    assert f"Question: Is it so? Registered on {TIME}, before the first run" in said
    assert "Hypothesis 1 confirmed: q=k,v worse than q,k,v on digits." in said
    assert "Found: digits confirmed (matches; margin 0.02)" in said
    assert "Everything else in this report is exploratory" in said
    assert said.index("What was predicted") < said.index("What this shows")
    assert "Not the registered" not in said
    html = page.render(study)
    assert "Hypothesis 2 confirmed" in html[html.index('id="predicted"') : html.index('id="shows"')]
    stored = json.loads(summary.render(study))["preregistered"]
    assert stored["hypotheses"][0]["tests"] == {"digits": MEANS_TEST}
    assert stored["seeds"] == {"digits": 5}


def test_a_study_without_a_registration_predicts_nothing(tmp_path):
    study = view(fake_study.build(tmp_path, fake_study.ARMS[:2], ("digits",)))
    assert "predicted" not in full.render(study)
    assert 'id="predicted"' not in page.render(study)
    assert json.loads(summary.render(study))["preregistered"] is None


def test_another_number_of_seeds_another_test_and_other_arms_are_reported(written, tmp_path):
    place = written(expected("q=k,v", "worse"))
    study = registered(place, tmp_path / "store", seeds=7)
    said = " ".join(full.render(study).split())
    assert "Not the registered number of seeds: digits: 7 seeds instead of 5." in said
    store = Store(tmp_path / "store")
    stored = store.study()
    old = stored.preregistered.hypotheses[0].model_copy(update={"tests": {"digits": "a coin"}})
    changed = stored.preregistered.model_copy(update={"hypotheses": [old]})
    fewer = {"preregistered": changed, "variants": ["q,k,v", "q,k=v"]}
    store.write_study(stored.model_copy(update=fewer))
    said = " ".join(full.render(view(store)).split())
    assert "Not the registered arms: registered were q,k,v · q=k,v · q,k=v." in said
    assert "Not the registered test: registered was: a coin" in said
    assert "not decided (q=k,v is not an arm of this study any more)" in said


WORDS = ["run", "--variants", *ARMS, "--tasks", "sort", "--smoke", "--seeds", "1"]


def test_a_registration_precedes_its_runs_and_stays_as_it_was(written, tmp_path, capsys):
    out, place = tmp_path / "out", written(expected("q=k,v", "worse", "sort"))
    words = [*WORDS, "--variants", "q,k,v", "q=k,v", "--out", str(out)]
    assert main([*words, "--preregister", str(place), "--dry-run"]) == 0
    assert "Hypothesis  q=k,v worse than q,k,v on sort" in capsys.readouterr().out
    assert not out.exists()
    assert main([*words, "--preregister", str(place)]) == 0
    first = Store(out).study().preregistered
    assert first.registered <= min(run.started for run in Store(out).runs().good)
    # The same again resumes, also without the file.
    assert main([*words, "--preregister", str(place)]) == 0
    assert main(words) == 0
    assert Store(out).study().preregistered == first
    assert outcomes(view(Store(out))) == ["not decided"]
    capsys.readouterr()

    place.write_text(place.read_text() + "# changed\n")
    assert main([*words, "--preregister", str(place)]) == 2
    refused = capsys.readouterr().err
    assert "has another preregistration" in refused
    assert "--out DIR" in refused
    # Nor may other arms run where these were registered.
    assert main([*words, "--variants", "q,k,v", "q,k=v"]) == 2
    refused = capsys.readouterr().err
    assert "preregistration of another study" in refused
    assert "--out DIR" in refused
    assert Store(out).study().preregistered == first


def test_nothing_is_registered_after_the_first_run(written, tmp_path, capsys):
    store = Store(tmp_path / "out")
    study = requested_study(parse_request(WORDS))
    store.write_run(fake_study.record(study.experiments()[0], 0.5))
    place = written(expected("q=k,v", "worse", "sort"))
    assert main([*WORDS, "--out", str(store.path), "--preregister", str(place)]) == 2
    refused = capsys.readouterr().err
    assert "has 1 run already" in refused
    assert "--out DIR" in refused
    assert store.study() is None


def test_a_part_of_the_registered_tasks_may_run_and_another_budget_may_not(written, tmp_path):
    study = Study("test", ARMS, {"digits": 5, "sort": 5})
    place = written(expected("q=k,v", "worse", ["digits", "sort"]))
    store = Store(tmp_path / "store")
    stored = registration(place, study, TIME)
    store.write_study(info(study, "made for tests", stored))
    part = Study("test", ARMS, {"sort": 5})
    assert registration_of(str(place), part, store) == stored
    assert registration_of(None, part, store) == stored
    for other in (
        replace(part, budget=2),
        replace(part, tuned=True),
        replace(part, precision="bf16"),
    ):
        with pytest.raises(RequestError, match="preregistration of another study"):
            registration_of(str(place), other, store)


@pytest.mark.parametrize(
    ("hypothesis", "said"),
    [
        (expected("q=k=v", "worse", "sort"), ["no arm 'q=k=v'"]),
        (expected("q=k,v", "worse", "digits"), ["no task 'digits'", "sort"]),
        (expected("q=k,v", "worst", "sort"), ["hypothesis.1.expect", "docs/preregistration.md"]),
        (expected("q=k,v", "worse", []), ["hypothesis.1.task"]),
        (expected("q=k,v", "worse", "sort", margin=0), ["hypothesis.1.margin"]),
        (expected("q=k,v", "worse", "sort", why="so"), ["hypothesis.1.why"]),
        (expected("q,k,v", "worse", "sort"), ["q,k,v with itself", "against"]),
    ],
)
def test_a_file_that_does_not_fit_the_study_is_refused(hypothesis, said, written, tmp_path, capsys):
    place = written(hypothesis)
    out = tmp_path / "out"
    assert main([*WORDS, "--out", str(out), "--preregister", str(place)]) == 2
    answer = capsys.readouterr().err
    assert all(each in answer for each in said)
    assert len(answer.splitlines()) <= 6
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"question =", b"\xff\xfe", b"[" * 10_000])
def test_a_file_that_is_no_registration_is_refused(content, tmp_path, capsys):
    place = tmp_path / "file.toml"
    place.write_bytes(content)
    assert main([*WORDS, "--out", str(tmp_path / "out"), "--preregister", str(place)]) == 2
    assert "is no preregistration" in capsys.readouterr().err
    missing = str(tmp_path / "none.toml")
    assert main([*WORDS, "--out", str(tmp_path / "out"), "--preregister", missing]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_files_and_a_registration_exclude_each_other(written, tmp_path, capsys):
    place = written(expected("q=k,v", "worse", "sort"))
    words = ["--files", str(tmp_path / "files"), "--preregister", str(place)]
    assert main([*WORDS, *words]) == 2
    assert "leave out --files" in capsys.readouterr().err


def test_the_documented_example_fits_its_command(tmp_path, capsys):
    content = DOCUMENT.read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", content, re.DOTALL)
    (command,) = re.findall(r"^\./qkv (run .*)$", content, re.MULTILINE)
    place = tmp_path / "hypotheses.toml"
    place.write_text(example)
    words = [str(place) if word == place.name else word for word in command.split()]
    assert main([*words, "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("Hypothesis  ") == len(
        parse_registration(example.encode()).hypothesis
    )


@pytest.mark.parametrize("place", sorted(RECIPES.glob("*.toml")), ids=lambda place: place.stem)
def test_a_committed_registration_fits_the_recipe_of_its_name(place, tmp_path):
    # minimal-1500-more-tuned.toml is one of recipe minimal.
    recipe = max(
        (name for name in recipes.names() if f"{place.stem}-".startswith(f"{name}-")), key=len
    )
    study = requested_study(parse_request(["run", recipe]))
    assert registration(place, study, TIME).question
