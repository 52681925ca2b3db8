"""What a recipe is. Each file of this folder is one study: its name is the file's.

A recipe's docstring is its caption: the command, the time it takes, what the source reported. Its
function ``study()`` returns the value. To add one, add a file.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qkvbench import tasks
from qkvbench.cost.matched import parse_arm, with_arm
from qkvbench.experiment import Experiment, Precision, Training
from qkvbench.model import Model, position_named


@dataclass(frozen=True)
class Study:
    """Matched arms: variants × tasks × seeds, everything else alike; the first is the baseline.

    A variant may be given another's size, as ``q,k,v~q,k=v`` (`cost.matched`): the arm of equal
    parameters.
    ``seeds`` says how many each task gets, ``budget`` how many times the task's own steps;
    ``precision``, ``threads``, ``compiled``, ``checkpointing`` and ``micro_batches`` say how a run
    is carried out.
    ``model`` replaces the tasks' own geometry, layers and positions; their inputs and outputs stay.
    ``position`` names the position scheme that replaces those.
    """

    name: str
    variants: Sequence[str]
    seeds: Mapping[str, int]
    model: Model | None = None
    position: str | None = None
    backend: str = "torch"
    precision: Precision = "fp32"
    threads: int = 1
    compiled: bool = False
    checkpointing: bool = False
    micro_batches: int = 1
    budget: int = 1
    smoke: bool = False

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
            model = replace(self.model, stack=own.stack, start=own.start)
        if self.position is not None:
            length = model.longest or tasks.find(task).tokens
            model = replace(model, position=position_named(self.position, length))
        return model

    def experiments(self) -> tuple[Experiment, ...]:
        """Every run, cheapest information first: one seed of every arm before the second."""
        arms = [self._arms(task) for task in self.seeds]
        runs = [run for task_arms in arms for run in task_arms]
        return tuple(sorted(runs, key=lambda run: run.seed))

    def _arms(self, name: str) -> tuple[Experiment, ...]:
        task = tasks.find(name)
        training = replace(
            task.training,
            steps=self.budget * task.training.steps,
            warmup=self.budget * task.training.warmup,
            micro_batches=self.micro_batches,
        )
        base = Experiment(
            model=self.model_of(name),
            task=name,
            task_version=task.version,
            training=_shortened(training) if self.smoke else training,
            seed=0,
            backend=self.backend,
            precision=self.precision,
            threads=self.threads,
            compiled=self.compiled,
            checkpointing=self.checkpointing,
        )
        arms = [with_arm(base.model, parse_arm(text), tokens=task.tokens) for text in self.variants]
        return tuple(
            replace(base, model=model, seed=seed)
            for seed in range(self.seeds[name])
            for model in arms
        )


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


def _module(name: str):  # noqa: ANN202 (a module, whose contract stands at the top)
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _shortened(training: Training) -> Training:
    """So few steps that nothing is learned: the same road, to see that it is open."""
    return replace(training, steps=4, warmup=1, evaluations=1, scored=64)
