"""SLURM, through submitit: job arrays, and preempted jobs are requeued.

submitit's local executor (`cluster=local`) runs the same code on one machine without SLURM. It
would start all jobs at once; the sweeper's window limits them.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self

from qkvbench.sweep.capacity import local_capacity
from qkvbench.sweep.engines import Capacity, RunContext
from qkvbench.sweep.job import Job, perform
from qkvbench.sweep.local import GRACE_S
from qkvbench.train.multi_process import ProcessFailure

# Jobs at a time if nothing else is requested.
DEFAULT_JOBS = 64
# Seconds between two queries of the scheduler, so as not to load it.
POLL_S = {"slurm": 5.0, "local": 0.1}


@dataclass(frozen=True)
class Options:
    """Settings of jobs: an empty string or 0 leaves one to the cluster.

    ``memory_gb`` is for each run, and computed if 0; ``cluster`` is slurm or local; ``requeues`` is
    how often a job that ran out of ``minutes`` resumes in a new one.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    minutes: int = 120
    memory_gb: float = 0.0
    gpus: int = 0
    requeues: int = 100
    setup: str = ""
    cluster: str = "slurm"


class _Perform:
    """The callable that submitit runs; it requeues what `checkpoint` returns."""

    def __call__(self, job: Job) -> None:
        """Carry out the job."""
        perform(job)

    def checkpoint(self, job: Job) -> Any:
        """The same job: it resumes from its own last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class Engine:
    """Jobs in the queue of a scheduler."""

    running: list[tuple[Any, Job]]

    def __init__(self, context: RunContext, options: Options) -> None:
        self.context, self.options = context, options
        # submitit's files: pickles that only this process writes and reads, and the output of jobs.
        self.folder = context.store / "slurm" / f"{os.getpid()}-{time.time_ns()}"
        self.running = []
        self.polled_s = 0.0

    def __enter__(self) -> Self:
        """Make the executor."""
        import submitit

        self.executor = submitit.AutoExecutor(
            folder=self.folder / "%j",
            cluster=self.options.cluster,
            slurm_max_num_timeout=self.options.requeues,
            local_max_num_timeout=self.options.requeues,
        )
        self.executor.update_parameters(**self._parameters())
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel all jobs. The output of failed jobs stays."""
        self.stop()

    def capacity(self) -> Capacity:
        """As many jobs as requested; without SLURM as many as fit on this machine."""
        if self.options.cluster == "local":
            return local_capacity(self.context)
        return Capacity(self.context.jobs or DEFAULT_JOBS)

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit the jobs as one array."""
        with self.executor.batch():
            submitted = [self.executor.submit(_Perform(), job) for job in jobs]
        self.running += zip(submitted, jobs, strict=True)

    def poll(self, timeout_s: float) -> Iterator[tuple[Job, ProcessFailure | None]]:
        """The jobs that have ended according to the scheduler."""
        every_s = POLL_S[self.options.cluster]
        time.sleep(max(0.0, min(timeout_s, self.polled_s + every_s - time.monotonic())))
        if time.monotonic() < self.polled_s + every_s:
            return
        self.polled_s = time.monotonic()
        for submitted, job in list(self.running):
            if submitted.done():
                self.running.remove((submitted, job))
                yield job, self._failure(submitted)

    def stop(self) -> None:
        """Cancel the jobs, wait a little for checkpoints, and kill those that still run."""
        try:
            for submitted, _ in self.running:
                self._request_end(submitted)
            until_s = time.monotonic() + GRACE_S
            while time.monotonic() < until_s and not all(
                submitted.done() for submitted, _ in self.running
            ):
                time.sleep(0.1)
        finally:
            for submitted, _ in self.running:
                if not submitted.done():
                    submitted.cancel(check=False)
            self.running.clear()

    def _request_end(self, submitted: Any) -> None:
        """Request a job to end. SLURM sends SIGTERM, and SIGKILL later."""
        process = getattr(submitted, "_process", None)
        if process is None:
            submitted.cancel(check=False)
        else:
            process.send_signal(signal.SIGTERM)

    def _failure(self, submitted: Any) -> ProcessFailure | None:
        """How an ended job failed; None if it did not."""
        if not submitted.paths.result_pickle.exists():
            return ProcessFailure(
                "killed", f"Its job {submitted.job_id} ended as {submitted.state}."
            )
        error = submitted.exception()
        if error is None:
            shutil.rmtree(submitted.paths.folder, ignore_errors=True)
            return None
        return ProcessFailure(
            "failed", f"{_last_line(str(error))} Its output: {submitted.paths.stderr}"
        )

    def _parameters(self) -> dict[str, Any]:
        chosen = self.options
        memory = chosen.memory_gb or round((self.context.run_bytes or 0) * 1.5 / 1e9 + 1, 1)
        words = {
            f"slurm_{name}": value
            for name in ("partition", "account", "qos", "constraint")
            if (value := getattr(chosen, name))
        }
        return {
            "name": "qkvbench",
            "timeout_min": chosen.minutes,
            "cpus_per_task": self.context.threads,
            "mem_gb": memory,
            "slurm_array_parallelism": self.context.jobs or DEFAULT_JOBS,
            "slurm_signal_delay_s": 90,
            "slurm_setup": [chosen.setup] if chosen.setup else None,
            **({"gpus_per_node": chosen.gpus} if chosen.gpus else {}),
            **words,
        }


def missing_requirement() -> str | None:
    """The package that is missing, and what installs it; None if it is there."""
    if find_spec("submitit") is None:
        return "The engine slurm needs submitit: ./qkv setup slurm"
    return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" -")]
    return lines[-1] if lines else "It failed."
