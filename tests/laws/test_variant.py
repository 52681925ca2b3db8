"""A variant is a value: one text, one canonical form, one plan at each size."""

import re
from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laws.cases import (
    SCHEMES,
    SIZE,
    SUFFIX_AXES,
    VARIANTS,
    covering,
    drawn,
    every_case,
    every_catalogued,
    streams,
)
from qkvbench import cost, reference
from qkvbench.cost import CACHE_FORMATS
from qkvbench.model import POSITIONS, rope_of
from qkvbench.variant import (
    ROLES,
    SUFFIXES,
    ApplyRope,
    Latent,
    LayerBelow,
    LearnedMap,
    Own,
    Same,
    Scores,
    Source,
    Stream,
    Variant,
    Zeros,
    parse,
    resolve,
    sized,
    without_value_rotation,
    write,
)
from qkvbench.variant import every_variant as all_variants
from qkvbench.variant.catalogue import CATALOGUE, FAMILIES, named


@every_case("variant", "suffix")
def test_parsing_the_text_of_a_variant_gives_the_variant_back(case):
    assert parse(write(case.full)) == case.full
    assert write(case.full).endswith(case.suffix)


def test_every_source_suffix_position_and_format_of_the_package_is_in_the_cases():
    cases = covering()
    assert {type(case.variant.source(role)) for case in cases for role in ROLES} == {
        *get_args(Source)
    }
    assert {case.position.kind for case in cases} == set(POSITIONS)
    assert {case.rows for case in cases} == set(CACHE_FORMATS)
    for text in SUFFIXES.keys() - {"+global"}:
        assert any(text in case.suffix for case in cases), text


def test_every_possible_pair_of_values_is_in_a_case():
    cases = covering("variant", "position", "suffix")
    pairs = {(case.variant, case.position) for case in cases}
    assert pairs == set(product(VARIANTS, SCHEMES))
    chosen = {(case.variant, case.full.scores.softcap) for case in cases}
    assert len(chosen) == len(VARIANTS) * len(SUFFIX_AXES["softcap"])


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
        ("v,Q,K=m(V)", "q,k=M(v),v"),
        ("q,v=q,k=M(v)", "q=v,k=M(q)"),
        ("q=x,v=x,k=M(v)", "q=v=x,k=M(q)"),
        ("q,k,v/4", "q,k,v/4"),
        ("q=k,v -DIAG + 2d", "q=k,v+2d-diag"),
        ("q=k,v−diag++", "q=k,v++-diag"),
        ("q,k=v/4 ++ +qknorm", "q,k=v/4+qknorm++"),
        ("q, v=l(8), k=L(8)", "q,k=L(8),v=L(8)"),
        ("L(8)=v=k,q", "q,k=v=L(8)"),
        ("q,k=l(1x8),v=L(8)", "q,k=L(8),v=L(8)"),
        ("q,k=L(2X8),v=lv(8)", "q,k=L(2x8),v=LV(8)"),
        ("q,k,v=LV(8)", "q,k,v=L(8)"),
        ("q,k,v+ropellama8+qknorm", "q,k,v+qknorm+ropellama8x8192"),
        ("q,k,v+ropeyarn2.50x64x1", "q,k,v+ropeyarn2.5x64x1"),
        ("q,k,v+outputrank8x1", "q,k,v+outputrank8"),
    ],
)
def test_any_way_to_write_an_equation_has_one_canonical_text(written, canonical):
    assert write(parse(written)) == canonical


