"""A model that learns: the loss and its gradients, the AdamW update, predictions."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.analysis import Layer
from qkvbench.backends import STATE_FILE
from qkvbench.backends.torch.generation.beam_search import searched
from qkvbench.backends.torch.models.block import recompute
from qkvbench.backends.torch.models.build import Network, build
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.inspect import inspected
from qkvbench.backends.torch.models.weights import (
    load,
    load_matching,
    named_weights,
    parameters_of,
    read,
    save,
    start,
)
from qkvbench.backends.torch.training.compilation import compile_error as _compile_error
from qkvbench.backends.torch.training.compilation import compiled, failures_told
from qkvbench.backends.torch.training.loss import mean_loss, place_losses
from qkvbench.backends.torch.training.parallel import (
    copy_to_shard,
    forward_only,
    full_model,
    full_params,
    full_scalar,
    local_shard,
    no_sync_until_last,
    parallelize,
    write_shards,
)
from qkvbench.backends.torch.training.precision import autocast, loss_scaler
from qkvbench.backends.torch.training.process_group import ProcessGroup, init_process_group
from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions, Search
from qkvbench.experiment import Experiment
from qkvbench.model import Model
from qkvbench.model.rng import framework_seed

_DRAWS = "draws"


class Read(NamedTuple):
    """What a network reads: inputs, and of them and a second input what `hidden` takes beside."""

    inputs: Tensor
    beside: tuple[Tensor | None, ...]


def prepare(threads: int) -> None:
    """Make this process repeatable: a fixed number of threads, deterministic kernels only."""
    torch.set_num_threads(threads)
    # cuBLAS is deterministic only with a workspace of a stated size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # As `use_deterministic_algorithms`, which imports a compiler first: a second in each process.
    torch.set_deterministic_debug_mode("error")
    # Filling fresh memory with NaN finds reads before writes; it takes 4% of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fork_safe() -> bool:
    """Whether a process that has used torch may be forked: an accelerator does not survive it."""
    return device().type == "cpu"


def compile_error() -> str | None:
    """Why an experiment that is to be compiled cannot be here; None where it can."""
    return _compile_error(device())


def reset_peak_memory() -> int | None:
    """Memory held on the accelerator, whose peak counts from here; None where there is none."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes() -> int | None:
    """The most memory held on the accelerator since `level_bytes`; None where there is none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class Learner:
    """The network of an experiment, its optimizer, and nothing of the loop around them.

    On several devices each process has one. All make the same calls with the whole batch; each
    computes its part, and every result is that of the whole batch.
    """

    def __init__(self, experiment: Experiment) -> None:
        """The network with its initial values, and a fresh optimizer."""
        training = experiment.training
        self.experiment = experiment
        self.world = init_process_group(experiment.devices)
        self.device = device()
        # Dropout is drawn by the framework; everything else is keyed by name.
        torch.manual_seed(framework_seed(experiment.seed, _dropout(self.world)))
        self.rng = _draws(self.device)
        self.network = build(experiment.model, dropout=training.dropout).to(self.device)
        start(self.network, experiment.model, experiment.seed)
        if experiment.checkpointing:
            recompute(self.network)
        self.module = parallelize(self.network, experiment, self.world)
        self.training_loss = compiled(_training_loss) if experiment.compiled else _training_loss
        self.compile_s: float | None = None
        self.scaler = loss_scaler(experiment.precision, self.device)
        self.optimizer = torch.optim.AdamW(
            _groups(self.network, experiment.model, training.weight_decay),
            lr=training.learning_rate,
            betas=training.betas,
            fused=True,
        )

    def warm_up(self, batch: Batch) -> None:
        """Compile the training pass where the experiment asks for it, on a batch of its kind.

        Nothing is learned, drawn or counted: training goes on as if this had not been. Raises
        CompileError where nothing can be compiled.
        """
        if not self.experiment.compiled:
            return
        began = time.perf_counter()
        # What is made once and kept, such as a table of angles, is made outside the compiled pass.
        self.predict(batch)
        before = self.rng.get_state()
        with failures_told():
            self._backward(batch)
        self.rng.set_state(before)
        self.optimizer.zero_grad(set_to_none=True)
        self.compile_s = time.perf_counter() - began

    def gradients(self, batch: Batch) -> tuple[float, float]:
        """The mean loss in nats, and the norm of its gradient before clipping.

        Nothing is updated: a caller sees a loss that is not finite before it does harm. Where only
        the scaled gradients overflow, the scale is halved and the batch computed again, with the
        same dropout, so that every arm takes as many steps.
        """
        before = self.rng.get_state()
        while True:
            scale = self.scaler.get_scale()
            loss = self._backward(batch)
            self.scaler.unscale_(self.optimizer)
            if self.scaler.is_enabled():
                # If one rank's part overflows, all ranks compute the batch again.
                for found in self.scaler._found_inf_per_device(self.optimizer).values():
                    self.world.all_reduce_sum(local_shard(found))
            norm = full_scalar(
                nn.utils.clip_grad_norm_(self.network.parameters(), self.experiment.training.clip)
            )
            self.scaler.update()
            overflowed = self.scaler.get_scale() < scale
            if not overflowed or scale <= 1 or not math.isfinite(loss):
                return loss, norm
            self.rng.set_state(before)

    def update(self, learning_rate: float) -> None:
        """One AdamW step along the gradients. arXiv:1711.05101, algorithm 2."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, batch: Batch) -> Predictions:
        """The loss and the likeliest class at each place; loss 0 where nothing is scored."""
        self.network.eval()
        own, share = _share(batch, self.world)
        read, targets, places = self._tensors(own)
        with autocast(self.experiment.precision, self.device):
            losses, *classes = forward_only(self.module, _told, read, targets, places)
        scored = batch.targets != IGNORE_INDEX
        loss = np.zeros(batch.targets.shape, np.float32)
        count = int(np.count_nonzero(scored))
        loss[scored] = self._joined(losses, share, count)
        predicted, ranks = (np.full(batch.targets.shape, IGNORE_INDEX, np.int64) for _ in classes)
        for found, told in zip((predicted, ranks), classes, strict=True):
            found[scored] = self._joined(told, share, count)
        return Predictions(loss, predicted, batch.targets, ranks)

    @torch.no_grad()
    def write(self, batch: Batch, search: Search) -> list[Int[np.ndarray, " _tokens"]]:
        """What the model writes for each item, as the search finds it; without begin and end.

        TypeError where the model reads no source.
        """
        network = full_model(self.network, self.experiment)
        if not isinstance(network, Decoder) or network.source is None or batch.second is None:
            raise TypeError("Only a decoder that reads a source writes texts, and only from one.")
        network.eval()
        second, lengths = self._tensor(batch.second.inputs), self._tensor(batch.second.lengths)
        with autocast(self.experiment.precision, self.device):
            found = searched(network, second, lengths, search)
        return [tokens.cpu().numpy() for tokens in found]

    @torch.no_grad()
    def features(self, batch: Batch) -> Float[np.ndarray, "items places _features"]:
        """What the head reads of each item, in fp32; changes nothing."""
        self.network.eval()
        read, _, _ = self._tensors(batch)
        with autocast(self.experiment.precision, self.device):
            return forward_only(self.module, _hidden, read).float().cpu().numpy()

    def inspect(self, batch: Batch) -> tuple[Layer, ...]:
        """What each attention layer makes of a batch; changes nothing."""
        network = full_model(self.network, self.experiment).eval()
        read, _, _ = self._tensors(batch)
        with autocast(self.experiment.precision, self.device):
            return inspected(network, read.inputs, *read.beside)

    def weights(self) -> dict[str, Tensor]:
        """Live views of all weights, under the names that all backends share.

        A copy if the weights are sharded.
        """
        return named_weights(full_model(self.network, self.experiment))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over these weights."""
        with full_params(self.network, self.experiment) as network:
            load(network, weights)

    def save(self, path: Path) -> None:
        """Write all weights to a safetensors file; of several processes rank 0 does."""
        network = full_model(self.network, self.experiment)
        if self.world.rank == 0:
            save(network, path)

    def load_matching(self, path: Path) -> tuple[str, ...]:
        """Take over what agrees in name and shape from a file that `save` wrote; those names."""
        with full_params(self.network, self.experiment) as network:
            return load_matching(network, read(path))

    @torch.no_grad()
    def state(self) -> dict[str, np.ndarray]:
        """Weights, optimizer moments and steps, loss scale, state of the random generator.

        Of several processes each returns its shards.
        """
        return {name: local_shard(tensor).cpu().numpy() for name, tensor in self._state().items()}

    def save_state(self, folder: Path) -> None:
        """Write the state to safetensors files in a folder; OSError if any process fails."""
        if self.world.world_size == 1:
            safetensors.numpy.save_file(self.state(), folder / STATE_FILE)
        else:
            write_shards(self._state(), folder)

    @torch.no_grad()
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Set the `state`, to resume with the same bits; ValueError if it does not fit.

        Each of several processes gets the full arrays. If another number of processes saved them,
        dropout continues with new generators, because the states of these do not exist.
        """
        given = {name: torch.tensor(array) for name, array in state.items()}
        self._select_rng_state(given)
        own = self._state()
        for name in sorted(own.keys() | given.keys()):
            here, there = own.get(name), given.get(name)
            if here is None or there is None or _kind(here) != _kind(there):
                raise ValueError(
                    f"{name} is {_said(here)} in this learner and {_said(there)} in the state."
                )
        for name, tensor in self._changed().items():
            copy_to_shard(tensor, given[name].to(tensor.device))
        self.rng.set_state(given[self._rng_name])
        if scale := self.scaler.state_dict():
            self.scaler.load_state_dict({key: given[f"scaler.{key}"].item() for key in scale})

    @property
    def _rng_name(self) -> str:
        """The name of the state of this rank's random generator."""
        return _rng_names(self.world)[self.world.rank]

    def _select_rng_state(self, given: dict[str, Tensor]) -> None:
        """Keep only this rank's generator state; a new one if another number of ranks saved it."""
        drawn = {name for name in given if name.split(".")[0] == _DRAWS}
        names = _rng_names(self.world)
        if drawn and drawn != set(names):
            step = max((int(given[name]) for name in given if name.endswith(".step")), default=0)
            purpose = f"{_dropout(self.world)} after step {step}"
            fresh = torch.Generator(self.device)
            fresh.manual_seed(framework_seed(self.experiment.seed, purpose))
            given[self._rng_name] = fresh.get_state()
        for name in drawn.difference([self._rng_name]):
            del given[name]

    def _state(self) -> dict[str, Tensor]:
        """All that training has changed: live tensors, and copies of what are none."""
        scale = {key: torch.tensor(value) for key, value in self.scaler.state_dict().items()}
        return {
            **self._changed(),
            self._rng_name: self.rng.get_state(),
            **{f"scaler.{key}": value for key, value in scale.items()},
        }

    def _changed(self) -> dict[str, Tensor]:
        """The tensors that a step changes, live: weights, and the optimizer's own for each."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            kept = self.optimizer.state[parameter]
            if not kept:
                # As the optimizer begins at its first step.
                kept["step"] = torch.zeros((), device=parameter.device)
                kept |= {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            tensors[f"weights.{name}"] = parameter
            tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in kept.items()}
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def _backward(self, batch: Batch) -> float:
        """Set the gradients to those of the scaled mean loss of the whole batch; the mean loss.

        A part weighs what it has of the batch's scored places, so the sum is the whole's gradient.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        places = np.count_nonzero(batch.targets != IGNORE_INDEX)
        total = torch.zeros((), device=self.device)
        parts = _own_parts(batch, self.experiment.training.micro_batches, self.world)
        for index, (part, scored) in enumerate(parts, 1):
            with no_sync_until_last(self.module, last=index == len(parts)):
                with autocast(self.experiment.precision, self.device):
                    loss = self.module(
                        self.training_loss, *self._tensors(part), self.experiment.training.smoothing
                    )
                if scored < places:
                    loss = loss * (scored / places)
                # DDP and FSDP average gradients over ranks; the sum is needed.
                self.scaler.scale(loss * self.world.world_size).backward()
                total = total + loss.detach()
        return self.world.all_reduce_sum(total).item()

    def _tensors(self, batch: Batch) -> tuple[Read, Tensor, Tensor | None]:
        """What is read, the targets at scored places, and those places (None: all)."""
        beside = (self._tensor(batch.lengths),)
        if batch.second is not None:
            second = batch.second
            beside = (*beside, self._tensor(second.inputs), self._tensor(second.lengths))
        read = Read(self._tensor(batch.inputs), beside)
        targets = self._tensor(batch.targets).flatten()
        scored = batch.targets.ravel() != IGNORE_INDEX
        if scored.all():
            return read, targets, None
        places = torch.from_numpy(np.flatnonzero(scored)).to(self.device)
        targets = targets[places]
        if self.experiment.compiled:
            # Another number of scored places is no reason to compile again.
            for tensor in (places, targets):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return read, targets, places

    def _joined(self, own: Tensor, share: slice, count: int) -> np.ndarray:
        """The values at all `count` scored positions, of which `own` are this rank's share.

        The others are zero in this rank, so the sum over ranks changes no value.
        """
        if self.world.world_size == 1:
            return own.cpu().numpy()
        values = own.new_zeros(count)
        values[share] = own[: share.stop - share.start]
        return self.world.all_reduce_sum(values).cpu().numpy()

    @overload
    def _tensor(self, array: np.ndarray) -> Tensor: ...
    @overload
    def _tensor(self, array: None) -> None: ...
    def _tensor(self, array: np.ndarray | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array).to(self.device)


