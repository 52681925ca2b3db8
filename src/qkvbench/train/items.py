"""The score of a run taken apart: what each item of the test split contributed."""

import numpy as np

from qkvbench.data.batch import IGNORE_INDEX, Predictions
from qkvbench.results.items import ItemScores
from qkvbench.tasks import Task

# Items and the whole are summed in different order and kept with 24 bits.
TOLERANCE = 1e-4


def item_scores(task: Task, outcome: Predictions) -> ItemScores | None:
    """Each item by the task's own metric; None where the metric is not the mean over the places.

    A score of written texts is none.

    An item without a scored place is left out: it contributes nothing to the metric either.
    """
    places = (outcome.targets != IGNORE_INDEX).sum(axis=1)
    scored = np.flatnonzero(places)
    name = task.metric.name
    if not len(scored) or name not in task.score(outcome):
        return None
    single = [
        task.score(
            Predictions(
                outcome.loss[item : item + 1],
                outcome.predicted[item : item + 1],
                outcome.targets[item : item + 1],
                outcome.ranks[item : item + 1],
            )
        )[name]
        for item in scored
    ]
    values, weights = np.array(single, np.float64), places[scored].astype(np.float64)
    whole = task.score(outcome)[name]
    mean = float(values @ weights / weights.sum())
    if not abs(mean - whole) <= TOLERANCE * max(1.0, abs(whole)):
        return None
    return ItemScores.from_scores(values, weights)
