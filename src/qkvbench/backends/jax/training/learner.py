"""A learner: the loss and its gradients, the AdamW update, predictions.

A training step is two pure functions of arrays, `Step.gradients` and `Step.update`; the learner
compiles them and keeps their results.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax import Array
from jaxtyping import Float, Int

from qkvbench.analysis import Layer
from qkvbench.backends import STATE_FILE, SingleProcess
from qkvbench.backends.common.checks import check_state
from qkvbench.backends.common.precision import needs_loss_scaling
from qkvbench.backends.common.predictions import scatter_predictions, scored_positions
from qkvbench.backends.jax.generation.beam_search import BeamSearch
from qkvbench.backends.jax.models.build import Network, build
from qkvbench.backends.jax.models.inspect import inspect_arrays, to_layers
from qkvbench.backends.jax.models.weights import (
    Weights,
    check_weights,
    copied,
    matching,
    read,
    save,
    start,
)
from qkvbench.backends.jax.training.batches import (
    BatchArrays,
    input_arrays,
    places_of,
    to_arrays,
)
from qkvbench.backends.jax.training.compilation import Compiled
from qkvbench.backends.jax.training.device import all_devices, replicated, sharded
from qkvbench.backends.jax.training.loss import mean_loss, place_losses
from qkvbench.backends.jax.training.precision import compute_weights
from qkvbench.data.batch import Batch, Predictions, Search
from qkvbench.experiment import Experiment
from qkvbench.model.rng import framework_seed

Tree = TypeVar("Tree")

# As torch's GradScaler: a scale of 2^16 at first, halved at an overflow, doubled after so many
# steps without one (arXiv:1710.03740, section 3.2).
INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
# AdamW's two moments: our names in a state, and optax's.
_MOMENTS = {"optimizer/first": "mu", "optimizer/second": "nu"}


@dataclass(frozen=True)
class Step:
    """One training step of a network as pure functions of arrays."""

    network: Network
    experiment: Experiment

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW without its learning rate, which is an argument of `update`.

        Matrices and tables decay; biases, scales and rotations, which have no zero, do not.
        arXiv:1711.05101, algorithm 2.
        """
        training = self.experiment.training
        decays = {name: parameter.decay for name, parameter in self.network.parameters.items()}
        first, second = training.betas
        return optax.chain(
            optax.scale_by_adam(first, second),
            optax.add_decayed_weights(training.weight_decay, mask=decays),
        )

    def gradients(
        self,
        weights: Weights,
        parts: tuple[BatchArrays, ...],
        shares: Float[Array, " parts"],
        rng: Array | None,
        scale: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Float[Array, ""], Weights]:
        """The mean loss, the norm of its gradient, and the clipped gradient.

        A micro-batch is weighted by its share of the scored positions, so the sum is the gradient
        of the whole batch. The loss is multiplied by `scale` before it is differentiated. `rng` is
        the key of this step's dropout.
        """
        loss, gradient = jnp.zeros(()), jax.tree.map(jnp.zeros_like, dict(weights))
        for number, part in enumerate(parts):
            # Keeps XLA from computing micro-batches at the same time, which would take more memory.
            weights, gradient = jax.lax.optimization_barrier((weights, gradient))
            key = None if rng is None else jax.random.fold_in(rng, number)

            def scaled(
                weights: Weights,
                part: BatchArrays = part,
                key: Array | None = key,
                number: int = number,
            ) -> Array:
                return self.loss(weights, part, key) * (shares[number] * scale)

            part_loss, part_gradient = jax.value_and_grad(scaled)(weights)
            loss = loss + part_loss
            gradient = jax.tree.map(jnp.add, gradient, part_gradient)
        gradient = jax.tree.map(lambda each: each / scale, gradient)
        norm = optax.tree.norm(gradient)
        # As torch clips: the epsilon avoids a division by a norm of zero.
        factor = jnp.minimum(1.0, self.experiment.training.clip / (norm + 1e-6))
        return loss / scale, norm, jax.tree.map(lambda each: each * factor, gradient)

    def update(
        self, weights: Weights, state: optax.OptState, gradient: Weights, rate: Float[Array, ""]
    ) -> tuple[Weights, optax.OptState]:
        """Weights and optimizer state after one step along the gradient."""
        change, state = self.optimizer().update(gradient, state, weights)
        return jax.tree.map(lambda weight, each: weight - rate * each, weights, change), state

    def loss(self, weights: Weights, batch: BatchArrays, key: Array | None) -> Float[Array, ""]:
        """The mean loss in nats at the valid positions; `key` seeds dropout, None is without."""
        weights = compute_weights(weights, self.network.parameters, self.experiment.precision)
        hidden = self._hidden(weights, batch, key)
        smoothing = self.experiment.training.smoothing
        return mean_loss(self.network, weights, hidden, batch.targets, batch.valid, smoothing)

    def predict(self, weights: Weights, batch: BatchArrays) -> tuple[Array, Array, Array]:
        """The loss at each position, the most probable class, and the rank of the target."""
        weights = compute_weights(weights, self.network.parameters, self.experiment.precision)
        hidden = self._hidden(weights, batch, None)
        return place_losses(self.network, weights, hidden, batch.targets)

    def features(
        self, weights: Weights, batch: BatchArrays
    ) -> Float[Array, "items places _features"]:
        """The input of the head, in fp32."""
        weights = compute_weights(weights, self.network.parameters, self.experiment.precision)
        hidden = self.network.hidden(weights, batch.inputs, *batch.extra_inputs)
        return hidden.astype(jnp.float32)

    def inspect(self, weights: Weights, batch: BatchArrays) -> dict[str, Any]:
        """The arrays of each attention layer, by its name."""
        weights = compute_weights(weights, self.network.parameters, self.experiment.precision)
        # Without recomputation, which only a backward pass needs.
        network = build(self.experiment.model)
        return inspect_arrays(network, weights, batch.inputs, *batch.extra_inputs)

    def _hidden(
        self, weights: Weights, batch: BatchArrays, key: Array | None
    ) -> Float[Array, "places _features"]:
        """The stream at the positions to score only: logits of the others are not computed."""
        hidden = self.network.hidden(weights, batch.inputs, *batch.extra_inputs, key=key)
        hidden = hidden.reshape(-1, hidden.shape[-1])  # (items · positions, features)
        return hidden if batch.places is None else hidden[batch.places]


