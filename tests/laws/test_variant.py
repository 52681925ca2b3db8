"""A variant is a value: one text, one canonical form, one plan at each size."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laws.arms import (
    PLANNED,
    SIZE,
    SUFFIXED,
    every_catalogued,
    every_variant,
    suffixed,
)
from qkvbench.variant import (
    ApplyRope,
    Latent,
    LearnedRotation,
    Own,
    Same,
    Scores,
    Stream,
    Variant,
    parse,
    resolve,
    sized,
    without_value_rotation,
    write,
)
from qkvbench.variant import every_variant as all_variants
from qkvbench.variant.catalogue import CATALOGUE, named


@every_variant
def test_parsing_what_is_written_gives_the_variant_back(variant):
    for suffix in SUFFIXED:
        one = suffixed(variant, suffix)
        assert parse(write(one)) == one
        assert write(one).endswith(suffix)


def test_the_sources_give_34_variants_and_20_functions():
    variants = list(all_variants())
    assert len(variants) == len(set(map(write, variants))) == 34
    assert len({without_value_rotation(variant) for variant in variants}) == 20


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("v = k, q", "q,k=v"),
        ("Q,K=R(Q),V=R(Q)", "q,k=R(q),v=R(q)"),
        ("x=k=q,v", "q=k=x,v"),
        ("q,k=R(q)=v", "q,k=v=R(q)"),
        ("q=x,k=q,v=R(k)", "q=k=x,v=R(q)"),
        ("q=k,k=v", "q=k=v"),
        ("q,k,v/4", "q,k,v/4"),
        ("q=k,v -DIAG + 2d", "q=k,v+2d-diag"),
        ("q=k,v−diag++", "q=k,v++-diag"),
        ("q,k=v/4 ++ +qknorm", "q,k=v/4+qknorm++"),
        ("q, v=l(8), k=L(8)", "q,k=L(8),v=L(8)"),
        ("L(8)=v=k,q", "q,k=v=L(8)"),
    ],
)
def test_any_way_to_write_an_equation_has_one_canonical_text(written, canonical):
    assert write(parse(written)) == canonical


def test_a_tie_to_a_tied_role_is_a_tie_to_the_first():
    assert Variant(Own(), Same("q"), Same("k")) == Variant(Own(), Same("q"), Same("q"))
    assert Variant(Stream(), Same("q"), Own()) == Variant(Stream(), Stream(), Own())
    assert Variant(Stream(), Stream(), LearnedRotation("k")) == Variant(
        Stream(), Stream(), LearnedRotation("q")
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "q",
        "q,k",
        "q,k,w",
        "q,k,v/0",
        "q,k,v/-1",
        "q,k,v/",
        "q,k,v/2/2",
        "q,k=R(v),v",
        "R(q),k,v",
        "q,k=x=R(q),v",
        "q,k,v,x",
        "x,q,k,v",
        "q,q,k,v",
        "q,k=R(q)=R(k),v",
        "q,k=R(x),v",
        "q;k;v",
        "q,k,v=",
        "q=R(q),k,v",
        "q,k,v+",
        "q,k,v-",
        "q,k,v+3d",
        "q,k,v+2d/4",
        "q=L(8),k,v",
        "q=k=L(8),v",
        "q,k=L(8),v=L(4)",
        "q,k=L(0),v",
        "q,k=L(),v",
        "q,k=L(8)=x,v",
        "q,k=L(8),v=k=L(4)",
        "q,k,L(8)",
    ],
)
def test_what_is_no_equation_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"write|cannot|as in"):
        parse(text)


@pytest.mark.parametrize("suffixes", ["+2d++", "+2d+2d", "-diag-diag", "+qkvnorm+qknorm", "+++++"])
def test_no_suffix_says_again_what_is_said(suffixes):
    with pytest.raises(ValueError, match="say the same twice"):
        parse(f"q,k,v{suffixes}")


def test_norms_are_of_query_and_key_or_of_all():
    with pytest.raises(ValueError, match="Q and K, all three roles or none"):
        Scores(normed=("v",))


@given(st.text(alphabet="qkvxrRL()=,/ 012+-dianorm", max_size=24))
def test_any_text_is_a_variant_that_reads_back_or_a_value_error(text):
    try:
        variant = parse(text)
    except ValueError:
        return
    assert parse(write(variant)) == variant


def test_a_matrix_exists_for_each_own_role_and_for_the_latent_and_no_other():
    for variant in PLANNED:
        sources = {role: variant.source(role) for role in ("q", "k", "v")}
        own = {role for role, source in sources.items() if source == Own()}
        own |= {"c" for source in sources.values() if isinstance(source, Latent)}
        assert {root.name for root in resolve(variant, SIZE).projected} == own


@pytest.mark.parametrize("turned", [(), ("q", "k"), ("q", "k", "v")])
@every_variant
def test_positions_turn_a_value_only_where_the_scheme_says_so(variant, turned):
    for suffix in SUFFIXED:
        plan = resolve(suffixed(variant, suffix), SIZE, turned)
        for role in ("q", "k", "v"):
            assert (ApplyRope() in plan.derivations[role].ops) == (role in turned)
        assert (ApplyRope() in plan.cached_value.path.ops) == ("v" in turned)
        assert plan.output == ((ApplyRope(back=True),) if "v" in turned else ())


@every_variant
def test_a_cache_keeps_one_tensor_where_key_and_value_have_one_root_else_two(variant):
    for suffix, turned in product(SUFFIXED, [(), ("q", "k")]):
        plan = resolve(suffixed(variant, suffix), SIZE, turned)
        shared = plan.derivations["k"].root == plan.derivations["v"].root
        assert len(plan.cached) == (1 if shared else 2)


@every_variant
def test_where_values_are_turned_one_tensor_does_for_key_and_value_that_are_the_same(variant):
    plan = resolve(variant, SIZE, ("q", "k", "v"))
    same = plan.derivations["k"] == plan.derivations["v"]
    assert len(plan.cached) == (1 if same else 2)
    # It is kept turned, so nothing is left to do when it is read.
    assert plan.key_ops_on_read == ()


@pytest.mark.parametrize(
    "text",
    ["q=k,v/1", "q,k=R(q),v/1", "q=v,k/1", "q,k,v=R(q)/1", "q,k=x,v/1", "q,k,v=x/1", "q=k=v=x/1"],
)
def test_fewer_key_value_heads_are_refused_where_key_or_value_has_a_root_with_all(text):
    with pytest.raises(ValueError, match="both need as many heads"):
        resolve(parse(text), SIZE)
    as_many = replace(parse(text), kv_heads=SIZE.heads)
    assert resolve(as_many, SIZE).geometry.kv_heads == SIZE.heads


def test_a_latent_wider_than_the_stream_is_refused():
    assert resolve(parse(f"q,k=L({SIZE.d_model}),v"), SIZE).matrix_rows["c"] == SIZE.d_model
    with pytest.raises(ValueError, match=rf"write a rank of {SIZE.d_model} or less"):
        resolve(parse(f"q,k=L({SIZE.d_model + 1}),v"), SIZE)


def test_the_latent_is_all_that_a_cache_keeps_however_many_heads_are_made_of_it():
    for heads in ("", "/1"):
        for turned in ((), ("q", "k")):
            (kept,) = resolve(parse(f"q,k=L(5),v=L(5){heads}"), SIZE, turned).kept
            assert (kept.name, kept.heads, kept.width) == ("c", 1, 5)


def test_a_stream_that_cannot_be_cut_into_the_heads_is_refused():
    with pytest.raises(ValueError, match="heads × head_dim must be d_model"):
        resolve(parse("q=x,k,v"), sized(20, 3, head_dim=6))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="cannot be divided"):
        sized(20, 3)
    with pytest.raises(ValueError, match="take one of 1, 3"):
        resolve(parse("q,k,v/2"), SIZE)


@every_catalogued
def test_every_name_of_the_catalogue_means_its_canonical_equation(variant):
    entry = next(each for each in CATALOGUE if each.variant == variant)
    assert write(variant) == entry.equation
    assert named(entry.name.upper()) == variant
    assert entry.origin.startswith(("arXiv:", "hypothesis:"))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean shared-kv"):
        named("sharedkv")
