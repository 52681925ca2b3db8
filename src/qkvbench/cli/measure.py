"""`qkvbench measure`: time forward, prefill and decode, with the arms interleaved."""

import json
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost.units import bytes_text, count_text, seconds_text
from qkvbench.results.record import Measurement, Ratio, Timing

if TYPE_CHECKING:
    from qkvbench.measure.observe import LeftOut, Observation

DEFAULT_CONTEXT = 4096
# The time that Python needs to exit after the last output.
EXIT_S = 0.4
# From this number of cores used by other processes on, timings are disturbed.
BUSY_CORES = 0.5
WIDTH = 100
DASH = "–"


def answer(request: Request) -> int:
    """Measure, and print the observations."""
    base = names.with_position(names.model_or_task(request.model), request.position)
    # An arm may occur twice: two copies of it show the error of the measurement (A/A).
    models = [names.with_variant(base, names.cycle(text)) for text in request.variants]
    precision, backend = names.precision(request.precision), names.backend(request.backend)
    cache_dtype = names.cache_dtype(request.cache) if request.cache else None
    if cache_dtype and not base.causal:
        why = "its decode steps are not measured" if base.decodes else "it has no cache"
        raise RequestError(f"{base.name}: {why}, so --cache does not apply; leave it out.")
    context = names.context(base, request.context, DEFAULT_CONTEXT)

    # Imported after the request is checked, because they import the backend.
    from qkvbench.measure.conditions import Conditions
    from qkvbench.measure.observe import observed
    from qkvbench.sweep.local import Workers

    conditions = Conditions(
        backend=backend,
        precision=precision,
        threads=request.threads,
        context=context,
        batch=request.batch,
        seconds=request.seconds,
        cache=cache_dtype,
    )
    ends_s = request.began_s + request.seconds - EXIT_S
    print(
        f"Measuring {base.name} at {context:,} tokens of {_sequences(request.batch)}, "
        f"{_types(precision, cache_dtype)}, for {seconds_text(request.seconds)} ...",
        file=sys.stderr,
    )
    with Workers(conditions.backend, forked_from="here") as workers:
        observation = observed(models, conditions, workers.call, ends_s)
    _warn(observation, request)
    if request.json:
        print(json.dumps(_document(observation), indent=1, ensure_ascii=False))
    elif observation.arms:
        print(_text(observation.arms), end="")
    return 1 if observation.failed or not observation.arms else 0


def _warn(observation: "Observation", request: Request) -> None:
    """Print to stderr what is missing, and whether other processes disturbed the timings."""
    for each in observation.failed:
        print(f"Failed: {each.what}. {each.reason}", file=sys.stderr)
    for what, reason in _by_reason(observation.left_out).items():
        print(f"Left out: {what}. {reason}", file=sys.stderr)
    if not observation.arms:
        print(
            f"Nothing could be measured in {seconds_text(request.seconds)}, which include the "
            "start of Python and torch; write more --seconds, a smaller --context or fewer "
            "variants.",
            file=sys.stderr,
        )
        return
    around = observation.arms[0].surroundings
    if around is None:
        return
    if around.other_cores is not None and around.other_cores >= BUSY_CORES:
        print(
            f"The machine is busy: other processes used {around.other_cores:g} cores meanwhile. "
            "Ratios are valid within their intervals; times are too long.",
            file=sys.stderr,
        )
    elif around.other_cores is None and around.load[0] >= BUSY_CORES:
        print(
            f"The machine may be busy: its load was {around.load[0]:g} before this began.",
            file=sys.stderr,
        )


def _by_reason(left_out: Sequence["LeftOut"]) -> Mapping[str, str]:
    """The workloads that were left out for the same reason, joined."""
    by_reason: dict[str, list[str]] = {}
    for each in left_out:
        by_reason.setdefault(each.reason, []).append(each.what)
    return {"; ".join(what): reason for reason, what in by_reason.items()}


def _document(observation: "Observation") -> dict[str, object]:
    return {
        "arms": [arm.model_dump(mode="json") for arm in observation.arms],
        "left_out": [{"what": each.what, "reason": each.reason} for each in observation.left_out],
        "failed": [{"what": each.what, "reason": each.reason} for each in observation.failed],
    }


