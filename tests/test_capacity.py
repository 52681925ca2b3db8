"""Fewer runs at a time if memory is short, of the machine or of its container."""

from types import SimpleNamespace

import psutil
import pytest

from qkvbench.backends.common import free_memory
from qkvbench.sweep.capacity import local_capacity
from qkvbench.sweep.engines import RunContext


@pytest.fixture(name="container")
def _container(tmp_path, monkeypatch):
    """The folder of a container's limits, of a machine with 1,000 free bytes."""
    monkeypatch.setattr(free_memory, "GROUP", tmp_path)
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=2000)
    )
    return tmp_path


def limit(container, most, used, files):
    (container / "memory.max").write_text(f"{most}\n")
    (container / "memory.current").write_text(f"{used}\n")
    (container / "memory.stat").write_text(f"anon 7\ninactive_file {files}\n")


def test_free_memory_is_the_container_s_without_the_files_that_it_has_read(container):
    assert free_memory.free_bytes() == 1000
    limit(container, 700, 300, 100)
    assert free_memory.free_bytes() == 500
    limit(container, 700, 900, 100)
    assert free_memory.free_bytes() == 0
    limit(container, "max", 300, 0)
    assert free_memory.free_bytes() == 1000


def test_all_memory_is_the_container_s_limit_or_the_machine_s(container):
    assert free_memory.total_bytes() == 2000
    limit(container, 700, 300, 100)
    assert free_memory.total_bytes() == 700
    limit(container, 3000, 300, 100)
    assert free_memory.total_bytes() == 2000
    limit(container, "max", 300, 0)
    assert free_memory.total_bytes() == 2000


def test_fewer_runs_go_at_a_time_if_memory_is_short_and_it_says_so(container):
    context = RunContext("torch", 1, container, jobs=3, run_bytes=400)
    found = local_capacity(context)
    # Nine tenths of what is free.
    assert found.jobs == 2
    assert "2 runs at a time and not 3" in found.why
    limit(container, 700, 300, 100)
    assert local_capacity(context).jobs == 1
    assert local_capacity(RunContext("torch", 1, container, jobs=3, run_bytes=100)).jobs == 3