def test_a_tie_to_a_tied_role_is_a_tie_to_the_first():
    assert Variant(Own(), Same("q"), Same("k")) == Variant(Own(), Same("q"), Same("q"))
    assert Variant(Stream(), Same("q"), Own()) == Variant(Stream(), Stream(), Own())
    assert Variant(Stream(), Stream(), LearnedMap("k")) == Variant(
        Stream(), Stream(), LearnedMap("q")
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
        "q=M(k),k,v",
        "q,k=M(v),v=R(k)",
        "q,k=v=M(v)",
        "q=k=0,v=M(k)",
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
        "q=L(0),k,v",
        "q,k=L(8),v=L(4)",
        "q,k=L(0),v",
        "q,k=L(),v",
        "q,k=L(8)=x,v",
        "q,k=L(8),v=k=L(4)",
        "q,k=L(2x8),v=L(8)",
        "q,k=LV(8),v=L(8)",
        "q,k=v=LV(8)",
        "q,k=L(0x8),v",
        "q,k,L(8)",
    ],
)
def test_what_is_no_equation_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"write|cannot|as in"):
        parse(text)


@pytest.mark.parametrize(
    "suffixes", ["+2d++", "+2d+2d", "-diag-diag", "+qkvnorm+qknorm", "+++++", "+window3+window3"]
)
def test_suffixes_that_set_the_same_field_are_refused(suffixes):
    with pytest.raises(ValueError, match="conflicts with an earlier suffix"):
        parse(f"q,k,v{suffixes}")


@pytest.mark.parametrize(
    "text",
    [
        # A slip of one sign.
        "q,k,v++window8",
        "q,k,v++2d",
        # Numbers that no float or no size has.
        f"q,k,v+ropelinear{'9' * 400}",
        f"q,k,v/{'9' * 5000}",
        f"q,k,v+window{'9' * 5000}",
        f"q,k=L({'9' * 5000}),v",
    ],
)
def test_nothing_of_a_text_is_left_out_and_no_number_is_too_long_to_refuse(text):
    with pytest.raises(ValueError, match=r"none of the suffixes|write|cannot|as in"):
        parse(text)


def test_norms_are_of_query_and_key_or_of_all():
    with pytest.raises(ValueError, match="Q and K, all three roles or none"):
        Scores(normed=("v",))


@given(st.text(alphabet="qkvxrRL()=,/ 012+-dianormwsk", max_size=24))
def test_any_text_is_a_variant_that_reads_back_or_a_value_error(text):
    try:
        variant = parse(text)
    except ValueError:
        return
    assert parse(write(variant)) == variant


def test_a_matrix_exists_for_each_own_role_and_for_the_latent_and_no_other():
    for variant in VARIANTS:
        sources = {role: variant.source(role) for role in ("q", "k", "v")}
        own = {role for role, source in sources.items() if isinstance(source, Own | LayerBelow)}
        latents = [role for role, source in sources.items() if isinstance(source, Latent)]
        names = {"q": "cq", "v": "cv" if getattr(sources["v"], "own", False) else "c", "k": "c"}
        own |= {names[role] for role in latents}
        assert set(resolve(variant, SIZE).matrix_rows) == own


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("q,k,v+window0", "is none of the suffixes"),
        ("q,k,v+window", "is none of the suffixes"),
        ("q,k,v+sinks2", "Without a window every key is visible"),
        ("q,k,v+window3+chunk3", "write one of"),
        ("q,k,v+chunk3+blocks3", "write one of"),
        ("q,k,v+blocks3x1", "an M of 2 or more"),
        ("q,k,v+blocks0", r"write for example '\+blocks128'"),
        ("q,k,v+blocks4+sinks2", "Sinks are beside a window alone"),
        ("q,k,v+ropelinear1", "A factor of 1 changes no RoPE frequency"),
        ("q,k,v+ropelinear2x64", r"is \+ropelinearN"),
        ("q,k,v+ropebase1+ropeyarn2", "none is slower than another"),
        ("q,k,v-own+subnorm", "leave out one of the two"),
        ("q,k,v+ropebase500+nope", "no RoPE to change"),
        ("q,k,v+ropehead4+ropevalue", "and so on no V"),
        ("q,k,v+outputrank2.5", r"is \+outputrankNxG"),
        ("q,k,v+outputrank0", "is none of the suffixes"),
        ("q,k,v+outputrank2x2x2", r"is \+outputrankNxG"),
        ("q,k,v+windov3", r"Did you mean \+windowN"),
        ("q,k,v+gated", r"Did you mean \+gate"),
        ("q,k,v+qnorm", r"Did you mean \+qknorm"),
        ("q,k,v+ropehead3", r"write '\+ropehead4'"),
        ("q,k,v+global2", r"write for example '\+window128\+global2'"),
        ("q,k,v+window3+sinks1+global2", "all see them already"),
        ("q,k,v+elu+softcap30", r"leave it out, or '\+softcap'"),
        ("q,k,v+favor2.5", r"write '\+favor3'"),
        ("q=k=0,v+elu", "is no other than the mean"),
        ("q,k=K(-1),v=V(-1)+elu", "keeps no K and V"),
    ],
)
def test_a_suffix_without_a_meaning_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_global_tokens_of_a_decoder_are_its_sinks():
    with pytest.raises(ValueError, match=r"are sinks; write q,k,v\+window3\+sinks2\."):
        resolve(parse("q,k,v+window3+global2"), SIZE, causal=True)
    assert resolve(parse("q,k,v+window3+global2"), SIZE).mask.global_rows == 2


