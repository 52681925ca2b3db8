"""One run, as a value: a model, a task, how it is trained, a seed. Its hash is its identity."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any, Literal, cast, get_args

from pydantic import TypeAdapter

from qkvbench.model import Block, Gates, Model, check_gates, parse_label
from qkvbench.model.quantization import parse_quantization
from qkvbench.task_ref import TaskRef, TaskText
from qkvbench.variant import CANONICAL, Variant, parse, write

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# What each of many devices holds: "ddp" all weights and optimizer state, "fsdp" its part of them.
Sharding = Literal["ddp", "fsdp"]
SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)


@dataclass(frozen=True)
class Training:
    """AdamW with linear warm-up and cosine decay; `steps` of `batch` sequences each.

    ``evaluations`` is how often, evenly spread, the validation split is scored on the way;
    ``scored`` bounds the items of the test split that are, None is all of them. ``micro_batches``
    is in how many parts a batch is computed, one after the other: the step is the whole batch's.
    ``smoothing`` is the share of each label that all classes divide evenly among them, in training
    only: what is scored is never smoothed.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    final_learning_rate: float = 0.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    dropout: float = 0.0
    evaluations: int = 10
    scored: int | None = None
    micro_batches: int = 1
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that would train nothing, or compute with what is no number."""
        self._check_finite()
        if self.steps < 1:
            raise ValueError(f"A training of {self.steps} steps is none; take 1 or more steps.")
        if self.clip <= 0:
            raise ValueError(
                f"A gradient cannot be clipped to the norm {self.clip:g}; take a positive clip, "
                "such as 1."
            )
        if self.scored is not None and self.scored < 1:
            raise ValueError(
                f"A score of {self.scored} items is none; take 1 or more scored items, or null "
                "for all of them."
            )
        if not 1 <= self.micro_batches <= self.batch:
            raise ValueError(
                f"A batch of {self.batch} sequences cannot be computed in {self.micro_batches} "
                f"parts; take from 1 to {self.batch} micro-batches."
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(
                f"A label cannot give the share {self.smoothing:g} of itself to all classes; take "
                "a number from 0 up to but not 1, such as 0.1."
            )

    def _check_finite(self) -> None:
        """Refuse NaN and infinity, which JSON's reader takes and a record cannot hold."""
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(each, float) and not math.isfinite(each) for each in numbers):
                raise ValueError(f"{field.name} is {value}; take finite numbers.")


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's result on a given machine.

    ``checkpointing`` makes each block's activations again in the backward pass instead of keeping
    them; ``compiled`` fuses the training pass, and draws dropout otherwise than without. Over so
    many ``devices`` each computes its part of every batch; ``sharding`` says what each holds.
    ``init_from`` is the experiment whose final weights this one starts with, if a weight's name and
    shape agree; the others are initialized by the seed. ``feature_extractor`` is the experiment
    whose trained network, frozen, reads every input first; it is the same for all arms.
    With ``other_attention`` the attention of ``init_from`` differs: what its layers share by name
    and shape is taken over, K and V of fewer heads begin as the means of theirs, and the rest is
    initialized. With ``gates`` the attention of each layer is chosen while it learns.
    ``quantizations`` are the forms in few bits in which the test split is scored, too, after the
    training (`model.quantization`).
    ``teacher`` is the experiment whose trained network predicts beside this one: the loss is the
    mean of the cross-entropy and the divergence from its predictions.
    """

    model: Model
    task: TaskText
    task_version: int
    training: Training
    seed: int
    backend: str = "torch"
    precision: Precision = "fp32"
    threads: int = 1
    compiled: bool = False
    checkpointing: bool = False
    devices: int = 1
    sharding: Sharding = "ddp"
    init_from: "Experiment | None" = None
    feature_extractor: "Experiment | None" = None
    other_attention: bool = False
    gates: Gates | None = None
    teacher: "Experiment | None" = None
    quantizations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse conditions that contradict each other."""
        if self.model.contrastive and (self.training.micro_batches > 1 or self.devices > 1):
            raise ValueError(
                f"{self.model.name} tells the items of a batch from each other, so a batch cannot "
                "be computed in parts; leave out micro-batches and devices."
            )
        if self.threads < 1:
            raise ValueError(f"{self.threads} threads compute nothing; take 1 or more threads.")
        if not 1 <= self.devices <= self.training.batch:
            raise ValueError(
                f"A batch of {self.training.batch} sequences cannot be computed by {self.devices} "
                f"devices; take from 1 to {self.training.batch}."
            )
        if self.devices == 1 and self.sharding != "ddp":
            raise ValueError(
                f"One device holds everything, so nothing is shared by {self.sharding}; leave out "
                "--sharding, or take --devices 2 or more."
            )
        if self.compiled and self.devices > 1:
            raise ValueError(
                "A training pass over several devices is not compiled; leave out --compile or "
                "--devices."
            )
        self._check_pruning()
        self._check_quantizations()
        if self.init_from is None:
            return
        own, other = self.model, self.init_from.model
        if self.other_attention:
            own, other = (each.with_variant(CANONICAL) for each in (own, other))
        if (own.geometry, _blocks(own)) != (other.geometry, _blocks(other)):
            raise ValueError(
                f"{self.task} cannot begin with the weights of {self.init_from.task}: all "
                f"layers must agree in attention and size.\n"
                f"Here are {_layers(own)}; there {_layers(other)}."
            )

    def _check_pruning(self) -> None:
        """Refuse gates, teachers and starts of other attention that this experiment cannot have."""
        if (self.gates or self.other_attention or self.teacher) and (
            self.backend != "torch" or self.compiled or self.checkpointing or self.devices > 1
        ):
            raise ValueError(
                "Gates, teachers, and models that begin with other attention, are trained by torch "
                "on one device; leave out --backend, --compile, --checkpointing and --devices."
            )
        if self.teacher and (self.model.contrastive or self.teacher.task != self.task):
            raise ValueError(
                f"A teacher predicts the classes of {self.task}; a contrastive model has none, and "
                f"a model of {self.teacher.task} has others."
            )
        if self.gates:
            check_gates(self.model, self.gates)

    def _check_quantizations(self) -> None:
        """Refuse scores in few bits of a model that has none, and texts that name none."""
        for text in self.quantizations:
            parse_quantization(text)
        if self.quantizations and (
            self.backend != "torch"
            or self.devices > 1
            or not self.model.decodes
            or self.model.second
            or any(plan and plan.linear for plan in self.model.plans)
        ):
            raise ValueError(
                f"{self.model.label} with {self.variant} cannot be scored in few bits: that takes "
                "torch on one device, and a decoder of one input without linear attention; leave "
                "out --quantize."
            )

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name this experiment in a store."""
        return sha256(_identity(self).encode()).hexdigest()[:16]

    @cached_property
    def around_seed(self) -> tuple[str, str]:
        """The JSON that is hashed, before and after the seed."""
        values = {each: getattr(self, each.name) for each in fields(self) if each.name != "seed"}
        # JSON has no such character.
        before, after = _object({**_changed("Experiment", values), "seed": "\0"}).split("\0")
        return before, after

    @property
    def variant(self) -> str:
        """The equation of the model's attention."""
        return self.model.variant

    @property
    def arm(self) -> str:
        """The variant, with the size that the model is matched to, and the mark of an A/A arm."""
        return self.model.marked(self.variant)

    @property
    def first(self) -> tuple["Experiment", ...]:
        """The experiments that must have finished before, whose weights this one reads."""
        read = (self.init_from, self.feature_extractor, self.teacher)
        return tuple(dict.fromkeys(each for each in read if each is not None))

    @property
    def needed(self) -> tuple["Experiment", ...]:
        """The experiments that must have finished before, with their own dependencies."""
        return tuple(dict.fromkeys(found for each in self.first for found in (each, *each.needed)))

    @property
    def execution(self) -> str:
        """How it is carried out, in words: ``bf16, compiled, 2 micro-batches``."""
        parts = {
            self.precision: True,
            "compiled": self.compiled,
            "checkpointing": self.checkpointing,
            f"{self.training.micro_batches} micro-batches": self.training.micro_batches > 1,
            f"{self.devices} devices by {self.sharding}": self.devices > 1,
        }
        return ", ".join(part for part, chosen in parts.items() if chosen)

    def vary(
        self, *, variants: Iterable[Variant | str], seeds: Iterable[int]
    ) -> tuple["Experiment", ...]:
        """Matched arms: this experiment with each variant and seed, and nothing else changed.

        Each begins with the weights of its own start, which has its variant and seed.
        """
        values = [parse(v) if isinstance(v, str) else v for v in variants]
        return tuple(self._arm(variant, seed) for seed in seeds for variant in values)

    def _arm(self, variant: Variant, seed: int) -> "Experiment":
        init_from = self.init_from and self.init_from._arm(variant, seed)
        return replace(self, model=self.model.with_variant(variant), seed=seed, init_from=init_from)


