"""A model that learns: the loss and its gradients, the AdamW update, predictions.

A step is two pure functions of arrays, `slopes` and `updated`: what they need is given to them, and
the learner only keeps what comes of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax import Array
from jaxtyping import Float, Int

from qkvbench.analysis import Layer
from qkvbench.backends import STATE_FILE, SingleProcess
from qkvbench.backends.jax.generation.beam_search import Searched
from qkvbench.backends.jax.models.build import Network, build
from qkvbench.backends.jax.models.inspect import inspected, layers_of
from qkvbench.backends.jax.models.weights import (
    Weights,
    checked,
    copied,
    matching,
    read,
    save,
    start,
)
from qkvbench.backends.jax.training.compilation import Compiled
from qkvbench.backends.jax.training.device import all_devices, shared, spread
from qkvbench.backends.jax.training.loss import mean_loss, place_losses
from qkvbench.backends.jax.training.precision import as_computed, needs_scaling
from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions, Search
from qkvbench.experiment import Experiment
from qkvbench.model.rng import framework_seed

Tree = TypeVar("Tree")

# Numbers of scored places that are told apart, for each shape of a batch: a pass is compiled for
# so many at most, and what is filled up with places that do not count is an eighth at most.
COUNTS = 8

# As torch's scaler: a scale of 2^16 to begin with, halved at an overflow, doubled after so many
# steps without one (arXiv:1710.03740, section 3.2).
FIRST_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000


class Given(NamedTuple):
    """A batch as a pass reads it: arrays of few different shapes.

    Its arrays are NumPy's before a pass is traced, and JAX's inside of it.
    ``places`` are those whose logits are made, of all items together; None is all of them.
    ``counted`` says which of them are scored: the others repeat the first.
    """

    inputs: Any
    beside: tuple[Any, ...]
    targets: Any
    counted: Any
    places: Any


@dataclass(frozen=True)
class Step:
    """One training step of a network as pure functions of arrays."""

    network: Network
    experiment: Experiment

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW without its learning rate, which is given with each step.

        Matrices and tables decay; offsets, scales and rotations, which have no zero, do not.
        arXiv:1711.05101, algorithm 2.
        """
        training = self.experiment.training
        decays = {
            name: len(shape) >= 2 and not name.endswith(".rotation")
            for name, shape in self.network.shapes().items()
        }
        first, second = training.betas
        return optax.chain(
            optax.scale_by_adam(first, second),
            optax.add_decayed_weights(training.weight_decay, mask=decays),
        )

    def slopes(
        self,
        weights: Weights,
        parts: tuple[Given, ...],
        shares: Float[Array, " parts"],
        rng: Array | None,
        scale: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Float[Array, ""], Weights]:
        """The mean loss, the norm of its gradient, and the gradient, clipped.

        Each part has its share of the batch's scored places, so the sum is the whole's gradient.
        What is differentiated is the loss times `scale`. `draws` is the step's key of dropout.
        """
        loss, gradient = jnp.zeros(()), jax.tree.map(jnp.zeros_like, dict(weights))
        for number, part in enumerate(parts):
            # One part after the other: each begins with the sum of those before it.
            weights, gradient = jax.lax.optimization_barrier((weights, gradient))
            key = None if rng is None else jax.random.fold_in(rng, number)

            def scaled(
                weights: Weights, part: Given = part, key: Array | None = key, number: int = number
            ) -> Array:
                return self.loss(weights, part, key) * (shares[number] * scale)

            value, slope = jax.value_and_grad(scaled)(weights)
            loss = loss + value
            gradient = jax.tree.map(jnp.add, gradient, slope)
        gradient = jax.tree.map(lambda each: each / scale, gradient)
        norm = optax.tree.norm(gradient)
        # As torch clips: the small number keeps a norm of zero from dividing.
        factor = jnp.minimum(1.0, self.experiment.training.clip / (norm + 1e-6))
        return loss / scale, norm, jax.tree.map(lambda each: each * factor, gradient)

    def updated(
        self, weights: Weights, state: optax.OptState, gradient: Weights, rate: Float[Array, ""]
    ) -> tuple[Weights, optax.OptState]:
        """Weights and optimizer after one step along the gradient."""
        change, state = self.optimizer().update(gradient, state, weights)
        return jax.tree.map(lambda weight, each: weight - rate * each, weights, change), state

    def loss(self, weights: Weights, given: Given, key: Array | None) -> Float[Array, ""]:
        """The mean loss in nats at the places that count; `key` draws dropout, None is without."""
        weights = as_computed(weights, self.experiment.precision)
        hidden = self._hidden(weights, given, key)
        smoothing = self.experiment.training.smoothing
        targets, counted = given.targets, given.counted
        return mean_loss(self.network, weights, hidden, targets, counted, smoothing)

    def said(self, weights: Weights, given: Given) -> tuple[Array, Array, Array]:
        """The loss at each place, the likeliest class, and the right one's rank."""
        weights = as_computed(weights, self.experiment.precision)
        hidden = self._hidden(weights, given, None)
        return place_losses(self.network, weights, hidden, given.targets)

    def features(self, weights: Weights, given: Given) -> Float[Array, "items places _features"]:
        """What the head reads."""
        weights = as_computed(weights, self.experiment.precision)
        return self.network.hidden(weights, given.inputs, *given.beside).astype(jnp.float32)

    def looked_into(self, weights: Weights, given: Given) -> dict[str, Any]:
        """What each layer of attention makes of a batch, by its name."""
        weights = as_computed(weights, self.experiment.precision)
        # Nothing is made again here, where nothing is differentiated.
        plain = build(self.experiment.model)
        return inspected(plain, weights, given.inputs, *given.beside)

    def _hidden(
        self, weights: Weights, given: Given, key: Array | None
    ) -> Float[Array, "places _features"]:
        """The stream at the places: logits of the others are never made."""
        hidden = self.network.hidden(weights, given.inputs, *given.beside, key=key)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        return hidden if given.places is None else hidden[given.places]


