"""Devices by name: one TOML file for each, in which every figure says where it is from.

The file of a device of one's own works as well; `qkvbench doctor --calibrate FILE` writes that of
this machine, with what was measured on it. Data sheets give what no program exceeds.
"""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Arithmetic = Literal["fp32", "bf16", "fp16", "int8"]
ARITHMETIC: tuple[Arithmetic, ...] = get_args(Arithmetic)

# Times a stated limit that a measured rate may be: a kernel's instruction may multiply more numbers
# than those that the limit was measured with, and a last cache may be larger than the system says.
MOST_OPERATIONS, MOST_BYTES = 4, 8

Source = Annotated[str, Field(min_length=8)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MemorySize(_Record):
    """Bytes for weights, caches and everything else; `source` says who states it."""

    value: Annotated[float, Field(ge=16e3, le=1e14)]
    source: Source


class Bandwidth(_Record):
    """Bytes per second that are read from memory."""

    value: Annotated[float, Field(ge=1e6, le=1e15)]
    source: Source


class Rate(_Record):
    """Operations per second of dense matrix products, two for each multiply-accumulate."""

    value: Annotated[float, Field(ge=1e6, le=1e17)]
    source: Source


class Power(_Record):
    """Watts of the whole device under load."""

    value: Annotated[float, Field(ge=1e-3, le=1e4)]
    source: Source


class Price(_Record):
    """Dollars for an hour, from the cheapest to the dearest offer of a date."""

    low: Annotated[float, Field(ge=0, le=1e4)]
    high: Annotated[float, Field(ge=0, le=1e4)]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
    source: Source

    @model_validator(mode="after")
    def _ordered(self) -> "Price":
        if self.low > self.high:
            raise ValueError("the lower price is above the higher one")
        return self


class Read(_Record):
    """Bytes per second at which a step reads `working_set_bytes` of weights."""

    working_set_bytes: Annotated[float, Field(ge=1e3, le=1e12)]
    bytes_per_s: Annotated[float, Field(ge=1e6, le=1e15)]


class Calibration(_Record):
    """Rates that programs of this bench reach on one machine, for `threads` of its processor.

    ``step_s`` and ``layer_s`` are what a decode step takes beside reading and arithmetic, in all
    and for each layer. ``reads`` are of weights by their type and by the size of all of them,
    ``step_product_flops_per_s`` of their products with up to ``step_sequences``. Cached rows, by
    type, are read at ``cache_bytes_per_s`` if a head reads each, at ``row_flops_per_s`` if many do,
    and at ``unfused_flops_per_s`` if a plan has another feature than ``kernel_features``.
    ``product_flops_per_s`` is of the matrix products of whole sequences, ``attention_flops_per_s``
    of a causal pass over one, of half of its scores.
    """

    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    threads: Annotated[int, Field(ge=1)]
    step_s: Annotated[float, Field(ge=0, le=10)]
    layer_s: Annotated[float, Field(ge=0, le=10)]
    reads: dict[str, Annotated[tuple[Read, ...], Field(min_length=1)]]
    step_product_flops_per_s: dict[Arithmetic, Annotated[float, Field(ge=1e6, le=1e17)]]
    step_sequences: Annotated[int, Field(ge=1)]
    cache_bytes_per_s: dict[str, Annotated[float, Field(ge=1e6, le=1e15)]]
    row_flops_per_s: dict[str, Annotated[float, Field(ge=1e6, le=1e17)]]
    unfused_flops_per_s: dict[str, Annotated[float, Field(ge=1e6, le=1e17)]]
    kernel_features: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_.]+$")], ...] = ()
    product_flops_per_s: dict[Arithmetic, Annotated[float, Field(ge=1e6, le=1e17)]]
    attention_flops_per_s: dict[Arithmetic, Annotated[float, Field(ge=1e6, le=1e17)]]


