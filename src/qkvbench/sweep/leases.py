"""Who carries out a run: a claim is a file with an owner and a heartbeat, one a run.

It is created exclusively, so of all that want a run one gets it, on network file systems too. A
claim whose owner is dead, or whose heartbeat has stood still for long, is taken over by creating
the next number of it, which again only one can. So nobody ever has to remove another's file.
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

# A heartbeat each second; one that stands still for a minute is nobody's any more. The clock is
# that of who looks on, so the clocks of two machines need not agree.
BEAT_S = 1.0
STALE_S = 60.0


class LostError(Exception):
    """Another has taken the run over, because this process's heartbeat stood still."""


@dataclass(frozen=True)
class Owner:
    """A process: the machine it is on, its number there, and when it began."""

    host: str
    pid: int
    born: float

    @property
    def gone(self) -> bool:
        """Whether it is of this machine and is no more. Of another machine nobody can say."""
        if self.host != _host():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.born or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True)
class Claim:
    """A run that is somebody's. `number` counts how often it was taken over.

    ``owner`` is the process that has it now and whose heartbeat it is: first the sweeper that took
    it, then who carries it out. ``step`` and ``loss`` say how far that has come.
    """

    run: str
    number: int
    token: str
    owner: Owner
    sweeper: Owner
    beat: int = 0
    step: int = 0
    loss: float | None = None


@dataclass
class Claims:
    """The claims on the runs of one store."""

    folder: Path
    stale_s: float = STALE_S
    # What was seen of a claim, and since when it has been so.
    seen: dict[Path, tuple[bytes, float]] = field(default_factory=dict)

    def take(self, run: str) -> Claim | None:
        """The claim on a run that is nobody's; None where it is somebody's."""
        newest = self._newest(run)
        if newest is not None and not self._stale(newest):
            return None
        claim = Claim(
            run=run,
            number=0 if newest is None else _number(newest) + 1,
            token=secrets.token_hex(8),
            owner=me(),
            sweeper=me(),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self._place(claim)
        try:
            with place.open("xb") as file:
                file.write(_text(claim))
        except FileExistsError:
            return None
        # A process that had just begun may have made it its own in between, or ended it.
        if newest is not None and not self._stale(newest):
            place.unlink(missing_ok=True)
            return None
        return claim

    def adopted(self, claim: Claim) -> Claim | None:
        """The claim in the hands of this process; None where it is no longer this claim's run."""
        now = self.read(claim)
        if now is None or now.token != claim.token:
            return None
        return self.beaten(replace(claim, owner=me(), beat=now.beat + 1))

    def beaten(self, claim: Claim) -> Claim | None:
        """The claim, kept as it says with its next heartbeat; None where another has taken it."""
        claim = replace(claim, beat=claim.beat + 1)
        place = self._place(claim)
        beside = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        try:
            beside.write_bytes(_text(claim))
            beside.replace(place)
        except OSError:
            # A full disk is no reason to end a run; it is told where the record is written.
            beside.unlink(missing_ok=True)
        return claim if self._newest(claim.run) == place else None

    def read(self, claim: Claim) -> Claim | None:
        """What the claim's file says now; None where it is gone."""
        return _read(self._place(claim))

    def matching(self, claim: Claim) -> bool:
        """Whether the run is another's by now."""
        newest = self._newest(claim.run)
        return newest is not None and newest != self._place(claim)

    def release(self, claim: Claim) -> None:
        """Let go of a run, and of what dead processes left of it."""
        own = self._place(claim)
        for place in self._places(claim.run):
            if _number(place) < claim.number:
                place.unlink(missing_ok=True)
        with suppress(OSError):
            own.unlink()

    def orphans(self) -> int:
        """How many runs are carried out on this machine for sweepers that are dead."""
        claims = [claim for place in self.folder.glob("[!.]*") if (claim := _read(place))]
        mine = [each for each in claims if each.owner.host == _host() and each.sweeper.gone]
        return sum(not each.owner.gone for each in mine)

    def _stale(self, place: Path) -> bool:
        """Whether the claim is nobody's any more; not where it is gone."""
        try:
            content = place.read_bytes()
        except OSError:
            return False
        claim = _read(place)
        if claim is not None and claim.owner.gone:
            return True
        before, since = self.seen.get(place, (None, 0.0))
        if content != before:
            self.seen[place] = content, time.monotonic()
            return False
        return time.monotonic() - since > self.stale_s

    def _newest(self, run: str) -> Path | None:
        return max(self._places(run), key=_number, default=None)

    def _places(self, run: str) -> list[Path]:
        return list(self.folder.glob(f"{run}.[0-9]*"))

    def _place(self, claim: Claim) -> Path:
        return self.folder / f"{claim.run}.{claim.number}"


@contextmanager
def beating(claims: Claims, claim: Claim) -> Iterator[Callable[[int, float], None]]:
    """Keep the claim's heart beating while the block runs; it tells how far the run has come.

    Telling raises LostError once another has taken the run over.
    """
    told: list[tuple[int, float | None]] = [(0, None)]
    over, lost = threading.Event(), threading.Event()

    def beat() -> None:
        mine: Claim | None = claim
        while mine is not None and not over.wait(BEAT_S):
            step, loss = told[0]
            mine = claims.beaten(replace(mine, step=step, loss=loss))
        if mine is None:
            lost.set()

    def tell(step: int, loss: float) -> None:
        told[0] = step, loss
        if lost.is_set():
            raise LostError(f"Run {claim.run} was taken over by another process.")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        over.set()
        thread.join()


@cache
def me() -> Owner:
    """This process."""
    return Owner(_host(), os.getpid(), psutil.Process().create_time())


# A forked process is not the one that it was forked from.
os.register_at_fork(after_in_child=me.cache_clear)


@cache
def _host() -> str:
    """This machine, this start of it, and this container, where processes have numbers apart."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 (no path, a name)
    return " ".join(parts)


def _number(place: Path) -> int:
    return int(place.name.rpartition(".")[2])


def _text(claim: Claim) -> bytes:
    return json.dumps(asdict(claim)).encode()


def _read(place: Path) -> Claim | None:
    """The claim of a file; None where there is none, or it is only just being written."""
    try:
        value = json.loads(place.read_bytes())
        owner, sweeper = Owner(**value.pop("owner")), Owner(**value.pop("sweeper"))
        return Claim(**value, owner=owner, sweeper=sweeper)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
