"""`qkvbench train`: run one experiment from a file, in one process or under torchrun."""

import json
import sys
from pathlib import Path

from pydantic import ValidationError

from qkvbench import tasks
from qkvbench.backends import MultiDeviceBackend, find, multi_device_backend
from qkvbench.cli.parser import Request, RequestError
from qkvbench.data.cache import DataRefusedError, DataUnavailableError
from qkvbench.experiment import Experiment, from_json, to_json
from qkvbench.results.store import Store, StoreError


def answer(request: Request) -> int:
    """Run the experiment and write its record, unless it is done already."""
    experiment = read_experiment(Path(request.experiment))
    store = Store(Path(request.out))
    if store.done(experiment) is not None:
        print(f"{experiment.id} is done in {store.path}.")
        return 0
    try:
        return _run(experiment, store)
    except StoreError as error:
        raise RequestError(f"{error}\nGive another folder with --out DIR.") from None


def read_experiment(path: Path) -> Experiment:
    """The experiment in a file, or that of a record; RequestError if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise RequestError(
            f"{path} cannot be read as an experiment: {why}.\n"
            "'qkvbench run ... --files FOLDER' writes such files."
        ) from None
    try:
        found = from_json(content.get("experiment", content) if isinstance(content, dict) else None)
        tasks.find(found.task)
    except (DataRefusedError, DataUnavailableError) as error:
        raise RequestError(f"{path} cannot be run: {error}") from None
    except (ValueError, KeyError, RecursionError) as error:
        raise RequestError(
            f"{path} is not an experiment: {_why(error).rstrip('.')}.\n"
            "'qkvbench run ... --files FOLDER' writes such files."
        ) from None
    return found


def _why(error: Exception) -> str:
    """The first thing that is wrong with an experiment, and its place in the file."""
    if not isinstance(error, ValidationError):
        return str(error).strip("'\"")
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    return ": ".join([".".join(map(str, first["loc"])), message]) if first["loc"] else message


def write_files(experiments: tuple[Experiment, ...], folder: Path) -> None:
    """Write each experiment to a file; RequestError if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in experiments:
            text = json.dumps(to_json(each), indent=1) + "\n"
            (folder / f"{each.id}.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(
            f"{folder} cannot be written: {error.strerror}.\nGive another folder with --files."
        ) from None


def _run(experiment: Experiment, store: Store) -> int:
    # Imported after the request is checked, because the runner imports the backend.
    from qkvbench.train.checkpoint import Checkpoints
    from qkvbench.train.dependencies import run_with_dependencies

    rank = _process_rank(experiment)
    if rank == 0:
        # Training may take days, after which a record without a place would be lost.
        store.make_writable()
    checkpoints = Checkpoints(store.checkpoints)
    record = run_with_dependencies(experiment, checkpoints=checkpoints)
    if rank == 0:
        store.write_run(record)
        if record.status == "done":
            checkpoints.remove(experiment)
            print(f"{record.id}  {record.arm}  {record.metric.name} {record.score:.4g}")
    if record.status != "done":
        print(f"{record.id}  {record.arm}  {record.status}: {record.reason}", file=sys.stderr)
    return 0 if record.status == "done" else 1


def _process_rank(experiment: Experiment) -> int:
    """The rank of this process; RequestError if the number of processes does not fit."""
    devices = experiment.devices
    try:
        backend = (
            find(experiment.backend) if devices == 1 else multi_device_backend(experiment.backend)
        )
    except (ValueError, ImportError) as error:
        raise RequestError(f"{error}\nNothing was run.") from None
    if not isinstance(backend, MultiDeviceBackend):
        return 0
    rank, count = backend.rank_and_world_size()
    if count == 1 and (why := backend.multi_device_error(devices)):
        raise RequestError(f"{why}\nNothing was run.")
    if count not in (1, devices):
        raise RequestError(
            f"{experiment.id} needs {devices} devices, but {count} processes were started.\n"
            f"Nodes times --nproc-per-node must be {devices}; 'qkvbench run ... --devices {count} "
            f"--files FOLDER' writes an experiment for {count}."
        )
    return rank
