"""Weights & Biases, offline unless WANDB_MODE is set; `wandb sync` uploads it later."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Tracker:
    """Runs of one group."""

    def __init__(self, folder: Path, study: str) -> None:
        self.folder, self.study = folder, study

    def curve(self, name: str, config: dict[str, str | int | float]) -> "Curve":
        """A new run, beside those in progress."""
        import wandb

        run = wandb.init(
            project="qkvbench",
            group=self.study,
            name=name,
            config=config,
            dir=self.folder,
            # Nothing is uploaded unless a person requests it.
            mode=None if "WANDB_MODE" in os.environ else "offline",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False
            ),
        )
        # Scores of earlier steps come after later losses, so the step is a metric of its own.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return Curve(run)


class Curve:
    """A run of wandb."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the values and their step."""
        self.run.log({**values, "step": step})

    def end(self, status: str) -> None:
        """Finish the run, as failed if it is not done."""
        self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status == "done" else 1)


def missing_requirement() -> str | None:
    """The package that is missing, and what installs it; None if it is there."""
    if find_spec("wandb") is None:
        return "--track wandb needs wandb: ./qkv setup wandb"
    return None
