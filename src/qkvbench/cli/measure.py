"""`qkvbench measure`: decoding on the clock, the arms interleaved."""

import json
import sys

from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost.units import bytes_text, seconds_text


def answer(request: Request) -> int:
    """Measure, and print what was observed."""
    base = names.with_position(names.model(request.model), request.position)
    models = [names.with_variant(base, variant) for variant in names.variants(request.variants)]
    longest = base.longest
    if longest is not None and request.context >= longest:
        raise RequestError(
            f"{base.name} reads at most {longest} tokens, so a step over {request.context} cached "
            f"ones is not possible; write --context {longest - 1} or less."
        )

    # After the request is checked: these import the backend.
    from qkvbench.measure.decode import Conditions, measurements
    from qkvbench.sweep.local import Workers

    conditions = Conditions(
        precision=request.precision,
        threads=request.threads,
        context=request.context,
        batch=request.batch,
        seconds=request.seconds,
    )
    print(
        f"Decoding over {conditions.context} cached tokens of {conditions.batch} sequences, "
        f"{conditions.precision}, threads: {conditions.threads} ...",
        file=sys.stderr,
    )
    with Workers(conditions.backend) as workers:
        try:
            arms, lacking = measurements(models, conditions, workers.call)
        except ChildProcessError as error:
            print(f"Nothing could be measured. {error}", file=sys.stderr)
            return 1
    for arm in lacking:
        print(f"{arm.variant} could not be measured. {arm.reason}", file=sys.stderr)
    status = 1 if lacking else 0
    if request.json:
        print(json.dumps({"arms": [arm.model_dump(mode="json") for arm in arms]}, indent=1))
        return status
    print(f"{'variant':20} {'decode p50':>12} {'cache':>10} {'memory added':>13}   samples")
    for arm in arms:
        print(
            f"{arm.variant:20} {seconds_text(arm.decode_p50_s):>12} "
            f"{bytes_text(arm.cache_bytes):>10} {bytes_text(arm.memory_bytes):>13}   {arm.samples}"
        )
    if arms:
        print(
            f"Observed on {arms[0].machine.device}, load {arms[0].machine.load}. {arms[0].kernel}."
        )
    return status
