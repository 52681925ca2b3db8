"""Devices, the least time of a step on them, and `qkvbench cost`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qkvbench import cost, hardware, native
from qkvbench.cli import main, names
from qkvbench.cost.roofline import (
    Conditions,
    Part,
    bound,
    held_bytes,
    longest_context,
    prediction_s,
    seen_keys,
    work,
)
from qkvbench.hardware import UnknownDeviceError, parse
from qkvbench.model import PRESETS, Model
from qkvbench.variant import Blocks, Mask

SHEET = {"value": 1e12, "source": "a data sheet"}
DEVICE = {
    "about": "a device of the tests",
    "memory_bytes": SHEET,
    "bandwidth_bytes_per_s": SHEET,
    "flops_per_s": {"fp32": {"value": 1e14, "source": "a data sheet"}},
}


def test_every_device_has_a_record_whose_figures_have_sources() -> None:
    """Those that the issue of edge and cloud asks for are there."""
    assert {"a100-80gb", "h100", "h200", "rtx-3060", "rtx-4090"} <= set(hardware.names())
    assert {"jetson-agx-orin", "raspberry-pi-5", "stm32h743", "groq-lpu"} <= set(hardware.names())
    measured = Path(__file__).parents[1] / "studies" / "benchmarks" / "cost-model.toml"
    for name in [*hardware.names(), str(measured)]:
        device = hardware.find(name)
        assert all(rate.source for rate in device.flops_per_s.values())


@pytest.mark.parametrize(
    ("change", "named_field"),
    [
        ({"memory_bytes": None}, "memory_bytes"),
        ({"bandwidth_bytes_per_s": {"value": 1e12}}, "bandwidth_bytes_per_s.source"),
        ({"bandwidth_bytes_per_s": {"value": -1, "source": "a sheet, wrong"}}, "bandwidth"),
        (
            {"bandwidth_bytes_per_s": {"value": 3.35e6, "source": "a sheet, in MB/s"}},
            "is a unit wrong",
        ),
        ({"flops_per_s": {}}, "flops_per_s"),
        ({"on_chip_bytes": {"value": 1e13, "source": "a data sheet"}}, "on_chip_bytes"),
        ({"price": 3}, "price"),
        (
            {
                "dollars_per_hour": {
                    "low": 3,
                    "high": 2,
                    "date": "2026-05",
                    "source": "a shop page",
                }
            },
            "lower price",
        ),
    ],
)
def test_a_missing_or_absurd_figure_is_refused_by_name(change: dict, named_field: str) -> None:
    """A record is read from a file that somebody wrote by hand."""
    content = {key: value for key, value in {**DEVICE, **change}.items() if value is not None}
    with pytest.raises(UnknownDeviceError, match=named_field):
        parse("mine", content)


CALIBRATION = {
    "date": "2026-11-29",
    "threads": 1,
    "step_s": 0,
    "layer_s": 0,
    "reads": {"fp32": [{"working_set_bytes": 1e6, "bytes_per_s": 9e13}]},
    "step_product_flops_per_s": {"fp32": 1e14},
    "step_sequences": 8,
    "cache_bytes_per_s": {"fp32": 1e12},
    "row_flops_per_s": {"int8": 1e14},
    "unfused_flops_per_s": {"fp32": 1e14},
    "product_flops_per_s": {"fp32": 1e14},
    "attention_flops_per_s": {"fp32": 1e14},
}


@pytest.mark.parametrize(
    "change",
    [
        {"step_product_flops_per_s": {"fp32": 1e15}},
        {"row_flops_per_s": {"int8": 1e15}},
        {"unfused_flops_per_s": {"fp32": 1e15}},
        {"product_flops_per_s": {"fp32": 1e15}},
        {"attention_flops_per_s": {"fp32": 1e15}},
        {"cache_bytes_per_s": {"fp32": 1e13}},
        {"reads": {"fp32": [{"working_set_bytes": 1e9, "bytes_per_s": 1e13}]}},
    ],
)
def test_a_measured_rate_far_above_the_device_s_is_refused_by_name(change: dict) -> None:
    """Of weights that lie on the chip, memory does not bound the rate."""
    on_chip = {"on_chip_bytes": {"value": 1e7, "source": "a data sheet"}}
    parse("mine", {**DEVICE, **on_chip, "calibration": CALIBRATION})
    (field,) = change
    with pytest.raises(UnknownDeviceError, match=rf"calibration.{field}.\w+ is 10 times"):
        parse("mine", {**DEVICE, **on_chip, "calibration": {**CALIBRATION, **change}})


def _model(equation: str, tokens_model: str = "small-decoder") -> Model:
    base = PRESETS[tokens_model]()
    return names.with_variant(base, names.cycle(equation))


@pytest.mark.parametrize("equation", ["q,k,v", "q,k=v", "q,k,v/1", "q,k=v/1", "q,k=L(16),v=L(16)"])
def test_a_decode_step_reads_the_whole_cache_once(equation: str) -> None:
    """Its bytes are those that the cache holds, of each sequence and of the new token."""
    model = _model(equation)
    step = work(model, "decode", Conditions(tokens=40, batch=3))
    assert step.attention.moved_bytes == cost.cache_bytes(model, 41, 3, cost.CACHE_FORMATS["bf16"])


def test_a_tied_root_is_one_row_and_not_one_for_each_role_or_head() -> None:
    """`q,k=v` reads half of what `q,k,v` reads, and one head a quarter of four."""
    read = {
        each: work(_model(each), "decode", Conditions(tokens=99)).attention.moved_bytes
        for each in ("q,k,v", "q,k=v", "q,k,v/1", "q,k=v/1")
    }
    assert read["q,k=v"] * 2 == read["q,k,v"] == read["q,k,v/1"] * 4 == read["q,k=v/1"] * 8


def test_k_and_v_of_the_layer_below_are_read_again() -> None:
    """They are cached once, and both layers read them."""
    model = _model("q,k,v;q,k=K(-1),v=V(-1)")
    own = work(_model("q,k,v"), "decode", Conditions(tokens=10)).attention.moved_bytes
    assert work(model, "decode", Conditions(tokens=10)).attention.moved_bytes == own
    assert cost.cache_bytes(model, 11, 1, cost.CACHE_FORMATS["bf16"]) * 2 == own


def test_linear_attention_reads_and_writes_its_state_however_long_the_text() -> None:
    """Its bytes are those of the state, in fp32 whatever the type of rows, read and written."""
    model = _model("q,k,v+elu")
    steps = [work(model, "decode", Conditions(tokens=tokens)) for tokens in (10, 10_000)]
    assert steps[0] == steps[1]
    assert steps[0].attention.moved_bytes == 2 * cost.cache_bytes(
        model, 10, 1, cost.CACHE_FORMATS["bf16"]
    )
    passed = work(model, "prefill", Conditions(tokens=512))
    assert (
        passed.attention.flops < work(_model("q,k,v"), "prefill", Conditions(512)).attention.flops
    )


def test_a_window_bounds_what_is_read() -> None:
    """From its length on, a longer context costs nothing more."""
    steps = [
        work(_model("q,k,v+window8"), "decode", Conditions(tokens=tokens))
        for tokens in (7, 50, 500)
    ]
    assert steps[0] == steps[1] == steps[2]


@pytest.mark.parametrize(
    "mask",
    [
        Mask(causal=True),
        Mask(causal=True, window=5, sinks=2),
        Mask(causal=True, chunk=4),
        Mask(causal=True, blocks=Blocks(2, 3)),
        Mask(blocks=Blocks(2, 3)),
        Mask(causal=True, diagonal=False),
        Mask(window=4),
        Mask(window=4, sinks=2),
        Mask(),
    ],
)
@pytest.mark.parametrize("tokens", [1, 3, 9, 33])
def test_a_pass_counts_no_more_keys_than_its_mask_shows(mask: Mask, tokens: int) -> None:
    """Else the bound could lie above a kernel that skips what is hidden."""
    rows = np.arange(tokens)
    visible = int(mask.visible(rows, rows).sum())
    assert seen_keys(mask, tokens) <= visible
    if (mask.is_full and mask.diagonal) or mask.blocks:
        assert seen_keys(mask, tokens) == visible


def test_the_bound_of_a_decode_step_by_hand() -> None:
    """Two layers of d_model 96: 12·96² weights each, and 256 rows of the head's matrix."""
    model = _model("q,k,v")
    step = work(model, "decode", Conditions(1000, 2, "fp32", "fp32", "fp32"))
    biases_and_norms = 2 * (4 * 96 + 384 + 96 + 2 * 2 * 96) + 2 * 96
    weights = 2 * 12 * 96 * 96 + biases_and_norms + 256 * 96
    assert step.weights.moved_bytes == 4 * weights
    assert step.weights.flops == 2 * 2 * (2 * 12 * 96 * 96 + 256 * 96)
    assert step.attention.moved_bytes == 2 * 2 * 1001 * 2 * 96 * 4
    assert step.attention.flops == 2 * 2 * 2 * 1001 * 2 * 96
    device = parse("mine", DEVICE)
    least = bound(step, device, "fp32")
    assert least.by == "memory"
    assert least.seconds == pytest.approx(step.moved_bytes / 1e12)


