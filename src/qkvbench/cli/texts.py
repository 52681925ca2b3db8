"""`qkvbench texts`: generated texts as files for any scorer, one text per line."""

import shlex
from pathlib import Path

from qkvbench import tasks
from qkvbench.cli.parser import Request, RequestError
from qkvbench.data.cache import DataRefusedError, DataUnavailableError
from qkvbench.reports.parts.formatting import printable
from qkvbench.results.record import Record
from qkvbench.results.store import Store, StoreError


def answer(request: Request) -> int:
    """Write the files, and print for each run its scores and the command that scores its file."""
    try:
        runs = [run for run in Store(request.folder).runs().good if run.written is not None]
    except StoreError as error:
        raise RequestError(str(error)) from None
    if not runs:
        raise RequestError(
            f"No run in {request.folder} has generated texts; "
            "runs of 'qkvbench run --tasks translation' have."
        )
    folder = Path(request.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task in dict.fromkeys(run.task for run in runs):
            _write_task(folder, task, [run for run in runs if run.task == task])
    except (OSError, StoreError) as error:
        raise RequestError(f"{folder} cannot be written: {error}") from None
    return 0


def _write_task(folder: Path, name: str, runs: list[Record]) -> None:
    """The files of one task: the sources, the references, and the texts of each run."""
    sources, references = _data(name, runs)
    for run in runs:
        assert run.written is not None
        count = len(run.written.texts)
        # The name of a task is not trusted: no file may be outside of the folder.
        stem = f"{printable(name).replace('/', '_')}.{count}"
        _write_lines(folder / f"{stem}.given.txt", sources[:count])
        reference = folder / f"{stem}.reference.txt"
        _write_lines(reference, references[:count])
        output = folder / f"{run.id}.txt"
        _write_lines(output, run.written.texts)
        scores = ", ".join(
            f"{score} {run.metrics[score]:.4f} ({printable(signature)})"
            for score, signature in run.written.signatures.items()
        )
        print(f"{printable(run.arm)}, seed {run.seed}: {scores}")
        words = [str(reference), "-i", str(output), "-m", *run.written.signatures, "-w", "4"]
        print(f"  sacrebleu {shlex.join(words)}")


def _data(name: str, runs: list[Record]) -> tuple[list[str], list[str]]:
    """The sources and references with which the runs were scored."""
    try:
        task = tasks.find(name)
        if task.generation is None:
            raise RequestError(f"The task {name} no longer generates texts.")
        identity = task.load().identity
    except KeyError:
        raise RequestError(f"The task '{printable(name)}' no longer exists.") from None
    except (DataRefusedError, DataUnavailableError) as error:
        raise RequestError(str(error)) from None
    if other := [run.id for run in runs if run.data_identity not in (None, identity)]:
        raise RequestError(
            f"The data of {name} are not those with which run {other[0]} was scored; "
            "use the code revision of its record."
        )
    return task.generation.sources(), task.generation.references()


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
