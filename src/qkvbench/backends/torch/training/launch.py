"""Starting the processes of one training run, one for each device, as torchrun does."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# Seconds between SIGTERM and SIGKILL for the other processes when one has died.
GRACE_S = 20


def launch(words: Sequence[str], devices: int, logs: Path) -> str | None:
    """Start this Python with these arguments, once for each device, and wait for all processes.

    None if all succeed; else the signal or exit status of the first that failed. The others are
    then terminated, as all are if this process is terminated. Their output goes into files in
    `logs`.
    """
    # The import takes half a second, which runs on one device do not need.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A failure is reported by the result; torch would also log it.
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
        # Other processes fail after the first, because it is gone or by SIGTERM.
        first = min(
            error.failures.values(),
            key=lambda each: (each.exitcode == -signal.SIGTERM, each.exitcode),
        )
        return first.signal_name() if first.exitcode < 0 else f"exit status {first.exitcode}"
    except SignalException as signalled:
        # The exit status of a process that a signal ends.
        raise SystemExit(128 + signalled.sigval) from None
    return None
