"""What a device record predicts for a decode step and a prefill, beside what they take.

Run     python -m qkvbench doctor --calibrate here.toml
        python benchmarks/cost_model.py here.toml [--out FILE.jsonl] [--svg FILE]
Size    decoders of width 384 and 768 with 6 layers, five equations, three contexts, one and four
        sequences, fp32 and bf16: none of these points was used for the record
Takes   a quarter of an hour on an idle core, most of it prefills in bf16

Each line of the file is a point; one that is there is not measured again. With --no-more none is,
and the errors and the picture are of the points that are there.

The record's rates come from other models, `qkvbench.measure.calibration` says which. Times are of
the processor, in one thread, so that other processes do not count, but for the memory they read.
"""

import argparse
import json
import math
import statistics
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from line_chart import opening

from qkvbench import hardware
from qkvbench.cost.roofline import Conditions, Phase, bound, prediction_s, work
from qkvbench.cost.units import seconds_text
from qkvbench.experiment import Precision
from qkvbench.measure.calibration import Timer, decoder
from qkvbench.variant import parse

EQUATIONS = ("q,k,v", "q,k=v", "q,k,v/1", "q,k=v/1", "q,k=L(64),v=L(64)+ropehead32")
SIZES = ((384, 6), (768, 6))
CONTEXTS = (256, 4096, 12288)
PROMPTS = (512, 1536)
BATCHES = (1, 4)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
COLOURS = {"decode": "#1b6ca8", "prefill": "#c8553d"}


@dataclass(frozen=True)
class Point:
    """One step: its bound, its prediction and what it took, in seconds."""

    phase: Phase
    equation: str
    width: int
    context: int
    batch: int
    precision: Precision
    bound_s: float
    predicted_s: float
    measured_s: float

    @property
    def place(self) -> tuple[str, str, tuple[int, int], int, int, str]:
        """The point of the grid."""
        size = next(size for size in SIZES if size[0] == self.width)
        return self.phase, self.equation, size, self.context, self.batch, self.precision

    @property
    def error(self) -> float:
        """The prediction over the measurement, less one."""
        return self.predicted_s / self.measured_s - 1


def main() -> None:
    """Measure all points, print the errors, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device")
    parser.add_argument("--out", type=Path, default=Path("cost-model.jsonl"))
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--no-more", action="store_true", help="measure no other points")
    args = parser.parse_args()
    device = hardware.find(args.device)
    if device.calibration is None:
        raise SystemExit(f"{args.device} has no calibration; 'doctor --calibrate' writes one.")
    points = [Point(**json.loads(row)) for row in lines(args.out)]
    found = {point.place for point in points}
    for each in [] if args.no_more else grid():
        if each not in found:
            points.append(measured(device, *each))
            with args.out.open("a") as file:
                file.write(json.dumps(asdict(points[-1])) + "\n")
    for phase in COLOURS:
        own = [point for point in points if point.phase == phase]
        errors = sorted(abs(point.error) for point in own)
        print(
            f"{phase}: median error {statistics.median(errors):.0%}, nine of ten within "
            f"{errors[int(0.9 * len(errors))]:.0%}, {len(own)} points; the bound is of the time "
            f"{statistics.median(point.bound_s / point.measured_s for point in own):.0%}"
        )
        for name, of in (("width", "width"), ("equation", "equation"), ("precision", "precision")):
            for value in dict.fromkeys(getattr(point, of) for point in own):
                signed = [point.error for point in own if getattr(point, of) == value]
                print(f"  {name} {value}: {statistics.median(signed):+.0%}")
    broken = [point for point in points if point.measured_s < point.bound_s]
    print(f"{len(broken)} of {len(points)} took less than their bound")
    if args.svg:
        args.svg.write_text(drawing(points))


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it is not there."""
    return path.read_text().splitlines() if path.is_file() else []


def grid() -> list[tuple[Phase, str, tuple[int, int], int, int, Precision]]:
    """Every point that is measured."""
    decode = product(("decode",), EQUATIONS, SIZES, CONTEXTS, BATCHES, PRECISIONS)
    prefill = product(("prefill",), EQUATIONS, SIZES, PROMPTS, (1,), PRECISIONS)
    return [*decode, *prefill]  # pyright: ignore[reportReturnType]


def measured(
    device: hardware.Device,
    phase: Phase,
    equation: str,
    size: tuple[int, int],
    context: int,
    batch: int,
    precision: Precision,
) -> Point:
    """One point of the grid."""
    model = decoder(*size).with_variant(parse(equation))
    conditions = Conditions(context, batch, precision, precision, precision)
    step = work(model, phase, conditions)
    assert device.calibration is not None
    point = Point(
        phase,
        equation,
        size[0],
        context,
        batch,
        precision,
        bound(step, device, precision).seconds,
        prediction_s(step, conditions, device.calibration),
        Timer(1).step_s(
            "decode" if phase == "decode" else "prefill", model, precision, context, batch=batch
        ),
    )
    print(
        f"{phase} {equation} {size[0]} {context}×{batch} {precision}: "
        f"{seconds_text(point.measured_s)}, predicted {seconds_text(point.predicted_s)}",
        flush=True,
    )
    return point


def drawing(points: list[Point]) -> str:
    """Predicted against measured time, both logarithmic, as SVG."""
    side, left, top = 420, 84, 66
    times = [each for point in points for each in (point.predicted_s, point.measured_s)]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))

    def place(seconds: float) -> float:
        return (math.log10(seconds) - low) / (high - low) * side

    errors = {
        phase: statistics.median(abs(point.error) for point in points if point.phase == phase)
        for phase in COLOURS
    }
    said = ", ".join(f"{phase}: median error {error:.0%}" for phase, error in errors.items())
    parts = opening(left + side + 50, top + side + 50, left, "Predicted and measured time", said)
    for power in range(low, high + 1):
        at, text = place(10.0**power), seconds_text(10.0**power)
        parts += [
            f'<line x1="{left + at:.1f}" y1="{top}" x2="{left + at:.1f}" y2="{top + side}" '
            'stroke="#e4e4e4"/>',
            f'<line x1="{left}" y1="{top + side - at:.1f}" x2="{left + side}" '
            f'y2="{top + side - at:.1f}" stroke="#e4e4e4"/>',
            f'<text x="{left + at:.1f}" y="{top + side + 16}" text-anchor="middle">{text}</text>',
            f'<text x="{left - 6}" y="{top + side - at + 4:.1f}" text-anchor="end">{text}</text>',
        ]
    parts.append(
        f'<line x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}" stroke="#999999"/>'
    )
    for point in points:
        parts.append(
            f'<circle cx="{left + place(point.measured_s):.1f}" '
            f'cy="{top + side - place(point.predicted_s):.1f}" r="3" '
            f'fill="{COLOURS[point.phase]}" fill-opacity="0.6"/>'
        )
    for number, (phase, colour) in enumerate(COLOURS.items()):
        parts.append(
            f'<text x="{left + 12}" y="{top + 18 + 16 * number}" fill="{colour}">{phase}</text>'
        )
    parts.append(
        f'<text x="{left + side / 2}" y="{top + side + 38}" text-anchor="middle">measured</text>'
    )
    parts.append(f'<text x="{left}" y="{top - 6}">predicted</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
