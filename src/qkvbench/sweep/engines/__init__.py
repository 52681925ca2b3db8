"""Engines: each file of this folder carries out jobs somewhere. The file name is the key.

``Options`` is a frozen dataclass of a person's choices, all with defaults, and its docstring
documents them. ``Engine(context, options)`` is a context manager that starts jobs and reports their
ends. ``missing_requirement()`` is the reason why the engine cannot be used here, or None. An engine
keeps no results: a job writes to the store, and the sweeper starts it again if its process died. To
add an engine, add a file.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from qkvbench.sweep.job import Job
from qkvbench.train.multi_process import ProcessFailure


@dataclass(frozen=True)
class RunContext:
    """The needs of all runs of an engine: backend, cores for each, and the store to write to.

    ``jobs`` is the requested number of runs at a time, None leaves it to the engine; ``run_bytes``
    is the memory of the largest run, None if unknown.
    """

    backend: str
    threads: int
    store: Path
    jobs: int | None = None
    run_bytes: int | None = None


@dataclass(frozen=True)
class Capacity:
    """How many jobs may run at a time; `why` they are fewer than requested, in words."""

    jobs: int
    why: str | None = None


@runtime_checkable
class Engine(Protocol):
    """Carries out jobs, each in a process of its own. None is running when its context ends."""

    def capacity(self) -> Capacity:
        """How many jobs may run at a time."""
        ...

    def start(self, jobs: Sequence[Job]) -> None:
        """Start these jobs, which fit the capacity."""
        ...

    def poll(self, timeout_s: float) -> Iterator[tuple[Job, ProcessFailure | None]]:
        """The jobs that have ended, None if well; waits up to `timeout_s` for the first."""
        ...

    def stop(self) -> None:
        """End all jobs: first a request, so that they can save checkpoints, and later by force.

        An interrupt meanwhile ends them at once.
        """
        ...


class Module(Protocol):
    """The module of an engine's file."""

    Options: type[Any]

    def Engine(  # noqa: N802 (a class)
        self, context: RunContext, options: Any
    ) -> AbstractContextManager[Engine]:
        """The engine, ready inside the block."""
        ...

    def missing_requirement(self) -> str | None:
        """Why the engine cannot be used here, and what to do; None if it can."""
        ...


@dataclass(frozen=True)
class EngineChoice:
    """An engine's name and a person's options for it."""

    name: str = "local"
    options: Any = None

    def open(self, context: RunContext) -> AbstractContextManager[Engine]:
        """The engine for this context."""
        module = find(self.name)
        return module.Engine(context, self.options or module.Options())

    @property
    def default_jobs(self) -> int | None:
        """How many runs go at a time by default; None: as many as the machine takes."""
        return getattr(find(self.name), "DEFAULT_JOBS", None)


def names() -> list[str]:
    """All engines, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Module:
    """The engine with this name."""
    return cast(Module, importlib.import_module(f"{__name__}.{name}"))


def parse_choice(name: str, words: Sequence[str]) -> EngineChoice:
    """The engine with options written as KEY=VALUE; ValueError if an option is wrong."""
    known = {field.name: field for field in fields(find(name).Options)}
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in known:
            options = ", ".join(f"{each}=…" for each in known) or "none"
            raise ValueError(f"The engine '{name}' has no option '{word}'; it has {options}.")
        values[key] = _value(name, key, text, known[key].default)
    return EngineChoice(name, find(name).Options(**values))


def _value(engine: str, key: str, text: str, default: object) -> object:
    """The text as a value of the default's type: an integer, a number or a string."""
    if isinstance(default, str):
        return text
    whole = isinstance(default, int)
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if value < 0:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"'{key}={text}' of the engine '{engine}': write {kind}.")
    return value
