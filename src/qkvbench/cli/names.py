"""Parse the names in a request; an unknown one is a RequestError with suggestions."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qkvbench import backends, recipes, reports, tasks
from qkvbench.cli.parser import RequestError
from qkvbench.cost import CACHE_DTYPES, CacheDtype
from qkvbench.data import DataRefusedError, DataUnavailableError
from qkvbench.data.checkpoints import HUB_NAME, PACKAGED
from qkvbench.data.own import shown
from qkvbench.experiment import PRECISIONS, SHARDINGS, Precision, Sharding
from qkvbench.model import (
    POOLINGS,
    PRESETS,
    Cycle,
    Model,
    Pooling,
    parse_arm,
    parse_cycle,
    position_named,
    write_arm,
)
from qkvbench.model.quantization import parse_quantization
from qkvbench.recipes import Study
from qkvbench.reports import Report
from qkvbench.reports.parts.formatting import printable
from qkvbench.results.margins import Margins, parse_margins
from qkvbench.results.store import write_atomically
from qkvbench.results.view import View
from qkvbench.task_ref import parse_task
from qkvbench.variant import Variant
from qkvbench.variant.catalogue import equations_spelled, named

if TYPE_CHECKING:
    # Only `run` has an engine; the other commands begin sooner without.
    from qkvbench.sweep.engines import EngineChoice


def variant(text: str) -> Variant:
    """The variant of an equation or a name."""
    try:
        return _named(text)
    except ValueError as error:
        raise RequestError(f"{error}\n{_NAMES}") from None


_NAMES = "'qkvbench ls variants' lists the ones with names."


def _named(text: str) -> Variant:
    # On one line, because the error message quotes it.
    return named(" ".join(text.split()))


def cycle(text: str) -> Cycle:
    """The variants of an equation or a name, or of several that layers have in turn."""
    return parse_cycle(text, variant)


def variants(texts: Iterable[str]) -> list[Variant]:
    """The variants without duplicates, in their order."""
    return list(dict.fromkeys(variant(text) for text in texts))


def arms(texts: Iterable[str]) -> list[str]:
    """The arms that are meant, each once; variants may have names of the catalogue."""
    try:
        return list(dict.fromkeys(write_arm(parse_arm(text, _named)) for text in texts))
    except ValueError as error:
        raise RequestError(f"{error}\n{_NAMES}") from None


def same_arm(texts: Iterable[str]) -> dict[str, list[str]]:
    """The arms that several of these texts mean, with the texts."""
    by_arm: dict[str, list[str]] = {}
    for text in texts:
        by_arm.setdefault(arms([text])[0], []).append(text)
    return {arm: meant for arm, meant in by_arm.items() if len(meant) > 1}


def task(name: str) -> str:
    """The task of a name, or of the path of own data, which are read and checked here."""
    _refuse_checkpoint(name, "a task is read from texts, tables or images")
    try:
        tasks.find(name)
    except KeyError:
        base = parse_task(name).name.partition("@")[0]
        beside = f"\nA path has a separator: ./{base}" if base and Path(base).exists() else ""
        raise _unknown_name("task", base, tasks.names(), beside) from None
    except (DataRefusedError, DataUnavailableError) as error:
        raise RequestError(f"{error}\nNothing was run; the task was '{shown(name)}'.") from None
    return name


def recipe(name: str, size: str | None = None) -> Study:
    """The study of a recipe, of its usual size or of another."""
    name = known("recipe", name, recipes.names())
    if size is None:
        return recipes.find(name)
    if not (sizes := recipes.sizes(name)):
        raise RequestError(f"The recipe {name} has one size only; leave out --size.")
    return recipes.find(name, known("size", size, list(sizes)))


def model(name: str) -> Model:
    """The model of a preset."""
    return PRESETS[known("model", name, list(PRESETS))]()


def with_position(base: Model, text: str | None) -> Model:
    """The model with this position scheme; unchanged if it is None."""
    if text is None:
        return base
    try:
        # Learned positions need a length; 2048 if the model has none.
        return replace(base, position=position_named(text, base.longest or 2048))
    except ValueError as error:
        raise RequestError(str(error)) from None


def model_or_task(name: str) -> Model:
    """The model of a preset or of a task, which may be a path."""
    if name in PRESETS:
        return PRESETS[name]()
    _refuse_checkpoint(name, "this command builds a preset's or a task's model, untrained")
    try:
        return tasks.find(name).model
    except KeyError:
        raise _unknown_name("model or task", name, [*PRESETS, *tasks.names()]) from None
    except (DataRefusedError, DataUnavailableError) as error:
        raise RequestError(f"{error}\nNothing was measured.") from None


def is_checkpoint(name: str) -> bool:
    """Whether it is a folder of transformers, a packaged model, or has the form of a Hub name."""
    path = Path(name)
    if (path / "config.json").is_file() or name in PACKAGED:
        return True
    # A folder that is there would have a file that is misspelled.
    return bool(HUB_NAME.fullmatch(name)) and not path.exists() and not path.parent.is_dir()


def precision(name: str) -> Precision:
    """The precision with this name."""
    return cast(Precision, known("precision", name, list(PRECISIONS)))


def sharding(name: str) -> Sharding:
    """The sharding with this name."""
    return cast(Sharding, known("sharding", name, list(SHARDINGS)))


def cache_dtype(name: str) -> CacheDtype:
    """The dtype of cached rows with this name."""
    return cast(CacheDtype, known("type of cached rows", name, list(CACHE_DTYPES)))


def pooling(name: str) -> Pooling:
    """The pooling with this name."""
    return cast(Pooling, known("pooling", name.replace("-", " "), list(POOLINGS)))


def quantizations(texts: Sequence[str]) -> tuple[str, ...]:
    """The forms in few bits with these texts, each once."""
    for text in texts:
        try:
            parse_quantization(text)
        except ValueError as error:
            raise RequestError(str(error)) from None
    return tuple(dict.fromkeys(texts))


def backend(name: str) -> str:
    """The name of a backend whose packages are installed."""
    name = known("backend", name, backends.names())
    if reason := backends.missing_requirement(name):
        raise RequestError(f"{reason}\nNothing was run.")
    return name


def engine(name: str, options: Sequence[str]) -> "EngineChoice":
    """The engine with its options; its requirements are installed."""
    from qkvbench.sweep import engines

    module = engines.find(known("engine", name, engines.names()))
    if (reason := module.missing_requirement()) is not None:
        raise RequestError(f"{reason}\nNothing was run.")
    try:
        return engines.parse_choice(name, options)
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None


def trackers(names: Sequence[str]) -> list[str]:
    """The names of trackers whose packages are installed."""
    from qkvbench.sweep import trackers as modules

    chosen = [known("tracker", name, modules.names()) for name in dict.fromkeys(names)]
    for name in chosen:
        if (reason := modules.find(name).missing_requirement()) is not None:
            raise RequestError(f"{reason}\nNothing was run.")
    return chosen


def report(name: str | None) -> Report | None:
    """The report with this name; None if the name is None."""
    return None if name is None else reports.find(known("report", name, reports.names()))


def arm(text: str, study: Sequence[str]) -> str:
    """The arm of a study with this equation or name."""
    if text in study:
        return text
    try:
        equation = arms([text])[0]
    except RequestError:
        equation = text
    return known("arm", equation, list(study))


def task_of_study(name: str, study: Sequence[str]) -> str:
    """The task of a study with this name."""
    return known("task", name, list(study))


def margins(words: Sequence[str] | None) -> Margins:
    """The margins of the words after --margin."""
    try:
        return parse_margins(words or ())
    except ValueError as error:
        raise RequestError(str(error)) from None


def check_margin_tasks(margins: Margins, study: View) -> None:
    """Raise RequestError for a margin of a task that the study does not have."""
    check_margin_names(margins, [task.name for task in study.tasks])


def check_margin_names(margins: Margins, tasks: list[str]) -> None:
    """Raise RequestError for a margin of another task than these."""
    for name in margins.tasks or {}:
        known("task", name, tasks)


def write_page(place: Path, text: str) -> None:
    """Write a whole file, or nothing; RequestError if it cannot be written."""
    try:
        write_atomically(place, text.encode())
    except OSError as error:
        raise RequestError(f"{place} cannot be written: {error.strerror}.") from None


def with_variant(base: Model, wanted: Variant | Cycle) -> Model:
    """The model with the variant, or several in turn; RequestError if it cannot be built."""
    if isinstance(wanted, tuple) and len(wanted) > len(base.blocks):
        raise RequestError(
            f"{len(wanted)} equations in turn need as many layers; {base.name} has "
            f"{len(base.blocks)}."
        )
    changed = base.with_variant(wanted)
    try:
        _ = changed.plans
    except ValueError as error:
        raise RequestError(f"{error}\nThe model is {base.name}.") from None
    return changed


def context(base: Model, wanted: int | None, usual: int, *, otherwise: str = "") -> int:
    """Tokens that are cached or read: as wanted, or as usual if the model reads so many.

    ``otherwise`` is what the command can write in place of fewer tokens.
    """
    longest = base.longest
    if longest is None:
        return wanted or usual
    # A decode step reads one token more than the cache has.
    most = longest - 1 if base.causal else longest
    if wanted is not None and wanted > most:
        one_more = " (a decode step reads one more)" if base.causal else ""
        raise RequestError(
            f"{base.name} reads at most {longest} tokens, so --context {wanted} is not "
            f"possible{one_more}; write --context {most} or less{otherwise}."
        )
    return wanted or min(usual, most)


def optional_name(kind: str, name: str | None, all_names: list[str]) -> str | None:
    """The name if it is one of these; None if it is None."""
    return None if name is None else known(kind, name, all_names)


def suggestion(name: str, all_names: list[str]) -> str:
    """A line with the closest name; empty if none is close."""
    near = equations_spelled(name, all_names) or get_close_matches(name, all_names, n=1, cutoff=0.5)
    return f"\nDid you mean {near[0]}?" if near else ""


def _refuse_checkpoint(name: str, why: str) -> None:
    """Raise RequestError if the name is the path of a pretrained model."""
    path = Path(name)
    weights = [*path.glob("*.safetensors")] if path.is_dir() else [path]
    if (path / "config.json").is_file() or any(
        each.suffix == ".safetensors" and each.is_file() for each in weights
    ):
        raise RequestError(
            f"{shown(name)} is a pretrained checkpoint; {why}.\n"
            f"'qkvbench analyse {shown(name)}' compares Q, K and V of its layers; "
            "'qkvbench ls models' lists the presets."
        )


def known(kind: str, name: str, all_names: list[str]) -> str:
    """The name, which is one of these."""
    if name in all_names:
        return name
    raise _unknown_name(kind, name, all_names)


def _unknown_name(kind: str, name: str, all_names: list[str], hint: str = "") -> RequestError:
    # Names of arms and tasks may come from a store that is not trusted.
    listed = printable(", ".join(all_names))
    # The list may be long, so what helps most comes before it.
    helped = (hint or suggestion(name, all_names)).replace("\n", " ", 1)
    return RequestError(f"There is no {kind} '{name}'.{helped}\nThere are {listed}.")