def _training_loss(
    network: Network, read: Read, targets: Tensor, places: Tensor | None, smoothing: float
) -> Tensor:
    """The mean loss at the scored places."""
    return mean_loss(network, _hidden_at(network, read, places), targets, smoothing)


def _told(
    network: Network, read: Read, targets: Tensor, places: Tensor | None
) -> tuple[Tensor, ...]:
    """The loss, the likeliest class and the right one's rank at each scored place."""
    return place_losses(network, _hidden_at(network, read, places), targets)


def _hidden(network: Network, read: Read) -> Tensor:
    """What the head reads."""
    return network.hidden(read.inputs, *read.beside)


def _hidden_at(network: Network, read: Read, places: Tensor | None) -> Tensor:
    """The stream at the scored places: logits of the others are never made."""
    hidden = network.hidden(read.inputs, *read.beside).flatten(0, 1)
    return hidden if places is None else hidden[places]


def _own_parts(batch: Batch, count: int, group: ProcessGroup) -> list[tuple[Batch, int]]:
    """The micro-batches that this rank computes, each with its number of scored positions.

    All ranks compute the same number of micro-batches, because they communicate after each; none is
    larger than on one device. If no rank has scored positions in one, it is left out; if only this
    rank has none, it computes a position with weight 0.
    """
    each = -(-count // group.world_size)
    parts = list(batch.parts(each * group.world_size))
    scored = [int(np.count_nonzero(part.targets != IGNORE_INDEX)) for part in parts]
    own: list[tuple[Batch, int]] = []
    for step in range(each):
        if any(scored[step::each]) or not any(scored):
            mine = group.rank * each + step
            part = parts[mine]
            if any(scored) and not scored[mine]:
                part = _weightless(part if len(part.inputs) else batch)
            own.append((part, scored[mine]))
    return own


def _weightless(part: Batch) -> Batch:
    """The first item with one scored position, whose loss is multiplied by 0."""
    first = next(part.parts(len(part.inputs)))
    targets = np.full_like(first.targets, IGNORE_INDEX)
    targets[0, 0] = 0
    return replace(first, targets=targets)


def _share(batch: Batch, group: ProcessGroup) -> tuple[Batch, slice]:
    """The items of a batch that this rank predicts, and their slice of all scored positions.

    If there are too few items, the rank computes the first one and its slice is empty.
    """
    if group.world_size == 1:
        return batch, slice(0, int(np.count_nonzero(batch.targets != IGNORE_INDEX)))
    parts = list(batch.parts(group.world_size))
    scored = [int(np.count_nonzero(part.targets != IGNORE_INDEX)) for part in parts]
    first = sum(scored[: group.rank])
    own = parts[group.rank]
    if not len(own.inputs):
        own = next(batch.parts(len(batch.inputs)))
    return own, slice(first, first + scored[group.rank])


def _dropout(group: ProcessGroup) -> str:
    """The purpose that keys a rank's dropout: ranks draw different masks, for different items."""
    return "dropout" if group.world_size == 1 else f"dropout of {group.rank} in {group.world_size}"


def _rng_names(group: ProcessGroup) -> list[str]:
    """The names of the states of all ranks' random generators."""
    return (
        [_DRAWS]
        if group.world_size == 1
        else [f"{_DRAWS}.{each}" for each in range(group.world_size)]
    )


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
    return tensor.dtype, tensor.shape


def _said(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} of {tuple(tensor.shape)}"


def _draws(device: torch.device) -> torch.Generator:
    """The generator from which the framework draws dropout on `device`."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()]
    return torch.default_generator


def _groups(network: nn.Module, model: Model, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with weight decay, then those without."""
    parameters = parameters_of(network, model)
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, tensor in network.named_parameters():
        (decayed if parameters[name].decay else free).append(tensor)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
