"""Measurements: intervals have their coverage, percentiles enough samples, limits hold."""

import itertools
import json
import math
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from laws.cases import CATALOGUED
from qkvbench import cost, tasks
from qkvbench.backends import find
from qkvbench.backends.torch.bench.profile import Operation, attention_kernel, attention_name
from qkvbench.cli import main
from qkvbench.cli.measure import ratio_text
from qkvbench.experiment import PRECISIONS
from qkvbench.measure.conditions import Conditions, identity
from qkvbench.measure.machine import Activity, others, processor_named
from qkvbench.measure.observe import kinds_of, measurements, observed
from qkvbench.measure.samples import Step, percentiles, ratio, undisturbed_s
from qkvbench.measure.timing import (
    BLOCKS,
    LEAST_ROUNDS,
    Allowance,
    Arm,
    Clocks,
    Timed,
    Times,
    TooLong,
    Untimed,
    interleaved,
    memory,
    times,
)
from qkvbench.model import PRESETS, Learned
from qkvbench.results.record import Ratio
from qkvbench.results.store import Store
from qkvbench.sweep.local import Workers
from qkvbench.variant import parse, write

SMALL = PRESETS["small-decoder"]()


class Machine:
    """A clock with drift, noise, other processes, and placements in memory that differ."""

    def __init__(self, seed, drift=0.01, noise=0.05, places=0.02):
        self.rng = np.random.default_rng(seed)
        self.now, self.speed = 0.0, 1.0
        self.drift, self.noise, self.places = drift, noise, places

    def clocks(self):
        return Clocks(now_s=lambda: self.now, own_s=lambda: self.now, switches=lambda: 0)

    def arm(self, step_s):
        return Arm(Work(self, step_s), ready_s=1.0, move_s=0.0, step_s=step_s)


class Work:
    cache_bytes, tokens = None, 1

    def __init__(self, machine, step_s):
        self.machine, self.step_s, self.steps, self.moves = machine, step_s, 0, 0
        self.move()

    def step(self):
        machine = self.machine
        self.steps += 1
        machine.speed *= math.exp(machine.drift * machine.rng.normal())
        noise = math.exp(machine.noise * abs(machine.rng.normal()))
        machine.now += self.step_s * machine.speed * self.place * noise

    def move(self):
        self.moves += 1
        self.place = math.exp(self.machine.places * self.machine.rng.normal())

    def kernel(self):
        return "made for tests"


def blocks_of(machine, *steps_s, rounds_s=1.0):
    arms = [machine.arm(step_s) for step_s in steps_s]
    return interleaved(arms, Allowance(rounds_s), machine.clocks())


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_intervals_cover_the_true_ratio_at_their_rate_under_drift_noise_and_placements(slower):
    inside, values = 0, []
    for seed in range(200):
        first, second = blocks_of(Machine(seed), 0.004, 0.004 * slower)
        found = ratio(second, first, to="a")
        values.append(found.value)
        inside += found.low <= slower <= found.high
    # 95% of 200 less three standard deviations of a binomial.
    assert inside >= 200 * 0.95 - 3 * math.sqrt(200 * 0.95 * 0.05)
    assert np.median(values) == pytest.approx(slower, rel=0.005)
    assert np.mean([abs(value / slower - 1) < 0.03 for value in values]) > 0.95


def test_an_interval_of_rounds_that_share_one_placement_would_not_cover():
    # What moving between blocks is for: without it the places look like a difference of arms.
    inside = 0
    for seed in range(60):
        machine = Machine(seed)
        arms = [machine.arm(0.004), machine.arm(0.004)]
        for arm in arms:
            arm.work.move = lambda: None
        first, second = interleaved(arms, Allowance(1.0), machine.clocks())
        found = ratio(second, first, to="a")
        inside += found.low <= 1 <= found.high
    assert inside < 40


def test_rounds_are_interleaved_in_an_order_drawn_anew_with_as_many_steps_for_each_arm():
    machine = Machine(0)
    order = []
    arms = [machine.arm(0.004) for _ in range(3)]
    for number, arm in enumerate(arms):
        arm.work.step = lambda number=number, step=arm.work.step: (order.append(number), step())
    samples = interleaved(arms, Allowance(1.0), machine.clocks())
    counts = [[len(block) for block in arm] for arm in samples]
    assert counts[0] == counts[1] == counts[2]
    assert len(counts[0]) == BLOCKS
    # Each turn is a step that settles and one that is timed, so an arm comes twice in a row.
    turns = order[::2]
    assert turns == order[1::2]
    rounds = [tuple(turns[at : at + 3]) for at in range(0, len(turns), 3)]
    assert all(sorted(each) == [0, 1, 2] for each in rounds)
    assert len(set(rounds)) == 6


