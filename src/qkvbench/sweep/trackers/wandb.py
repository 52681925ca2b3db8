"""Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync` sends it later."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Tracker:
    """Runs of one group."""

    def __init__(self, folder: Path, study: str) -> None:
        self.folder, self.study = folder, study

    def curve(self, name: str, config: dict[str, str | int | float]) -> "Curve":
        """A run beside those that are under way."""
        import wandb

        run = wandb.init(
            project="qkvbench",
            group=self.study,
            name=name,
            config=config,
            dir=self.folder,
            # Nothing leaves this machine unless somebody says so.
            mode=None if "WANDB_MODE" in os.environ else "offline",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False
            ),
        )
        # Scores of earlier steps come after later losses: the step is a value like others.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return Curve(run)


class Curve:
    """A run of wandb."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, values: dict[str, float], step: int) -> None:
        """The values, and the step that they belong to."""
        self.run.log({**values, "step": step})

    def end(self, status: str) -> None:
        """Finish the run, as failed where it is."""
        self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status == "done" else 1)


def missing_requirement() -> str | None:
    """The package that is missing, and what installs it; None if it is there."""
    if find_spec("wandb") is None:
        return "--track wandb needs wandb: ./qkv setup wandb"
    return None
