"""The road: advise on a plan, or convert a checkpoint by one, measured before and after."""

import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from qkvbench.backends.common.free_memory import free_bytes
from qkvbench.cost.budget import SPREADS
from qkvbench.cost.units import bytes_text
from qkvbench.hub.families import FAMILIES
from qkvbench.hub.fit import folder, planning, quality
from qkvbench.hub.fit.attentions import attentions
from qkvbench.hub.fit.counting import budget, counting
from qkvbench.hub.fit.healing import DECIDING_TOKENS, Healing, heal
from qkvbench.hub.fit.latency import STEPS, Steps
from qkvbench.hub.fit.latency import steps as measured_steps
from qkvbench.hub.fit.measures import (
    Measures,
    is_causal,
    measure,
    numbers_of,
    table,
)
from qkvbench.hub.fit.moments import Calibration, collect
from qkvbench.hub.fit.planning import UNCHANGED, Effect, Option, Plan, Trial, every_fit
from qkvbench.hub.fit.progress import Progress, TimeLeft, counted
from qkvbench.hub.fit.quality import Windows
from qkvbench.hub.fit.roots import DEFAULT_ROWS
from qkvbench.hub.fit.shards import Tensors
from qkvbench.hub.fit.source import Checkpoint, find_teacher, load_model
from qkvbench.hub.fit.starts import REFITTED, parse_start
from qkvbench.hub.fit.streaming import LayerByLayer, StreamedModel
from qkvbench.hub.models import register
from qkvbench.hub.modes import Mode
from qkvbench.model import Target

CAUSAL = "AutoModelForCausalLM"
FP32_BYTES = 4
# The share of the free memory that a model may take if no amount is given.
FREE_MEMORY = 0.8


