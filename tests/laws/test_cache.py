"""The cache itself: formats of rows, pages, bytes, and the errors of their use."""

import ctypes

import numpy as np
import pytest
import torch

from laws.backends import TORCH, TORCH_STORAGES
from laws.cases import (
    TIME,
    covering,
    decoder,
    every_case,
    parametrized,
    rotary,
    whole_numbers,
)
from qkvbench import cost
from qkvbench.backends.torch import Growing, Reserved, build
from qkvbench.backends.torch.cache import paged_tensor
from qkvbench.backends.torch.cache.quantize import DTYPES, dequantize, quantize
from qkvbench.cost import CACHE_FORMATS
from qkvbench.model import NoPosition, Rotary, Tokens, with_source

# fp64 rounding of sums over tens of numbers of size ten.
EXACT = 1e-11
BATCH = 3

every_format = pytest.mark.parametrize("rows", CACHE_FORMATS)


def _tokens(batch=BATCH, time=TIME, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 13, size=(batch, time)))


def _difference(found, expected):
    return (found - expected).abs().max().item()


@torch.no_grad()
def _decode(network, tokens, cache, prompt=2):
    """The logits after a prompt and each further token."""
    found = [network.prefill(tokens[:, :prompt], cache)]
    found += [network.step(tokens[:, time], cache) for time in range(prompt, tokens.shape[1])]
    return torch.stack(found, dim=1)


@pytest.mark.parametrize(
    ("rows", "share", "of_largest"),
    [
        # Half a unit of the last of 53, 24, 8 and 11 bits; half of 1/127 of a row's largest.
        ("fp64", 2**-53, 0),
        ("fp32", 2**-24, 0),
        ("bf16", 2**-8, 0),
        ("fp16", 2**-11, 0),
        ("int8", 0, 0.5 / 127),
        # The rows are narrower than a group of 32.
        ("int4", 0, 0.5 / 7),
    ],
)
def test_a_stored_row_is_rounded_by_half_a_step_at_most(rows, share, of_largest):
    rng = torch.randn(2, 3, 50, 7, generator=torch.manual_seed(0)).double()
    rng[0, 0, 0] = 0
    format = CACHE_FORMATS[rows]
    found = dequantize(*quantize(rng, format), torch.float64, format, 7)
    bound = share * rng.abs() + of_largest * rng.abs().amax(-1, keepdim=True)
    # The scale itself is in fp32.
    assert ((found - rng).abs() <= bound * (1 + 1e-5)).all()
    assert (found[0, 0, 0] == 0).all()


ROUNDED = [
    case for case in covering("distinct", "suffix", "rows", "storage") if case.rows != "fp64"
]


@parametrized(ROUNDED[::2])
@torch.no_grad()
def test_decoding_over_rounded_rows_loses_nothing_but_their_rounding(case, monkeypatch):
    network = TORCH.network(decoder(case.full, rotary(case.full), case.plan().geometry))
    tokens, format = torch.from_numpy(whole_numbers(13)), CACHE_FORMATS[case.rows]
    storage = TORCH_STORAGES[case.storage]
    found = _decode(network, tokens, network.new_cache(BATCH, TIME, storage, case.rows))

    def rounded(new, _format):
        return dequantize(*quantize(new, format), new.dtype, format, new.shape[-1]), None

    with monkeypatch.context() as patched:
        patched.setattr(paged_tensor, "quantize", rounded)
        expected = _decode(network, tokens, network.new_cache(BATCH, TIME))
    assert _difference(found, expected) < EXACT


@pytest.mark.parametrize("rows", ["fp32", "bf16", "fp16", "int8"])
def test_rows_of_a_smaller_format_are_not_stored_in_full(rows):
    network, tokens = TORCH.network(decoder("q,k=v", Rotary())), _tokens()
    found = _decode(network, tokens, network.new_cache(BATCH, TIME, rows=rows))
    assert _difference(found[:, 1:], network(tokens)[:, 2:]) > 1e-8


