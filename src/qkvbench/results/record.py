"""The record of one run: what was run, on what, and what came out. Strict JSON, no NaN."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from qkvbench.model import parse_label, sized_text
from qkvbench.results.items import ItemScores

SCHEMA_VERSION = 1

Status = Literal["done", "failed", "diverged", "oom", "killed", "interrupted"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class MetricInfo(_Strict):
    """What a task is judged by, copied into the record so that a store explains itself."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    chance: float
    solved: float | None


class Point(_Strict):
    """One place on a learning curve; `metrics` are on the validation split."""

    step: int
    train_loss: float
    gradient_norm: float
    metrics: dict[str, float]


class Snapshot(_Strict):
    """A look into the attention layers after `step`, on the first items of the validation split.

    Each measure has a value for each of `layers`; None where it does not apply.
    """

    step: int
    layers: list[str]
    measures: dict[str, list[float | None]]


class Written(_Strict):
    """What the model wrote for the first items of the test split, in their order.

    For each score of texts there is a signature: what exactly was computed.
    """

    texts: list[str]
    signatures: dict[str, str]


class Cost(_Strict):
    """Computed from the plan, never observed. MACs and FLOPs are of one forward of `tokens`.

    ``cache_bytes_per_token`` is at 2 bytes a value, all layers; None where there is no cache.
    """

    parameters: dict[str, int]
    tokens: int
    macs: int
    flops: int
    cache_bytes_per_token: int | None

    @property
    def total_parameters(self) -> int:
        """All learned numbers: the sum of the parts."""
        return sum(count for part, count in self.parameters.items() if part != "total")


class Observed(_Strict):
    """Observed on the machine: times and memory.

    ``compile_s`` is the time to compile, which is in no step's time and not in ``train_s``; None
    where nothing was compiled. ``resumed`` are the steps after which another process went on from a
    checkpoint: times are those of all of them, memory is the last one's, and the first process's
    where several learn together. ``other_devices`` says on which it was under way before, where on
    others than its experiment's: its bits are then not those of a run from beginning to end.
    ``together`` is how many runs were trained in one program, whose times and memory these then
    are; None is this one alone.
    """

    train_s: float
    step_p50_s: float
    peak_memory_bytes: int
    compile_s: float | None = None
    resumed: list[int] = []
    together: int | None = None
    other_devices: list[str] = []


class Machine(_Strict):
    """Where a record was made."""

    device: str
    cores: int
    load: float
    platform: str
    versions: dict[str, str]
    code: str


class Record(_Strict):
    """One run. `experiment` is complete: it runs again.

    `solved_step` is the first evaluation that reached `metric.solved`, on the validation split.
    ``items`` is the score item by item, where the metric is a mean over what is scored; None for
    other metrics and for records made before it was kept. ``written`` is None where the task asks
    for no texts.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    status: Status
    reason: str | None = None
    experiment: dict[str, Any]
    variant: str
    model: str
    task: str
    task_version: int
    seed: int
    backend: str
    precision: str
    threads: int
    metric: MetricInfo
    data_identity: str | None = None
    metrics: dict[str, float] = {}
    solved_step: int | None = None
    items: ItemScores | None = None
    written: Written | None = None
    curve: list[Point] = []
    snapshots: list[Snapshot] = []
    cost: Cost
    observed: Observed | None = None
    machine: Machine
    started: str

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """A run that is done has its score, and the text of its model can be read."""
        parse_label(self.model)
        if self.status == "done" and self.metric.name not in self.metrics:
            raise ValueError(f"a run that is done needs its {self.metric.name} under metrics")
        return self

    @property
    def arm(self) -> str:
        """The arm of a study that was run: the variant, and the size that it is matched to."""
        return sized_text(self.variant, parse_label(self.model)[1])

    @property
    def score(self) -> float:
        """What the run is judged by; KeyError where it did not get that far."""
        return self.metrics[self.metric.name]


class Ratio(_Strict):
    """How many times as long an arm takes as the arm `to`, over interleaved rounds.

    The interval from `low` to `high` has at least this `level`; None with too few `blocks`.
    """

    to: str
    value: float
    low: float | None
    high: float | None
    level: float
    blocks: int


class Timing(_Strict):
    """One kind of work of one arm. `percentiles_s` has as many as the samples carry.

    ``interrupted`` steps, in which the system gave the processor to others, are no samples, unless
    they are more than half: then all steps are, by the time for which they had the processor
    (where one thread works; elsewhere with that of the others).
    ``memory_bytes`` is what model, cache and this work add to a process; None where not observed.
    ``kernel`` is what did attention in a step that was watched.
    """

    samples: int
    interrupted: int
    percentiles_s: dict[str, float]
    tokens_per_second: float
    ratio: Ratio | None
    memory_bytes: int | None
    kernel: str


class Surroundings(_Strict):
    """What went on around a measurement.

    ``load`` are the averages over 1, 5 and 15 minutes before it began; ``intra_op_threads`` share
    one operation, ``inter_op_threads`` run operations side by side; ``other_cores`` were kept busy
    by other processes while arms were timed, None where the system does not tell.
    """

    load: list[float]
    intra_op_threads: int
    inter_op_threads: int
    other_cores: float | None


class Measurement(_Strict):
    """One arm on the clock, observed with nothing else running and the arms interleaved.

    Each decode step attends over `context` cached tokens for `batch` sequences; `timings` has the
    other kinds of work beside it. `memory_bytes` is what model, cache and decoding add to the
    process; `cache_bytes` the cache's unique storage. None: not observed, or there is no cache.
    `cache` is the type of cached rows where that is not the precision's own.
    ``samples``, ``decode_p50_s`` and ``kernel`` are those of decoding, or of the first kind of work
    where the model does not decode.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    variant: str
    model: str
    model_spec: dict[str, Any]
    backend: str
    precision: str
    threads: int
    context: int
    batch: int
    samples: int
    decode_p50_s: float | None
    memory_bytes: int | None
    cache_bytes: int | None
    kernel: str
    machine: Machine
    cache: str | None = None
    timings: dict[str, Timing] = {}
    surroundings: Surroundings | None = None

    @property
    def arm(self) -> str:
        """The arm of a study that was measured."""
        return sized_text(self.variant, parse_label(self.model)[1])


class StudyInfo(_Strict):
    """What a store was made for: the arms in their order, the baseline first.

    ``seeds`` is the number of seeds of each task, counted from 0. ``runs`` and ``measurements`` are
    the ids that were asked for; where one is empty, all that fit these arms belong to the study.
    ``benchmarks`` says of each task what it is part of, by a name under which several are averaged.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    command: str
    variants: list[str]
    tasks: list[str]
    cost_task: str | None
    seeds: dict[str, int]
    threads: int
    precision: str
    backend: str
    runs: list[str] = []
    measurements: list[str] = []
    benchmarks: dict[str, str] = {}
