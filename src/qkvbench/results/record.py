"""The record of one run: its experiment, machine, scores and costs. Strict JSON, no NaN."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from qkvbench.experiment import Experiment, from_json
from qkvbench.model import arm_text, parse_label
from qkvbench.results.items import ItemScores

SCHEMA_VERSION = 1

# Statistics take fourth powers, which are finite up to here.
LARGEST_SCORE = 1e75

Status = Literal["done", "failed", "diverged", "oom", "killed", "interrupted"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class MetricInfo(_Strict):
    """The metric of a task, copied into the record so that a store is self-contained."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    chance: float
    solved: float | None


class Point(_Strict):
    """One point of a learning curve; `metrics` are on the validation split."""

    step: int
    train_loss: float
    gradient_norm: float
    metrics: dict[str, float]


class Snapshot(_Strict):
    """Measures of the attention layers after `step`, on the first items of the validation split.

    Each measure has a value for each of `layers`; None if it does not apply.
    """

    step: int
    layers: list[str]
    measures: dict[str, list[float | None]]


class GeneratedTexts(_Strict):
    """The texts that the model generated for the first items of the test split, in their order.

    ``signatures`` has sacreBLEU's signature of each score.
    """

    texts: list[str]
    signatures: dict[str, str]


class Cost(_Strict):
    """Computed from the plan, never observed. MACs and FLOPs are of one forward pass of `tokens`.

    ``cache_bytes_per_token`` is over all layers at 2 bytes a value; None if there is no cache.
    """

    parameters: dict[str, int]
    tokens: int
    macs: int
    flops: int
    cache_bytes_per_token: int | None

    @property
    def total_parameters(self) -> int:
        """All learned parameters: the sum of the parts."""
        return sum(count for part, count in self.parameters.items() if part != "total")


class Observed(_Strict):
    """Times and memory, observed on the machine.

    ``compile_s`` is the compilation time, which is in neither the step times nor ``train_s``; None
    if nothing was compiled. ``resumed`` has the steps at which the run was resumed from a
    checkpoint: times cover all processes, memory is that of the last one (of rank 0 if there are
    several devices). ``other_devices`` lists the devices of earlier parts of the run if they differ
    from its experiment's; its numbers then may differ in their last bits from an uninterrupted run.
    ``together`` is the number of runs that were trained in one program, to which times and memory
    then refer; None for one.
    """

    train_s: float
    step_p50_s: float
    peak_memory_bytes: int
    compile_s: float | None = None
    resumed: list[int] = []
    together: int | None = None
    other_devices: list[str] = []


class Machine(_Strict):
    """The machine, software and code revision of a record."""

    device: str
    cores: int
    load: float
    platform: str
    versions: dict[str, str]
    code: str


class Record(_Strict):
    """One run. `experiment` is complete, so that the run can be repeated.

    ``solved_step`` is the first evaluation that reached `metric.solved`, on the validation split.
    ``items`` has the score of each item if the metric is a mean over scored positions; None for
    other metrics and in old records. ``written`` is None if the task generates no texts.
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
    written: GeneratedTexts | None = None
    curve: list[Point] = []
    snapshots: list[Snapshot] = []
    cost: Cost
    observed: Observed | None = None
    machine: Machine
    started: str

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Refuse a run that is done without a score, or whose model's label cannot be read."""
        parse_label(self.model)
        if self.status == "done" and self.metric.name not in self.metrics:
            raise ValueError(f"a run that is done needs its {self.metric.name} under metrics")
        for values in (self.metrics, *(point.metrics for point in self.curve)):
            for name, value in values.items():
                self._check_score(name, value)
        return self

    def _check_score(self, name: str, value: float) -> None:
        share = self.metric.unit == "share" and name == self.metric.name
        low, high = (0.0, 1.0) if share else (-LARGEST_SCORE, LARGEST_SCORE)
        if not low <= value <= high:
            raise ValueError(f"its {name} is {value:g}, which is not from {low:g} to {high:g}")

    @cached_property
    def parsed_experiment(self) -> Experiment:
        """The experiment as a value; a ValueError if `experiment` is not one."""
        return from_json(self.experiment)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields replaced."""
        copied = super().model_copy(update=update, deep=deep)
        # Pydantic copies what is cached too, and the experiment may be among what is replaced.
        vars(copied).pop("parsed_experiment", None)
        return copied

    @property
    def arm(self) -> str:
        """The arm of a study that was run: the variant, and the size that it is matched to."""
        return arm_text(self.variant, self.model)

    @property
    def score(self) -> float:
        """The value of the run's metric; KeyError if it has none."""
        return self.metrics[self.metric.name]