def test_rope_is_applied_to_the_roles_of_the_scheme_and_comes_last():
    for case in covering("variant", "position", "suffix"):
        plan, rope = case.plan(), rope_of(case.position, SIZE.head_dim)
        scores = case.full.scores
        assert (plan.rope is None) == (rope is None or scores.nope), case
        # Zeros stay zeros.
        zeros = {role for role in ROLES if case.variant.source(role) == Zeros()}
        roles = set(plan.rope.roles) - zeros if plan.rope and not plan.rope_head else set()
        for role in ROLES:
            ops = plan.derivations[role].ops
            found = [op for op in ops if isinstance(op, ApplyRope)]
            assert found == [ApplyRope()] * (role in roles), case
            late = scores.normed and scores.norm.after_rope and role != "v"
            assert role not in roles or late or ops[-1] == ApplyRope(), case
        if plan.rope_head:
            for part in (plan.rope_head.query, plan.rope_head.key):
                assert (ApplyRope() in part.ops) == (plan.rope is not None), case
        if not plan.state:
            assert (ApplyRope() in plan.cached_value.derivation.ops) == ("v" in roles), case
        back = "v" in roles and scores.rope_value != "stays"
        assert plan.output_ops == ((ApplyRope(back=True),) if back else ()), case


def test_a_cache_has_one_tensor_if_key_and_value_have_one_root_else_two():
    for case in covering("variant", "position", "suffix"):
        plan = case.plan()
        if plan.state:
            assert plan.cached == ()
            continue
        key, value = plan.derivations["k"], plan.derivations["v"]
        if case.variant.k == Zeros():
            # They are made on read.
            expected = 1
        elif ApplyRope() in value.ops:
            # The tensor is cached with RoPE applied, so K must be made from V itself.
            same = key.root == value.root and key.ops[: len(value.ops)] == value.ops
            expected = 1 if same else 2
            assert not plan.key_ops_on_read or case.full.scores.norm.after_rope, case
        else:
            expected = 1 if key.root == value.root else 2
        assert len(plan.cached) == expected + bool(plan.rope_head), case


@pytest.mark.parametrize(
    "text",
    ["q=k,v/1", "q,k=R(q),v/1", "q=v,k/1", "q,k,v=R(q)/1", "q,k=x,v/1", "q,k,v=x/1", "q=k=v=x/1"],
)
def test_fewer_key_value_heads_are_refused_if_key_or_value_has_a_root_with_all(text):
    with pytest.raises(ValueError, match="both need as many heads"):
        resolve(parse(text), SIZE)
    as_many = replace(parse(text), kv_heads=SIZE.heads)
    assert resolve(as_many, SIZE).geometry.kv_heads == SIZE.heads


