"""The training loop, on one page: batches in keyed order, a schedule, scores on the way."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Int

from qkvbench.backends import Learner, QuantizedLearner
from qkvbench.data.batch import Batch, Predictions, Split
from qkvbench.experiment import Experiment, Training
from qkvbench.model.quantization import PLAIN, in_few_bits, parse_quantization
from qkvbench.model.rng import generator
from qkvbench.results.record import LARGEST_SCORE, GeneratedTexts, Point
from qkvbench.results.stats import reaches
from qkvbench.tasks import Data, GenerationEval, Scored, Task
from qkvbench.train.analyses import batch_of_snapshots, snapshot, snapshot_steps
from qkvbench.train.items import item_scores
from qkvbench.train.run_state import RunState

# Tokens scored at a time: so few that logits stay in a processor's cache.
SCORED_AT_ONCE = 4096
# Items that are scored in each form in few bits: forms of the same weights differ by little else.
QUANTIZED_ITEMS = 256


class DivergedError(Exception):
    """The loss, its gradient or a score is not finite; the weights are those before that step."""


def no_op() -> None:
    """No-op."""


def train(
    experiment: Experiment,
    task: Task,
    data: Data,
    learner: Learner,
    report: Callable[[int, float], None],
    state: RunState,
    on_step_end: Callable[[], None] = no_op,
) -> None:
    """Train from the last step of `state` to the last step of all, and fill `state`.

    `report` is called with each step and its loss; `on_step_end` after the step and its scores.
    Raises DivergedError before a step that would spoil the weights; `state` keeps what it has.
    """
    training = experiment.training
    first = next(batch_indices(len(data.train), training, experiment.seed))
    learner.warm_up(data.train.batch(first))
    state.set_compile_time(learner.compile_s)
    batches = batch_indices(len(data.train), training, experiment.seed, after=state.step)
    scored_at = {
        round(training.steps * (n + 1) / training.evaluations) for n in range(training.evaluations)
    }
    snapshot_at, snapshot_batch = snapshot_steps(training), batch_of_snapshots(task, data)
    if not state.step:
        state.snapshots.append(snapshot(0, learner, snapshot_batch))
    for step in range(state.step + 1, training.steps + 1):
        batch = data.train.batch(next(batches))
        if task.augment is not None:
            batch = task.augment(batch, generator(experiment.seed, "redraw", f"step {step}"))
        began, compiled_s = time.perf_counter(), learner.compile_s or 0.0
        loss, norm = learner.gradients(batch)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"At step {step} of {training.steps} the loss was {loss} and the norm of its "
                f"gradient {norm}; the step was not taken."
            )
        learner.update(learning_rate(training, step))
        # A batch of a new shape may have been compiled for, which is not part of the step's time.
        compiled_s = (learner.compile_s or 0.0) - compiled_s
        state.step_s.append(time.perf_counter() - began - compiled_s)
        state.set_compile_time(learner.compile_s)
        state.step = step
        report(step, loss)
        if step in scored_at:
            metrics = score(task, learner, data.validation, training.scored)
            state.curve.append(
                Point(step=step, train_loss=loss, gradient_norm=norm, metrics=metrics)
            )
            if state.solved_step is None and _solved(task, metrics):
                state.solved_step = step
        if step in snapshot_at:
            state.snapshots.append(snapshot(step, learner, snapshot_batch))
        on_step_end()


def score_test_split(
    task: Task, data: Data, learner: Learner, experiment: Experiment, state: RunState
) -> None:
    """Score the test split, and the texts that the model generates for it if the task has them.

    With the experiment's forms in few bits, its first items once more in each of them, and as they
    are.
    """
    training = experiment.training
    predictions = predict(task, learner, data.test, training.scored)
    state.metrics = check_finite(task.score(predictions))
    state.items = item_scores(task, predictions)
    if task.generation is not None:
        texts, scored = generate(task.generation, learner, data.test, training.scored)
        state.metrics |= check_finite(scored.metrics)
        state.written = GeneratedTexts(texts=texts, signatures=scored.signatures)
    if experiment.quantizations:
        few = _scores_in_few_bits(task, data, learner, experiment)
        # The model itself did not diverge; a form in which it has no score is left out, and the
        # report shows none for the arm.
        state.metrics |= {name: each for name, each in few.items() if abs(each) <= LARGEST_SCORE}
    state.set_compile_time(learner.compile_s)


def _scores_in_few_bits(
    task: Task, data: Data, learner: Learner, experiment: Experiment
) -> dict[str, float]:
    assert isinstance(learner, QuantizedLearner), "an experiment with quantizations is torch's"
    items = min(QUANTIZED_ITEMS, experiment.training.scored or QUANTIZED_ITEMS)
    forms: dict[str, Callable[[Batch], Predictions]] = {PLAIN: learner.predict}
    for text in experiment.quantizations:
        forms[text] = partial(learner.predict_quantized, how=parse_quantization(text))
    return {
        in_few_bits(name, text): value
        for text, predict in forms.items()
        for name, value in task.score(_predictions(task, predict, data.test, items)).items()
    }


def learning_rate(training: Training, step: int) -> float:
    """The learning rate of `step`, counted from 1: linear warm-up, then a half cosine.

    The last step has `final_learning_rate`: with 0, the default, it changes no weight, so that a
    training of N steps has N - 1 updates.
    """
    if step <= training.warmup:
        return training.learning_rate * step / training.warmup
    progress = (step - training.warmup) / max(1, training.steps - training.warmup)
    fall = training.learning_rate - training.final_learning_rate
    return training.final_learning_rate + fall * (1 + math.cos(math.pi * progress)) / 2


def batch_indices(
    items: int, training: Training, seed: int, after: int = 0
) -> Iterator[Int[np.ndarray, " batch"]]:
    """The item indices of each batch, endlessly, from the batch after the first `after` ones.

    Each epoch has all items once, in its own order, which depends on the seed only: all arms of a
    study see the same batches, and any batch can be computed without those before it.
    """
    epoch, passed = divmod(after * training.batch, items)
    remaining = _order(items, seed, epoch)[passed:]
    while True:
        while len(remaining) < training.batch:
            epoch += 1
            remaining = np.concatenate([remaining, _order(items, seed, epoch)])
        yield remaining[: training.batch]
        remaining = remaining[training.batch :]


def score(task: Task, learner: Learner, split: Split, items: int | None) -> dict[str, float]:
    """The task's metrics on a split, or on its first `items`."""
    return check_finite(task.score(predict(task, learner, split, items)))


