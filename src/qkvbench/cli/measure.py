"""`qkvbench measure`: forward, prefill and decode on the clock, the arms interleaved."""

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
from qkvbench.model import Model
from qkvbench.results.record import Measurement, Ratio, Timing

if TYPE_CHECKING:
    from qkvbench.measure.observe import LeftOut, Observation

USUAL_CONTEXT = 4096
# Python, once everything is said, takes this long to leave.
LEAVING_S = 0.4
# So many cores at work for others can be seen in the times.
BUSY_CORES = 0.5
WIDTH = 100
DASH = "–"


def answer(request: Request) -> int:
    """Measure, and print what was observed."""
    base = names.with_position(names.model_or_task_s(request.model), request.position)
    # An arm may come twice: two copies of one show what the measurement itself is worth.
    models = [names.with_variant(base, names.variant(text)) for text in request.variants]
    precision, backend = names.precision(request.precision), names.backend(request.backend)
    rows = names.rows(request.cache) if request.cache else None
    if rows and not base.causal:
        raise RequestError(
            f"{base.name} keeps no cache, so its rows have no type; leave out --cache."
        )
    context = _context(base, request.context)

    # After the request is checked: these import the backend.
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
        cache=rows,
    )
    ends_s = request.began_s + request.seconds - LEAVING_S
    print(
        f"Measuring {base.name} at {context:,} tokens of {_sequences(request.batch)}, "
        f"{_types(precision, rows)}, for {seconds_text(request.seconds)} ...",
        file=sys.stderr,
    )
    with Workers(conditions.backend, forked_from="here") as workers:
        seen = observed(models, conditions, workers.call, ends_s)
    _say(seen, request)
    if request.json:
        print(json.dumps(_document(seen), indent=1, ensure_ascii=False))
    elif seen.arms:
        print(_text(seen.arms), end="")
    return 1 if seen.failed or not seen.arms else 0


def _context(base: Model, wanted: int | None) -> int:
    """How many tokens; RequestError where the model cannot read so many."""
    longest = base.longest
    if longest is None:
        return wanted or USUAL_CONTEXT
    # A decode step reads one token more than it finds in the cache.
    most = longest - 1 if base.causal else longest
    if wanted is not None and wanted > most:
        one_more = " (a decode step reads one more)" if base.causal else ""
        raise RequestError(
            f"{base.name} reads at most {longest} tokens, so --context {wanted} is not "
            f"possible{one_more}; write --context {most} or less."
        )
    return wanted or min(USUAL_CONTEXT, most)


def _say(seen: "Observation", request: Request) -> None:
    """Say on stderr what is missing, and what may have disturbed."""
    for each in seen.failed:
        print(f"Failed: {each.what}. {each.reason}", file=sys.stderr)
    for what, reason in _together(seen.left_out).items():
        print(f"Left out: {what}. {reason}", file=sys.stderr)
    if not seen.arms:
        print(
            f"Nothing could be measured in {seconds_text(request.seconds)}, which bound the whole "
            "call, with the start of Python and torch; write more --seconds, a smaller --context "
            "or fewer variants.",
            file=sys.stderr,
        )
        return
    around = seen.arms[0].surroundings
    if around is None:
        return
    if around.other_cores is not None and around.other_cores >= BUSY_CORES:
        print(
            f"The machine is busy: other processes used {around.other_cores:g} cores meanwhile. "
            "Ratios hold within their intervals; times are too long.",
            file=sys.stderr,
        )
    elif around.other_cores is None and around.load[0] >= BUSY_CORES:
        print(
            f"The machine may be busy: its load was {around.load[0]:g} before this began.",
            file=sys.stderr,
        )


def _together(left_out: Sequence["LeftOut"]) -> Mapping[str, str]:
    """What was left out for the same reason, in one line."""
    by_reason: dict[str, list[str]] = {}
    for each in left_out:
        by_reason.setdefault(each.reason, []).append(each.what)
    return {"; ".join(what): reason for reason, what in by_reason.items()}


def _document(seen: "Observation") -> dict[str, object]:
    return {
        "arms": [arm.model_dump(mode="json") for arm in seen.arms],
        "left_out": [{"what": each.what, "reason": each.reason} for each in seen.left_out],
        "failed": [{"what": each.what, "reason": each.reason} for each in seen.failed],
    }


def _text(arms: Sequence[Measurement]) -> str:
    """A table for each kind of work, and what it was measured on."""
    file = StringIO()
    console = Console(file=file, width=WIDTH, color_system=None, legacy_windows=False)
    for kind in dict.fromkeys(kind for arm in arms for kind in arm.timings):
        own = [(arm, arm.timings[kind]) for arm in arms if kind in arm.timings]
        console.print(Text(f"{kind} · {_about(kind, arms[0])}"))
        console.print(_table(kind, own))
        for kernel, of in _kernels(own).items():
            of_whom = "" if len(of) == len(own) else f" of {', '.join(of)}"
            console.print(Text(f"kernel{of_whom}: {kernel}"))
        console.print()
    console.print(Text(_where(arms[0])))
    console.print(Text(_how(arms)))
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


def _types(precision: str, rows: str | None) -> str:
    return f"{precision} with cached rows in {rows}" if rows else precision


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count} sequences"


def _table(kind: str, own: Sequence[tuple[Measurement, Timing]]) -> Table:
    shown = list(dict.fromkeys(p for _, timing in own for p in timing.percentiles_s))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("variant", overflow="fold")
    heads = [*shown, "tokens/s", "time ratio", "memory", "samples"]
    cached = kind == "decode"
    heads = [*heads[:-2], *(["cache"] if cached else []), *heads[-2:]]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for arm, timing in own:
        times = [timing.percentiles_s.get(p) for p in shown]
        cells = [
            *(DASH if each is None else seconds_text(each) for each in times),
            count_text(timing.tokens_per_second),
            ratio_text(timing.ratio),
            *([_bytes(arm.cache_bytes)] if cached else []),
            _bytes(timing.memory_bytes),
            f"{timing.samples:,}" + (f" ({timing.interrupted:,})" if timing.interrupted else ""),
        ]
        table.add_row(arm.variant, *cells)
    return table


def ratio_text(ratio: Ratio | None) -> str:
    """A ratio and its interval: ``2.31 [2.28, 2.35]``."""
    if ratio is None:
        return "1"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    # As many digits as tell the bounds apart.
    places = 2 if ratio.high - ratio.low >= 0.01 else 3
    return f"{ratio.value:.{places}f} [{ratio.low:.{places}f}, {ratio.high:.{places}f}]"


def _bytes(count: int | None) -> str:
    return DASH if count is None else bytes_text(count)


def _kernels(own: Sequence[tuple[Measurement, Timing]]) -> Mapping[str, list[str]]:
    """Each kernel with the arms that it ran for."""
    found: dict[str, list[str]] = {}
    for arm, timing in own:
        found.setdefault(timing.kernel, []).append(arm.variant)
    return found


def _how(arms: Sequence[Measurement]) -> str:
    """How to read the columns."""
    lines = ["Memory: what the model, its cache and the work add to a process that had none."]
    if len(arms) > 1:
        lines.insert(
            0,
            f"Time ratio: to {arms[0].variant}, with its 95% interval over blocks of interleaved "
            "rounds.",
        )
    if any(timing.interrupted for arm in arms for timing in arm.timings.values()):
        lines.append(
            "Samples, in brackets: steps in which others got the processor; they are left out "
            "while most are whole."
        )
    return "\n".join(lines)


def _where(arm: Measurement) -> str:
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