@dataclass(frozen=True)
class Reading:
    """How much text is read: tokens for the fit and for each measurement, in windows."""

    window: int = 512
    fit: int = 4096
    held_out: int = 2048

    def count(self, tokens: int) -> int:
        """The windows of so many tokens, at least one."""
        return max(1, tokens // self.window)


@dataclass(frozen=True)
class Advice:
    """The plan for a budget, with what it costs, and the plans that it was compared with."""

    plan: Plan
    effect: Effect
    options: tuple[Option, ...]
    rivals: dict[str, tuple[Plan, Effect]]
    curve: tuple[Plan, ...]
    pairs: tuple[tuple[int, int, float, float], ...]
    loss: float
    # What a cache in few bits costs the unchanged model, on the layers' text and on the plans'.
    unchanged: tuple[Effect, Effect]
    # What is counted of the model beside the layers, such as its other parameters.
    rest: int = 0

    @property
    def share(self) -> float:
        """The cache, parameters or time of the plan as a share of the original's."""
        full = sum(option.values for option in self.options if option.equation == UNCHANGED)
        return (planning.total(self.plan) + self.rest) / (full + self.rest)

    def predicted(self, plan: Plan) -> float:
        """The divergence of a plan if the damages of its layers add."""
        return self.unchanged[0].divergence + planning.damage(plan)


@dataclass(frozen=True)
class NothingToGain:
    """The measured steps of a budget of latency if no equation is faster than the original."""

    steps: Steps


@dataclass(frozen=True)
class Texts:
    """The text to fit and to heal on, and one to measure on: the end of the other if it is None."""

    text: str | None = None
    held_out: str | None = None


@dataclass(frozen=True)
class Conversion:
    """The measured numbers of a conversion."""

    rows: list[tuple[str, str, str]]
    measured: dict[str, object] = field(default_factory=dict)


def advise(
    checkpoint: Checkpoint,
    text: str,
    target: Target,
    equations: Sequence[str],
    start: str,
    reading: Reading,
    pairs: int = 8,
    progress: Progress = lambda line: None,
) -> Advice | NothingToGain:
    """The plan with the least damage within a budget, which may be of measured time.

    The text is read in three parts: for the fit, for the damage of each layer, and for whole plans.
    """
    check_readable(checkpoint)
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    check_predicts(model)
    check_length(checkpoint.config(), reading.window)
    allowed = planning.options_of(model, equations)
    layers = planning.layers_of(model)
    steps = None
    if target.quantity == "latency":
        steps = steps_of(model, list(allowed), tokenizer, text, target, progress)
        if not any(steps.is_faster(equation) for equation in allowed):
            return NothingToGain(steps)
    counted_ = counting(model, layers, target, steps)
    # Refuses a budget that cannot be reached, before the layers are measured.
    budget(counted_, layers, allowed, target)
    fit, count = reading.count(reading.fit), reading.count(reading.held_out) // 2 or 1
    read = quality.windows(tokenizer, text, reading.window, fit + 2 * count)
    if len(read) < 3:
        raise ValueError(
            f"The text has {len(read)} windows of {reading.window} tokens; at least 3 are needed.\n"
            "Give a longer text, or shorter windows with --window N."
        )
    check_tokens(model, [read])
    fit = min(fit, len(read) - 2 * min(count, (len(read) - 1) // 2))
    middle = fit + (len(read) - fit) // 2
    calibration = _calibration(model, read[:fit], progress)
    fitted = every_fit(model, allowed, calibration, start, progress)
    ours = attentions(model, fitted, parse_start(start).rows)
    trial = Trial(model, read[fit:middle], ours, counted_.of_layer)
    options: list[Option] = []
    time_left = TimeLeft("layers", len(trial.layers), progress)
    for layer in range(len(trial.layers)):
        if layer:
            time_left.done(layer)
        options.append(trial.unchanged(layer))
        for equation, change in allowed.items():
            options.append(trial.option(layer, change))
            progress(
                f"layer {layer} by {equation}: divergence {options[-1].divergence:.4f} nats, "
                f"output off by {options[-1].distance:.3f} of its square"
            )
    full = sum(option.values for option in options if option.equation == UNCHANGED)
    limit = planning.whole_limit(target.share, full, counted_.rest)
    plan = planning.best_plan(options, limit)
    checked = []
    for one, other in counted(planning.pairs(plan, pairs), "pairs measured together", progress):
        both = tuple(
            one if o.layer == one.layer else other if o.layer == other.layer else o
            for o in (trial.unchanged(n) for n in range(len(trial.layers)))
        )
        effect = trial.effect(both)
        checked.append((one.layer, other.layer, effect.divergence, effect.predicted))
    judged = Trial(model, read[middle:], ours)
    rivals = {}
    for how in SPREADS:
        rival = planning.spread(options, limit, how)
        progress(f"measuring the plan and its rivals: {how}")
        rivals[how] = (rival, judged.effect(rival))
    return Advice(
        plan,
        judged.effect(plan),
        tuple(options),
        rivals,
        tuple(planning.curve(options)),
        tuple(checked),
        judged.loss,
        (trial.unchanged_effect, judged.unchanged_effect),
        counted_.rest,
    )


def steps_of(
    model: Any,
    equations: Sequence[str],
    tokenizer: Any,
    text: str,
    target: Target,
    progress: Progress,
) -> Steps:
    """The measured steps behind as many tokens of the text as the target says."""
    check_latency(model.config, target)
    context = target.tokens
    assert context, "the length is part of the target"
    # A short text is repeated: times depend on how many tokens there are, not on which.
    tokens = quality.windows(tokenizer, text * 8, context, 1)[0]
    return measured_steps(model, equations, tokens, progress)


def convert_checkpoint(  # noqa: PLR0913
    checkpoint: Checkpoint,
    mode: Mode,
    out: Path,
    command: Sequence[str],
    *,
    texts: Texts,
    start: str,
    reading: Reading,
    healing: Healing,
    memory_bytes: int | None = None,
    force: bool = False,
    progress: Progress = lambda line: None,
) -> Conversion:
    """Write the converted checkpoint to `out`, which is whole or absent; the measured numbers.

    Layers are fitted and written one by one. A model that is larger than `memory_bytes` (most of
    what is free) is measured block by block from its files, too; a healing holds it.
    """
    if texts != Texts():
        check_readable(checkpoint)
        check_length(checkpoint.config(), reading.window)
    memory_bytes = memory_bytes or int(FREE_MEMORY * free_bytes())
    source = StreamedModel(checkpoint.folder, checkpoint.auto, checkpoint.config())
    # Refuses what cannot be converted before anything is measured, which takes minutes.
    work = LayerByLayer(source, mode, progress)
    tokenizer = None if texts == Texts() else checkpoint.tokenizer()
    lesson = _lesson(checkpoint, work, healing, tokenizer, memory_bytes)
    held, read, judged = _windows(tokenizer, texts, reading, healing)
    check_tokens(source.model, (held, read, judged))
    stored = parse_start(start).rows if work.changes else DEFAULT_ROWS

    def measured(folder_: Path, when: str, rows: str = DEFAULT_ROWS) -> Measures:
        if held is None:
            if read is not None:
                progress(f"not measured {when}: the text has one window")
            return Measures()
        with runnable(folder_, checkpoint.auto, memory_bytes) as (model, timed):
            return measure(model, tokenizer, held, progress, when, rows, timed=timed)

    before = measured(checkpoint.folder, "before")
    history: list[tuple[str, int, float]] = []
    state = folder.state_folder(out)
    with folder.replacement(out, force=force) as place:
        fit = None if read is None else read[: reading.count(reading.fit)]
        if fit is not None and work.changes:
            progress(f"reading {fit.numel():,} tokens for the fit")
        fitted_to = work.write(place, fit, start)
        after = tied = measured(place, "after tying", stored)
        if healing.tokens:
            assert read is not None, "a healing without a text is refused"
            assert judged is not None
            model, original = load_model(place, checkpoint.auto), checkpoint.model()
            teacher = None if lesson is None else load_model(lesson, CAUSAL)
            how = f"{start} {reading.fit}"
            history = heal(model, original, read, judged, healing, state, progress, teacher, how)
            del original, teacher
            folder.replace_weights(model, place)
            del model
            after = measured(place, "after healing", stored)
        done = work.config.qkv_mode
        rows = [
            ("layers changed", "", _layers_text(work.changed, len(work.layers))),
            *table(before, tied, after, stored, healed=bool(healing.tokens)),
        ]
        notes = _notes(
            start if work.changes else None, fitted_to, texts.held_out, healing, reading, held
        )
        notes += [*_cache_note(stored), *_kept_note(history)]
        numbers: dict[str, object] = {
            "mode": done,
            "start": start,
            "before": numbers_of(before, before),
            "tied": numbers_of(before, tied),
            "after": numbers_of(before, after),
            "healing": asdict(healing) | {"distances": history},
        }
        card = folder.card(checkpoint.name, done, checkpoint.auto, shlex.join(command), rows, notes)
        folder.write_texts(tokenizer or _tokenizer_or_none(checkpoint), place, card, numbers)
    shutil.rmtree(state, ignore_errors=True)
    return Conversion(rows, numbers)


def _lesson(
    checkpoint: Checkpoint,
    work: LayerByLayer,
    healing: Healing,
    tokenizer: Any,
    memory_bytes: int,
) -> Path | None:
    """The folder of a healing's teacher, if there is one; ValueError if nothing can be healed."""
    if not healing.tokens:
        return None
    if not work.changed:
        raise ValueError("No layer changes, so there is nothing to heal: leave out --heal.")
    lesson = None
    if healing.teacher is not None:
        if checkpoint.auto != CAUSAL:
            raise ValueError(f"{checkpoint.name} predicts no next token, which a teacher teaches.")
        lesson = find_teacher(healing.teacher, tokenizer)
    _check_memory(work.source, lesson, memory_bytes)
    return lesson


def _check_memory(source: StreamedModel, lesson: Path | None, memory_bytes: int) -> None:
    """Refuse a healing of a model, by a teacher in a folder, that does not fit; ValueError."""
    held = "the original and the converted model"
    needed = 2 * FP32_BYTES * source.tensors.numel()
    if lesson is not None:
        held = "the original, the converted model and the teacher"
        needed += FP32_BYTES * Tensors(lesson).numel()
    if needed > memory_bytes:
        raise ValueError(
            f"A healing holds {held} in fp32: {bytes_text(needed)}, "
            f"and {bytes_text(memory_bytes)} may be used.\nLeave out --heal: the fit needs the "
            "memory of one layer. Or allow more with --memory."
        )


@contextmanager
def runnable(place: Path, auto: str, memory_bytes: int) -> Iterator[tuple[Any, bool]]:
    """The model in a folder, and whether all of it is in memory, so that times mean something."""
    if FP32_BYTES * Tensors(place).numel() <= memory_bytes:
        yield load_model(place, auto), True
        return
    register()
    config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    with StreamedModel(place, auto, config).running() as model:
        yield model, False


def check_tokens(model: Any, texts: Iterable[Windows | None]) -> None:
    """Refuse texts with tokens that a model has no embedding of; ValueError."""
    rows = model.get_input_embeddings().weight.shape[0]
    most = max((int(text.max()) for text in texts if text is not None and len(text)), default=0)
    if most >= rows:
        raise ValueError(
            f"The tokenizer gives token {most:,}, and the model has embeddings of {rows:,}.\n"
            "Take the tokenizer that the model was trained with."
        )


def check_latency(config: Any, target: Target) -> None:
    """Refuse steps behind so many tokens that a model's positions end; ValueError."""
    most = quality.positions(config)
    assert target.tokens, "the length is part of the target"
    if most is not None and target.tokens + STEPS > most:
        raise ValueError(
            f"This model has {most:,} positions, and {STEPS} steps follow the tokens that are read."
            f"\nWrite @{most - STEPS}, or less."
        )


def check_length(config: Any, tokens: int) -> None:
    """Refuse windows that are longer than a model's table of positions; ValueError."""
    most = quality.positions(config)
    if most is None or tokens <= most:
        return
    raise ValueError(
        f"This model has {most:,} positions, and windows of {tokens:,} tokens were asked for.\n"
        f"Write --window {most}, or less."
    )


def check_readable(checkpoint: Checkpoint) -> None:
    """Refuse a text for a model that takes pairs of texts, or pictures; ValueError."""
    kind = str(checkpoint.settings["model_type"])
    if FAMILIES[kind].blocks or not FAMILIES[kind].reads_text:
        raise ValueError(
            f"A {kind} does not read one text, so it cannot be fitted to one or measured on it.\n"
            "Leave out --text and --held-out: the starts keep-k, keep-v and average need none. In "
            "Python, qkvbench.hub.fit.moments.collect takes any inputs."
        )


def check_predicts(model: Any) -> None:
    """Refuse a model that predicts no next token, such as an encoder; ValueError."""
    if model.get_output_embeddings() is None or not is_causal(model):
        raise ValueError(
            f"A {type(model).__name__} predicts no next token, by which layers are judged.\n"
            "Convert it with --layers, and read the similarity of its embeddings."
        )


def _calibration(model: Any, fit: Windows, progress: Progress) -> Calibration:
    """These windows, read by the model."""
    progress(f"reading {fit.numel():,} tokens for the fit")
    rows = counted(list(fit), "windows of the fit", progress)
    return collect(model, ({"input_ids": row[None]} for row in rows))


def _windows(
    tokenizer: Any, texts: Texts, reading: Reading, healing: Healing
) -> tuple[Windows | None, Windows | None, Windows | None]:
    """The windows that are measured, those that are read, and those that stop a healing.

    Without a held-out text, the last windows of the other are measured, and not read.
    """
    measured = reading.count(reading.held_out)
    read = judged = held = None
    if texts.text is not None:
        count = max(reading.count(reading.fit), -(-healing.tokens // reading.window))
        deciding = reading.count(DECIDING_TOKENS) if healing.tokens else 0
        more = (measured if texts.held_out is None else 0) + deciding
        windows = quality.windows(tokenizer, texts.text, reading.window, count + more)
        # An output projection is fitted again to two windows or more.
        more = min(more, max(len(windows) - 2, min(1, len(windows) - 1)))
        windows, rest = windows[: len(windows) - more], windows[len(windows) - more :]
        judged, held = rest[:deciding] if deciding else None, rest[deciding:]
        if judged is not None and not len(judged):
            raise ValueError(
                f"The text has one window of {reading.window} tokens, and a healing needs another "
                "to decide by.\nGive a longer text, or shorter windows with --window N."
            )
        read = windows
    if texts.held_out is not None:
        held = quality.windows(
            tokenizer, texts.held_out, reading.window, measured, name="The held-out text"
        )
    return (held if held is not None and len(held) else None), read, judged


def _notes(
    start: str | None,
    fitted_to: int,
    held_out: str | None,
    healing: Healing,
    reading: Reading,
    held: Windows | None,
) -> list[str]:
    notes = [
        "The weights satisfied the tie: nothing was fitted, and no output changes."
        if start is None
        else f"Fitted to {fitted_to:,} tokens with the start {start}."
        if fitted_to
        else f"Changed with the start {start}, which reads no text."
    ]
    if start and parse_start(start).name == REFITTED and fitted_to == reading.window:
        notes.append("The output projection was not fitted again, which takes two windows.")
    if held is not None:
        kind = "a text of its own" if held_out else "the end of the text of the fit, so of its kind"
        notes.append(f"Measured on {held.numel():,} tokens in windows of {reading.window}: {kind}.")
    elif fitted_to:
        notes.append("Not measured: the text has one window.")
    if healing.tokens:
        taught = f", whose predictions are {healing.teacher}'s" if healing.teacher else ""
        kind = f"adapters of rank {healing.lora}" if healing.lora else "all weights"
        notes.append(
            f"Healed on {healing.blocks:,} tokens by blocks and {healing.logits:,} by logits"
            f"{taught} ({kind} of the changed layers' attention)."
        )
    else:
        notes.append("Not healed.")
    return notes


def _cache_note(rows: str) -> list[str]:
    """How a model that was fitted for few bits gets such a cache."""
    if rows == DEFAULT_ROWS:
        return []
    call = f'cache=qkvbench.hub.FewBitsCache(model, "{rows}")'
    return [f"For a cache in {rows}: `model.generate(..., {call})`."]


def _kept_note(history: Sequence[tuple[str, int, float]]) -> list[str]:
    """That a healing ended where it began, if it did."""
    if not history or min(history, key=lambda row: row[2])[0] != "start":
        return []
    return ["No healed weights were better on the windows that decide: the start is kept."]


def _layers_text(changed: Sequence[int], layers: int) -> str:
    """How many layers are changed, and which."""
    if len(changed) == layers:
        return f"all {layers}"
    return f"{len(changed)} of {layers}: {ranges(changed)}" if changed else "none"


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in ascending order as text: 0-3, 7."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found)


def _tokenizer_or_none(checkpoint: Checkpoint) -> Any:
    try:
        return checkpoint.tokenizer()
    except ValueError:
        return None