class Ratio(_Strict):
    """The time of an arm divided by that of the arm `to`, over interleaved rounds.

    The interval from `low` to `high` has at least this `level`; None if there are too few `blocks`.
    """

    to: str
    value: float
    low: float | None
    high: float | None
    level: float
    blocks: int


class Timing(_Strict):
    """One workload of one arm. `percentiles_s` has the percentiles that the samples support.

    ``interrupted`` counts steps in which the system scheduled other processes; they are not samples
    unless they are more than half. In that case all steps are samples: by CPU time if one thread
    works, else by wall time.
    ``memory_bytes`` is the memory that model, cache and workload add to a process; None if not
    observed. ``kernel`` names the attention kernel of a profiled step.
    """

    samples: int
    interrupted: int
    percentiles_s: dict[str, float]
    tokens_per_second: float
    ratio: Ratio | None
    memory_bytes: int | None
    kernel: str


class Surroundings(_Strict):
    """The state of the machine during a measurement.

    ``load`` has the load averages over 1, 5 and 15 minutes before it began; ``other_cores`` is the
    mean number of cores used by other processes while arms were timed, None if the system does not
    report it.
    """

    load: list[float]
    intra_op_threads: int
    inter_op_threads: int
    other_cores: float | None


class Measurement(_Strict):
    """Timings and memory of one arm, observed with nothing else running and the arms interleaved.

    Each decode step attends over `context` cached tokens for `batch` sequences; `timings` has the
    other workloads. `memory_bytes` is the memory that model, cache and decoding add to the process;
    `cache_bytes` is the cache's unique storage. None: not observed, or there is no cache.
    `cache` is the dtype of cached rows if it is not that of the precision.
    ``samples``, ``decode_p50_s`` and ``kernel`` are of decoding, or of the first workload if the
    model does not decode.
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
        """The arm of a study that this is a measurement of."""
        return arm_text(self.variant, self.model)


class Tuning(_Strict):
    """The runs that tuned the learning rate of each arm on each task, and the chosen rates.

    A rate is a factor of the task's own. ``runs`` has ids by task and arm: for each of ``factors``
    one for each of ``seeds``. ``chosen`` is the factor by task and arm, once all its runs ended.
    ``taken_from`` names another study that chose them; None if this one did.
    """

    factors: list[float]
    seeds: list[int]
    runs: dict[str, dict[str, list[str]]]
    chosen: dict[str, dict[str, float]] = {}
    taken_from: str | None = None

    @property
    def ids(self) -> set[str]:
        """The ids of all tuning runs."""
        return {each for arms in self.runs.values() for ids in arms.values() for each in ids}


Expectation = Literal["worse", "better", "matches", "not worse"]


class Hypothesis(_Strict):
    """The verdict on ``arm`` against another arm that is expected on each of these tasks.

    ``margins`` has the margin on each task in the unit of its metric, or as a proportion of seeds;
    None if the unit has none. ``tests`` has the name of the test on each task.
    """

    arm: str
    against: str
    tasks: list[str]
    expect: Expectation
    margins: dict[str, float | None]
    tests: dict[str, str]


class Preregistration(_Strict):
    """A study's question and hypotheses, stored at the time ``registered``, before its first run.

    ``seeds`` is the number of seeds of each task. ``conditions`` has a hash of the arms, model and
    training of each task; ``sha256`` is that of the file that was registered.
    """

    question: str
    hypotheses: list[Hypothesis]
    arms: list[str]
    seeds: dict[str, int]
    conditions: dict[str, str]
    registered: str
    sha256: str


class StudyInfo(_Strict):
    """The study of a store: the arms in their order, the baseline first.

    ``seeds`` is the number of seeds of each task, counted from 0. ``runs`` and ``measurements`` are
    the ids of the study; if one is empty, all records of these arms belong to it.
    ``benchmarks`` maps each task to the benchmark under whose name it is averaged. ``tuning`` is
    None if all arms of a task have the task's own learning rate. ``preregistered`` is None if
    nothing was registered before the first run.
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
    tuning: Tuning | None = None
    preregistered: Preregistration | None = None
