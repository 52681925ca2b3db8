"""What a recipe is. Each file of this folder is one study: its name is the file's.

A recipe's docstring is its caption: the command, the time it takes, what the source reported. Its
function ``study()`` returns the value. To add one, add a file.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qkvbench import tasks
from qkvbench.cost.matched import LIKE, parse_arm, with_arm
from qkvbench.experiment import Experiment, Precision, Sharding, Training
from qkvbench.model import Encoder, Model, Pooling, as_in, position_named


@dataclass(frozen=True)
class Study:
    """Matched arms: variants × tasks × seeds, everything else alike; the first is the baseline.

    A variant may be given another's size, as ``q,k,v~q,k=v`` (`cost.matched`): the arm of equal
    parameters.
    ``seeds`` says how many each task gets, ``budget`` how many times the task's own steps, for all
    or by the name before its marks;
    ``precision``, ``threads``, ``compiled``, ``checkpointing``, ``micro_batches``,
    ``devices`` and ``sharding`` say how a run is carried out.
    ``model`` replaces the tasks' own geometry, layers and positions; their inputs and outputs stay.
    ``position`` names the position scheme that replaces those, ``pooling`` says how encoders tell
    the whole.
    ``init_from`` names a task: each arm begins with the weights of its own run on it, which has its
    seed, its layers and its positions.
    """

    name: str
    variants: Sequence[str]
    seeds: Mapping[str, int]
    model: Model | None = None
    position: str | None = None
    pooling: Pooling | None = None
    init_from: str | None = None
    backend: str = "torch"
    precision: Precision = "fp32"
    threads: int = 1
    compiled: bool = False
    checkpointing: bool = False
    micro_batches: int = 1
    devices: int = 1
    sharding: Sharding = "ddp"
    budget: float | Mapping[str, float] = 1
    smoke: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All tasks that the study runs: its own, and those of the runs that come first."""
        first = [run.task for each in self.experiments() for run in each.needed]
        return tuple(dict.fromkeys([*self.seeds, *first]))

    @property
    def cost_task(self) -> str | None:
        """The task whose model's costs stand for the study's: a language model, else a decoder."""
        causal = [name for name in self.seeds if tasks.find(name).model.causal]
        language = [name for name in causal if tasks.find(name).benchmark == "lm"]
        return next(iter([*language, *causal]), None)

    def model_of(self, task: str) -> Model:
        """The model that the study's arms of `task` vary."""
        own = tasks.find(task).model
        model = own
        if self.model is not None:
            if tasks.plain(task) != task:
                raise ValueError(
                    f"'{task}' says what its own model has; with another model, leave out what "
                    "stands from the '@' on."
                )
            model = as_in(self.model, own)
        if self.position is not None:
            wanted = tasks.find(task)
            lengths = (model.longest or wanted.tokens, wanted.second_tokens)
            model = model.with_positions(
                *(position_named(self.position, max(1, length)) for length in lengths)
            )
        if self.pooling is None:
            return model
        if (
            not isinstance(model.architecture, Encoder)
            or model.architecture.predicts != "the whole"
        ):
            raise ValueError(
                f"'{task}' has no pooling: only an encoder that tells the whole by one class has."
            )
        return replace(model, architecture=replace(model.architecture, pooling=self.pooling))

    def experiments(self) -> tuple[Experiment, ...]:
        """Every run, cheapest information first: one seed of every arm before the second."""
        arms = [self._arms(task) for task in self.seeds]
        runs = [run for task_arms in arms for run in task_arms]
        return tuple(sorted(runs, key=lambda run: run.seed))

    def _arms(self, name: str) -> tuple[Experiment, ...]:
        base, task = self.model_of(name), tasks.find(name)
        tokens, second = task.tokens, task.second_tokens
        arms = [
            with_arm(base, parse_arm(text), tokens=tokens, second_tokens=second)
            for text in self.variants
        ]
        return tuple(
            replace(self._experiment(name, model, seed), init_from=self._initial_run(model, seed))
            for seed in range(self.seeds[name])
            for model in arms
        )

    def _initial_run(self, model: Model, seed: int) -> Experiment | None:
        """The run on `start` with whose weights an arm with this model begins."""
        if self.init_from is None:
            return None
        task = tasks.find(self.init_from)
        if model.longest is not None and model.longest < task.tokens:
            raise ValueError(
                f"{model.name} cannot begin with the weights of {self.init_from}, whose sequences have "
                f"{task.tokens} positions: it has {model.longest}.\n"
                "Take positions without a length, such as --position rotary."
            )
        own = task.model
        if len(model.towers) > 1 or len(own.towers) > 1:
            two = model if len(model.towers) > 1 else own
            raise ValueError(
                f"{model.name} cannot begin with the weights of {self.init_from}: {two.name} reads two "
                "inputs, and weights are taken over between models of one input."
            )
        _, like, size = model.name.partition(LIKE)
        name = f"{own.name}{like}{size}"
        first = replace(model, name=name, architecture=own.architecture, init=own.init)
        return self._experiment(self.init_from, first, seed)

    def _experiment(self, name: str, model: Model, seed: int) -> Experiment:
        task = tasks.find(name)
        budget = self.budget
        if isinstance(budget, Mapping):
            budget = budget[tasks.plain(name)]
        training = replace(
            task.training,
            steps=round(budget * task.training.steps),
            warmup=round(budget * task.training.warmup),
            micro_batches=self.micro_batches,
        )
        return Experiment(
            model=model,
            task=name,
            task_version=task.version,
            training=_shortened(training) if self.smoke else training,
            seed=seed,
            backend=self.backend,
            precision=self.precision,
            threads=self.threads,
            compiled=self.compiled,
            checkpointing=self.checkpointing,
            devices=self.devices,
            sharding=self.sharding,
            feature_extractor=task.feature_extractor and self._looking(task.feature_extractor),
        )

    def _looking(self, through: Experiment) -> Experiment:
        """The run through whose network a task is seen: the same for all arms and studies."""
        training = _shortened(through.training) if self.smoke else through.training
        return replace(through, training=training, backend=self.backend)


def names() -> list[str]:
    """All recipes, by name."""
    found = pkgutil.iter_modules(__path__)
    return sorted(module.name.replace("_", "-") for module in found)


def find(name: str) -> Study:
    """The study of the recipe with this name; KeyError where there is none."""
    return _module(name).study()


def about(name: str) -> str:
    """The first line of the recipe's caption."""
    return (_module(name).__doc__ or "").strip().splitlines()[0]


def takes(name: str) -> str | None:
    """What the recipe's caption says of its time; None where there is no such line."""
    lines = (_module(name).__doc__ or "").splitlines()
    return next((line[len("Takes") :].strip() for line in lines if line.startswith("Takes")), None)


def _module(name: str):  # noqa: ANN202 (a module, whose contract stands at the top)
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _shortened(training: Training) -> Training:
    """So few steps that nothing is learned: the same road, to see that it is open."""
    return replace(training, steps=4, warmup=1, evaluations=1, scored=64)