def test_arms_move_between_blocks_and_long_steps_are_not_repeated():
    machine = Machine(0)
    short, long = machine.arm(0.004), machine.arm(0.5)
    interleaved([short], Allowance(1.0), machine.clocks())
    assert short.work.moves == 1 + BLOCKS - 1
    samples = interleaved([long], Allowance(0.0), machine.clocks())
    assert long.work.steps == sum(len(block) for block in samples[0]) == LEAST_ROUNDS


def test_moving_that_takes_long_leaves_fewer_blocks_but_enough_for_an_interval():
    machine = Machine(0)
    (samples,) = interleaved(
        [replace(machine.arm(0.004), move_s=0.5)], Allowance(1.0), machine.clocks()
    )
    assert len(samples) == LEAST_ROUNDS


def test_the_fewest_rounds_carry_an_interval_and_one_less_does_not():
    blocks = [[Step(1.0, interrupted=False, alone_s=1.0)]] * LEAST_ROUNDS
    assert ratio(blocks, blocks, "a").low is not None
    assert ratio(blocks[1:], blocks[1:], "a").low is None


def test_the_interval_is_wilcoxon_s():
    # Fifteen values with the ranks of a textbook: 25 of the ordered means are cut on each side.
    logs = np.random.default_rng(0).normal(size=15)
    ones = [[Step(1.0, interrupted=False, alone_s=1.0)]] * 15
    found = ratio(
        [[Step(float(np.exp(x)), interrupted=False, alone_s=1.0)] for x in logs], ones, "a"
    )
    means = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(logs, 2))
    assert math.log(found.low) == pytest.approx(means[25])
    assert math.log(found.high) == pytest.approx(means[-26])
    assert math.log(found.value) == pytest.approx(np.median(means))


@pytest.mark.parametrize(
    ("count", "carried"),
    [
        (1, ["p50"]),
        (49, ["p50"]),
        (50, ["p50", "p90"]),
        (499, ["p50", "p90"]),
        (500, ["p50", "p90", "p99"]),
        (5000, ["p50", "p90", "p99", "p99.9"]),
    ],
)
def test_a_percentile_needs_five_samples_beyond_it(count, carried):
    assert list(percentiles([1.0] * count)) == carried


def test_interrupted_steps_are_left_out_unless_most_are_interrupted():
    whole, cut = Step(1.0, interrupted=False, alone_s=1.0), Step(9.0, interrupted=True, alone_s=1.2)
    assert undisturbed_s([whole, whole, cut]) == [1.0, 1.0]
    assert undisturbed_s([whole, cut, cut]) == [1.0, 1.2, 1.2]


def test_activity_of_other_processes_is_all_activity_less_our_own():
    before, after = Activity(10.0, 100.0, 5.0), Activity(12.0, 103.0, 6.0)
    assert others(before, after) == 1.0
    assert others(before, replace(after, at_s=10.1)) is None
    assert others(before, Activity(12.0, 0.0, 6.0)) is None


def test_a_kernel_has_the_name_of_the_operations_that_ran_and_a_fallback_is_named():
    q = torch.randn(1, 2, 8, 4)

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    assert "flash_attention" in attention_kernel(attend)
    assert "math" not in attention_kernel(attend)
    with sdpa_kernel(SDPBackend.MATH):
        assert "_scaled_dot_product_attention_math (math fallback)" in attention_kernel(attend)


def test_a_forced_fallback_is_named():
    work = find("torch").workload("forward", SMALL, "fp32", context=16, batch=1)
    assert "fallback" not in work.kernel()
    with sdpa_kernel(SDPBackend.MATH):
        assert "math fallback" in work.kernel()


def test_without_a_kernel_decoding_names_the_rope_that_is_applied_at_read_time(monkeypatch):
    monkeypatch.setenv("QKVBENCH_NATIVE", "none")
    backend = find("torch")
    whole, shared = (
        backend.workload("decode", SMALL.with_variant(parse(text)), "fp32", context=300, batch=2)
        for text in ("q,k,v", "q,k=v")
    )
    assert whole.kernel() == "matmul-softmax-matmul over cached roots (aten::bmm, aten::_softmax)"
    assert shared.kernel().startswith(whole.kernel())
    assert "RoPE on K when it is read, 256 rows at a time" in shared.kernel()


