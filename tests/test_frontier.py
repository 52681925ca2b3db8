"""The frontier's arms keep the bytes that the recipe says, at every size; recipes have sizes."""

from fractions import Fraction
from functools import cache

import pytest

from qkvbench import recipes, tasks
from qkvbench.cli import main
from qkvbench.cli.parser import parse_request
from qkvbench.cli.run import default_folder, requested_study
from qkvbench.cost import cached_values, parameters
from qkvbench.cost.matched import with_arm
from qkvbench.model import parse_arm
from qkvbench.model.presets import gpt_125m
from qkvbench.recipes import frontier

every_size = pytest.mark.parametrize("size", frontier.SIZES)
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9}


def values(model, context):
    """The numbers that all layers keep of a text, as many of it as their masks see."""
    return sum(
        min(context, plan.mask.local or context) * cached_values(plan)
        for plan in model.plans
        if plan
    )


@cache
def _baseline(size):
    study = frontier.study(size)
    return study.model_of(next(iter(study.seeds)))


@cache
def model_of(size, arm):
    return with_arm(_baseline(size), parse_arm(arm), tokens=64)


@every_size
def test_each_arm_keeps_the_share_of_bytes_that_the_recipe_says(size):
    context = frontier._SIZES[size].context
    baseline = values(model_of(size, "q,k,v"), context)
    for arm, share in frontier.shares(size).items():
        assert Fraction(values(model_of(size, arm), context), baseline) == share, arm


@every_size
def test_each_level_of_bytes_has_all_forms_that_allow_it(size):
    shares = frontier.shares(size)
    for level in (2, 4, 8):
        arms = [arm for arm, share in shares.items() if share == Fraction(1, level)]
        assert len(arms) >= (6 if level == 2 else 7), level
        forms = ("+rootnorm", "+ropevalue", "L(", "K(-1)")
        assert all(any(form in arm for arm in arms) for form in forms)
    assert set(frontier.core(size)) <= set(shares)


@every_size
def test_a_size_has_about_the_parameters_in_its_name(size):
    found = parameters(model_of(size, "q,k,v")).total
    assert found == pytest.approx(float(size[:-1]) * SUFFIXES[size[-1]], rel=0.1)


@every_size
def test_each_run_on_a_text_reads_twenty_tokens_for_each_parameter(size):
    study = frontier.study(size)
    for run in study.experiments():
        if run.task.name.startswith("lm-") and run.arm == "q,k,v":
            read = run.training.steps * run.training.batch * tasks.find(run.task).tokens
            expected = frontier.PER_PARAMETER * parameters(run.model).total
            assert read == pytest.approx(expected, rel=0.01)


def test_arms_of_equal_size_have_the_parameters_of_the_baseline():
    baseline = parameters(model_of("330k", "q,k,v")).total
    for arm in frontier.matched("330k"):
        assert parameters(model_of("330k", arm)).total == pytest.approx(baseline, rel=0.01)
        assert frontier.shares("330k")[arm.removesuffix("~q,k,v")] < 1


def test_a_quarter_of_the_text_is_a_quarter_of_the_steps():
    long, short = (recipes.find(name, "700k") for name in ("frontier", "frontier-short"))
    steps = [each.experiments()[0].training.steps for each in (long, short)]
    assert steps[1] == pytest.approx(steps[0] / 4, rel=0.01)
    assert long.variants == short.variants


def test_a_plan_says_what_eight_devices_would_need_on_a_machine_without_one(capsys, tmp_path):
    words = ["run", "frontier", "--size", "300m", "--variants", "q,k,v", "q,k=v", "--dry-run"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "On 8 devices they take" in said
    assert "h100" in said
    assert "26.6 GiB of HuggingFaceFW/fineweb-edu are read" in said
    assert "not known" in said


def test_a_plan_of_small_runs_needs_no_other_device(capsys, tmp_path):
    assert main(["run", "quick", "--dry-run", "--out", str(tmp_path)]) == 0
    assert "On 8 devices" not in capsys.readouterr().out


def test_a_plan_for_more_devices_than_are_here_is_printed(capsys, tmp_path):
    assert main(["run", "paper-as-written", "--dry-run", "--out", str(tmp_path)]) == 0
    assert "8 devices by ddp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run frontier --size 300k", ["300k", "330k", "300m"]),
        ("run quick --size 300m", ["quick", "leave out --size"]),
        ("run --variants q,k,v --tasks digits --size 300m", ["recipe", "frontier --size 300m"]),
    ],
)
def test_a_size_that_there_is_not_is_refused(words, said, capsys):
    assert main(words.split()) == 2
    told = capsys.readouterr().err
    assert all(each in told for each in said)


def test_a_size_has_a_folder_of_its_own_name():
    for words, folder in (("frontier", "frontier"), ("frontier --size 300m", "frontier-300m")):
        study = requested_study(parse_request(["run", *words.split()]))
        assert default_folder(study) == folder


@pytest.mark.parametrize("name", [name for name in recipes.names() if recipes.sizes(name)])
def test_every_size_of_a_recipe_can_be_built_and_is_found_by_its_name(name):
    for size in recipes.sizes(name):
        study = recipes.find(name, size)
        assert recipes.named(study.name) == study
        assert all(run.model.plans for run in study.experiments() if run.seed == 0)


def test_the_decoders_of_the_paper_have_its_parameters_whatever_the_tokenizer():
    # arXiv:2606.04032's released counts.
    counted = {"q,k,v": 305_534_976, "q,k=v": 284_542_976, "q=k=v": 263_550_976}
    runs = {run.arm: run.model for run in recipes.find("paper-as-written").experiments()}
    assert {arm: parameters(runs[arm]).total for arm in counted} == counted


def test_the_preset_of_the_smallest_gpt_2_has_its_parameters():
    assert parameters(gpt_125m()).total == 124_439_808


def test_a_batch_of_the_paper_has_its_tokens():
    for size, tokens in (("300m", 2_359_296), ("1.2b", 1_179_648)):
        for run in recipes.find("paper-as-written", size).experiments():
            assert run.training.batch * tasks.find(run.task).tokens == tokens
