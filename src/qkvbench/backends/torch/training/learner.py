"""A learner: the loss and its gradients, the AdamW update, predictions."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.analysis import Layer
from qkvbench.backends.torch.models.block import recompute
from qkvbench.backends.torch.models.build import Network, build
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.gated import add_gates
from qkvbench.backends.torch.models.two_tower import TwoTowers
from qkvbench.backends.torch.models.weights import (
    GATES,
    load,
    load_matching,
    load_other_attention,
    named_weights,
    parameters_of,
    read,
    save,
    start,
)
from qkvbench.backends.torch.training import predict
from qkvbench.backends.torch.training.batches import (
    BatchTensors,
    NetworkInputs,
    own_parts,
    to_tensors,
)
from qkvbench.backends.torch.training.compilation import compiled, translate_compile_errors
from qkvbench.backends.torch.training.device import default_generator, device
from qkvbench.backends.torch.training.gates import BETAS, RATE, LayerGates
from qkvbench.backends.torch.training.loss import mean_divergence, mean_loss
from qkvbench.backends.torch.training.parallel import (
    full_model,
    full_params,
    full_scalar,
    local_shard,
    no_sync_until_last,
    parallelize,
)
from qkvbench.backends.torch.training.precision import autocast, loss_scaler
from qkvbench.backends.torch.training.process_group import init_process_group
from qkvbench.backends.torch.training.state import TrainingState, dropout_purpose
from qkvbench.cost.budget import budget
from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions, Search
from qkvbench.experiment import Experiment
from qkvbench.model import Model
from qkvbench.model.quantization import Quantization
from qkvbench.model.rng import framework_seed
from qkvbench.variant import write

# The mean loss of a network for a batch, and for these places of it.
TrainingLoss = Callable[..., Tensor]


class Learner:
    """The network of an experiment and its optimizer, without the training loop.

    With several devices each process has a learner. All are called with the whole batch, and
    compute and return results together.
    """

    def __init__(self, experiment: Experiment) -> None:
        """The network with its initial values, and a fresh optimizer."""
        training = experiment.training
        self.experiment = experiment
        self.world = init_process_group(experiment.devices)
        self.device = device()
        # Dropout uses torch's generator; all other random numbers are keyed by name.
        torch.manual_seed(framework_seed(experiment.seed, dropout_purpose(self.world)))
        self.rng = default_generator(self.device)
        self.network = build(experiment.model, dropout=training.dropout)
        self.gates = _gates(self.network, experiment)
        self.network.to(self.device)
        start(self.network, experiment.model, experiment.seed)
        if experiment.checkpointing:
            recompute(self.network)
        self.module = parallelize(self.network, experiment, self.world)
        self.training_loss: TrainingLoss = (
            compiled(_training_loss) if experiment.compiled else _training_loss
        )
        self.compile_s: float | None = None
        self.scaler = loss_scaler(experiment.precision, self.device)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.network, experiment.model, training.weight_decay),
            lr=training.learning_rate,
            betas=training.betas,
            fused=True,
        )
        self.training_state = TrainingState(
            self.network, self.optimizer, self.scaler, self.rng, self.world, experiment.seed
        )

    def warm_up(self, batch: Batch) -> None:
        """Compile the training pass for such batches, if the experiment is compiled.

        Changes neither weights nor random numbers. CompileError if compiling fails.
        """
        if not self.experiment.compiled:
            return
        began = time.perf_counter()
        # Creates tensors that are kept, such as RoPE tables, outside of the compiled pass.
        self.predict(batch)
        before = self.rng.get_state()
        with translate_compile_errors():
            self._backward(batch)
        self.rng.set_state(before)
        self.optimizer.zero_grad(set_to_none=True)
        self.compile_s = time.perf_counter() - began

    def gradients(self, batch: Batch) -> tuple[float, float]:
        """The mean loss in nats, and the norm of its gradient before clipping.

        Updates nothing, so the caller can stop at a loss that is not finite. If only the scaled
        gradients overflow, the scale is halved and the batch computed again with the same dropout,
        so that every arm takes the same number of steps.
        """
        before = self.rng.get_state()
        while True:
            scale = self.scaler.get_scale()
            loss = self._backward(batch)
            self.scaler.unscale_(self.optimizer)
            if self.scaler.is_enabled():
                # An overflow in one rank makes all ranks compute again.
                for overflow in self.scaler._found_inf_per_device(self.optimizer).values():
                    self.world.all_reduce_sum(local_shard(overflow))
            # Of the weights alone: the price of cost must not shorten their step.
            weights = [p for n, p in self.network.named_parameters() if not n.startswith(GATES)]
            norm = full_scalar(nn.utils.clip_grad_norm_(weights, self.experiment.training.clip))
            self.scaler.update()
            overflowed = self.scaler.get_scale() < scale
            if not overflowed or scale <= 1 or not math.isfinite(loss):
                return loss, norm
            self.rng.set_state(before)

    def update(self, learning_rate: float) -> None:
        """One AdamW step along the gradients. arXiv:1711.05101, algorithm 2."""
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("own_rate", learning_rate)
        self.optimizer.step()
        if self.gates:
            self.gates.update()

    def gate_measures(self) -> dict[str, list[float]]:
        """The probability of each option in each layer; empty without gates."""
        if self.gates is None:
            return {}
        columns = zip(*self.gates.probabilities(), strict=True)
        names = (write(each) for each in self.gates.budget.options)
        return {name: list(column) for name, column in zip(names, columns, strict=True)}

    def load_teacher(self, path: Path) -> None:
        """Load the teacher's network, which predicts beside this one while it trains."""
        teacher = self.experiment.teacher
        assert teacher is not None, "only an experiment with a teacher has its weights"
        network = build(teacher.model).to(self.device).eval()
        load(network, read(path))
        self.training_loss = partial(_distillation_loss, network)

    def predict(self, batch: Batch) -> Predictions:
        """The loss and the most probable class at each position; with gates, of the plan."""
        self.network.eval()
        if self.gates:
            self.gates.choose()
        return predict.predict(self.module, self.experiment, self.world, batch)

    def predict_quantized(self, batch: Batch, how: Quantization) -> Predictions:
        """As `predict`, over a cache in few bits, of a decoder of one input."""
        assert isinstance(self.network, Decoder), "an experiment with quantizations is a decoder's"
        return predict.predict_quantized(self.network, self.experiment, batch, how)

    def write(self, batch: Batch, search: Search) -> list[Int[np.ndarray, " _tokens"]]:
        """The best text for each source, without begin and end; TypeError if there is no source."""
        return predict.write(self._full_model(), self.experiment, batch, search)

    def features(self, batch: Batch) -> Float[np.ndarray, "items places _features"]:
        """The input of the head for each item, in fp32."""
        self.network.eval()
        return predict.features(self.module, self.experiment, batch)

    def inspect(self, batch: Batch) -> tuple[Layer, ...]:
        """The tensors of each attention layer for a batch."""
        return predict.inspect(self._full_model(), self.experiment, batch)

    def weights(self) -> dict[str, Tensor]:
        """All weights by the names that all backends share: views, or copies if sharded."""
        return named_weights(self._full_model())

    def load(self, weights: dict[str, Tensor]) -> None:
        """Set all weights."""
        with full_params(self.network, self.experiment) as network:
            load(network, weights)

    def save(self, path: Path) -> None:
        """Write all weights to a safetensors file; of several processes rank 0 does."""
        network = self._full_model()
        if self.world.rank == 0:
            save(network, path)

    def load_matching(self, path: Path) -> tuple[str, ...]:
        """Load the weights that match in name and shape from a file of `save`; their names."""
        if self.gates or self.experiment.other_attention:
            return load_other_attention(self.network, self.experiment.model, read(path))
        with full_params(self.network, self.experiment) as network:
            return load_matching(network, read(path))

    def state(self) -> dict[str, np.ndarray]:
        """Everything that training changes; of several processes each has its shards."""
        return self.training_state.arrays()

    def save_state(self, folder: Path) -> None:
        """Write the state to safetensors files in a folder; OSError if any process fails."""
        self.training_state.save(folder)

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a state with the same bits; ValueError if it does not fit."""
        self.training_state.restore(state)

    def tensors(self, batch: Batch) -> BatchTensors:
        """The batch on the learner's device."""
        return to_tensors(batch, self.device, dynamic=self.experiment.compiled)

    def _full_model(self) -> Network:
        return full_model(self.network, self.experiment)

    def _backward(self, batch: Batch) -> float:
        """Compute the gradients of the scaled mean loss of the whole batch; the mean loss.

        A micro-batch is weighted by its share of the scored positions, so the sum of the gradients
        is that of the whole batch.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        scored_in_batch = np.count_nonzero(batch.targets != IGNORE_INDEX)
        total = torch.zeros((), device=self.device)
        parts = own_parts(batch, self.experiment.training.micro_batches, self.world)
        for index, (part, scored) in enumerate(parts, 1):
            if self.gates:
                self.gates.draw(len(part.inputs), self.rng)
            with no_sync_until_last(self.module, last=index == len(parts)):
                with autocast(self.experiment.precision, self.device):
                    loss = self.module(
                        self.training_loss, *self.tensors(part), self.experiment.training.smoothing
                    )
                if scored < scored_in_batch:
                    loss = loss * (scored / scored_in_batch)
                # DDP and FSDP average the gradients of ranks; the sum is needed.
                self.scaler.scale(loss * self.world.world_size).backward()
                total = total + loss.detach()
        if self.gates and self.gates.learning:
            self.scaler.scale(self.gates.penalty()).backward()
        elif self.gates:
            self.gates.logits.grad = None
        return self.world.all_reduce_sum(total).item()


def _training_loss(
    network: Network,
    inputs: NetworkInputs,
    targets: Tensor,
    places: Tensor | None,
    smoothing: float,
) -> Tensor:
    """The mean loss at the scored positions."""
    return mean_loss(network, predict.hidden_at(network, inputs, places), targets, smoothing)


def _distillation_loss(
    teacher: Network,
    network: Network,
    inputs: NetworkInputs,
    targets: Tensor,
    places: Tensor | None,
    smoothing: float,
) -> Tensor:
    """The mean of the training loss and the divergence from the teacher's predictions."""
    hidden = predict.hidden_at(network, inputs, places)
    with torch.no_grad():
        expected = predict.hidden_at(teacher, inputs, places)
    divergence = mean_divergence(network, hidden, teacher, expected)
    return (mean_loss(network, hidden, targets, smoothing) + divergence) / 2


def _parameter_groups(
    network: nn.Module, model: Model, weight_decay: float
) -> list[dict[str, object]]:
    """Parameters with weight decay, then those without."""
    parameters = parameters_of(network, model)
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    gates: list[Tensor] = []
    for name, tensor in network.named_parameters():
        if name.startswith(GATES):
            gates += [tensor] if tensor.requires_grad else []
        else:
            (decayed if parameters[name].decay else free).append(tensor)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if gates:
        groups.append({"params": gates, "weight_decay": 0.0, "betas": BETAS, "own_rate": RATE})
    return groups


def _gates(network: Network, experiment: Experiment) -> LayerGates | None:
    """The gates of the network, which are added to its layers; None if it has none."""
    gates, training = experiment.gates, experiment.training
    if gates is None:
        return None
    assert not isinstance(network, TwoTowers), "gates are for models of one input"
    found = budget(experiment.model, gates)
    layers = add_gates(network.blocks.layers(), experiment.model, gates.options)
    network.gates = LayerGates(layers, found, training.steps)
    return network.gates
