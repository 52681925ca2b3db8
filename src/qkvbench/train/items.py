"""The score of each item of the test split, whose weighted mean is the score of the run."""

import numpy as np

from qkvbench.data.batch import IGNORE_INDEX, Predictions
from qkvbench.results.items import ItemScores
from qkvbench.tasks import Task

# Items and the whole are summed in different order and stored in fp32.
TOLERANCE = 1e-4


def item_scores(task: Task, predictions: Predictions) -> ItemScores | None:
    """The task's metric of each item; None if the metric is not a mean over positions.

    The scores of generated texts are not. Items without a scored position are left out: they do not
    contribute to the metric either.
    """
    positions = (predictions.targets != IGNORE_INDEX).sum(axis=1)
    scored = np.flatnonzero(positions)
    name = task.metric.name
    if not len(scored) or name not in task.score(predictions):
        return None
    single = [
        task.score(
            Predictions(
                predictions.loss[item : item + 1],
                predictions.predicted[item : item + 1],
                predictions.targets[item : item + 1],
                predictions.ranks[item : item + 1],
            )
        )[name]
        for item in scored
    ]
    values, weights = np.array(single, np.float64), positions[scored].astype(np.float64)
    whole = task.score(predictions)[name]
    mean = float(values @ weights / weights.sum())
    if not abs(mean - whole) <= TOLERANCE * max(1.0, abs(whole)):
        return None
    return ItemScores.from_scores(values, weights)