@pytest.mark.parametrize("kind", ["forward", "prefill"])
@pytest.mark.parametrize(
    ("text", "kernel"), [("q=k,v-diag", "_scaled_dot_product"), ("q=k,v++", "by rows of queries")]
)
def test_a_whole_sequence_is_attended_by_the_framework_s_kernel_unless_scores_are_added_to(
    text, kernel, kind
):
    model = SMALL.with_variant(parse(text))
    assert kernel in find("torch").workload(kind, model, "fp32", context=16, batch=2).kernel()


def test_an_unknown_operation_is_found_by_its_time():
    operations = [Operation("aten::add", (), 1.0), Operation("ours::attend", (), 5.0)]
    assert attention_name(operations) == "no attention known by name; most time in ours::attend"
    assert attention_name([]) == "nothing was seen"


def test_measured_cache_bytes_are_those_of_the_filled_cache_and_halve_with_a_shared_root():
    models = [SMALL.with_variant(parse(text)) for text in ("q,k,v", "q,k=v")]
    conditions = Conditions(context=63, batch=2, seconds=0.0)
    (whole, half), lacking = measurements(models, conditions, _here)
    assert lacking == []
    assert whole.cache_bytes == 2 * half.cache_bytes == 2 * 2 * 2 * 64 * 96 * 4
    assert whole.samples + whole.timings["decode"].interrupted >= LEAST_ROUNDS
    assert whole.decode_p50_s == whole.timings["decode"].percentiles_s["p50"] > 0
    assert whole.timings["decode"].ratio is None
    assert half.timings["decode"].ratio.to == "q,k,v"


def _here(function, *words, until_s=math.inf):
    return function(*words)


def test_an_arm_that_cannot_be_timed_is_named_and_the_others_are_timed():
    short = replace(SMALL, position=Learned(5))
    done, lacking = measurements([SMALL, short], Conditions(context=9, seconds=0.0), _here)
    assert [each.model_spec["position"]["kind"] for each in done] == ["rotary"]
    assert [each.variant for each in lacking] == ["q,k,v"]
    assert "at most 5 tokens" in lacking[0].reason


@pytest.mark.parametrize(
    ("variant", "precision"),
    [
        # Each variant in one precision; the others nightly.
        pytest.param(
            variant,
            precision,
            id=f"{write(variant)} {precision}",
            marks=() if (place - number) % len(PRECISIONS) == 0 else pytest.mark.nightly,
        )
        for number, variant in enumerate(CATALOGUED)
        for place, precision in enumerate(PRECISIONS)
    ],
)
def test_every_variant_can_do_every_kind_of_work_in_every_precision(variant, precision):
    model = SMALL.with_variant(variant)
    for kind in kinds_of(model):
        work = find("torch").workload(kind, model, precision, context=7, batch=2)
        work.step()
        work.move()
        work.step()
        assert work.tokens == (2 if kind == "decode" else 14)
        if kind != "forward":
            held = 8 if kind == "decode" else 7
            expected = 2 * held * cost.cache_bytes_per_token(model, cost.CACHE_FORMATS[precision])
            assert work.cache_bytes == expected


def test_moving_changes_addresses_and_not_the_result():
    work = find("torch").workload("prefill", SMALL, "fp32", context=7, batch=2)

    def logits():
        with torch.inference_mode():
            made = work.network.prefill(work.prompts, work.cache).clone()
            work.cache.clear()
        return made

    before, places = logits(), _places(work)
    work.move()
    assert torch.equal(logits(), before)
    assert all(now != before for now, before in zip(_places(work), places, strict=True))


def _places(work):
    return [tensor.data_ptr() for tensor in [*work.network.parameters(), *work.cache.tensors()]]


def test_encoders_have_a_forward_pass_and_no_decoding():
    model = tasks.find("digits").model
    assert kinds_of(model) == ("forward",)
    assert find("torch").workload("forward", model, "fp32", context=5, batch=2).tokens == 10
    with pytest.raises(TypeError, match="no decoder"):
        find("torch").workload("decode", model, "fp32", context=5, batch=2)
    (only,) = observed([model], Conditions(context=16), _here, time.monotonic() + 3).arms
    assert set(only.timings) == {"forward"}
    assert only.decode_p50_s is only.cache_bytes is None


def test_memory_of_work_grows_with_batch_and_context():
    # Each in a process of its own: a longer-lived one has room left over, and need not grow.
    with Workers("torch") as workers:
        few, many = (
            workers.call(memory, "prefill", SMALL, Conditions(context=n, batch=4))
            for n in (64, 2048)
        )
    assert many - few > 4 * 1900 * 2 * 2 * 96 * 4


