"""The rows of the atlas: what they say can be computed, was measured, and is printed as it is."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from policy.tree import ROOT
from qkvbench import atlas
from qkvbench.atlas import Form
from qkvbench.atlas.kit.weights import Stacked, Transpose, Weight
from qkvbench.cli import WRONG_REQUEST, atlas_page, main
from qkvbench.cli import atlas as atlas_command
from qkvbench.variant import parse, write

FORMS = atlas.forms()
SAID = [form for form in FORMS if form.equation]

every_equation = pytest.mark.parametrize("form", SAID, ids=lambda form: form.name)


def test_forms_have_different_names():
    assert len({form.name for form in FORMS}) == len(FORMS)


def test_a_form_has_an_equation_or_says_what_is_lacking():
    for form in FORMS:
        assert bool(form.equation) != bool(form.lacks), form.name
        assert form.users, form.name


@every_equation
def test_an_equation_is_written_as_the_notation_writes_it(form):
    for sizes in (form.common, *map(form.own, form.layers)):
        text = form.written(sizes)
        assert write(parse(text)) == text


@every_equation
def test_a_form_with_an_equation_is_equal_to_a_layer_of_the_library(form):
    assert form.layers
    assert form.proved


@pytest.mark.parametrize("form", atlas.PAPERS, ids=lambda form: form.name)
def test_a_form_of_a_paper_has_an_equation_a_source_and_no_layer(form, capsys):
    text = form.written(form.common)
    assert write(parse(text)) == text
    assert form.source.startswith("arXiv:")
    assert not form.users
    assert form.name not in {each.name for each in FORMS}
    assert main(["atlas", form.name]) == 0
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("form", atlas.NOT_EXPRESSED, ids=lambda form: form.name)
def test_a_form_of_a_paper_without_an_equation_says_what_the_notation_lacks(form, capsys):
    assert main(["atlas", form.name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert form.lacks in printed
    assert form.source in printed
    assert "used by" not in printed


def test_at_least_twenty_five_forms_are_proved():
    assert sum(form.proved for form in FORMS) >= 25


def test_every_layer_was_measured_and_nothing_else():
    keys = [form.key(layer) for form in FORMS for layer in form.layers]
    assert sorted(keys) == sorted(atlas.equalities())


def test_they_were_measured_with_the_library_that_is_pinned():
    pinned = re.search(
        r"^transformers==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    assert pinned
    assert atlas.library() == f"transformers {pinned[1]}"


@every_equation
def test_no_form_needs_more_than_the_library_keeps(form):
    cost = atlas.cost_of(form, form.common)
    assert cost.cache_bytes <= cost.library_bytes


def _gpt2() -> tuple[Form, dict[str, np.ndarray]]:
    form = atlas.find("multi-head")
    rng = np.random.default_rng(0)
    shapes = {
        "c_attn.weight": (20, 60),
        "c_attn.bias": (60,),
        "c_proj.weight": (20, 20),
        "c_proj.bias": (20,),
    }
    return form, {name: rng.normal(size=shape) for name, shape in shapes.items()}


SIZES = {"d_model": 20, "heads": 2, "kv_heads": 2, "head_dim": 10}


def test_a_row_that_leaves_a_weight_of_the_library_is_refused():
    form, library = _gpt2()
    plan, weights = form.plan(SIZES), form.layers[0].weights
    assert atlas.mapped(weights, plan, SIZES, library)
    with pytest.raises(ValueError, match=r"20 of 20 numbers of q_norm\.weight are not used"):
        atlas.mapped(weights, plan, SIZES, {**library, "q_norm.weight": np.ones(20)})


def test_a_row_that_leaves_a_part_of_a_fused_weight_is_refused():
    form, library = _gpt2()
    plan, weights = form.plan(SIZES), dict(form.layers[0].weights)
    weights["v"] = replace(weights["v"], steps=weights["k"].steps)
    with pytest.raises(ValueError, match=r"400 of 1200 numbers of c_attn\.weight are not used"):
        atlas.mapped(weights, plan, SIZES, library)


def test_a_row_that_leaves_one_of_our_parameters_is_refused():
    form, library = _gpt2()
    weights = {"q": Weight("c_attn", (Transpose(), Stacked("q")))}
    with pytest.raises(ValueError, match=r"no weight to k\.weight"):
        atlas.mapped(weights, form.plan(SIZES), SIZES, library)


def test_the_page_of_the_docs_is_current():
    """`qkvbench atlas --out docs/atlas.md` writes it."""
    assert (ROOT / "docs" / "atlas.md").read_text() == atlas_page.page()


def test_the_command_prints_the_answer_first(capsys):
    assert main(["atlas"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{len(FORMS)} forms in use. {len(SAID)} can be written as one")
    for form in FORMS:
        assert any(form.name in line for line in rest)


def test_a_form_and_a_model_are_printed_at_length(capsys):
    assert main(["atlas", "key-is-value"]) == 0
    form = capsys.readouterr().out
    assert "sizes       d_model 2048, heads 32, kv_heads 8, head_dim 64: the atlas's" in form
    assert main(["atlas", "gemma4"]) == 0
    model = capsys.readouterr().out
    assert form.strip() in model
    assert "all-normed-window" in model


def test_the_document_has_what_the_table_has(capsys):
    assert main(["atlas", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in document] == [form.name for form in FORMS]
    (tied,) = (row for row in document if row["name"] == "key-is-value")
    assert tied["common"]["cache_bytes_per_token"] * 2 == tied["common"]["library_bytes_per_token"]


def test_an_unknown_form_is_refused_with_the_nearest(capsys):
    assert main(["atlas", "key-is-valeu"]) == WRONG_REQUEST
    assert "key-is-value" in capsys.readouterr().err


def test_a_narrow_terminal_keeps_the_equations(capsys):
    def printed(columns):
        atlas_command.print_table(Console(width=columns, highlight=False))
        return capsys.readouterr().out

    narrow, wide = printed(80), printed(140)
    assert max(map(len, narrow.splitlines())) <= 80
    row = next(line for line in narrow.splitlines() if line.startswith("multi-query"))
    assert row.split() == ["multi-query", "q,k,v/1", "gpt_bigcode", "256", "B", "256", "B"]
    assert "with --json there is more" in " ".join(narrow.split())
    assert "own library" in wide
    assert "there is more" not in wide
