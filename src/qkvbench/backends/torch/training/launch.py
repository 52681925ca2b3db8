"""Processes of one training run, one for each device of this machine, as torchrun starts them."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# What a process is given to end by itself when another has died, in seconds; then it is killed.
GRACE_S = 20


def launch(words: Sequence[str], devices: int, logs: Path) -> str | None:
    """Start this Python with these words, once for each device, and wait until all have ended.

    None where all ended well; else how the first to fail did: a signal's name, or an exit status.
    The others are then ended, too, as all are by a signal to this process. What they say goes into
    files in `logs`.
    """
    # Half a second to import, which no other run needs.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It tells everybody that a worker has failed; who asked is told by the result.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        run_id=str(os.getpid()),
        max_restarts=0,
        shutdown_timeout=GRACE_S,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, sys.executable)(*words)
    except ChildFailedError as error:
        # Others fail because they miss one that was killed, or are ended by SIGTERM after it.
        first = min(
            error.failures.values(),
            key=lambda each: (each.exitcode == -signal.SIGTERM, each.exitcode),
        )
        return first.signal_name() if first.exitcode < 0 else f"exit status {first.exitcode}"
    except SignalException as signalled:
        # As this process would have ended without ranks to end first.
        raise SystemExit(128 + signalled.sigval) from None
    return None