@torch.no_grad()
def test_beams_share_what_they_have_in_common_and_copy_the_last_page_only():
    network = TORCH.network(decoder("q,k,v", Rotary()))
    cache = network.new_cache(1, 40, Growing(4))
    network.prefill(_tokens(1, 18), cache)
    before = cache.bytes
    cache.reorder(torch.zeros(5, dtype=torch.long))
    assert cache.bytes == before
    network.step(torch.arange(5), cache)
    # 18 tokens fill 4 pages and a half; of that one four more are made.
    assert cache.bytes == before * (5 + 4) // 5
    # The prompt's full pages are read where they lie, once for all five.
    _, tile = next(cache.layers[0].rows["k"].tiles(0, 4, torch.float64))
    assert len(tile) == 1
    # A beam that nobody follows gives its pages back, and the next one takes them.
    cache.reorder(torch.tensor([0, 0, 0, 0, 4]))
    network.step(torch.arange(5), cache)
    assert cache.bytes == before * (5 + 4) // 5


def test_more_tokens_than_were_read_are_not_rolled_back():
    network = TORCH.network(decoder("q,k=v", Rotary()))
    cache = network.new_cache(BATCH, TIME)
    network.prefill(_tokens(), cache, torch.tensor([0, 3, 1]))
    for tokens in (TIME - 2, -1):
        with pytest.raises(ValueError, match=r"shortest sequence in the cache has 4\. Take"):
            cache.rollback(tokens)
    cache.rollback(4)
    assert cache.longest == TIME - 4


@torch.no_grad()
def test_pages_that_a_window_freed_are_not_rolled_back():
    network = TORCH.network(decoder("q,k=v+window3", Rotary()))
    tokens = _tokens(time=20)
    cache = network.new_cache(BATCH, 20, Growing(4))
    _decode(network, tokens, cache)
    with pytest.raises(ValueError, match=r"next token would see then are freed\. Take 2 at"):
        cache.rollback(3)
    cache.rollback(2)
    found = [network.step(tokens[:, time], cache) for time in (18, 19)]
    assert _difference(torch.stack(found, dim=1), network(tokens)[:, -2:]) < EXACT