def predict(task: Task, learner: Learner, split: Split, items: int | None) -> Predictions:
    """The model's predictions for a split, or for its first `items`."""
    return _predictions(task, learner.predict, split, items)


def _predictions(
    task: Task, predict: Callable[[Batch], Predictions], split: Split, items: int | None
) -> Predictions:
    count = len(split) if items is None else min(items, len(split))
    # A contrastive model compares all items with each other, so they are one batch.
    size = count if task.model.contrastive else max(1, SCORED_AT_ONCE // task.tokens)
    parts = [
        predict(split.batch(np.arange(first, min(first + size, count))))
        for first in range(0, count, size)
    ]
    return Predictions(
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.predicted for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.ranks for part in parts]),
    )


def generate(
    evaluation: GenerationEval, learner: Learner, split: Split, items: int | None
) -> tuple[list[str], Scored]:
    """The texts that the model generates for a split, or its first `items`, and their scores."""
    count = len(split) if items is None else min(items, len(split))
    size = max(1, SCORED_AT_ONCE // (evaluation.search.longest * evaluation.search.beams))
    sequences = [
        tokens
        for first in range(0, count, size)
        for tokens in learner.write(
            split.batch(np.arange(first, min(first + size, count))), evaluation.search
        )
    ]
    texts = evaluation.decode(sequences)
    return texts, evaluation.score(texts, evaluation.references()[:count])


def check_finite(metrics: dict[str, float]) -> dict[str, float]:
    """The same metrics; DivergedError if one is not finite, or larger than a record holds."""
    if not all(abs(value) <= LARGEST_SCORE for value in metrics.values()):
        raise DivergedError(f"The scores are not finite: {metrics}.")
    return metrics


def _order(items: int, seed: int, epoch: int) -> Int[np.ndarray, " items"]:
    return generator(seed, "order", f"epoch {epoch}").permutation(items)


def _solved(task: Task, metrics: dict[str, float]) -> bool:
    metric = task.metric
    if metric.solved is None:
        return False
    return reaches(metrics[metric.name], metric.solved, better=metric.better)
