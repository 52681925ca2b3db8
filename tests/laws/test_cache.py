"""The cache: whatever its storage and its rows, decoding over it is one forward pass."""

import ctypes
from itertools import cycle

import numpy as np
import pytest
import torch

from laws.arms import (
    PLANNED,
    POSITIONS,
    SIZE,
    TIME,
    decoder,
    every_catalogued,
    every_position,
    every_variant,
    suffixed,
)
from laws.networks import drawn_network
from qkvbench import cost
from qkvbench.backends.torch import Growing, Reserved, build
from qkvbench.backends.torch.cache import paged_tensor
from qkvbench.backends.torch.cache.quantize import DTYPES, dequantize, quantize
from qkvbench.cost import CACHE_FORMATS
from qkvbench.model import Alibi, Learned, NoPosition, Rotary, Tokens, with_source

# fp64 rounding of sums over tens of numbers of size one.
EXACT = 1e-10
BATCH = 3
# One page for each sequence; pages that are there from the first; pages that come one by one.
STORAGES = [Reserved(), Reserved(2), Growing(3)]
NORMED = ["", "+qknorm", "+qkvnorm", "+qkvnorm++", "-diag", "+qknorm+2d"]

every_storage = pytest.mark.parametrize("storage", STORAGES, ids=str)
every_row_type = pytest.mark.parametrize("rows", CACHE_FORMATS)


def _tokens(batch=BATCH, time=TIME, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 13, size=(batch, time)))


def _apart(found, expected):
    return (found - expected).abs().max().item()


@torch.no_grad()
def _written(network, tokens, cache, prompt=2):
    """The logits after a prompt and each further token."""
    found = [network.prefill(tokens[:, :prompt], cache)]
    found += [network.step(tokens[:, time], cache) for time in range(prompt, tokens.shape[1])]
    return torch.stack(found, dim=1)


@every_position
@every_variant
@torch.no_grad()
def test_whatever_the_storage_decoding_is_one_forward_pass(variant, position):
    place = PLANNED.index(variant) + POSITIONS.index(position)
    suffix = NORMED[place % len(NORMED)]
    network, tokens = drawn_network(decoder(suffixed(variant, suffix), position, SIZE)), _tokens()
    whole = network(tokens)
    for storage in STORAGES:
        found = _written(network, tokens, network.new_cache(BATCH, TIME, storage))
        assert _apart(found, whole[:, 1:]) < EXACT, (storage, suffix)


@pytest.mark.parametrize(
    ("rows", "share", "of_largest"),
    [
        # Half a unit of the last of 53, 24, 8 and 11 bits; half of 1/127 of a row's largest.
        ("fp64", 2**-53, 0),
        ("fp32", 2**-24, 0),
        ("bf16", 2**-8, 0),
        ("fp16", 2**-11, 0),
        ("int8", 0, 0.5 / 127),
    ],
)
def test_a_stored_row_is_rounded_by_half_a_step_at_most(rows, share, of_largest):
    rng = torch.randn(2, 3, 50, 7, generator=torch.manual_seed(0)).double()
    rng[0, 0, 0] = 0
    found = dequantize(*quantize(rng, CACHE_FORMATS[rows]), torch.float64)
    bound = share * rng.abs() + of_largest * rng.abs().amax(-1, keepdim=True)
    # The scale itself is in fp32.
    assert ((found - rng).abs() <= bound * (1 + 1e-5)).all()
    assert (found[0, 0, 0] == 0).all()


