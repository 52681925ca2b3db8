"""Sweeps as a person begins them, in processes of their own, and what can be seen of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psutil

from qkvbench.results.store import Store
from qkvbench.sweep.leases import Lease, Leases

PLAN = ("--variants", "q,k,v", "q,k=v", "--tasks", "sort", "--seeds", "2")
WAIT_S = 280


def begun(out, *words, plan=PLAN):
    """`qkvbench run` in a session of its own, as a terminal would have it."""
    command = [sys.executable, "-P", "-m", "qkvbench", "run", *plan, "--out", str(out), *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def workers(out):
    """The processes that carry runs out now, by their leases."""
    folder = Store(out).leases
    found = [Lease.read(place) for place in folder.glob("[!.]*")]
    return [
        lease.owner.pid
        for lease in found
        if lease is not None and lease.owner != lease.sweeper and not lease.owner.is_dead
    ]


def under_way(out):
    """The processes that carry runs out, once there is one that has taken a step."""
    folder = Store(out).leases
    return until(
        lambda: (
            any((lease := Lease.read(place)) and lease.step for place in folder.glob("[!.]*"))
            and workers(out)
        )
    )


def until(true):
    """What `true` returns as soon as it is; the test fails where it never is."""
    end_s = time.monotonic() + WAIT_S
    while not (found := true()):
        assert time.monotonic() < end_s, "It never came to that."
        time.sleep(0.02)
    return found


def family(process):
    """A process and all that it has begun."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def alive(processes):
    """Those that still run."""
    return [
        each
        for each in processes
        if each.is_running() and each.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    ]


def killed(process):
    """End a sweeper as nothing can refuse to be ended; what it has begun goes on."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def statuses(out):
    return sorted(record.status for record in Store(out).runs().good)


@contextmanager
def watched(out):
    """How often each record was written as done, and how many runs were claimed at a time."""
    marks, most, over = {}, [0], threading.Event()

    def look():
        store = Store(out)
        while not over.wait(0.01):
            for place in (store.path / "runs").glob("[!.]*.json"):
                found = place.stat()
                marks.setdefault(place.stem, {})[found.st_ino, found.st_mtime_ns] = None
            most[0] = max(most[0], len({p.stem for p in store.leases.glob("[!.]*")}))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield marks, most
    finally:
        time.sleep(0.05)
        over.set()
        thread.join()


def free_of_claims(out):
    leases = Leases(Store(out).leases)
    return list(leases.folder.glob("[!.]*")) == []
