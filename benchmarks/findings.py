"""The file of a benchmark's findings, which the ledger of claims reads: `studies/benchmarks/`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from qkvbench.claims.kit.measured import Benchmark, MeasuredChange
from qkvbench.measure.machine import machine

# Options that say where something is written; they are no part of what is repeated.
PLACES = ("--findings", "--figure", "--lines", "--again")


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option that names the folder of findings."""
    parser.add_argument("--findings", type=Path, metavar="FOLDER")


def write_findings(
    folder: Path | None, name: str, device: str, found: Sequence[MeasuredChange]
) -> None:
    """Write the findings with the command of this process, if there is a folder for them."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    words = list(sys.argv[1:])
    for option in PLACES:
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    benchmark = Benchmark(
        benchmark=name,
        command=shlex.join(["python", f"benchmarks/{name}.py", *words]),
        day=datetime.now(UTC).date(),
        machine=machine(device),
        found=tuple(found),
    )
    print(f"{benchmark.write(folder)} is written.")
