"""Trackio, on this machine: `trackio show` shows it."""

import os
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Tracker:
    """Runs of one project."""

    def __init__(self, folder: Path, study: str) -> None:
        # Trackio reads this on import.
        os.environ.setdefault("TRACKIO_DIR", str(folder))
        self.study = study

    def curve(self, name: str, config: dict[str, str | int | float]) -> "Curve":
        """A run of Trackio."""
        import trackio  # pyright: ignore[reportMissingImports]

        # stdout is for results only.
        with redirect_stdout(sys.stderr):
            run = trackio.init(project=self.study, name=f"{name} {config['id']}", config=config)
        return Curve(run)


class Curve:
    """A run of Trackio."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, values: dict[str, float], step: int) -> None:
        """The values after this step."""
        self.run.log(values, step=step)

    def end(self, status: str) -> None:
        """Finish the run; whether it is done is its last value."""
        self.run.log({"done": float(status == "done")})
        with redirect_stdout(sys.stderr):
            self.run.finish()


def missing_requirement() -> str | None:
    """The package that is missing, and what installs it; None if it is there."""
    if find_spec("trackio") is None:
        return "--track trackio needs Trackio: ./qkv setup trackio"
    return None