def alone(experiment: Experiment) -> Experiment:
    """The same experiment on one device."""
    return replace(experiment, devices=1, sharding="ddp")


_ADAPTER = TypeAdapter(Experiment)


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON values, complete: it can be run again from them."""
    return _ADAPTER.dump_python(experiment, mode="json")


def from_json(value: object) -> Experiment:
    """The experiment that `to_json` wrote; pydantic's ValidationError if it is not one."""
    if not isinstance(value, dict) or type(seed := value.get("seed")) is not int:
        return _ADAPTER.validate_python(_renamed(value))
    # The runs of an arm differ in their seed alone, so most of a study's are parsed already.
    first = _first_seed(json.dumps({**value, "seed": 0}))
    experiment = replace(first, seed=seed)
    # What is hashed beside the seed is the same too.
    experiment.__dict__["around_seed"] = first.around_seed
    return experiment


@lru_cache(maxsize=4096)
def _first_seed(text: str) -> Experiment:
    """The experiment in this JSON, one object for all that read the same."""
    return _ADAPTER.validate_python(_renamed(json.loads(text)))


# Names in identities, and in records of the first version, of what has another name today:
# of classes, then of fields by class. Identities keep them, so that no run is orphaned.
_FIRST_CLASS_NAMES = {"Init": "Start", "RotaryWithInverse": "TurnedBack"}
_FIRST_FIELD_NAMES: dict[str, dict[str, str]] = {
    "Experiment": {"init_from": "start", "feature_extractor": "seen_through"},
    "Model": {"architecture": "stack", "init": "start"},
    "Init": {
        "embedding_std": "table",
        "position_std": "position",
        "weight_std": "matrix",
        "rotation_std": "rotation",
    },
}
# Where a record holds values of these classes: by class, then by field.
_NESTED = {
    "Experiment": {"model": "Model", "init_from": "Experiment", "feature_extractor": "Experiment"},
    "Model": {"init": "Init"},
}


