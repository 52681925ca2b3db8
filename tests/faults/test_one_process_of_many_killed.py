"""If one of the processes of a distributed run is killed, the others end, and the run resumes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qkvbench.results.record import Record
from qkvbench.sweep.leases import LeaseLostError
from qkvbench.train import multi_process

SCRIPT = Path(__file__).parents[1] / "one_killed.py"


def test_a_run_that_another_process_took_over_ends_and_says_so(tmp_path, monkeypatch):
    """As torch does it: SIGTERM ends the wait for the processes of the run."""
    folder = multi_process.RunFolder(tmp_path)
    monkeypatch.setattr(multi_process, "_REPORT_S", 0.01)
    monkeypatch.setattr(multi_process.RunFolder, "read_progress", lambda _: (3, 1.0))

    def lost(_step, _loss):
        raise LeaseLostError("Run x was taken over by another process.")

    def ended(*_):
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        with pytest.raises(LeaseLostError), multi_process._reporting(folder, lost):
            time.sleep(30)
    finally:
        signal.signal(signal.SIGTERM, before)


# Ten processes begin one after the other: on a busy machine that takes minutes.
@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_one_killed_ends_the_others_and_the_same_run_goes_on(sharding, tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path), sharding]
    subprocess.run(command, check=True, timeout=880)
    whole, killed, again, alone = (
        Record.model_validate_json((tmp_path / f"{name}.json").read_bytes())
        for name in ("whole", "killed", "again", "alone")
    )
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert (killed.status, ended["left"]) == ("killed", [])
    assert "One of its 2 processes was ended by SIGKILL" in killed.reason
    # A minute is allowed; it takes about a second.
    assert ended["after_s"] < 60

    assert again.status == "done", again.reason
    assert again.observed.resumed
    same = {"observed", "machine", "started"}
    assert again.model_dump(exclude=same) == whole.model_dump(exclude=same)

    # On one device it goes on from what two have left, draws other masks, and says so.
    assert alone.status == "done", alone.reason
    assert alone.observed.resumed
    assert alone.observed.other_devices == [f"2 devices by {sharding}"]