class Learner:
    """The network of an experiment, its optimizer, and nothing of the loop around them."""

    # Several devices are one mesh of this process.
    world = SingleProcess()

    def __init__(self, experiment: Experiment) -> None:
        """The network with its initial values, and a fresh optimizer."""
        self.experiment = experiment
        training = experiment.training
        self.network = build(
            experiment.model, dropout=training.dropout, again=experiment.checkpointing
        )
        self.step = Step(self.network, experiment)
        # Of several devices each computes its items of a batch; weights are on all of them.
        self.mesh = all_devices()
        self.values = self._on_all(start(self.network.shapes(), experiment.model, experiment.seed))
        self.optimizer = self._on_all(self.step.optimizer().init(self.values))
        # Dropout is drawn by the framework; everything else is keyed by name.
        self.rng = jax.random.key(framework_seed(experiment.seed, "dropout"))
        self.steps = 0
        self.scale = FIRST_SCALE if needs_scaling(experiment.precision) else 1.0
        self.fitted = 0
        self.gradient: Weights | None = None

        compiled = partial(Compiled, lies=shared(self.mesh))
        self._slopes = compiled(self._slopes_of_a_step)
        self._updated = compiled(self.step.updated, reused=(0, 1))
        self._said = compiled(self.step.said)
        self._features = compiled(self.step.features)
        self._looked_into = compiled(self.step.looked_into)
        self._searched = Searched(self.network, experiment.precision, compiled)

    @property
    def compile_s(self) -> float:
        """Seconds that compiling has taken so far."""
        compiled = (self._slopes, self._updated, self._said, self._features, self._looked_into)
        return sum(each.seconds for each in compiled) + self._searched.seconds

    def warm_up(self, batch: Batch) -> None:
        """Compile the training step for such batches; learns and draws nothing."""
        self._slopes.made_for(*self._asked(batch))
        # A gradient is like the weights.
        self._updated.made_for(self.values, self.optimizer, self.values, np.float32(0))

    def gradients(self, batch: Batch) -> tuple[float, float]:
        """The mean loss in nats, and the norm of its gradient before clipping.

        Nothing is updated: a caller sees a loss that is not finite before it does harm. Where only
        the scaled gradients overflow, the scale is halved and the batch computed again, with the
        same dropout, so that every arm takes as many steps.
        """
        while True:
            loss, norm, self.gradient = self._slopes(*self._asked(batch))
            loss, norm = float(loss), float(norm)
            if math.isfinite(norm) or not math.isfinite(loss) or self.scale <= 1:
                self._note_fit()
                return loss, norm
            self.scale, self.fitted = self.scale / 2, 0

    def update(self, learning_rate: float) -> None:
        """One AdamW step along the gradients."""
        assert self.gradient is not None
        self.values, self.optimizer = self._updated(
            self.values, self.optimizer, self.gradient, np.float32(learning_rate)
        )
        self.gradient = None
        self.steps += 1

    def predict(self, batch: Batch) -> Predictions:
        """The loss and the likeliest class at each place; loss 0 where nothing is scored."""
        scored = batch.targets != IGNORE_INDEX
        loss = np.zeros(batch.targets.shape, np.float32)
        predicted, ranks = (np.full(batch.targets.shape, IGNORE_INDEX, np.int64) for _ in range(2))
        if scored.any():
            given = self._given(batch)
            said = [np.asarray(each)[given.counted] for each in self._said(self.values, given)]
            loss[scored], predicted[scored], ranks[scored] = said
        return Predictions(loss, predicted, batch.targets, ranks)

    def write(self, batch: Batch, search: Search) -> list[Int[np.ndarray, " _tokens"]]:
        """What the model writes for each item, as the search finds it; without begin and end.

        TypeError where the model reads no source.
        """
        return self._searched(self.values, batch.second, search)

    def features(self, batch: Batch) -> Float[np.ndarray, "items places _features"]:
        """What the head reads of each item, in fp32; changes nothing."""
        return np.array(self._features(self.values, self._read(batch)))

    def inspect(self, batch: Batch) -> tuple[Layer, ...]:
        """What each attention layer makes of a batch; changes nothing."""
        return layers_of(self.network, self._looked_into(self.values, self._read(batch)))

    def program(self, batch: Batch) -> str:
        """What a pass forward and backward over such a batch was compiled to, as XLA writes it."""
        return self._slopes.made_for(*self._asked(batch)).as_text()

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of all weights, under the names that all backends share."""
        return copied(self.values)

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take over these weights; ValueError where names or shapes do not agree."""
        given = {name: jnp.array(value) for name, value in weights.items()}
        self.values = self._on_all(checked(self.network.shapes(), given))

    def save(self, path: Path) -> None:
        """Write all weights to a safetensors file."""
        save(self.values, path)

    def load_matching(self, path: Path) -> tuple[str, ...]:
        """Take over what agrees in name and shape from a file that `save` wrote; those names."""
        taken = matching(self.network.shapes(), read(path))
        self.values |= self._on_all({name: jnp.array(value) for name, value in taken.items()})
        return tuple(taken)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that training has changed, under names of its own; `restore` takes it back."""
        parts = {"weights": self.values}
        parts |= {name: optax.tree.get(self.optimizer, key) for name, key in _MOMENTS.items()}
        arrays = {
            f"{part}/{name}": value
            for part, values in parts.items()
            for name, value in copied(values).items()
        }
        return arrays | {
            "optimizer/steps": np.array(optax.tree.get(self.optimizer, "count")),
            "dropout/steps": np.array(self.steps),
            "scale": np.array(self.scale),
            "scale/fitted": np.array(self.fitted),
        }

    def save_state(self, folder: Path) -> None:
        """Write the state to a safetensors file in a folder; OSError if that fails."""
        safetensors.numpy.save_file(self.state(), folder / STATE_FILE)

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on as the learner of this `state` did; ValueError where it does not fit."""
        own = self.state()
        for name in sorted(own.keys() | state.keys()):
            here, there = own.get(name), state.get(name)
            if here is None or there is None or _kind(here) != _kind(there):
                raise ValueError(
                    f"{name} is {_said(here)} in this learner and {_said(there)} in the state."
                )

        def of(part: str) -> dict[str, Array]:
            begin = f"{part}/"
            return {
                name.removeprefix(begin): jnp.array(value)
                for name, value in state.items()
                if name.startswith(begin) and name != "optimizer/steps"
            }

        self.values = self._on_all(of("weights"))
        moments = {key: of(name) for name, key in _MOMENTS.items()}
        steps = jnp.array(state["optimizer/steps"], jnp.int32)
        optimizer = optax.tree.set(self.optimizer, count=steps, **moments)
        self.optimizer = self._on_all(optimizer)
        self.steps = int(state["dropout/steps"])
        self.scale, self.fitted = float(state["scale"]), int(state["scale/fitted"])
        self.gradient = None

    def _slopes_of_a_step(
        self,
        weights: Weights,
        parts: tuple[Given, ...],
        shares: Array,
        rng: Array,
        steps: Array,
        scale: Array,
    ) -> tuple[Array, Array, Weights]:
        key = jax.random.fold_in(rng, steps) if self.experiment.training.dropout else None
        return self.step.slopes(weights, parts, shares, key, scale)

    def _asked(self, batch: Batch) -> tuple[Any, ...]:
        """What the gradients of this batch are computed from."""
        parts = [
            self._given(part)
            for part in batch.parts(self.experiment.training.micro_batches)
            if (part.targets != IGNORE_INDEX).any()
        ] or [self._given(batch)]
        scored = np.array([part.counted.sum() for part in parts], np.float32)
        shares = scored / max(1.0, scored.sum())
        steps = np.int32(self.steps)
        return self.values, tuple(parts), shares, self.rng, steps, np.float32(self.scale)

    def _given(self, batch: Batch) -> Given:
        return self._spread(_given(batch))

    def _read(self, batch: Batch) -> Given:
        return self._spread(_read(batch))

    def _spread(self, given: Given) -> Given:
        """The items on the devices that compute them."""
        inputs = spread(self.mesh, given.inputs)
        beside = tuple(spread(self.mesh, each) for each in given.beside)
        return given._replace(inputs=inputs, beside=beside)

    def _on_all(self, arrays: Tree) -> Tree:
        """The arrays on every device."""
        where = shared(self.mesh)
        return arrays if where is None else jax.device_put(arrays, where)

    def _note_fit(self) -> None:
        self.fitted += 1
        if self.fitted == STEPS_TO_DOUBLE and needs_scaling(self.experiment.precision):
            self.scale, self.fitted = self.scale * 2, 0


