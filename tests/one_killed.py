"""A run over two processes, of which one is killed: `python tests/one_killed.py FOLDER SHARDING`.

What is told of it, and of the same run repeated, goes into records in the folder.
"""

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

from qkvbench.experiment import alone
from qkvbench.train.checkpoint import Checkpoints
from qkvbench.train.run import run
from ranks import experiment


def main(folder, sharding):
    """Run undisturbed, then with a process killed, then again, then the rest on one device."""
    wanted = experiment("plain q,k=v", devices=2, sharding=sharding)
    wanted = replace(wanted, training=replace(wanted.training, steps=60, dropout=0.1))
    checkpoints = Checkpoints(folder / "checkpoints", every_s=0.0, share=1.0)
    killed_s = []

    def kill_one(step, _loss):
        if step > 10 and not killed_s:
            ranks = [
                child
                for child in psutil.Process().children(recursive=True)
                if "qkvbench.train.rank" in child.cmdline()
            ]
            killed_s.append(time.monotonic())
            ranks[-1].kill()

    told = {"whole": run(wanted), "killed": run(wanted, kill_one, checkpoints=checkpoints)}
    ended_s = time.monotonic() - killed_s[0]
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    shutil.copytree(checkpoints.root, folder / "copy")
    told["again"] = run(wanted, checkpoints=checkpoints)
    elsewhere = replace(checkpoints, root=folder / "copy")
    told["alone"] = run(alone(wanted), checkpoints=elsewhere)
    for name, record in told.items():
        (folder / f"{name}.json").write_text(record.model_dump_json())
    (folder / "ended.json").write_text(json.dumps({"after_s": ended_s, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