@pytest.mark.parametrize("rows", ["fp32", "bf16", "fp16", "int8"])
@every_catalogued
@torch.no_grad()
def test_decoding_over_rounded_rows_loses_nothing_but_their_rounding(variant, rows, monkeypatch):
    for suffix, storage in zip(NORMED, cycle(STORAGES), strict=False):
        network, tokens = drawn_network(decoder(suffixed(variant, suffix), Rotary())), _tokens()
        found = _written(network, tokens, network.new_cache(BATCH, TIME, storage, rows))

        def rounded(new, _, kind=CACHE_FORMATS[rows]):
            return dequantize(*quantize(new, kind), new.dtype), None

        with monkeypatch.context() as patched:
            patched.setattr(paged_tensor, "quantize", rounded)
            expected = _written(network, tokens, network.new_cache(BATCH, TIME))
        assert _apart(found, expected) < EXACT, (suffix, storage)
        # And it is there: the rows were not kept in full.
        assert _apart(found[:, 1:], network(tokens)[:, 2:]) > 1e-8


@every_storage
@every_catalogued
@torch.no_grad()
def test_left_padding_changes_nothing(variant, storage):
    for position, suffix in zip([Rotary(), Alibi(), Learned(11)], NORMED, strict=False):
        network, tokens = drawn_network(decoder(suffixed(variant, suffix), position)), _tokens()
        padding = torch.tensor([0, 3, 1])
        cache = network.new_cache(BATCH, TIME + 2, storage)
        padded = torch.stack([row.roll(int(n)) for row, n in zip(tokens, padding, strict=True)])
        found = [network.prefill(padded, cache, padding)]
        found += [network.step(torch.tensor([3, 1, 4]), cache) for _ in range(2)]
        for row, (token, more) in enumerate(zip((3, 1, 4), padding.tolist(), strict=True)):
            text = torch.cat([tokens[row, : TIME - more], torch.tensor([token, token])])
            alone = network(text[None])[0, -3:]
            assert _apart(torch.stack(found)[:, row], alone) < EXACT, position


@every_storage
@every_catalogued
@torch.no_grad()
def test_sequences_that_follow_others_are_independent_runs(variant, storage):
    network, tokens = drawn_network(decoder(variant, Rotary())), _tokens(2, 3)
    for padding in (None, torch.tensor([0, 2])):
        cache = network.new_cache(2, 12, storage)
        network.prefill(tokens, cache, padding)
        cut = [0, 0] if padding is None else padding.tolist()
        texts = [row[n:].tolist() for row, n in zip(tokens, cut, strict=True)]
        rng = np.random.default_rng(1)
        for count in (2, 6, 6, 5, 5, 8, 8):
            parents = rng.integers(0, len(texts), size=count)
            cache.follow(torch.from_numpy(parents))
            new = rng.integers(0, 13, size=count)
            texts = [[*texts[own], int(token)] for own, token in zip(parents, new, strict=True)]
            found = network.step(torch.from_numpy(new), cache)
            alone = [network(torch.tensor([text]))[0, -1] for text in texts]
            assert _apart(found, torch.stack(alone)) < EXACT


@torch.no_grad()
def test_beams_share_what_they_have_in_common_and_copy_the_last_page_only():
    network = drawn_network(decoder("q,k,v", Rotary()))
    cache = network.new_cache(1, 40, Growing(4))
    network.prefill(_tokens(1, 18), cache)
    before = cache.bytes
    cache.follow(torch.zeros(5, dtype=torch.long))
    assert cache.bytes == before
    network.step(torch.arange(5), cache)
    # 18 tokens fill 4 pages and a half; of that one four more are made.
    assert cache.bytes == before * (5 + 4) // 5
    # The prompt's full pages are read where they lie, once for all five.
    _, tile = next(cache.layers[0].rows["k"].tiles(0, 4, torch.float64))
    assert len(tile) == 1
    # A beam that nobody follows gives its pages back, and the next one takes them.
    cache.follow(torch.tensor([0, 0, 0, 0, 4]))
    network.step(torch.arange(5), cache)
    assert cache.bytes == before * (5 + 4) // 5


