"""What reports of a large study cost: processor time, memory, and the size of the page.

    python benchmarks/large_study.py [--seeds N] [--items] [--keep FOLDER]

The study has 15 arms, 10 tasks and, by default, 67 seeds: 10,050 runs with made-up scores. With
``--items`` each record has the scores of 256 test items and a snapshot of two layers as well. Each
call of `qkvbench report` is a process of its own; its time is that of the processor, so other work
of the machine counts little.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from large_study import write_large_study

CALLS = (("report",), ("report", "--json"))


def main() -> None:
    """Write the study, and print a row for each report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=67)
    parser.add_argument("--items", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the study there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        count = write_large_study(folder, options.seeds, items=options.items)
        print(f"{count} runs", flush=True)
        for call in CALLS:
            processor_s, wall_s, peak = _cost([call[0], str(folder), *call[1:]])
            print(
                f"{' '.join(call)}: {processor_s:.1f} s of the processor, {wall_s:.1f} s, ", end=""
            )
            print(f"{peak / 10**6:.0f} MB at most", flush=True)
        print(f"the page has {(folder / 'report.html').stat().st_size / 10**6:.2f} MB")


def _cost(words: list[str]) -> tuple[float, float, int]:
    """Processor and wall seconds of a call, and the peak of its memory in bytes."""
    began_s = time.monotonic()
    command = [sys.executable, "-P", "-m", "qkvbench", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    kilobytes = usage.ru_maxrss
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began_s, 1024 * kilobytes


if __name__ == "__main__":
    main()