class Device(_Record):
    """One device: what its maker states, what it costs, and what was measured if anything was.

    ``on_chip_bytes`` is what it keeps beside the arithmetic, such as the last cache: a working set
    within it may be read faster than memory, so memory does not bound it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    about: Annotated[str, Field(min_length=4)]
    memory_bytes: MemorySize
    bandwidth_bytes_per_s: Bandwidth
    on_chip_bytes: MemorySize | None = None
    flops_per_s: Annotated[dict[Arithmetic, Rate], Field(min_length=1)]
    watts: Power | None = None
    dollars_per_hour: Price | None = None
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _plausible(self) -> "Device":
        """Refuse figures that contradict each other; units are what is mistaken most."""
        rates = {name: rate.value for name, rate in self.flops_per_s.items()}
        for narrow in ("bf16", "fp16", "int8"):
            if "fp32" in rates and rates.get(narrow, rates["fp32"]) < rates["fp32"]:
                raise ValueError(f"flops_per_s.{narrow} is below flops_per_s.fp32")
        balance = max(rates.values()) / self.bandwidth_bytes_per_s.value
        if not 0.1 <= balance <= 5000:
            raise ValueError(
                f"{balance:.3g} operations for each byte that memory delivers; devices have 1 to "
                "1,000: is a unit wrong? bandwidth_bytes_per_s is in bytes, flops_per_s counts 1"
            )
        if self.on_chip_bytes and self.on_chip_bytes.value > self.memory_bytes.value:
            raise ValueError("on_chip_bytes is more than memory_bytes")
        if self.calibration:
            self._check_operations(self.calibration)
            self._check_bytes(self.calibration)
        return self

    def _check_operations(self, calibration: Calibration) -> None:
        """Refuse measured rates of operations that the device cannot have."""
        limits: dict[str, float] = {name: rate.value for name, rate in self.flops_per_s.items()}
        fastest = max(limits.values())
        for field in (
            "step_product_flops_per_s",
            "row_flops_per_s",
            "unfused_flops_per_s",
            "product_flops_per_s",
            "attention_flops_per_s",
        ):
            rates: dict[str, float] = getattr(calibration, field)
            for name, rate in rates.items():
                if rate > MOST_OPERATIONS * (limit := limits.get(name, fastest)):
                    raise ValueError(
                        f"calibration.{field}.{name} is {rate / limit:.3g} times flops_per_s"
                    )

    def _check_bytes(self, calibration: Calibration) -> None:
        """Refuse measured rates of reading that its memory cannot have."""
        limit = self.bandwidth_bytes_per_s.value
        on_chip = self.on_chip_bytes.value if self.on_chip_bytes else 0
        measured = [
            (f"cache_bytes_per_s.{name}", rate)
            for name, rate in calibration.cache_bytes_per_s.items()
        ] + [
            (f"reads.{name}", read.bytes_per_s)
            for name, reads in calibration.reads.items()
            for read in reads
            if read.working_set_bytes > on_chip
        ]
        for field, rate in measured:
            if rate > MOST_BYTES * limit:
                raise ValueError(
                    f"calibration.{field} is {rate / limit:.3g} times bandwidth_bytes_per_s"
                )


class UnknownDeviceError(ValueError):
    """No device has this name, or its file is refused; the message says what to write."""


def names() -> list[str]:
    """The devices that come with the bench."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def find(name: str) -> Device:
    """The device with this name, or of this file; UnknownDeviceError if it is none."""
    if name in names():
        return _read(Path(__file__).parent / f"{name}.toml")
    if name.endswith(".toml"):
        return _read(Path(name))
    near = get_close_matches(name, names(), n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise UnknownDeviceError(
        f"No device is named '{name[:40]}'. {meant}There are {', '.join(names())}.\n"
        "The record of another one is a file NAME.toml with the same fields; "
        "'qkvbench doctor --calibrate NAME.toml' writes that of this machine."
    )


def _read(path: Path) -> Device:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UnknownDeviceError(f"{path} cannot be read as a device: {error}.") from None
    return parse(path.stem, content)


def parse(name: str, content: Mapping[str, object]) -> Device:
    """The device of these fields; UnknownDeviceError names a field that is missing or absurd."""
    try:
        return Device.model_validate({"name": name, **content})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        raise UnknownDeviceError(
            f"The device {name} is refused: {place}: {first['msg'].removeprefix('Value error, ')}."
        ) from None