@every_case("distinct", "rows", "storage", nightly=0)
def test_an_account_has_all_bytes_of_a_cache_and_of_its_page_tables(case):
    model = decoder(case.full, rotary(case.full), case.plan().geometry)
    format, page = CACHE_FORMATS[case.rows], TORCH_STORAGES[case.storage].page
    cache = build(model).new_cache(BATCH, TIME, TORCH_STORAGES[case.storage], case.rows)
    cache.fill_randomly(TIME, seed=0)
    account = cache.account()
    assert account.rows == BATCH * TIME * cost.cache_bytes_per_token(model, format)
    assert account.rows + account.spare == cache.bytes
    assert cache.bytes == cost.cache_bytes(model, TIME, BATCH, format, page)
    addresses = cost.cache_tensors(model) * (2 if format.is_quantized else 1)
    columns = -(-TIME // page) if page else 1
    assert account.tables == 8 * BATCH * columns * addresses
    assert account.total == cache.bytes + account.tables


@every_format
def test_a_source_is_cached_in_the_format_of_the_cache(rows):
    model = with_source(decoder("q,k=v", Rotary()), Tokens(11), NoPosition())
    network, format = build(model), CACHE_FORMATS[rows]
    cache = network.new_cache(BATCH, TIME, Growing(2), rows)
    network.read_source(_tokens(time=5) % 11, None, cache)
    per_token = cost.source_bytes_per_token(model, format)
    assert cache.bytes == cache.account().rows == BATCH * 5 * per_token


@pytest.mark.parametrize(
    ("suffix", "seen"),
    [
        *[("+window1", 1), ("+window3", 3), ("+window5", 5)],
        *[("+window3+sinks1", 4), ("+window2+sinks4", 6), ("+chunk3", 3), ("+chunk5", 5)],
    ],
)
@pytest.mark.parametrize("page", [1, 2, 5])
@torch.no_grad()
def test_a_window_or_a_chunk_bounds_the_cache_however_long_the_text(suffix, seen, page):
    model = decoder(f"q,k=v{suffix}", Rotary(), layers=1)
    network, tokens, format = TORCH.network(model), _tokens(time=23), CACHE_FORMATS["fp64"]
    cache = network.new_cache(BATCH, 23, Growing(page))
    network.prefill(tokens[:, :11], cache)
    for time in range(11, 23):
        found = network.step(tokens[:, time], cache)
        assert cache.bytes <= cost.cache_bytes(model, time + 1, BATCH, format, page)
    assert _difference(found, network(tokens)[:, -1]) < EXACT
    most = BATCH * (seen + 3 * page) * cost.cache_bytes_per_token(model, format)
    assert cache.bytes <= most
    # What is planned for does not grow with the text either.
    assert cost.cache_bytes(model, 10_000, BATCH, format, page) <= most


@every_format
@torch.no_grad()
def test_the_addresses_of_pages_lead_to_their_rows(rows):
    network = TORCH.network(decoder("q,k=v/2+window5", Rotary()))
    for storage in (Reserved(), Growing(2)):
        cache = network.new_cache(BATCH, 20, storage, rows)
        network.prefill(_tokens(time=4), cache, torch.tensor([0, 2, 1]))
        for time in range(8):
            cache.reorder(torch.tensor([[0, 0, 1], [2, 1, 0]][time % 2]))
            network.step(_tokens(time=8)[:, time], cache)
        for layer in cache.layers:
            (mask,) = cache.tables
            rows_of_keys = layer.rows["k"]
            first, end = cache.visible(mask)
            least = mask.first_slot(cache.shortest)
            tiles = dict(rows_of_keys.tiles(least, cache.longest, torch.float64, most=1))
            for sequence in range(BATCH):
                for slot in range(int(first[sequence]), int(end[sequence]) - 1):
                    shared = BATCH // len(tiles[slot])
                    for head, row in enumerate(tiles[slot][sequence // shared, :, 0]):
                        assert torch.equal(_at_address(rows_of_keys, sequence, slot, head), row)


def _at_address(rows, sequence, slot, head):
    """A row, read from the address of its page."""
    pages, bits = rows.pointers(), rows.format.bits
    column, row = divmod(slot, pages.rows)
    # Strides count stored elements: numbers, or bytes of two numbers.
    place = (head * pages.head_stride + row * pages.row_stride) * max(1, bits // 8)
    base = int(pages.addresses[sequence, column]) + place
    raw = bytearray(ctypes.string_at(base, -(-rows.head_dim * bits // 8)))
    numbers = torch.frombuffer(raw, dtype=DTYPES[rows.format.name])
    if pages.scale_addresses is None:
        return numbers.double()
    # Rows of 6 numbers are one group, which has one scale.
    scales = int(pages.scale_addresses[sequence, column])
    scale = ctypes.c_float.from_address(scales + 4 * (head * pages.rows + row)).value
    scales = torch.tensor(scale if rows.format.group is None else [scale])
    return dequantize(numbers, scales, torch.float64, rows.format, rows.head_dim)


def test_a_cache_of_another_model_is_refused_in_words():
    network = build(decoder("q,k=v", Rotary()))
    for other, said in [
        (build(decoder("q,k,v", Rotary())), "q,k,v with 4 heads of 6 in layer 0"),
        (build(decoder("q,k=v", Rotary(), layers=3)), "3 layers, and this one has 2"),
        (build(decoder("q,k=v+window3", Rotary())), r"q,k=v\+window3 with 4 heads"),
        (build(decoder("q,k=v", Rotary())).double(), "torch.float64 on cpu, and this one is"),
        (build(decoder("q,k=v")), "in layer 0"),
    ]:
        cache = other.new_cache(BATCH, TIME)
        with pytest.raises(ValueError, match=said):
            network.prefill(_tokens(), cache)
        with pytest.raises(ValueError, match="this model's new_cache"):
            network.step(_tokens()[:, 0], cache)


def test_moving_a_cache_changes_where_it_lies_and_nothing_that_is_read():
    network, tokens = TORCH.network(decoder("q,k=v", Rotary())), _tokens()
    cache = network.new_cache(BATCH, TIME, Growing(2), "int8")
    _decode(network, tokens[:, :-1], cache)
    before = [tensor.data_ptr() for tensor in cache.tensors()]
    with torch.no_grad():
        found = network.step(tokens[:, -1], cache)
        cache.rollback(1)
        cache.move()
        assert torch.equal(network.step(tokens[:, -1], cache), found)
    now = [tensor.data_ptr() for tensor in cache.tensors()]
    assert all(one != other for one, other in zip(before, now, strict=False))
