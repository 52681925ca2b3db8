"""What an engine is: a file of this folder, which carries out jobs somewhere. Its name is the key.

``Options`` is a frozen dataclass of what a person may choose, all with defaults, whose docstring
says what they are; ``Engine(place, options)`` is a context in which jobs are begun and end.
``lacking()`` says why there is none here, or None. An engine keeps no results: a job answers to the
store, and is asked for again by the sweeper where its process has died. To add one, add a file.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from qkvbench.sweep.job import Died, Job


@dataclass(frozen=True)
class Place:
    """For what an engine is opened: runs on `backend`, so many threads each, answering to `store`.

    ``wanted`` is how many may be under way at a time, None leaves it to the engine; ``bytes`` is
    what the largest of them holds, None where that is not known.
    """

    backend: str
    threads: int
    store: Path
    wanted: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Room:
    """How many jobs are under way at a time; why they are fewer than was asked for, in words."""

    jobs: int
    why: str | None = None


@runtime_checkable
class Engine(Protocol):
    """Carries out jobs, each in a process of its own. None is left when its context ends."""

    def room(self) -> Room:
        """How many may be under way at a time."""
        ...

    def start(self, jobs: Sequence[Job]) -> None:
        """Begin these, which all have room."""
        ...

    def ended(self, timeout_s: float) -> Iterator[tuple[Job, Died | None]]:
        """The jobs that have ended, None: well; it waits so long for the first of them."""
        ...

    def stop(self) -> None:
        """End all that is under way: asked first, so that checkpoints are kept, and then at once.

        An interrupt on the way ends the patience.
        """
        ...


class Module(Protocol):
    """The module that an engine's file is."""

    Options: type[Any]

    def Engine(  # noqa: N802 (a class)
        self, place: Place, options: Any
    ) -> AbstractContextManager[Engine]:
        """The engine, which begins with the block."""
        ...

    def lacking(self) -> str | None:
        """Why there is no such engine here, and what to do; None where there is."""
        ...


@dataclass(frozen=True)
class Chosen:
    """An engine by name, with what a person chose of it."""

    name: str = "local"
    options: Any = None

    def open(self, place: Place) -> AbstractContextManager[Engine]:
        """The engine for this place."""
        module = find(self.name)
        return module.Engine(place, self.options or module.Options())


def names() -> list[str]:
    """All engines, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Module:
    """The engine with this name."""
    return cast(Module, importlib.import_module(f"{__name__}.{name}"))


def chosen(name: str, words: Sequence[str]) -> Chosen:
    """The engine with options written as KEY=VALUE; ValueError says what is wrong with them."""
    known = {field.name: field for field in fields(find(name).Options)}
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in known:
            there = ", ".join(f"{each}=…" for each in known) or "none"
            raise ValueError(f"The engine '{name}' has no option '{word}'; it has {there}.")
        values[key] = _value(name, key, text, known[key].default)
    return Chosen(name, find(name).Options(**values))


def _value(engine: str, key: str, text: str, default: object) -> object:
    """The text as what the default is: a whole number, a number or words."""
    if isinstance(default, str):
        return text
    whole = isinstance(default, int)
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if value < 0:
        what = "a whole number" if whole else "a number"
        raise ValueError(f"'{key}={text}' of the engine '{engine}': write {what}.")
    return value
