"""The training loop, on one page: batches in keyed order, a schedule, scores on the way."""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

from qkvbench.backends import Learner
from qkvbench.data.batch import Predictions, Split
from qkvbench.experiment import Experiment, Training
from qkvbench.model.rng import generator
from qkvbench.results.record import Point, Written
from qkvbench.results.stats import reaches
from qkvbench.tasks import Data, GenerationEval, Scored, Task
from qkvbench.train.analyses import analysed_batch, analysed_steps, snapshot
from qkvbench.train.items import item_scores
from qkvbench.train.trained import Trained

# Tokens scored at a time: few enough that logits stay in a processor's cache.
SCORED_AT_ONCE = 4096


class DivergedError(Exception):
    """The loss, its gradient or a score is no finite number; the weights are the last healthy."""


def _go_on() -> None:
    """Neither keep nor stop anything."""


def train(
    experiment: Experiment,
    task: Task,
    data: Data,
    learner: Learner,
    report: Callable[[int, float], None],
    trained: Trained,
    reached: Callable[[], None] = _go_on,
) -> None:
    """Train from the step that `trained` has come to up to the last, filling it on the way.

    `report` hears of every step and its loss; `reached` is called when a step is over with all that
    belongs to it. Raises DivergedError before a step that would spoil the weights; what `trained`
    holds by then stays.
    """
    training = experiment.training
    first = next(batch_indices(len(data.train), training, experiment.seed))
    learner.warm_up(data.train.batch(first))
    trained.has_compiled(learner.compile_s)
    batches = batch_indices(len(data.train), training, experiment.seed, after=trained.step)
    scored_at = {
        round(training.steps * (n + 1) / training.evaluations) for n in range(training.evaluations)
    }
    analysed, looked_at = analysed_steps(training), analysed_batch(task, data)
    if not trained.step:
        trained.snapshots.append(snapshot(0, learner, looked_at))
    for step in range(trained.step + 1, training.steps + 1):
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
        # A batch of a shape of its own may have been compiled for; that is no step's time.
        compiled_s = (learner.compile_s or 0.0) - compiled_s
        trained.step_s.append(time.perf_counter() - began - compiled_s)
        trained.has_compiled(learner.compile_s)
        trained.step = step
        report(step, loss)
        if step in scored_at:
            metrics = score(task, learner, data.validation, training.scored)
            trained.curve.append(
                Point(step=step, train_loss=loss, gradient_norm=norm, metrics=metrics)
            )
            if trained.solved_step is None and _solved(task, metrics):
                trained.solved_step = step
        if step in analysed:
            trained.snapshots.append(snapshot(step, learner, looked_at))
        reached()


def tested(task: Task, data: Data, learner: Learner, training: Training, trained: Trained) -> None:
    """Score the test split, and what the model writes for it where the task asks for texts."""
    said = outcome(task, learner, data.test, training.scored)
    trained.metrics = finite(task.score(said))
    trained.items = item_scores(task, said)
    if task.generation is not None:
        texts, scored = written(task.generation, learner, data.test, training.scored)
        trained.metrics |= finite(scored.metrics)
        trained.written = Written(texts=texts, signatures=scored.signatures)
    trained.has_compiled(learner.compile_s)


def learning_rate(training: Training, step: int) -> float:
    """The learning rate of `step`, counted from 1: linear warm-up, then a half cosine."""
    if step <= training.warmup:
        return training.learning_rate * step / training.warmup
    progress = (step - training.warmup) / max(1, training.steps - training.warmup)
    fall = training.learning_rate - training.final_learning_rate
    return training.final_learning_rate + fall * (1 + math.cos(math.pi * progress)) / 2


def batch_indices(
    items: int, training: Training, seed: int, after: int = 0
) -> Iterator[Int[np.ndarray, " batch"]]:
    """The items of each batch that comes after so many, for ever.

    Every epoch has all items once, in an order of its own that depends on the seed alone, so all
    arms of a study see the same batches, and any of them is found without those before it.
    """
    epoch, passed = divmod(after * training.batch, items)
    left = _order(items, seed, epoch)[passed:]
    while True:
        while len(left) < training.batch:
            epoch += 1
            left = np.concatenate([left, _order(items, seed, epoch)])
        yield left[: training.batch]
        left = left[training.batch :]


def score(task: Task, learner: Learner, split: Split, items: int | None) -> dict[str, float]:
    """The task's metrics on a split, or on its first `items`."""
    return finite(task.score(outcome(task, learner, split, items)))


def outcome(task: Task, learner: Learner, split: Split, items: int | None) -> Predictions:
    """What the model says of a split, or of its first `items`."""
    count = len(split) if items is None else min(items, len(split))
    # Where items are told from each other, all of them are.
    size = count if task.model.contrastive else max(1, SCORED_AT_ONCE // task.tokens)
    parts = [
        learner.predict(split.batch(np.arange(first, min(first + size, count))))
        for first in range(0, count, size)
    ]
    return Predictions(
        np.concatenate([part.loss for part in parts]),
        np.concatenate([part.predicted for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.ranks for part in parts]),
    )


def written(
    writing: GenerationEval, learner: Learner, split: Split, items: int | None
) -> tuple[list[str], Scored]:
    """What the model writes for a split, or for its first `items`, and what that scores."""
    count = len(split) if items is None else min(items, len(split))
    size = max(1, SCORED_AT_ONCE // (writing.search.longest * writing.search.beams))
    found = [
        tokens
        for first in range(0, count, size)
        for tokens in learner.write(
            split.batch(np.arange(first, min(first + size, count))), writing.search
        )
    ]
    texts = writing.decode(found)
    return texts, writing.score(texts, writing.references()[:count])


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """The same metrics; DivergedError where one is no finite number."""
    if not all(map(math.isfinite, metrics.values())):
        raise DivergedError(f"The scores are no finite numbers: {metrics}.")
    return metrics


def _order(items: int, seed: int, epoch: int) -> Int[np.ndarray, " items"]:
    return generator(seed, "order", f"epoch {epoch}").permutation(items)


def _solved(task: Task, metrics: dict[str, float]) -> bool:
    metric = task.metric
    if metric.solved is None:
        return False
    return reaches(metrics[metric.name], metric.solved, better=metric.better)
