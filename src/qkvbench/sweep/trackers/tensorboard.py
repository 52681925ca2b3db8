"""TensorBoard: a folder of event files for each run; `tensorboard --logdir` shows them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class Tracker:
    """Event files below a folder."""

    def __init__(self, folder: Path, _study: str) -> None:
        self.folder = folder

    def curve(self, name: str, config: dict[str, str | int | float]) -> "Curve":
        """A folder for this run."""
        from torch.utils.tensorboard.writer import SummaryWriter

        # An equation may contain a slash.
        writer = SummaryWriter(self.folder / f"{config['task']}-{config['id']}".replace("/", "_"))
        writer.add_text("run", f"{name}\n\n{json.dumps(config, indent=1)}")
        return Curve(writer)


class Curve:
    """An event file."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, values: dict[str, float], step: int) -> None:
        """A scalar for each value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, status: str) -> None:
        """Close the file."""
        self.writer.add_text("status", status)
        self.writer.close()


def missing_requirement() -> str | None:
    """The package that is missing, and what installs it; None if it is there."""
    if find_spec("tensorboard") is None:
        return "--track tensorboard needs TensorBoard: ./qkv setup tensorboard"
    return None