@every_storage
@every_catalogued
@torch.no_grad()
def test_what_was_taken_back_was_never_read(variant, storage):
    network, tokens = drawn_network(decoder(variant, Rotary())), _tokens()
    for padding in (None, torch.tensor([0, 2, 1])):
        first, again = (network.new_cache(BATCH, 2 * TIME, storage) for _ in range(2))
        for cache in (first, again):
            network.prefill(tokens[:, :3], cache, padding)
            network.step(tokens[:, 3], cache)
        for time in range(5):
            network.step(tokens[:, time], first)
        first.rollback(5)
        # Beams that share a page write behind what was taken back, too.
        for cache in (first, again):
            cache.follow(torch.tensor([2, 2, 0]))
        assert first.longest == again.longest == 4
        for time in range(4, TIME):
            found, expected = (network.step(tokens[:, time], cache) for cache in (first, again))
            assert _apart(found, expected) < EXACT


def test_more_than_was_read_is_not_taken_back():
    network = drawn_network(decoder("q,k=v", Rotary()))
    cache = network.new_cache(BATCH, TIME)
    network.prefill(_tokens(), cache, torch.tensor([0, 3, 1]))
    for tokens in (TIME - 2, -1):
        with pytest.raises(ValueError, match=r"shortest sequence in the cache has 4\. Take"):
            cache.rollback(tokens)
    cache.rollback(4)
    assert cache.longest == TIME - 4


@torch.no_grad()
def test_what_a_window_gave_back_is_not_taken_back():
    network = drawn_network(decoder("q,k=v", Rotary()).with_window(3))
    tokens = _tokens(time=20)
    cache = network.new_cache(BATCH, 20, Growing(4))
    _written(network, tokens, cache)
    with pytest.raises(ValueError, match=r"window of 3 would see then was given back\. Take 2 at"):
        cache.rollback(3)
    cache.rollback(2)
    found = [network.step(tokens[:, time], cache) for time in (18, 19)]
    assert _apart(torch.stack(found, dim=1), network(tokens)[:, -2:]) < EXACT


