"""The loss of a trained model with other attention in some of its layers, before it heals."""

from collections.abc import Sequence
from dataclasses import replace

from qkvbench.backends import find
from qkvbench.experiment import Experiment
from qkvbench.model import Cycle, with_layers
from qkvbench.tasks import find as find_task
from qkvbench.train.dependencies import ensure_trained
from qkvbench.train.loop import score


def losses_of_plans(trained: Experiment, plans: Sequence[Cycle]) -> list[float]:
    """The validation loss in nats of the trained model with each of these plans."""
    task, backend = find_task(trained.task), find(trained.backend)
    backend.prepare(trained.threads)
    weights, data = ensure_trained(trained), task.load()
    found = []
    for plan in plans:
        changed = replace(
            trained,
            model=with_layers(trained.model, plan),
            init_from=trained,
            other_attention=True,
        )
        learner = backend.Learner(changed)
        learner.load_matching(weights)
        found.append(score(task, learner, data.validation, trained.training.scored)["loss"])
    return found
