"""The weights that a finished experiment left, kept in the cache for what begins with them.

They lie beside the run's record in a folder of the cache and not in a store, which so stays small
enough to be committed. Only experiments that something begins with are kept.
"""

from pathlib import Path

from qkvbench.backends import Learner
from qkvbench.data.cache import keep, lookup
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record

_WEIGHTS = "weights.safetensors"
_RECORD = "record.json"


class NoStartError(Exception):
    """An experiment that another begins with left no weights. The message says why."""


def folder_name(experiment: Experiment) -> str:
    """What the kept end of an experiment is called in the cache."""
    return f"weights-{experiment.id}"


def kept_weights(experiment: Experiment) -> Path | None:
    """The file of the weights that `experiment` ended with; None where none is kept whole."""
    folder = lookup(folder_name(experiment))
    return folder and folder / _WEIGHTS


def kept_record(experiment: Experiment) -> Record | None:
    """The record of the run whose weights are kept; None where none are kept whole."""
    folder = lookup(folder_name(experiment))
    return folder and Record.model_validate_json((folder / _RECORD).read_bytes())


def keep_end(experiment: Experiment, record: Record, learner: Learner) -> None:
    """Keep what a run has come to. Raises DataUnavailableError where the cache cannot be written.

    All is written before the folder has its name, and checked by hash whenever it is read.
    """

    def make(folder: Path) -> None:
        learner.save(folder / _WEIGHTS)
        (folder / _RECORD).write_text(record.model_dump_json())

    keep(folder_name(experiment), make)
