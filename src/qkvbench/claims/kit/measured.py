"""Times and other quantities that `measure` and the benchmarks found, for each arm against another.

A benchmark writes its findings to `studies/benchmarks/NAME.json`; the ledger reads that folder as
it reads a store.
"""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from qkvbench.model import parse_label
from qkvbench.results.record import Machine, Measurement, Ratio
from qkvbench.results.store import StoreError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MeasuredChange(_Strict):
    """The change of a quantity from the arm ``against`` to ``arm``, in percent.

    ``low`` and ``high`` bound it at 95%; None if the samples were too few. ``setting`` gives
    lengths and the device.
    """

    quantity: str
    model: str
    arm: str
    against: str
    setting: str
    percent: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, ratio: Ratio, *, quantity: str, model: str, arm: str, setting: str) -> Self:
        """The change that a ratio of the arm's time to another's is."""
        low, high = (None if end is None else 100 * (end - 1) for end in (ratio.low, ratio.high))
        return cls(
            quantity=quantity,
            model=model,
            arm=arm,
            against=ratio.to,
            setting=setting,
            percent=100 * (ratio.value - 1),
            low=low,
            high=high,
        )

    @property
    def text(self) -> str:
        """Arm and change, with its interval."""
        interval = (
            ""
            if self.low is None or self.high is None
            else f" ({_signed(self.low)} to {_signed(self.high)})"
        )
        return f"`{self.arm}` {_signed(self.percent)}%{interval}"


class Benchmark(_Strict):
    """All that one benchmark found on one machine; ``command`` repeats it."""

    schema_version: Literal[1] = 1
    benchmark: str
    command: str
    day: date
    machine: Machine
    found: tuple[MeasuredChange, ...]

    def write(self, folder: Path) -> Path:
        """Write the file of this benchmark into the folder of all benchmarks."""
        path = folder / f"{self.benchmark}.json"
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path


def read_benchmarks(folder: Path) -> tuple[Benchmark, ...]:
    """The benchmarks in this folder, by name; StoreError if a file of one is damaged."""
    return tuple(each for path in sorted(folder.glob("*.json")) for each in _read(path))


def changes(measurement: Measurement) -> Iterator[MeasuredChange]:
    """The times of a measured arm beside another's, one change for each kind of work."""
    for kind, timing in measurement.timings.items():
        if timing.ratio is not None:
            yield MeasuredChange.of(
                timing.ratio,
                quantity=f"time of a {kind}",
                model=parse_label(measurement.model)[0],
                arm=measurement.arm,
                setting=f"{measurement.context:,} tokens, batch {measurement.batch}, "
                f"{measurement.machine.device}",
            )


def _read(path: Path) -> Iterator[Benchmark]:
    """The benchmark in this file, if it is the file of one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(content, dict) and "benchmark" in content:
        try:
            yield Benchmark.model_validate(content)
        except ValidationError as error:
            raise StoreError(f"{path} is no record of a benchmark:\n{error}") from None


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