def _text(arms: Sequence[Measurement]) -> str:
    """A table for each workload, and the conditions of the measurement."""
    file = StringIO()
    console = Console(
        file=file, width=WIDTH, color_system=None, legacy_windows=False, force_jupyter=False
    )
    for kind in dict.fromkeys(kind for arm in arms for kind in arm.timings):
        own = [(arm, arm.timings[kind]) for arm in arms if kind in arm.timings]
        console.print(Text(f"{kind} · {_about(kind, arms[0])}"))
        console.print(_table(kind, own))
        for kernel, of in _kernels(own).items():
            of_whom = "" if len(of) == len(own) else f" of {', '.join(of)}"
            console.print(Text(f"kernel{of_whom}: {kernel}"))
        console.print()
    console.print(Text(_conditions(arms[0])))
    console.print(Text(_legend(arms)))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _about(kind: str, arm: Measurement) -> str:
    context, batch = f"{arm.context:,}", _sequences(arm.batch)
    match kind:
        case "decode":
            return f"a step over {context} cached tokens of {batch}"
        case "prefill":
            return f"prompts of {context} tokens of {batch} into an empty cache"
        case _:
            return f"a pass over {context} tokens of {batch}, no gradient"


def _types(precision: str, cache_dtype: str | None) -> str:
    return f"{precision} with cached rows in {cache_dtype}" if cache_dtype else precision


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count} sequences"


def _table(kind: str, own: Sequence[tuple[Measurement, Timing]]) -> Table:
    percentiles = list(dict.fromkeys(p for _, timing in own for p in timing.percentiles_s))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("variant", overflow="fold")
    heads = [*percentiles, "tokens/s", "time ratio", "memory", "samples"]
    cached = kind == "decode"
    heads = [*heads[:-2], *(["cache"] if cached else []), *heads[-2:]]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    # If the first arm could not be timed, nothing was compared with it.
    compared = len(own) == 1 or any(timing.ratio for _, timing in own)
    for arm, timing in own:
        times = [timing.percentiles_s.get(p) for p in percentiles]
        cells = [
            *(DASH if each is None else seconds_text(each) for each in times),
            count_text(timing.tokens_per_second),
            ratio_text(timing.ratio, reference=compared),
            *([_bytes(arm.cache_bytes)] if cached else []),
            _bytes(timing.memory_bytes),
            f"{timing.samples:,}" + (f" ({timing.interrupted:,})" if timing.interrupted else ""),
        ]
        table.add_row(arm.variant, *cells)
    return table


def ratio_text(ratio: Ratio | None, *, reference: bool) -> str:
    """A ratio and its interval: ``2.31 [2.28, 2.35]``; 1 for the reference itself."""
    if ratio is None:
        return "1" if reference else DASH
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    # Enough digits to distinguish the bounds.
    places = 2 if ratio.high - ratio.low >= 0.01 else 3
    return f"{ratio.value:.{places}f} [{ratio.low:.{places}f}, {ratio.high:.{places}f}]"


def _bytes(count: int | None) -> str:
    return DASH if count is None else bytes_text(count)


def _kernels(own: Sequence[tuple[Measurement, Timing]]) -> Mapping[str, list[str]]:
    """Each kernel with the arms that used it."""
    arms: dict[str, list[str]] = {}
    for arm, timing in own:
        arms.setdefault(timing.kernel, []).append(arm.variant)
    return arms


def _legend(arms: Sequence[Measurement]) -> str:
    """An explanation of the columns."""
    lines = ["Memory: added to the process by the model, its cache and the workload."]
    if len(arms) > 1:
        lines.insert(
            0,
            f"Time ratio: to {arms[0].variant}, with its 95% interval over blocks of interleaved "
            "rounds.",
        )
    if any(timing.interrupted for arm in arms for timing in arm.timings.values()):
        lines.append(
            "Samples, in brackets: steps interrupted by other processes; they are left out if "
            "they are fewer than half."
        )
    return "\n".join(lines)


def _conditions(arm: Measurement) -> str:
    machine = arm.machine
    types = _types(arm.precision, arm.cache)
    text = f"Observed on {machine.device}, {machine.platform}, {types}."
    if arm.surroundings is None:
        return text
    around = arm.surroundings
    load = ", ".join(f"{each:g}" for each in around.load)
    busy = "" if around.other_cores is None else f"; others used {around.other_cores:g} cores"
    return (
        f"{text}\nThreads: {around.intra_op_threads} in an operation, {around.inter_op_threads} "
        f"between; cores: {machine.cores}; load before: {load}{busy}."
    )
