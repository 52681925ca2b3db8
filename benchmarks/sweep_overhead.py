"""What a sweep costs beside training: a run, two at a time, a scan of 10,000 records, being killed.

python benchmarks/sweep_overhead.py overhead | parallel | scan | killed [--minutes M]

Overhead is the time of a sweep of short runs, one at a time, over the number of runs, less what the
records say of their training. Parallel is the time of runs one at a time over that of the same two
at a time. The scan is what the same command takes to find that everything is done. Killed ends
the sweeper by SIGKILL every few seconds and begins it anew, and counts how often each record is
written.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from qkvbench.experiment import Experiment, to_json
from qkvbench.recipes import Study
from qkvbench.results.record import Record
from qkvbench.results.store import Store
from qkvbench.sweep.study import run_study, to_run
from qkvbench.train.run import run

ARMS = ("q,k,v", "q,k=v", "q=k=v", "q=k,v")
SHORT = Study("short", ARMS, {"digits": 3}, budget=0.1)
LONGER = Study("longer", ARMS, {"digits": 2})
RECORDS = 10_000
EVERY_S = 6.0


class Silent:
    """Says nothing, and keeps the records that it hears of."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def on_end(self, record: Record) -> None:
        """A run has ended."""
        self.records.append(record)

    def _heard(self, *_: object) -> None:
        """All else is nothing to a benchmark."""

    on_plan = on_capacity = on_prepare = on_missing_data = on_step = _heard
    on_seeds = on_measure = on_unmeasured = _heard


def swept(study: Study, jobs: int) -> tuple[float, list[Record]]:
    """Seconds that the study takes in a new store, and its records."""
    with tempfile.TemporaryDirectory() as folder:
        heard = Silent()
        began_s = time.monotonic()
        run_study(
            study, Store(folder), command="benchmark", jobs=jobs, fail_fast=True, progress=heard
        )
        return time.monotonic() - began_s, heard.records


def overhead() -> None:
    """All that is not training, for a run; the server that forks processes begins before."""
    swept(replace(SHORT, seeds={"digits": 1}, variants=ARMS[:1]), 1)
    seconds, records = swept(SHORT, 1)
    trained = sum(record.observed.train_s for record in records if record.observed)
    each = (seconds - trained) / len(records)
    print(f"{len(records)} runs in {seconds:.2f} s, of which {trained:.2f} s are training:")
    print(f"overhead {each:.3f} s a run")


def parallel() -> None:
    """How much sooner the same runs are done two at a time."""
    swept(replace(SHORT, seeds={"digits": 1}, variants=ARMS[:1]), 1)
    one, _ = swept(LONGER, 1)
    two, _ = swept(LONGER, 2)
    print(f"one at a time {one:.1f} s, two {two:.1f} s: efficiency {one / two:.2f} of 2")


def scan() -> None:
    """How long it takes to find 10,000 runs done."""
    base = replace(SHORT, variants=ARMS[:1], seeds={"digits": RECORDS})
    experiments = base.experiments()
    made = run(replace(experiments[0], training=replace(experiments[0].training, steps=4)))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.write_run(made)
        for each in experiments:
            _write(store, made, each)
        times = []
        for _ in range(3):
            began_s = time.monotonic()
            assert to_run(experiments, store) == []
            times.append(time.monotonic() - began_s)
    print(f"{RECORDS} records scanned in {statistics.median(times):.2f} s (median of 3)")


def _write(store: Store, made: Record, experiment: Experiment) -> None:
    record = made.model_copy(
        update={"id": experiment.id, "experiment": to_json(experiment), "seed": experiment.seed}
    )
    place = store.path / "runs" / f"{record.id}.json"
    # Not flushed to disk, one by one: only reading is timed.
    place.write_text(record.model_dump_json())


def killed(minutes: float) -> None:
    """Kill the sweeper every few seconds; then let it end."""
    plan = ("--variants", *ARMS, "--tasks", "digits", "--seeds", "5", "--jobs", "2")
    kills, marks = 0, defaultdict[str, dict[tuple[int, int], None]](dict)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "qkvbench", "run", *plan, "--out", folder]
        until_s = time.monotonic() + 60 * minutes
        done_before_last_kill: set[str] = set()
        while True:
            sweep = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            last = time.monotonic() > until_s
            end_s = time.monotonic() + (3600 if last else EVERY_S)
            while sweep.poll() is None and time.monotonic() < end_s:
                _look(Path(folder), marks)
                time.sleep(0.01)
            if sweep.poll() is None:
                os.kill(sweep.pid, signal.SIGKILL)
                sweep.wait()
                kills += 1
                good = {each.id for each in Store(folder).runs().good if each.status == "done"}
                assert done_before_last_kill <= good, "A finished run was lost."
                done_before_last_kill = good
                continue
            break
        _look(Path(folder), marks)
        good = [each for each in Store(folder).runs().good if each.status == "done"]
    written = [len(each) for each in marks.values()]
    print(f"killed {kills} times; {len(good)} runs are done, exit {sweep.returncode}")
    print(f"each record was written {min(written)} to {max(written)} times")


def _look(folder: Path, marks: dict[str, dict[tuple[int, int], None]]) -> None:
    for place in (folder / "runs").glob("[!.]*.json"):
        found = place.stat()
        marks[place.stem][found.st_ino, found.st_mtime_ns] = None


def main() -> None:
    """One of the four."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["overhead", "parallel", "scan", "killed"])
    parser.add_argument("--minutes", type=float, default=2.0)
    asked = parser.parse_args()
    match asked.what:
        case "overhead":
            overhead()
        case "parallel":
            parallel()
        case "scan":
            scan()
        case _:
            killed(asked.minutes)


if __name__ == "__main__":
    main()
