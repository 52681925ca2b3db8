"""A study as a value: matched arms over tasks and seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from qkvbench import tasks
from qkvbench.cost.matched import with_arm
from qkvbench.experiment import Experiment, Precision, Sharding, Training
from qkvbench.model import Encoder, Model, Pooling, as_in, parse_arm, position_named
from qkvbench.results.tuning import FACTORS, SEEDS
from qkvbench.task_ref import TaskRef, parse_task


@dataclass(frozen=True)
class Teacher:
    """The run from which all arms of a task learn, beside its data: one for all their seeds.

    ``budget`` multiplies the task's own steps. No arm has its seed: a study that tunes its rates
    has the one after those of tuning.
    """

    arm: str
    seed: int = 1000
    budget: float = 1.0


@dataclass(frozen=True)
class Study:
    """Matched arms: variants × tasks × seeds, everything else alike; the first is the baseline.

    Each of ``variants`` is the text of an arm (`model.arm`), each key of ``seeds`` that of a task
    (`task_ref`); its value is the number of seeds. ``budget`` multiplies the task's own steps, for
    all tasks or by the text without position and heads.
    ``model`` replaces the tasks' own geometry, layers and positions; their inputs and outputs stay.
    ``training`` replaces that of the study's own tasks.
    ``position`` names the position scheme that replaces those, ``pooling`` how encoders predict one
    class for the whole input.
    ``init_from`` names a task: each arm begins with the weights of its own run on it, which has its
    seed, its layers and its positions.
    ``teacher`` is the run from whose predictions all arms learn, too.
    ``rates`` are factors of the task's own learning rate, by task and arm (`Experiment.arm`); 1
    without an entry. If the study is ``tuned``, they are chosen by `tuning_experiments` first;
    ``rates_of`` names another study that chose them.
    Initial weights are trained at their own task's rate.
    The other fields are those of each `Experiment`.
    """

    name: str
    variants: Sequence[str]
    seeds: Mapping[str, int]
    model: Model | None = None
    training: Training | None = None
    position: str | None = None
    pooling: Pooling | None = None
    init_from: str | None = None
    teacher: Teacher | None = None
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
    quantizations: tuple[str, ...] = ()
    tuned: bool = False
    rates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rates_of: str | None = None

    @property
    def tasks(self) -> tuple[TaskRef, ...]:
        """All tasks that the study runs: its own, and those of the runs that come first."""
        first = [run.task for each in self.experiments() for run in each.needed]
        return tuple(dict.fromkeys([*map(parse_task, self.seeds), *first]))

    @property
    def cost_task(self) -> str | None:
        """The task whose model's costs stand for the study's: a language model, else a decoder."""
        causal = [name for name in self.seeds if tasks.find(name).model.causal]
        language = [name for name in causal if tasks.find(name).benchmark == "lm"]
        return next(iter([*language, *causal]), None)

    @property
    def conditions(self) -> dict[str, str]:
        """By task, a hash of all that decides the results of its runs, but the number of seeds."""
        # The rates of a tuned study are results.
        rates = {} if self.tuned else self.rates
        one_seed = replace(self, seeds=dict.fromkeys(self.seeds, 1), rates=rates).experiments()
        suffix = "tuned" if self.tuned else ""
        return {
            task: _hash("".join(run.id for run in one_seed if str(run.task) == task) + suffix)
            for task in self.seeds
        }

    def model_of(self, task: str) -> Model:
        """The model that the study's arms of `task` vary."""
        ref, own = parse_task(task), tasks.find(task)
        model = own.model
        if self.model is not None:
            if ref.inputs != ref:
                raise ValueError(
                    f"'{ref}' changes the task's own model; with another model write "
                    f"'{ref.inputs}'."
                )
            model = as_in(self.model, own.model)
        if self.position is not None:
            lengths = (model.longest or own.tokens, own.second_tokens)
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
                f"'{task}' has no pooling: only an encoder that predicts one class has."
            )
        return replace(model, architecture=replace(model.architecture, pooling=self.pooling))

    def experiments(self) -> tuple[Experiment, ...]:
        """Every run, cheapest information first: one seed of every arm before the second."""
        runs = [
            _at_rate(run, self.rates.get(task, {}).get(run.arm, 1.0))
            for task, count in self.seeds.items()
            for run in self._arms(task, range(count))
        ]
        return tuple(sorted(runs, key=lambda run: run.seed))

    def tuning_grid(self) -> dict[str, dict[str, tuple[Experiment, ...]]]:
        """The runs that tune the learning rate, by task and arm; empty if the study is not tuned.

        Every arm, controls too, has the same: for each of `FACTORS` one run for each of `SEEDS`.
        """
        grid: dict[str, dict[str, tuple[Experiment, ...]]] = {}
        for task in self.seeds if self.tuned else ():
            own_rate = self._arms(task, SEEDS)
            grid[task] = {
                arm: tuple(
                    _at_rate(run, factor)
                    for factor in FACTORS
                    for run in own_rate
                    if run.arm == arm
                )
                for arm in dict.fromkeys(run.arm for run in own_rate)
            }
        return grid

    def tuning_experiments(self) -> tuple[Experiment, ...]:
        """The runs of `tuning_grid`: the first seed of every rate before the second."""
        runs = [run for arms in self.tuning_grid().values() for arm in arms.values() for run in arm]
        return tuple(sorted(runs, key=lambda run: run.seed))

    def _arms(self, name: str, seeds: Iterable[int]) -> tuple[Experiment, ...]:
        """The run of each seed and arm on a task, at the task's own learning rate."""
        base, task = self.model_of(name), tasks.find(name)
        tokens, second = task.tokens, task.second_tokens
        arms = [
            with_arm(base, parse_arm(text), tokens=tokens, second_tokens=second)
            for text in self.variants
        ]
        teacher = self._teacher_run(name)
        return tuple(
            replace(
                self._experiment(name, model, seed),
                init_from=self._initial_run(model, seed),
                teacher=teacher,
            )
            for seed in seeds
            for model in arms
        )

    def _teacher_run(self, name: str) -> Experiment | None:
        """The run of the teacher on a task."""
        if self.teacher is None:
            return None
        task = tasks.find(name)
        model = with_arm(
            self.model_of(name),
            parse_arm(self.teacher.arm),
            tokens=task.tokens,
            second_tokens=task.second_tokens,
        )
        longer = replace(self, budget=self.teacher.budget, quantizations=())
        shared = self.tuned and self.teacher.seed in SEEDS
        return longer._experiment(name, model, SEEDS[-1] + 1 if shared else self.teacher.seed)

    def _initial_run(self, model: Model, seed: int) -> Experiment | None:
        """The run on `init_from` with whose weights an arm with this model begins."""
        if self.init_from is None:
            return None
        task = tasks.find(self.init_from)
        if model.longest is not None and model.longest < task.tokens:
            raise ValueError(
                f"{model.label} cannot begin with the weights of {self.init_from}, whose sequences "
                f"have {task.tokens} positions: it has {model.longest}.\n"
                "Take positions without a length, such as --position rotary."
            )
        own = task.model
        if len(model.towers) > 1 or len(own.towers) > 1:
            two = model if len(model.towers) > 1 else own
            raise ValueError(
                f"{model.label} cannot begin with the weights of {self.init_from}: {two.label} "
                "reads two inputs, and weights are taken over between models of one input."
            )
        first = replace(model, name=own.name, architecture=own.architecture, init=own.init)
        return self._experiment(self.init_from, first, seed)

    def _experiment(self, name: str, model: Model, seed: int) -> Experiment:
        ref, task = parse_task(name), tasks.find(name)
        budget = self.budget
        if isinstance(budget, Mapping):
            budget = budget.get(str(ref.inputs), 1)
        own = task.training
        if self.training is not None and name in self.seeds:
            own = self.training
        training = replace(
            own,
            steps=round(budget * own.steps),
            warmup=round(budget * own.warmup),
            micro_batches=self.micro_batches,
        )
        return Experiment(
            model=model,
            task=ref,
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
            quantizations=self.quantizations,
            feature_extractor=task.feature_extractor and self._extractor(task.feature_extractor),
        )

    def _extractor(self, run: Experiment) -> Experiment:
        """The run of a task's feature extractor: the same for all arms and studies."""
        training = _shortened(run.training) if self.smoke else run.training
        return replace(run, training=training, backend=self.backend)


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _at_rate(run: Experiment, factor: float) -> Experiment:
    """The same run with its learning rate, from first to last, times this factor."""
    training = run.training
    scaled = replace(
        training,
        learning_rate=factor * training.learning_rate,
        final_learning_rate=factor * training.final_learning_rate,
    )
    return replace(run, training=scaled)


def _shortened(training: Training) -> Training:
    """A few steps, in which nothing is learned: to check that the whole pipeline runs."""
    return replace(training, steps=4, warmup=1, evaluations=1, scored=64)
