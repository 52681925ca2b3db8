"""SLURM, by submitit: jobs go as arrays, and one that is preempted is put into the queue again.

Its local executor (`cluster=local`) is the same road on one machine without SLURM. That would begin
all at once; here the sweeper's window bounds it.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self

from qkvbench.sweep.capacity import here
from qkvbench.sweep.engines import Place, Room
from qkvbench.sweep.job import Died, Job, perform
from qkvbench.sweep.local import GRACE_S

USUAL = 64
# How often the scheduler is asked; it asks to be left alone.
ASK_S = {"slurm": 5.0, "local": 0.1}


@dataclass(frozen=True)
class Options:
    """Where jobs go: empty words and zeros leave it to the cluster.

    ``memory_gb`` is for a run, else what is computed of it; ``cluster`` is slurm or local;
    ``requeues`` is how often a job that ran out of ``minutes`` goes on in a new one.
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


class _Performed:
    """What submitit calls; `checkpoint` says what is put into the queue again."""

    def __call__(self, job: Job) -> None:
        """Carry it out."""
        perform(job)

    def checkpoint(self, job: Job) -> Any:
        """The same once more: it goes on from its own last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class Engine:
    """Jobs in a scheduler's queue."""

    under_way: list[tuple[Any, Job]]

    def __init__(self, place: Place, options: Options) -> None:
        self.place, self.options = place, options
        # submitit's files: pickles that we write and nobody else reads, and what jobs print.
        self.folder = place.store / "slurm" / f"{os.getpid()}-{time.time_ns()}"
        self.under_way = []
        self.asked_s = 0.0

    def __enter__(self) -> Self:
        """Ready to submit."""
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
        """Cancel what is still there; what jobs printed is left where one has failed."""
        self.stop()

    def room(self) -> Room:
        """As many as are wanted; without SLURM those that this machine has room for."""
        if self.options.cluster == "local":
            return here(self.place)
        return Room(self.place.wanted or USUAL)

    def start(self, jobs: Sequence[Job]) -> None:
        """One array of them."""
        with self.executor.batch():
            submitted = [self.executor.submit(_Performed(), job) for job in jobs]
        self.under_way += zip(submitted, jobs, strict=True)

    def ended(self, timeout_s: float) -> Iterator[tuple[Job, Died | None]]:
        """Those that the scheduler knows as over."""
        every_s = ASK_S[self.options.cluster]
        time.sleep(max(0.0, min(timeout_s, self.asked_s + every_s - time.monotonic())))
        if time.monotonic() < self.asked_s + every_s:
            return
        self.asked_s = time.monotonic()
        for submitted, job in list(self.under_way):
            if submitted.done():
                self.under_way.remove((submitted, job))
                yield job, self._how(submitted)

    def stop(self) -> None:
        """Cancel them, wait a little for checkpoints, and end what is still there."""
        try:
            for submitted, _ in self.under_way:
                self._ask(submitted)
            until_s = time.monotonic() + GRACE_S
            while time.monotonic() < until_s and not all(
                submitted.done() for submitted, _ in self.under_way
            ):
                time.sleep(0.1)
        finally:
            for submitted, _ in self.under_way:
                if not submitted.done():
                    submitted.cancel(check=False)
            self.under_way.clear()

    def _ask(self, submitted: Any) -> None:
        """Ask a job to end. SLURM does it by SIGTERM and then SIGKILL."""
        process = getattr(submitted, "_process", None)
        if process is None:
            submitted.cancel(check=False)
        else:
            process.send_signal(signal.SIGTERM)

    def _how(self, submitted: Any) -> Died | None:
        """How a job that is over has ended."""
        if not submitted.paths.result_pickle.exists():
            return Died("killed", f"Its job {submitted.job_id} ended as {submitted.state}.")
        error = submitted.exception()
        if error is None:
            shutil.rmtree(submitted.paths.folder, ignore_errors=True)
            return None
        return Died("failed", f"{_last_line(str(error))} Its output: {submitted.paths.stderr}")

    def _parameters(self) -> dict[str, Any]:
        chosen = self.options
        memory = chosen.memory_gb or round((self.place.bytes or 0) * 1.5 / 1e9 + 1, 1)
        words = {
            f"slurm_{name}": value
            for name in ("partition", "account", "qos", "constraint")
            if (value := getattr(chosen, name))
        }
        return {
            "name": "qkvbench",
            "timeout_min": chosen.minutes,
            "cpus_per_task": self.place.threads,
            "mem_gb": memory,
            "slurm_array_parallelism": self.place.wanted or USUAL,
            "slurm_signal_delay_s": 90,
            "slurm_setup": [chosen.setup] if chosen.setup else None,
            **({"gpus_per_node": chosen.gpus} if chosen.gpus else {}),
            **words,
        }


def lacking() -> str | None:
    """Why there is no SLURM by submitit here."""
    if find_spec("submitit") is None:
        return "The engine slurm needs submitit: ./qkv setup slurm"
    return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" -")]
    return lines[-1] if lines else "It failed."