@every_row_type
@every_catalogued
def test_computed_bytes_are_those_of_the_live_cache(variant, rows):
    model, kind = decoder(variant, Rotary()), CACHE_FORMATS[rows]
    network = build(model)
    per_token = cost.cache_bytes_per_token(model, kind.value_bytes, kind.scale_bytes)
    for storage in STORAGES:
        cache = network.new_cache(BATCH, TIME, storage, rows)
        with torch.no_grad():
            _written(network, _tokens(), cache)
        room = TIME if storage == Reserved() else -(-TIME // storage.page) * storage.page
        assert cache.bytes == BATCH * room * per_token
        assert cache.bytes == cost.cache_bytes(model, TIME, BATCH, kind, storage.page)
        account = cache.account()
        assert account.rows == BATCH * TIME * per_token
        assert account.rows + account.spare == cache.bytes
        addresses = cost.cache_tensors(model) * (2 if kind.scale_bytes else 1)
        columns = 1 if storage == Reserved() else -(-TIME // storage.page)
        assert account.tables == 8 * BATCH * columns * addresses
        assert account.total == cache.bytes + account.tables


@every_row_type
def test_a_source_is_kept_in_the_rows_that_the_cache_is_asked_for(rows):
    model = with_source(decoder("q,k=v", Rotary()), Tokens(11), NoPosition())
    network, kind = build(model), CACHE_FORMATS[rows]
    cache = network.new_cache(BATCH, TIME, Growing(2), rows)
    network.read_source(_tokens(time=5) % 11, None, cache)
    per_token = cost.source_bytes_per_token(model, kind.value_bytes, kind.scale_bytes)
    assert cache.bytes == cache.account().rows == BATCH * 5 * per_token


@pytest.mark.parametrize("window", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("page", [1, 2, 3, 5])
@torch.no_grad()
def test_a_window_bounds_the_cache_however_long_the_text(window, page):
    model = decoder("q,k=v", Rotary()).with_window(window)
    network, tokens = drawn_network(model), _tokens(time=23)
    cache = network.new_cache(BATCH, 23, Growing(page))
    network.prefill(tokens[:, :11], cache)
    for time in range(11, 23):
        network.step(tokens[:, time], cache)
        kind = CACHE_FORMATS["fp64"]
        assert cache.bytes <= cost.cache_bytes(model, time + 1, BATCH, kind, page)
    assert cache.bytes <= BATCH * (window + 2 * page) * cost.cache_bytes_per_token(model, 8)


@every_row_type
@torch.no_grad()
def test_the_addresses_of_pages_lead_to_their_rows(rows):
    network = drawn_network(decoder("q,k=v/2", Rotary()).with_window(5))
    for storage in (Reserved(), Growing(2)):
        cache = network.new_cache(BATCH, 20, storage, rows)
        network.prefill(_tokens(time=4), cache, torch.tensor([0, 2, 1]))
        for time in range(8):
            cache.follow(torch.tensor([[0, 0, 1], [2, 1, 0]][time % 2]))
            network.step(_tokens(time=8)[:, time], cache)
        for layer in cache.layers:
            kept = layer.rows["k"]
            first, end = cache.seen(layer)
            tiles = dict(kept.tiles(cache.first(layer), cache.longest, torch.float64, most=1))
            for sequence in range(BATCH):
                for slot in range(int(first[sequence]), int(end[sequence]) - 1):
                    shared = BATCH // len(tiles[slot])
                    for head, row in enumerate(tiles[slot][sequence // shared, :, 0]):
                        assert torch.equal(_at_address(kept, sequence, slot, head), row)


def _at_address(kept, sequence, slot, head):
    """A row, read from where its page is said to lie."""
    where, value_bytes = kept.pointers(), kept.kind.value_bytes
    column, row = divmod(slot, where.rows)
    place = head * where.head_stride + row * where.row_stride
    base = int(where.addresses[sequence, column]) + place * value_bytes
    raw = bytearray(ctypes.string_at(base, kept.head_dim * value_bytes))
    numbers = torch.frombuffer(raw, dtype=DTYPES[kept.kind.name]).double()
    if where.scale_addresses is None:
        return numbers
    scales = int(where.scale_addresses[sequence, column])
    return numbers * ctypes.c_float.from_address(scales + 4 * (head * where.rows + row)).value


def test_a_cache_of_another_model_is_refused_in_words():
    network = build(decoder("q,k=v", Rotary()))
    for other, said in [
        (build(decoder("q,k,v", Rotary())), "q,k,v with 4 heads of 6 in layer 0"),
        (build(decoder("q,k=v", Rotary(), layers=3)), "3 layers, and this one has 2"),
        (build(decoder("q,k=v", Rotary()).with_window(3)), "windows of"),
        (build(decoder("q,k=v", Rotary())).double(), "torch.float64 on cpu, and this one is"),
        (build(decoder("q,k=v")), "in layer 0"),
    ]:
        cache = other.new_cache(BATCH, TIME)
        with pytest.raises(ValueError, match=said):
            network.prefill(_tokens(), cache)
        with pytest.raises(ValueError, match="this model's new_cache"):
            network.step(_tokens()[:, 0], cache)


def test_moving_a_cache_changes_where_it_lies_and_nothing_that_is_read():
    network, tokens = drawn_network(decoder("q,k=v", Rotary())), _tokens()
    cache = network.new_cache(BATCH, TIME, Growing(2), "int8")
    _written(network, tokens[:, :-1], cache)
    before = [tensor.data_ptr() for tensor in cache.tensors()]
    with torch.no_grad():
        found = network.step(tokens[:, -1], cache)
        cache.rollback(1)
        cache.move()
        assert torch.equal(network.step(tokens[:, -1], cache), found)
    now = [tensor.data_ptr() for tensor in cache.tensors()]
    assert all(one != other for one, other in zip(before, now, strict=False))