def test_work_that_fails_has_no_memory():
    learned = replace(SMALL, position=Learned(32))
    with pytest.raises(RuntimeError, match="at most 32"):
        memory("forward", learned, Conditions(context=64, batch=1))


def timed(models, tokens=1):
    return Timed(
        [[Step(0.01, interrupted=False, alone_s=0.01)]] * 6,
        tokens,
        5,
        "made for tests",
        ready_s=1.0,
    )


class Asked:
    """Answers as processes would, each after some seconds on a simulated clock."""

    def __init__(self, seconds):
        self.now, self.seconds, self.calls = 100.0, seconds, []

    def __call__(self, function, *words, until_s=math.inf):
        what = words[0] if function is times else f"memory of {words[0]}"
        self.calls.append(what)
        answer = self.seconds[what]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, TooLong):
            return answer
        self.now += answer
        if self.now > until_s:
            raise TimeoutError
        if function is memory:
            return 7
        return Times([timed(words[1]) for _ in words[1]], (1, 1), 0.0)


ALL = {kind: 2.0 for kind in ("decode", "prefill", "forward")}
ALL |= {f"memory of {kind}": 1.0 for kind in ("decode", "prefill", "forward")}


def asked(bound, **changed):
    call = Asked(ALL | changed)
    seen = observed([SMALL, SMALL], Conditions(), call, 100.0 + bound, lambda: call.now)
    return call, seen, [each.what for each in seen.left_out]


def test_with_enough_time_all_is_measured_in_order_of_importance():
    call, seen, left_out = asked(60)
    order = list(dict.fromkeys(call.calls))
    assert order == [*("decode", "prefill", "forward"), *list(ALL)[3:]]
    assert left_out == seen.failed == []
    assert all(set(arm.timings) == {"decode", "prefill", "forward"} for arm in seen.arms)
    assert {t.memory_bytes for arm in seen.arms for t in arm.timings.values()} == {7}


def test_measurements_beyond_the_limit_are_left_out_and_named():
    call, seen, left_out = asked(7.5, prefill=TooLong(30.0))
    assert "prefill" in left_out
    assert "30 s" in seen.left_out[0].reason
    assert set(seen.arms[0].timings) == {"decode", "forward"}
    assert "memory of decode, q,k,v" not in left_out
    assert left_out.count("memory of forward, q,k,v") == 1
    assert call.now <= 100 + 7.5


def test_an_expired_limit_leaves_everything_out():
    call, seen, left_out = asked(0)
    assert call.calls == seen.arms == []
    assert left_out == ["decode", "prefill", "forward"]


def test_a_process_that_dies_or_is_late_loses_only_its_own_measurement():
    _, seen, left_out = asked(60, prefill=ChildProcessError("killed"), forward=TimeoutError())
    assert [each.what for each in seen.failed] == ["prefill"]
    assert left_out == ["forward"]
    assert set(seen.arms[0].timings) == {"decode"}


def test_work_that_would_take_too_long_is_not_started():
    within = Allowance(rounds_s=1.0, ends_s=time.monotonic() + 0.2)
    long = times("prefill", [SMALL] * 50, Conditions(context=4096), within)
    assert isinstance(long, TooLong)
    assert long.seconds > 0.2


def test_an_arm_that_fails_to_warm_up_is_untimed_in_its_place():
    short = replace(SMALL, position=Learned(5))
    found = times("forward", [short, SMALL], Conditions(context=9), Allowance(0.0))
    assert isinstance(found.arms[0], Untimed)
    assert isinstance(found.arms[1], Timed)


def test_stored_measurements_still_load_and_keep_their_identity(request):
    studies = [path for path in (request.config.rootpath / "studies").iterdir() if path.is_dir()]
    found = [each for study in studies for each in Store(study).measurements().good]
    assert len(found) > 20
    assert not any(Store(study).measurements().damaged for study in studies)
    # A study finds its measurements by this name: here is one, from before there were timings.
    model = tasks.find("lm-reviews").model
    assert identity(model, Conditions()) in {each.id for each in found}