def _renamed(value: object, kind: str = "Experiment") -> object:
    """A record's value with the field names of today; what has them already is left alone."""
    if not isinstance(value, dict):
        return value
    today = {old: new for new, old in _FIRST_FIELD_NAMES.get(kind, {}).items()}
    fields_ = {today.get(str(name), str(name)): part for name, part in value.items()}
    name = fields_.get("name")
    if kind == "Model" and isinstance(name, str) and "size_match" not in fields_:
        # Here the first version kept what a model's size is matched to.
        fields_["name"], fields_["size_match"] = parse_label(name)
    nested = _NESTED.get(kind, {})
    return {
        name: _renamed(part, nested[name]) if name in nested else part
        for name, part in fields_.items()
    }


def first_names(value: object, kind: str) -> object:
    """A dumped value of this class with the field names of the first version, for identities."""
    if not isinstance(value, dict):
        return value
    names, nested = _FIRST_FIELD_NAMES.get(kind, {}), _NESTED.get(kind, {})
    return {
        names.get(name, name): first_names(part, nested[name]) if name in nested else part
        for name, part in value.items()
    }


def _blocks(model: Model) -> tuple[tuple[Block, ...], ...]:
    """The blocks that read each input."""
    return tuple(tower.blocks for tower in model.towers)


def _layers(model: Model) -> str:
    """The layers of a model, in words."""
    blocks = [block for each in _blocks(model) for block in each]
    widths = {str(block.feed_forward.width) for block in blocks if block.feed_forward}
    return (
        f"{len(blocks)} layers of {model.variant}, {model.geometry.d_model} wide with "
        f"{model.geometry.heads} heads and {' or '.join(sorted(widths)) or 'no'} hidden units"
    )


def _identity(value: object) -> str:
    """The JSON that is hashed, with sorted keys: the fields that are not at their defaults.

    So a new field with a default keeps the identity of what was measured before it.
    """
    if isinstance(value, Variant):
        return json.dumps(write(value))
    if isinstance(value, TaskRef):
        return json.dumps(str(value))
    if isinstance(value, Experiment):
        before, after = value.around_seed
        return f"{before}{value.seed}{after}"
    if isinstance(value, Model):
        return _model_identity(_This(value))
    if is_dataclass(value):
        kind = type(value).__name__
        return _object(_changed(kind, {each: getattr(value, each.name) for each in fields(value)}))
    if isinstance(value, tuple):
        return f"[{', '.join(map(_identity, value))}]"
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True, eq=False)
class _This:
    """One object, and no other that is equal: found without looking at all that it holds."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _This) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@lru_cache(maxsize=4096)
def _model_identity(this: _This) -> str:
    """The identity of a model, which many runs of a study share."""
    model = cast(Model, this.value)
    # As in the first version, a size match is part of the name.
    named = replace(model, name=model.label, size_match=None)
    return _object(_changed("Model", {each: getattr(named, each.name) for each in fields(named)}))


def _changed(kind: str, values: Mapping[Field[Any], object]) -> dict[str, str]:
    """The class and the identities of its fields that are not at their defaults, by first names."""
    names = _FIRST_FIELD_NAMES.get(kind, {})
    return {
        "is": json.dumps(_FIRST_CLASS_NAMES.get(kind, kind)),
        **{
            names.get(field.name, field.name): _identity(value)
            for field, value in values.items()
            if value != field.default
        },
    }


def _object(members: Mapping[str, str]) -> str:
    """The JSON of an object whose members are JSON already."""
    return f"{{{', '.join(f'{json.dumps(name)}: {members[name]}' for name in sorted(members))}}}"
