"""MLflow, in a folder of files or on the server MLFLOW_TRACKING_URI; `mlflow ui` shows it."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Tracker:
    """Runs of one experiment of MLflow's."""

    def __init__(self, folder: Path, study: str) -> None:
        # MLflow requires this opt-in to use files without a database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        where = os.environ.get("MLFLOW_TRACKING_URI") or folder.absolute().as_uri()
        self.client = MlflowClient(tracking_uri=where)
        found = self.client.get_experiment_by_name(study)
        self.experiment = found.experiment_id if found else self.client.create_experiment(study)

    def curve(self, name: str, config: dict[str, str | int | float]) -> "Curve":
        """A run of this experiment."""
        run = self.client.create_run(self.experiment, run_name=name)
        for key, value in config.items():
            self.client.log_param(run.info.run_id, key, value)
        return Curve(self.client, run.info.run_id)


class Curve:
    """A run of MLflow's."""

    def __init__(self, client: Any, run: str) -> None:
        self.client, self.run = client, run

    def log(self, values: dict[str, float], step: int) -> None:
        """A metric for each value."""
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def end(self, status: str) -> None:
        """Terminate the run, as failed if it is not done."""
        self.client.set_tag(self.run, "status", status)
        self.client.set_terminated(self.run, "FINISHED" if status == "done" else "FAILED")


def missing_requirement() -> str | None:
    """The package that is missing, and what installs it; None if it is there."""
    if find_spec("mlflow") is None:
        return "--track mlflow needs MLflow: ./qkv setup mlflow"
    return None
