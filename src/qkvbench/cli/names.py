"""Names that a person wrote, turned into what they name, or into what to write instead."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qkvbench import backends, recipes, reports, tasks
from qkvbench.cli.parser import RequestError
from qkvbench.cost import CACHE_DTYPES, CacheDtype
from qkvbench.data import DataRefusedError, DataUnavailableError
from qkvbench.data.own import shown
from qkvbench.experiment import PRECISIONS, SHARDINGS, Precision, Sharding
from qkvbench.model import (
    POOLINGS,
    PRESETS,
    Model,
    Pooling,
    parse_arm,
    position_named,
    write_arm,
)
from qkvbench.recipes import Study
from qkvbench.reports import Report
from qkvbench.reports.parts.formatting import printable
from qkvbench.results.margins import Margins, stated
from qkvbench.results.view import View
from qkvbench.task_ref import parse_task
from qkvbench.variant import Variant
from qkvbench.variant.catalogue import named

if TYPE_CHECKING:
    # Only `run` has an engine; the other commands begin sooner without.
    from qkvbench.sweep.engines import Chosen


def variant(text: str) -> Variant:
    """The variant that is meant."""
    # On one line: what was asked comes back in the answer.
    text = " ".join(text.split())
    try:
        return named(text)
    except ValueError as error:
        raise RequestError(f"{error}\n'qkvbench ls variants' lists the ones with names.") from None


def variants(texts: Iterable[str]) -> list[Variant]:
    """The variants that are meant, each once, in the order written."""
    return list(dict.fromkeys(variant(text) for text in texts))


def arms(texts: Iterable[str]) -> list[str]:
    """The arms that are meant, each once; variants may have names of the catalogue."""
    try:
        return list(dict.fromkeys(write_arm(parse_arm(text, variant)) for text in texts))
    except ValueError as error:
        raise RequestError(str(error)) from None


def task(name: str) -> str:
    """The task that is meant: a name, or the path of own data, which are read and checked here."""
    try:
        tasks.find(name)
    except KeyError:
        base = parse_task(name).name.partition("@")[0]
        beside = f"\nA path has a separator: ./{base}" if base and Path(base).exists() else ""
        raise _unknown("task", base, tasks.names(), beside) from None
    except (DataRefusedError, DataUnavailableError) as error:
        raise RequestError(f"{error}\nNothing was run; the task was '{shown(name)}'.") from None
    return name


def recipe(name: str) -> Study:
    """The study that is meant."""
    return recipes.find(_known("recipe", name, recipes.names()))


def model(name: str) -> Model:
    """The model that is meant."""
    return PRESETS[_known("model", name, list(PRESETS))]()


def with_position(base: Model, text: str | None) -> Model:
    """The model with the position scheme that is meant; its own where none was asked for."""
    if text is None:
        return base
    try:
        # Learned positions have a length; where the model's own set none, a usual one.
        return replace(base, position=position_named(text, base.longest or 2048))
    except ValueError as error:
        raise RequestError(str(error)) from None


def model_or_task_s(name: str) -> Model:
    """The model that is meant: one with a name, or that of a task, which may be a path."""
    if name in PRESETS:
        return PRESETS[name]()
    try:
        return tasks.find(name).model
    except KeyError:
        raise _unknown("model or task", name, [*PRESETS, *tasks.names()]) from None
    except (DataRefusedError, DataUnavailableError) as error:
        raise RequestError(f"{error}\nNothing was measured.") from None


def precision(name: str) -> Precision:
    """The precision that is meant."""
    return cast(Precision, _known("precision", name, list(PRECISIONS)))


def sharding(name: str) -> Sharding:
    """What each device is to hold."""
    return cast(Sharding, _known("sharding", name, list(SHARDINGS)))


def rows(name: str) -> CacheDtype:
    """The type of cached rows that is meant."""
    return cast(CacheDtype, _known("type of cached rows", name, list(CACHE_DTYPES)))


def pooling(name: str) -> Pooling:
    """The way of telling the whole that is meant."""
    return cast(Pooling, _known("pooling", name.replace("-", " "), list(POOLINGS)))


def backend(name: str) -> str:
    """The backend that is meant, whose packages are here."""
    found = _known("backend", name, backends.names())
    if reason := backends.lacking(found):
        raise RequestError(f"{reason}\nNothing was run.")
    return found


def engine(name: str, options: Sequence[str]) -> "Chosen":
    """The engine that is meant, with its options; what it needs is here."""
    from qkvbench.sweep import engines

    module = engines.find(_known("engine", name, engines.names()))
    if (reason := module.lacking()) is not None:
        raise RequestError(f"{reason}\nNothing was run.")
    try:
        return engines.chosen(name, options)
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None


def trackers(names: Sequence[str]) -> list[str]:
    """The trackers that are meant; what they need is here."""
    from qkvbench.sweep import trackers as known

    wanted = [_known("tracker", name, known.names()) for name in dict.fromkeys(names)]
    for name in wanted:
        if (reason := known.find(name).lacking()) is not None:
            raise RequestError(f"{reason}\nNothing was run.")
    return wanted


def report(name: str | None) -> Report | None:
    """The report that is meant; None where none was asked for."""
    return None if name is None else reports.find(_known("report", name, reports.names()))


def arm(text: str, study: Sequence[str]) -> str:
    """The arm of a study that is meant, by its equation or its name."""
    if text in study:
        return text
    try:
        equation = arms([text])[0]
    except RequestError:
        equation = text
    return _known("arm", equation, list(study))


def margins(words: Sequence[str] | None) -> Margins:
    """The margins that were stated."""
    try:
        return stated(words or ())
    except ValueError as error:
        raise RequestError(str(error)) from None


def known_tasks(margins: Margins, study: View) -> None:
    """Refuse a margin for a task that the study does not have."""
    for name in margins.tasks or {}:
        _known("task", name, [task.name for task in study.tasks])


def with_variant(base: Model, wanted: Variant) -> Model:
    """The model with the variant, where it can be built at that size."""
    changed = base.with_variant(wanted)
    try:
        _ = changed.plans
    except ValueError as error:
        raise RequestError(f"{error}\nThe model is {base.name}.") from None
    return changed


def chosen(kind: str, name: str | None, all_names: list[str]) -> str | None:
    """The name, where it is one of these; None where none was asked for."""
    return None if name is None else _known(kind, name, all_names)


def nearest(name: str, all_names: list[str]) -> str:
    """A line that offers the name that is nearest; nothing where none is near."""
    near = get_close_matches(name, all_names, n=1, cutoff=0.5)
    return f"\nDid you mean {near[0]}?" if near else ""


def _known(kind: str, name: str, all_names: list[str]) -> str:
    if name in all_names:
        return name
    raise _unknown(kind, name, all_names)


def _unknown(kind: str, name: str, all_names: list[str], beside: str = "") -> RequestError:
    # Names of arms and tasks come out of stores, which may be anyone's.
    there = printable(", ".join(all_names))
    return RequestError(
        f"There is no {kind} '{name}'; there are {there}.{beside or nearest(name, all_names)}"
    )