class Learner:
    """The network of an experiment and its optimizer, without the training loop."""

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
        # Several devices divide the items of a batch; weights are replicated.
        self.mesh = all_devices()
        self.values = self._replicate(
            start(self.network.parameters, experiment.model, experiment.seed)
        )
        self.optimizer = self._replicate(self.step.optimizer().init(self.values))
        # Dropout uses JAX's keys; all other random numbers are keyed by name.
        self.rng = jax.random.key(framework_seed(experiment.seed, "dropout"))
        self.steps = 0
        self.scale = INITIAL_SCALE if needs_loss_scaling(experiment.precision) else 1.0
        self.steps_at_scale = 0
        self.gradient: Weights | None = None

        compiled = partial(Compiled, out_sharding=replicated(self.mesh))
        self._gradients = compiled(self._step_gradients)
        self._update = compiled(self.step.update, donated=(0, 1))
        self._predict = compiled(self.step.predict)
        self._features = compiled(self.step.features)
        self._inspect = compiled(self.step.inspect)
        self._search = BeamSearch(self.network, experiment.precision, compiled)

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling so far."""
        compiled = (self._gradients, self._update, self._predict, self._features, self._inspect)
        return sum(each.seconds for each in compiled) + self._search.seconds

    def warm_up(self, batch: Batch) -> None:
        """Compile the training step for such batches; changes nothing."""
        self._gradients.compile(*self.gradient_arguments(batch))
        # A gradient has the shapes of the weights.
        self._update.compile(self.values, self.optimizer, self.values, np.float32(0))

    def gradients(self, batch: Batch) -> tuple[float, float]:
        """The mean loss in nats, and the norm of its gradient before clipping.

        Updates nothing, so the caller can stop at a loss that is not finite. If only the scaled
        gradients overflow, the scale is halved and the batch computed again with the same dropout,
        so that every arm takes the same number of steps.
        """
        while True:
            loss, norm, self.gradient = self._gradients(*self.gradient_arguments(batch))
            loss, norm = float(loss), float(norm)
            if math.isfinite(norm) or not math.isfinite(loss) or self.scale <= 1:
                self._grow_scale()
                return loss, norm
            self.scale, self.steps_at_scale = self.scale / 2, 0

    def update(self, learning_rate: float) -> None:
        """One AdamW step along the gradients."""
        assert self.gradient is not None
        self.values, self.optimizer = self._update(
            self.values, self.optimizer, self.gradient, np.float32(learning_rate)
        )
        self.gradient = None
        self.steps += 1

    def predict(self, batch: Batch) -> Predictions:
        """The loss and the most probable class at each position."""
        if not scored_positions(batch).any():
            none = np.zeros(0, np.int64)
            return scatter_predictions(batch, none.astype(np.float32), none, none)
        arrays = self._sharded(to_arrays(batch))
        values = self._predict(self.values, arrays)
        return scatter_predictions(batch, *(np.asarray(each)[arrays.valid] for each in values))

    def write(self, batch: Batch, search: Search) -> list[Int[np.ndarray, " _tokens"]]:
        """The best text for each source, without begin and end; TypeError if there is no source."""
        return self._search(self.values, batch.second, search)

    def features(self, batch: Batch) -> Float[np.ndarray, "items places _features"]:
        """The input of the head for each item, in fp32."""
        return np.array(self._features(self.values, self._sharded(input_arrays(batch))))

    def inspect(self, batch: Batch) -> tuple[Layer, ...]:
        """The tensors of each attention layer for a batch."""
        arrays = self._inspect(self.values, self._sharded(input_arrays(batch)))
        return to_layers(self.network, arrays)

    def program(self, batch: Batch) -> str:
        """The compiled forward and backward pass over such a batch, as HLO text."""
        return self._gradients.compile(*self.gradient_arguments(batch)).as_text()

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of all weights, under the names that all backends share."""
        return copied(self.values)

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set all weights; ValueError if names or shapes differ."""
        arrays = {name: jnp.array(value) for name, value in weights.items()}
        self.values = self._replicate(check_weights(self.network.parameters, arrays))

    def save(self, path: Path) -> None:
        """Write all weights to a safetensors file."""
        save(self.values, path)

    def load_matching(self, path: Path) -> tuple[str, ...]:
        """Load the weights that match in name and shape from a file of `save`; their names."""
        same = matching(self.network.parameters, read(path))
        self.values |= self._replicate({name: jnp.array(value) for name, value in same.items()})
        return tuple(same)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that training changes, by name."""
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
            "scale/fitted": np.array(self.steps_at_scale),
        }

    def save_state(self, folder: Path) -> None:
        """Write the state to a safetensors file in a folder; OSError if that fails."""
        safetensors.numpy.save_file(self.state(), folder / STATE_FILE)

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a state with the same bits; ValueError if it does not fit."""
        check_state(self.state(), state)

        def of(part: str) -> dict[str, Array]:
            prefix = f"{part}/"
            return {
                name.removeprefix(prefix): jnp.array(value)
                for name, value in state.items()
                if name.startswith(prefix) and name != "optimizer/steps"
            }

        self.values = self._replicate(of("weights"))
        moments = {key: of(name) for name, key in _MOMENTS.items()}
        steps = jnp.array(state["optimizer/steps"], jnp.int32)
        optimizer = optax.tree.set(self.optimizer, count=steps, **moments)
        self.optimizer = self._replicate(optimizer)
        self.steps = int(state["dropout/steps"])
        self.scale, self.steps_at_scale = float(state["scale"]), int(state["scale/fitted"])
        self.gradient = None

    def gradient_arguments(self, batch: Batch) -> tuple[Any, ...]:
        """The arguments of the compiled gradients for this batch."""
        micro = batch.parts(self.experiment.training.micro_batches)
        own = [part for part in micro if scored_positions(part).any()] or [batch]
        # Alike in all parts: each combination of sizes is compiled for.
        sizes = [places_of(part) for part in own]
        count = max(size or part.targets.size for size, part in zip(sizes, own, strict=True))
        same = None if set(sizes) == {None} else count
        parts = [self._sharded(to_arrays(part, same)) for part in own]
        scored = np.array([part.valid.sum() for part in parts], np.float32)
        shares = scored / max(1.0, scored.sum())
        steps = np.int32(self.steps)
        return self.values, tuple(parts), shares, self.rng, steps, np.float32(self.scale)

    def _step_gradients(
        self,
        weights: Weights,
        parts: tuple[BatchArrays, ...],
        shares: Array,
        rng: Array,
        steps: Array,
        scale: Array,
    ) -> tuple[Array, Array, Weights]:
        key = jax.random.fold_in(rng, steps) if self.experiment.training.dropout else None
        return self.step.gradients(weights, parts, shares, key, scale)

    def _sharded(self, batch: BatchArrays) -> BatchArrays:
        """The batch with its items divided among the devices."""
        inputs = sharded(self.mesh, batch.inputs)
        extra_inputs = tuple(sharded(self.mesh, each) for each in batch.extra_inputs)
        return batch._replace(inputs=inputs, extra_inputs=extra_inputs)

    def _replicate(self, arrays: Tree) -> Tree:
        """The arrays on every device."""
        sharding = replicated(self.mesh)
        return arrays if sharding is None else jax.device_put(arrays, sharding)

    def _grow_scale(self) -> None:
        self.steps_at_scale += 1
        scaled = needs_loss_scaling(self.experiment.precision)
        if self.steps_at_scale == GROWTH_INTERVAL and scaled:
            self.scale, self.steps_at_scale = self.scale * 2, 0