def test_a_latent_wider_than_the_stream_is_refused():
    assert resolve(parse(f"q,k=L({SIZE.d_model}),v"), SIZE).matrix_rows["c"] == SIZE.d_model
    with pytest.raises(ValueError, match=rf"Write a rank of {SIZE.d_model} or less"):
        resolve(parse(f"q,k=L({SIZE.d_model + 1}),v"), SIZE)


@pytest.mark.parametrize(
    ("suffix", "nearest"),
    [("4x2", "4x3"), ("7x3", "6x3"), ("19", "18")],
)
def test_an_output_that_is_not_of_low_rank_or_whole_groups_is_refused(suffix, nearest):
    with pytest.raises(ValueError, match=rf"write '\+outputrank{nearest}'"):
        resolve(parse(f"q,k,v+outputrank{suffix}"), SIZE)


def test_an_output_of_two_matrices_has_their_numbers_and_is_their_product():
    plan, whole = (resolve(parse(f"q,k,v{end}"), SIZE) for end in ("+outputrank2x3", ""))
    counted = {each.name: each.shape for each in plan.parameters if each.name.startswith("o.")}
    assert counted == {"o.down": (3, 2, 6), "o.weight": (18, 6), "o.bias": (18,)}
    products = 3 * 2 * 6 + 18 * 6
    assert cost.attention_macs(plan, 1) - cost.attention_macs(whole, 1) == products - 18 * 18
    weights, x = drawn(plan.parameters), streams()[0]
    blocks = zip(np.split(weights["o.weight"], 3, axis=1), weights["o.down"], strict=True)
    one = {**weights, "o.weight": np.concatenate([outer @ inner for outer, inner in blocks], 1)}
    expected = reference.forward(whole, one, x)
    np.testing.assert_allclose(reference.forward(plan, weights, x), expected, atol=1e-11)


def test_latents_that_the_heads_cannot_be_divided_among_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"2 latents of k, and 3 heads .* write 'L\(3x8\)'"):
        resolve(parse("q,k=L(2x8),v=L(2x8)"), SIZE)
    with pytest.raises(ValueError, match=r"'q,k=L\(8\),v=LV\(4\)' for one each"):
        parse("q,k=L(8),v=L(4)")


def test_the_latent_is_all_in_a_cache_however_many_heads_are_made_from_it():
    for heads in ("", "/1"):
        for rope in (None, rope_of(POSITIONS["rotary"].make(1), SIZE.head_dim)):
            (latent,) = resolve(parse(f"q,k=L(5),v=L(5){heads}"), SIZE, rope=rope).cached
            assert (latent.name, latent.heads, latent.width) == ("c", 1, 5)


def test_a_stream_that_cannot_be_cut_into_the_heads_is_refused():
    with pytest.raises(ValueError, match="heads × head_dim must be d_model"):
        resolve(parse("q=x,k,v"), sized(20, 3, head_dim=6))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="cannot be divided"):
        sized(20, 3)
    with pytest.raises(ValueError, match="use one of 1, 3"):
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


@pytest.mark.parametrize(("word", "equation"), FAMILIES.items())
def test_what_papers_call_a_family_is_answered_with_an_equation_of_it(word, equation):
    assert write(parse(equation)) == equation
    with pytest.raises(ValueError, match=f"'{word}' is written .*{re.escape(equation)}"):
        named(word.upper())


def test_only_a_role_that_is_the_stream_has_the_width_of_its_heads():
    assert resolve(parse("q=x,k,v+valuedim2"), SIZE)
    assert resolve(parse("q,k,v=x+keydim2"), SIZE)
    with pytest.raises(ValueError, match=r"6 wide: leave out '\+keydim2'"):
        resolve(parse("q=x,k,v+keydim2+valuedim2"), SIZE)
    with pytest.raises(ValueError, match=r"leave out '\+valuedim2'"):
        resolve(parse("q,k,v=x+valuedim2"), SIZE)