def _kind(array: np.ndarray) -> tuple[np.dtype, tuple[int, ...]]:
    return array.dtype, array.shape


def _said(array: np.ndarray | None) -> str:
    return "missing" if array is None else f"{array.dtype} of {array.shape}"


# AdamW's two moments: our names and optax's.
_MOMENTS = {"optimizer/first": "mu", "optimizer/second": "nu"}


def _given(batch: Batch) -> Given:
    """The batch with the places that are scored, filled up so that there are few shapes."""
    right = batch.targets.ravel().astype(np.int32)
    scored = np.flatnonzero(right != IGNORE_INDEX)
    beside = _beside(batch)
    inputs = _plain(batch.inputs)
    if len(scored) == len(right):
        return Given(inputs, beside, right, np.ones(len(right), bool), None)
    if not len(scored):
        return Given(inputs, beside, np.zeros_like(right), np.zeros(len(right), bool), None)
    step = -(-len(right) // COUNTS)
    count = min(len(right), -(-len(scored) // step) * step)
    places = np.full(count, scored[0], np.int32)
    places[: len(scored)] = scored
    return Given(inputs, beside, right[places], np.arange(count) < len(scored), places)


def _read(batch: Batch) -> Given:
    """The batch without its targets: what is predicted there is not asked."""
    none = np.zeros(0, np.int32)
    return Given(_plain(batch.inputs), _beside(batch), none, none.astype(bool), None)


def _beside(batch: Batch) -> tuple[np.ndarray | None, ...]:
    beside = (_plain(batch.lengths),)
    if batch.second is None:
        return beside
    return (*beside, _plain(batch.second.inputs), _plain(batch.second.lengths))


def _plain(array: np.ndarray | None) -> np.ndarray | None:
    """Whole numbers in 32 bits and others in fp32, as every pass reads them."""
    if array is None:
        return None
    return array.astype(np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)
