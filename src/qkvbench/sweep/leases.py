"""Leases: a file for each run under way, with an owner and a heartbeat.

A lease file is created exclusively, so only one process gets a run, on network file systems too. If
the owner is dead, or its heartbeat has not changed for long, another process takes the run over by
creating the file of the next number, which again only one can. So no process ever has to remove the
file of another.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import psutil

from qkvbench.results.store import StoreError, os_error_text, read_regular

# A heartbeat each second; after a minute without one a lease has expired. The observer's own clock
# measures that minute, so the clocks of two machines need not agree.
HEARTBEAT_S = 1.0
EXPIRY_S = 60.0
_PROC = Path("/proc")
_STAT = _PROC / "self" / "stat"


class LeaseLostError(Exception):
    """Another process took the run over because this process's heartbeat had stopped."""


@dataclass(frozen=True)
class Owner:
    """A process: its machine, its number there and its start time, which no clock change moves."""

    host: str
    pid: int
    born: float

    @property
    def is_dead(self) -> bool:
        """True if the process ran on this machine and has ended. Unknown elsewhere: False."""
        return self.host == _host() and _start_time(self.pid) != self.born


@dataclass(frozen=True)
class Lease:
    """The right to carry out a run. `number` counts how often the run was taken over.

    ``owner`` is the process that sends the heartbeats: first the sweeper that acquired the lease,
    then the process that carries out the run. ``step`` and ``loss`` are the run's progress.
    """

    run: str
    number: int
    token: str
    owner: Owner
    sweeper: Owner
    heartbeats: int = 0
    step: int = 0
    loss: float | None = None

    def to_bytes(self) -> bytes:
        """The content of the lease's file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, path: Path) -> "Lease | None":
        """The lease in a file; None if there is no file, or it is only just being written."""
        try:
            value = json.loads(read_regular(path))
            owner, sweeper = Owner(**value.pop("owner")), Owner(**value.pop("sweeper"))
            return cls(**value, owner=owner, sweeper=sweeper)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


@dataclass
class Leases:
    """The leases on the runs of one store."""

    folder: Path
    expiry_s: float = EXPIRY_S
    # The last content of each file, and the time at which it was first observed.
    observed: dict[Path, tuple[bytes, float]] = field(default_factory=dict)

    def acquire(self, run: str) -> Lease | None:
        """A lease on the run; None if another process holds it."""
        newest = self._newest(run)
        if newest is not None and not self._expired(newest):
            return None
        lease = Lease(
            run=run,
            number=0 if newest is None else _number(newest) + 1,
            token=secrets.token_hex(8),
            owner=this_process(),
            sweeper=this_process(),
        )
        path = self._path(lease)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(lease.to_bytes())
        except FileExistsError:
            return None
        except OSError as error:
            raise StoreError(os_error_text(error, path, "written")) from error
        # A process that had just started may have adopted or released the old lease meanwhile.
        if newest is not None and not self._expired(newest):
            path.unlink(missing_ok=True)
            return None
        return lease

    def adopt(self, lease: Lease) -> Lease | None:
        """The lease with this process as its owner; None if the lease is no longer valid."""
        now = self.current(lease)
        if now is None or now.token != lease.token:
            return None
        return self.renew(replace(lease, owner=this_process(), heartbeats=now.heartbeats + 1))

    def renew(self, lease: Lease) -> Lease | None:
        """Write the lease with its next heartbeat; None if another process took the run over.

        That process may have ended, and its lease be gone, or another have the same number.
        """
        path, now = self._path(lease), self.current(lease)
        if now is None or now.token != lease.token:
            return None
        lease = replace(lease, heartbeats=lease.heartbeats + 1)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.write_bytes(lease.to_bytes())
            temporary.replace(path)
        except OSError:
            # A full disk is no reason to end a run; writing the record reports it.
            temporary.unlink(missing_ok=True)
        return lease if self._newest(lease.run) == path else None

    def current(self, lease: Lease) -> Lease | None:
        """The lease as its file is now; None if there is no file."""
        return Lease.read(self._path(lease))

    def is_superseded(self, lease: Lease) -> bool:
        """Whether another process has taken the run over."""
        newest = self._newest(lease.run)
        return newest is not None and newest != self._path(lease)

    def release(self, lease: Lease) -> None:
        """Remove the lease, and the earlier leases of the run that dead processes left."""
        own = self._path(lease)
        for path in self._paths(lease.run):
            if _number(path) < lease.number:
                path.unlink(missing_ok=True)
        # If the run was taken over and ended meanwhile, another one may have the same number.
        now = self.current(lease)
        if now is None or now.token == lease.token:
            with suppress(OSError):
                own.unlink()

    def in_progress(self) -> int:
        """The number of runs whose newest lease is valid."""
        runs = {path.name.partition(".")[0] for path in self.folder.glob("[!.]*.[0-9]*")}
        newest = (self._newest(run) for run in runs)
        return sum(path is not None and not self._expired(path) for path in newest)

    def orphans(self) -> int:
        """The number of runs on this machine whose sweeper is dead and whose owner is not."""
        leases = [lease for path in self.folder.glob("[!.]*") if (lease := Lease.read(path))]
        return sum(
            each.owner.host == _host() and each.sweeper.is_dead and not each.owner.is_dead
            for each in leases
        )

    def _expired(self, path: Path) -> bool:
        """Whether the lease in this file is no longer valid; False if there is no file."""
        try:
            content = read_regular(path)
        except OSError:
            return False
        lease = Lease.read(path)
        if lease is not None and lease.owner.is_dead:
            return True
        before, since = self.observed.get(path, (None, 0.0))
        if content != before:
            self.observed[path] = content, time.monotonic()
            return False
        return time.monotonic() - since > self.expiry_s

    def _newest(self, run: str) -> Path | None:
        return max(self._paths(run), key=_number, default=None)

    def _paths(self, run: str) -> list[Path]:
        return list(self.folder.glob(f"{run}.[0-9]*"))

    def _path(self, lease: Lease) -> Path:
        return self.folder / f"{lease.run}.{lease.number}"


@contextmanager
def heartbeat(leases: Leases, lease: Lease) -> Iterator[Callable[[int, float], None]]:
    """Renew the lease each second while the block runs; yields a function that notes progress.

    That function raises LeaseLostError if another process has taken the run over.
    """
    progress: list[tuple[int, float | None]] = [(0, None)]
    over, lost = threading.Event(), threading.Event()

    def renew() -> None:
        held: Lease | None = lease
        while held is not None and not over.wait(HEARTBEAT_S):
            step, loss = progress[0]
            held = leases.renew(replace(held, step=step, loss=loss))
        if held is None:
            lost.set()

    def report(step: int, loss: float) -> None:
        progress[0] = step, loss
        if lost.is_set():
            raise LeaseLostError(f"Run {lease.run} was taken over by another process.")

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield report
    finally:
        over.set()
        thread.join()


@cache
def this_process() -> Owner:
    """This process as an owner."""
    born = _start_time(os.getpid())
    assert born is not None, "A process that runs has a start time."
    return Owner(_host(), os.getpid(), born)


# A forked process must not use the identity of its parent.
os.register_at_fork(after_in_child=this_process.cache_clear)


def _start_time(pid: int) -> float | None:
    """The time at which this process began; None if it has ended.

    In Linux it is in clock ticks since the boot: psutil adds the time of the boot by the clock of
    the wall, which moves whenever that clock is set.
    """
    if not _STAT.exists():
        try:
            process = psutil.Process(pid)
            ended = process.status() == psutil.STATUS_ZOMBIE
            return None if ended else process.create_time()
        except psutil.NoSuchProcess:
            return None
    try:
        content = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name of the program, in brackets, may have spaces and brackets. proc_pid_stat(5).
    state, *fields = content.rpartition(b")")[2].split()
    return None if state in (b"Z", b"X") else float(fields[18])


@cache
def _host() -> str:
    """This machine since its last boot, and this container, which numbers its own processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 (no path, a name)
    return " ".join(parts)


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])
