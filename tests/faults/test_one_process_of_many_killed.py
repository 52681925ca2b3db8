"""If one of the processes of a distributed run is killed, the others end, and the run resumes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qkvbench.results.record import Record

SCRIPT = Path(__file__).parents[1] / "one_killed.py"


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