def test_memory_bounds_nothing_that_fits_beside_the_arithmetic() -> None:
    """Weights that lie in the last cache since the step before are not read from memory."""
    content = {**DEVICE, "on_chip_bytes": {"value": 1e9, "source": "a data sheet"}}
    step = work(_model("q,k,v"), "decode", Conditions(1000, 1, "fp32", "fp32", "fp32"))
    assert bound(step, parse("mine", DEVICE), "fp32").by == "memory"
    assert bound(step, parse("mine", content), "fp32").by == "arithmetic"


def test_the_longest_context_fills_the_memory() -> None:
    """One token more does not fit."""
    model, conditions = _model("q,k=v"), Conditions(1, 4)
    tokens = longest_context(model, conditions, 10e6)
    assert tokens is not None
    fitting = replace(conditions, tokens=tokens)
    assert held_bytes(model, fitting) <= 10e6
    assert held_bytes(model, replace(fitting, tokens=tokens + 1)) > 10e6
    assert longest_context(_model("none"), conditions, 10e6) is None


@pytest.mark.parametrize(
    ("equation", "wait"),
    [
        ("q,k,v", lambda rows: rows.moved_bytes / 1e7),
        # Each row is read by four heads, so arithmetic takes longer than reading.
        ("q,k,v/1", lambda rows: rows.flops / 7e6),
        # No kernel has its key of two parts.
        ("q,k=L(8),v=L(8)+ropehead4", lambda rows: rows.flops / 2e6),
    ],
)
def test_a_prediction_adds_up_parts_at_the_measured_rates(
    equation: str, wait: Callable[[Part], float]
) -> None:
    """Of a size between two that were measured, weights are read at the larger one's rate."""
    rates: dict[hardware.Arithmetic, float] = {"fp32": 1e9}
    calibration = hardware.Calibration(
        date="2026-11-29",
        threads=1,
        step_s=0.5,
        layer_s=0.25,
        reads={
            "fp32": (
                hardware.Read(working_set_bytes=1e4, bytes_per_s=1e9),
                hardware.Read(working_set_bytes=1e8, bytes_per_s=1e7),
            )
        },
        step_product_flops_per_s=rates,
        step_sequences=8,
        cache_bytes_per_s={"fp32": 1e7},
        row_flops_per_s={"fp32": 7e6},
        unfused_flops_per_s={"fp32": 2e6},
        kernel_features=tuple(native.CAPABILITIES.features),
        product_flops_per_s=rates,
        attention_flops_per_s=rates,
    )
    conditions = Conditions(1000, 1, "fp32", "fp32", "fp32")
    step = work(_model(equation), "decode", conditions)
    expected = 0.5 + 2 * 0.25 + step.weights.moved_bytes / 1e7 + wait(step.attention)
    assert prediction_s(step, conditions, calibration) == pytest.approx(expected)
    with pytest.raises(ValueError, match="bf16"):
        prediction_s(step, replace(conditions, precision="bf16"), calibration)