def test_cached_rows_have_a_data_type_of_their_own_which_all_outputs_name(capsys):
    words = ["measure", "q,k=v", "--context", "60", "--batch", "1", "--cache", "int8"]
    assert main([*words, "--seconds", "3", "--json"]) == 0
    (arm,) = json.loads(capsys.readouterr().out)["arms"]
    model = PRESETS["small-decoder"]().with_variant(parse("q,k=v"))
    # One token more than the context: the step reads it.
    assert arm["cache_bytes"] == 61 * cost.cache_bytes_per_token(model, cost.CACHE_FORMATS["int8"])
    assert (arm["precision"], arm["cache"]) == ("fp32", "int8")
    assert main([*words, "--seconds", "3"]) == 0
    assert "fp32 with cached rows in int8" in capsys.readouterr().out


def test_measuring_prints_one_json_document_with_its_arms(capsys):
    words = ["measure", "q,k,v", "q,k=v", "--context", "60", "--batch", "1"]
    status = main([*words, "--seconds", "4", "--json"])
    told = capsys.readouterr()
    assert status == 0, told.err
    shown = json.loads(told.out)
    assert shown["failed"] == []
    missing = {each["what"] for each in shown["left_out"]}
    arms = shown["arms"]
    assert [arm["variant"] for arm in arms] == ["q,k,v", "q,k=v"]
    assert arms[0]["cache_bytes"] == 2 * arms[1]["cache_bytes"]
    for arm in arms:
        # On a busy machine some may be left out, and is named then.
        assert set(arm["timings"]) == {"decode", "prefill", "forward"} - missing
        assert arm["kernel"]
        assert arm["decode_p50_s"] > 0
        for timing in arm["timings"].values():
            assert {"samples", "percentiles_s", "ratio", "tokens_per_second"} <= set(timing)
    assert arms[0]["timings"]["decode"]["ratio"] is None
    assert arms[1]["timings"]["decode"]["ratio"]["to"] == "q,k,v"
    assert arms[0]["surroundings"]["intra_op_threads"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "gpt-300m", "--context", "2048"], "--context 2047 or less"),
        (["--model", "digits", "--context", "99"], "write --context"),
        (["--precision", "fp8"], "fp32, bf16, fp16"),
        (["--model", "small-decodr"], "Did you mean small-decoder?"),
        (["--seconds", "soon"], "not a number of seconds"),
        (["--cache", "int2"], "int4"),
        (["--model", "digits", "--cache", "int8"], "so --cache does not apply; leave it out"),
    ],
    ids=" ".join,
)
def test_impossible_measurements_are_refused_with_a_better_request(words, said, capsys):
    assert main(["measure", "q,k,v", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_limit_too_small_for_anything_is_reported_with_exit_status_1(capsys):
    assert main(["measure", "q,k,v", "--seconds", "0", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["arms"] == []
    assert {each["what"] for each in json.loads(told.out)["left_out"]} >= {"decode"}
    assert "write more --seconds" in told.err


@pytest.mark.nightly  # with the machine to itself: it asserts a time
def test_a_whole_call_ends_near_its_limit_with_nothing_left_out_and_two_copies_alike(tmp_path):
    words = ["measure", "q,k,v", "q,k,v", "--context", "256", "--batch", "2", "--json"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "qkvbench", *words, "--seconds", "40"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["left_out"] == shown["failed"] == []
    # The bound counts from the command's own start; what Python takes before and after is little.
    assert took_s < 45
    found = shown["arms"][1]["timings"]["decode"]["ratio"]
    # Within 3% of 1, as far as the call says that it can tell: a loaded machine says less.
    assert found["low"] - 0.03 <= 1 <= found["high"] + 0.03


def test_a_ratio_shows_digits_that_tell_its_bounds_apart():
    wide = Ratio(to="a", value=2.314, low=2.281, high=2.349, level=0.95, blocks=16)
    close = wide.model_copy(update={"low": 2.312, "high": 2.316})
    assert ratio_text(wide, reference=True) == "2.31 [2.28, 2.35]"
    assert ratio_text(close, reference=True).startswith("2.314 [")
    assert ratio_text(wide.model_copy(update={"low": None}), reference=True) == "2.31"
    assert ratio_text(None, reference=True) == "1"
    assert ratio_text(None, reference=False) == "–"


def test_a_record_names_the_vectors_of_its_processor():
    """Sums are in another order with others, and so are last bits."""
    text = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 {}\n\nprocessor\t: 1\n"
    assert processor_named(text.format("")) == "AMD EPYC (AVX2)"
    assert processor_named(text.format("avx512f avx512_bf16")) == "AMD EPYC (AVX-512)"
    assert processor_named("model name\t: Old\nflags\t: fpu\n") == "Old"
    assert processor_named("Features\t: asimd\n") is None
