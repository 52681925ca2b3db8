"""`qkvbench run --preregister FILE`: the hypotheses of a file, for a study that has not begun."""

from hashlib import sha256
from pathlib import Path

from qkvbench import tasks
from qkvbench.cli import names
from qkvbench.cli.parser import RequestError
from qkvbench.recipes import Study
from qkvbench.reports.parts.formatting import plural
from qkvbench.results.margins import Margins
from qkvbench.results.preregistration import HypothesisText, name_of_test, parse_registration
from qkvbench.results.record import Hypothesis, MetricInfo, Preregistration
from qkvbench.results.store import Store
from qkvbench.task_ref import parse_task
from qkvbench.train.run import now

TEMPLATE = "docs/preregistration.md has a template."


def registration_of(file: str | None, study: Study, store: Store) -> Preregistration | None:
    """The registration of the store, or a new one of this file; None if there is neither.

    RequestError if the store's runs or its registration contradict the request. What was registered
    is never run under other conditions in the same store; a part of its tasks may be.
    """
    info = store.study()
    stored = info and info.preregistered
    if stored is None:
        return None if file is None else _new(Path(file), study, store)
    if file is not None and (digest := sha256(_content(Path(file))).hexdigest()) != stored.sha256:
        raise RequestError(
            f"{store.path} has another preregistration, of {stored.registered}; its file had the "
            f"SHA-256 {stored.sha256[:16]}…, this one has {digest[:16]}….\n"
            "Give the file as it was, or a new folder with --out DIR."
        )
    if not study.conditions.items() <= stored.conditions.items():
        raise RequestError(
            f"{store.path} has a preregistration of another study, of {stored.registered}: arms, "
            "tasks, model or training differ from those of this request.\n"
            "Write the request as it was (a part of its --tasks and more --seeds are possible), or "
            "a new folder with --out DIR."
        )
    return stored


def registration(place: Path, study: Study, time: str) -> Preregistration:
    """The registration of a file for this study; RequestError if it does not fit the study."""
    content = _content(place)
    try:
        text = parse_registration(content)
    except ValueError as error:
        raise RequestError(
            f"{place} is no preregistration: {error}.\n{TEMPLATE} Nothing was run."
        ) from None
    arms = list(dict.fromkeys(run.arm for run in study.experiments()))
    return Preregistration(
        question=text.question,
        hypotheses=[_hypothesis(each, study, arms) for each in text.hypothesis],
        arms=arms,
        seeds=dict(study.seeds),
        conditions=study.conditions,
        registered=time,
        sha256=sha256(content).hexdigest(),
    )


def _new(place: Path, study: Study, store: Store) -> Preregistration:
    """The registration of a store that has no run yet."""
    new, runs = registration(place, study, now()), store.runs()
    if count := len(runs.good) + len(runs.damaged):
        raise RequestError(
            f"{store.path} has {plural(count, 'run')} already, so nothing can be registered before "
            "the first.\nGive a new folder with --out DIR, or leave out --preregister."
        )
    return new


def _content(place: Path) -> bytes:
    try:
        return place.read_bytes()
    except OSError as error:
        raise RequestError(f"{place} cannot be read: {error.strerror}. Nothing was run.") from None


def hypotheses_text(registered: Preregistration) -> str:
    """The hypotheses on one line each."""
    return "\n".join(
        f"Hypothesis  {each.arm} {each.expect} {'' if each.expect == 'matches' else 'than '}"
        f"{each.against} on {', '.join(each.tasks)}"
        for each in registered.hypotheses
    )


def _hypothesis(text: HypothesisText, study: Study, arms: list[str]) -> Hypothesis:
    arm, against = (names.arm(each or arms[0], arms) for each in (text.arm, text.against))
    if arm == against:
        raise RequestError(
            f"A hypothesis compares {arm} with itself; write another arm, or another 'against' "
            f"(the baseline is {arms[0]}).\nNothing was run."
        )
    chosen = [names.task_of_study(name, list(study.seeds)) for name in text.tasks]
    metrics = {name: _metric(name) for name in chosen}
    return Hypothesis(
        arm=arm,
        against=against,
        tasks=chosen,
        expect=text.expect,
        margins={name: Margins(text.margin).of(name, metric) for name, metric in metrics.items()},
        tests={name: name_of_test(metric) for name, metric in metrics.items()},
    )


def _metric(task: str) -> MetricInfo:
    """The metric of a task as its records will have it."""
    metric = tasks.find(parse_task(task)).metric
    return MetricInfo(
        name=metric.name,
        unit=metric.unit,
        better=metric.better,
        chance=metric.chance,
        solved=metric.solved,
    )