def test_cost_says_first_what_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    """A device has a row for each variant; without one, each device has a line."""
    words = ["cost", "gpt-1.2b", "--position", "rotary", "--context", "32768", "--batch", "16"]
    assert main([*words, "--hardware", "h100"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("By data sheets, the least time of a decode step of gpt-1.2b over")
    assert "beside that of q,k,v: 49% less with q,k=v" in " ".join(printed.split())
    assert "≥: no program that passes all tokens through all layers takes less" in printed
    assert max(map(len, printed.splitlines())) <= 100
    assert main(words) == 0
    lines = capsys.readouterr().out
    assert all(name in lines for name in hardware.names())
    assert main([*words, "--hardware", "h100", "--variants", "q,k=v", "q,k,v"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "beside that of q,k=v: 96% more with q,k,v." in printed


def test_cost_as_json_has_devices_with_sources_and_prices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A price that is asked for replaces that of the record."""
    words = ["cost", "small-decoder", "--hardware", "raspberry-pi-5", "--json"]
    assert main([*words, "--price-per-hour", "3.6", "--variants", "q,k,v"]) == 0
    document = json.loads(capsys.readouterr().out)
    (row,) = document["costs"]
    assert row["dollars"] == pytest.approx([1000 * row["decode_s"]] * 2)
    assert document["devices"][0]["memory_bytes"]["source"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["gpt-1.2b", "--hardware", "h10"], "Did you mean h100?"),
        (["gpt-1.2b", "--context", "9000"], "--position rotary"),
        (["gpt-1.2b", "--hardware", "stm32h743", "--precision", "bf16"], "has no rate for bf16"),
        (["gpt-1.2b", "--precision", "fp8"], "--precision is one of"),
        (["translation"], "two inputs"),
    ],
)
def test_a_wrong_request_says_what_to_write(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, without a traceback."""
    assert main(["cost", *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.nightly
def test_no_step_is_faster_than_its_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On this machine, with the limits that were measured just before."""
    from qkvbench.measure.calibration import Timer, decoder

    path = tmp_path / "here.toml"
    assert main(["doctor", "--calibrate", str(path)]) == 0
    device = hardware.find(str(path))
    for width, layers in ((512, 8), (768, 6)):
        for equation in ("q,k,v", "q,k=v", "q,k,v/1"):
            model = names.with_variant(decoder(width, layers), names.cycle(equation))
            for context in (64, 4096):
                conditions = Conditions(context, 1, "fp32", "fp32", "fp32")
                least = bound(work(model, "decode", conditions), device, "fp32")
                assert Timer(1).step_s("decode", model, "fp32", context) >= least.seconds
    assert "memory is read at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("suffix", "seen"),
    [("", 4097), ("+window128", 128), ("+chunk4096", 1), ("+blocks128", 641), ("-diag", 4096)],
)
def test_a_step_reads_the_keys_that_the_new_token_sees(suffix: str, seen: int) -> None:
    """A chunk begins anew with the 4,097th token."""
    mask = _model(f"q,k,v{suffix}").plans[0].mask
    assert mask.last_keys(4097) == seen
    assert mask.visible(np.array([4096]), np.arange(4097)).sum() == seen


def test_windows_and_chunks_hold_no_more_rows_than_they_show() -> None:
    conditions = Conditions(tokens=100_000)
    whole, window, mixed = (
        names.model("small-decoder").with_variant(names.cycle(text))
        for text in ("q,k,v", "q,k,v+window128+sinks4", "q,k,v;q,k,v+chunk64")
    )
    empty = held_bytes(whole, replace(conditions, tokens=0))
    row = (held_bytes(whole, conditions) - empty) / 100_000
    assert held_bytes(window, conditions) == empty + 132 * row
    assert held_bytes(mixed, conditions) == empty + (100_000 + 64) * row / 2
    assert longest_context(window, conditions, 2 * empty) is None
    # Up to 64 tokens both layers keep them, then one.
    assert longest_context(mixed, conditions, empty + 64 * row / 2 + 7 * row / 2) == 35
    assert longest_context(mixed, conditions, empty + 64 * row / 2 + 99 * row / 2) == 99
    # A window that is longer than what fits keeps what there is.
    wide = whole.with_variant(names.cycle("q,k,v+window1000000;q,k,v"))
    assert longest_context(wide, conditions, empty + 70 * row) == 70
    # A table of positions ends a text, too; an encoder keeps no rows.
    learned = names.with_position(whole, "learned")
    assert longest_context(learned, conditions, 10 * empty + 10**9 * row) == learned.longest
    encoder = names.model_or_task("sort")
    assert held_bytes(encoder, conditions) == held_bytes(encoder, replace(conditions, tokens=0))


def test_memory_bounds_a_step_by_what_does_not_fit_on_the_chip() -> None:
    """And rows that several layers read are moved once."""
    sheet = DEVICE | {"on_chip_bytes": {"value": 1e6, "source": "a data sheet"}}
    device = parse("tests", sheet)
    model = names.model("small-decoder")
    conditions = Conditions(tokens=10_000, precision="fp32", weights="fp32", cache="fp32")
    own, below = (
        work(model.with_variant(names.cycle(text)), "decode", conditions)
        for text in ("q,k,v", "q,k,v;q,k=K(-1),v=V(-1)")
    )
    assert own.read_again == 0
    assert below.read_again == below.attention.moved_bytes / 2
    assert bound(own, device, "fp32").seconds == pytest.approx((own.moved_bytes - 1e6) / 1e12)
    distinct = below.moved_bytes - below.read_again
    assert bound(below, device, "fp32").seconds == pytest.approx((distinct - 1e6) / 1e12)
    few = replace(conditions, tokens=10)
    assert (
        bound(
            work(model, "decode", few),
            parse("tests", sheet | {"on_chip_bytes": {"value": 1e9, "source": "a data sheet"}}),
            "fp32",
        ).by
        == "arithmetic"
    )


def test_a_prefill_writes_the_rows_that_a_window_keeps() -> None:
    model = names.model("small-decoder").with_variant(names.cycle("q,k,v+window16"))
    conditions = Conditions(tokens=100_000)
    rows = 2 * 16 * cost.cached_bytes(model.plans[0], cost.CACHE_FORMATS["bf16"])
    assert work(model, "prefill", conditions).attention.moved_bytes == rows


def test_a_variant_that_is_written_twice_is_one_column(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cost", "small-decoder", "--variants", "q,k,v", "q,k,v", "q,k=v", "--hardware", "h100"]
    assert main([*words, "--json"]) == 0
    assert [row["variant"] for row in json.loads(capsys.readouterr().out)["costs"]] == [
        "q,k,v",
        "q,k=v",
    ]
