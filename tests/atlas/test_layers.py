"""A layer of the atlas is the library's layer, with the library's weights."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from atlas_library import (
    BATCH,
    SOURCE_TIME,
    TIME,
    Library,
    Row,
    classes,
    differences,
    rows,
    sizes_of,
    whole,
)

from qkvbench import cost
from qkvbench.atlas import find

ROWS = rows()
# One of each kind of map: transposed, by group, normed and tied, across, both ways.
QUICK = (
    "multi-head: gpt2 GPT2Attention",
    "partial-rotary: gpt_neox GPTNeoXAttention",
    "key-is-value: gemma4 Gemma4TextAttention",
    "cross-attention: whisper WhisperAttention",
    "rotary-encoder-window: modernbert ModernBertAttention",
)
# In fp32 products are rounded, and the angles of RoPE.
CLOSE_IN_FP32 = 5e-6


def _params(chosen):
    return [
        pytest.param(row, marks=() if str(row) in QUICK else pytest.mark.slow, id=str(row))
        for row in chosen
    ]


every_layer = pytest.mark.parametrize("row", _params(ROWS))
every_decoder = pytest.mark.parametrize(
    "row", _params(row for row in ROWS if row.form.site == "decoder")
)


@cache
def library(row: Row, dtype: torch.dtype = torch.float64) -> Library:
    return Library(row.form, row.layer, dtype)


@every_layer
def test_a_layer_is_the_librarys(row):
    found = differences(library(row))
    assert max(found.values()) < row.layer.bound, found


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_in_the_librarys_own_precision_it_is_as_near_as_fp32_allows(row):
    found = differences(library(row, torch.float32))
    assert max(found.values()) < CLOSE_IN_FP32, found


@every_decoder
def test_our_cache_has_the_bytes_that_are_computed_and_the_librarys_those_that_are_stated(row):
    made = library(row)
    run = made.run({**made.feed(), "use_cache": True})
    tokens, number_bytes = BATCH * TIME, 8
    assert made.kept(run.cache) * 2 == made.form.library_bytes(made.sizes) * tokens * number_bytes
    fp64 = cost.CACHE_FORMATS["fp64"]
    owner = made.plan.owner("k")
    assert made.decode(run.x, run.below)[1].bytes == cost.cached_bytes(owner, fp64) * tokens


@every_layer
def test_a_models_own_sizes_are_those_of_its_config(row):
    config, _ = classes(row.layer)
    found = sizes_of(row.layer, config())
    assert {name: found[name] for name in row.layer.own} == pytest.approx(dict(row.layer.own))


@pytest.mark.parametrize("row", _params(row for row in ROWS if row.form.site == "cross"))
def test_of_a_source_both_caches_have_the_bytes_that_are_stated(row):
    made = library(row)
    run = made.run({**made.feed(), "use_cache": True})
    tokens, number_bytes = BATCH * SOURCE_TIME, 8
    assert made.kept(run.cache) * 2 == made.form.library_bytes(made.sizes) * tokens * number_bytes
    cached = made.ours.cache_source(run.source, None)
    stored = sum(each.nbytes for rows in cached.rows.values() for each in rows.tensors())
    fp64 = cost.CACHE_FORMATS["fp64"]
    assert stored == cost.cached_bytes(made.plan, fp64) * tokens


def test_another_map_is_another_layer():
    form = find("multi-head")
    layer = form.layers[0]
    exchanged = {**layer.weights, "k": layer.weights["v"], "v": layer.weights["k"]}
    wrong = Library(form, replace(layer, weights=exchanged), torch.float64)
    assert whole(wrong) > 0.01
