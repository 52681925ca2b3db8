"""Final weights of finished experiments, kept in the cache for the experiments that need them.

They are in a folder of the cache with the run's record, and not in a store, so that a store stays
small enough to be committed. Only weights that another experiment depends on are kept.
"""

from pathlib import Path

from qkvbench.backends import Learner
from qkvbench.data.cache import keep, lookup
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record

_WEIGHTS = "weights.safetensors"
_RECORD = "record.json"


class MissingWeightsError(Exception):
    """The final weights of an experiment are missing. The message says why."""


def folder_name(experiment: Experiment) -> str:
    """The name of the cache folder of an experiment's final weights."""
    return f"weights-{experiment.id}"


def kept_weights(experiment: Experiment) -> Path | None:
    """The file of the final weights of `experiment`; None if it is missing or damaged."""
    folder = lookup(folder_name(experiment))
    return folder and folder / _WEIGHTS


def kept_record(experiment: Experiment) -> Record | None:
    """The record of the run whose weights are kept; None if they are missing or damaged."""
    folder = lookup(folder_name(experiment))
    return folder and Record.model_validate_json((folder / _RECORD).read_bytes())


def require_weights(experiment: Experiment) -> Path:
    """The file of the final weights; MissingWeightsError if it is missing or damaged."""
    path = kept_weights(experiment)
    if path is None:
        raise MissingWeightsError(
            f"It needs the weights of {run_text(experiment)} ({experiment.id}), which are not in "
            "the cache; that experiment must run first."
        )
    return path


def save_final_weights(experiment: Experiment, record: Record, learner: Learner) -> None:
    """Keep weights and record in the cache. DataUnavailableError if it cannot be written.

    The folder gets its name when it is complete, and is checked by hash when it is read.
    """

    def write(folder: Path) -> None:
        learner.save(folder / _WEIGHTS)
        (folder / _RECORD).write_text(record.model_dump_json(), encoding="utf-8")

    keep(folder_name(experiment), write)


def run_text(experiment: Experiment) -> str:
    """Task, arm and seed of a run, for messages."""
    arm = experiment.arm
    return f"{experiment.task}, {arm}, seed {experiment.seed}"
