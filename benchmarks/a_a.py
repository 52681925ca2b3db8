"""What `measure` is worth: two copies of one arm, which must come out as 1, again and again.

Run     python benchmarks/a_a.py [--runs N] [--seconds S]
Size    the small decoder at several contexts, precisions and variants, one thread

Each run is a call of `qkvbench measure V V` in processes of its own. Printed are the ratios of the
second copy to the first, how far from 1 they lie, and how often their 95% interval contains 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
from itertools import cycle, islice

SETTINGS = [
    ("q,k,v", 4096, "fp32"),
    ("q,k=v", 1024, "fp32"),
    ("q,k,v/1", 256, "bf16"),
    ("q,k,v", 1024, "bf16"),
    ("q,k=v/1", 4096, "bf16"),
    ("q,k,v", 512, "fp32"),
]


def main() -> None:
    """Run A/A and print the distribution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=12.0)
    words = parser.parse_args()
    ratios: dict[str, list[tuple[float, float, float]]] = {}
    for variant, context, precision in islice(cycle(SETTINGS), words.runs):
        for kind, ratio in measured(variant, context, precision, words.seconds).items():
            ratios.setdefault(kind, []).append(ratio)
            value, low, high = ratio
            print(
                f"{variant:8} {context:5} {precision} {kind:8} {value:.4f} [{low:.4f}, {high:.4f}]",
                flush=True,
            )
    for kind, found in [
        *ratios.items(),
        ("all", [each for some in ratios.values() for each in some]),
    ]:
        print(f"{kind}: {summary(found)}")


def measured(
    variant: str, context: int, precision: str, seconds: float
) -> dict[str, tuple[float, float, float]]:
    """The ratio of the second copy to the first, with its interval, by kind of work."""
    command = [sys.executable, "-m", "qkvbench", "measure", variant, variant, "--json"]
    command += ["--context", str(context), "--precision", precision, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"A run without a result: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return {}
    second = json.loads(done.stdout)["arms"][1]
    others = second["surroundings"]["other_cores"]
    print(f"  others used {others} cores", end="; ")
    return {
        kind: (timing["ratio"]["value"], timing["ratio"]["low"], timing["ratio"]["high"])
        for kind, timing in second["timings"].items()
    }


def summary(found: list[tuple[float, float, float]]) -> str:
    """How the ratios lie around 1."""
    distances = sorted(abs(value - 1) for value, _, _ in found)
    inside = sum(low <= 1 <= high for _, low, high in found)
    widths = [high - low for _, low, high in found]
    values = [value for value, _, _ in found]
    return (
        f"{len(found)} ratios from {min(values):.4f} to {max(values):.4f}, "
        f"median {statistics.median(values):.4f}; "
        f"distance from 1: median {statistics.median(distances):.4f}, "
        f"largest {distances[-1]:.4f}, within 3%: {sum(each <= 0.03 for each in distances)}; "
        f"intervals that contain 1: {inside}, median width {statistics.median(widths):.4f}"
    )


if __name__ == "__main__":
    main()
