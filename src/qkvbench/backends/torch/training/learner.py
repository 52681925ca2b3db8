"""A model that learns: the loss and its gradients, the AdamW update, predictions."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.analysis import Layer
from qkvbench.backends.torch.generation.beam_search import searched
from qkvbench.backends.torch.models.block import recompute
from qkvbench.backends.torch.models.build import Network, build
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.inspect import inspected
from qkvbench.backends.torch.models.weights import (
    load,
    load_matching,
    named_weights,
    read,
    save,
    start,
)
from qkvbench.backends.torch.training.compilation import compile_error as _compile_error
from qkvbench.backends.torch.training.compilation import compiled, failures_told
from qkvbench.backends.torch.training.loss import mean_loss, place_losses
from qkvbench.backends.torch.training.parallel import (
    edited,
    held,
    looked,
    number,
    put,
    spread,
    summing,
    whole,
    write_parts,
)
from qkvbench.backends.torch.training.precision import autocast, loss_scaler
from qkvbench.backends.torch.training.process_group import Ranks, together
from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions, Search
from qkvbench.experiment import Experiment
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

    Over many devices each process has one: all are called alike, with the whole batch, of which
    each computes its part; what is told is of the whole.
    """

    def __init__(self, experiment: Experiment) -> None:
        """The network with its initial values, and a fresh optimizer."""
        training = experiment.training
        self.experiment = experiment
        self.ranks = together(experiment.devices)
        self.device = device()
        # Dropout is drawn by the framework; everything else is keyed by name.
        torch.manual_seed(framework_seed(experiment.seed, _dropout(self.ranks)))
        self.rng = _draws(self.device)
        self.network = build(experiment.model, dropout=training.dropout).to(self.device)
        start(self.network, experiment.model, experiment.seed)
        if experiment.checkpointing:
            recompute(self.network)
        self.worked = spread(self.network, experiment, self.ranks)
        self.training_loss = compiled(_training_loss) if experiment.compiled else _training_loss
        self.compile_s: float | None = None
        self.scaler = loss_scaler(experiment.precision, self.device)
        self.optimizer = torch.optim.AdamW(
            _groups(self.network, training.weight_decay),
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
                # What one rank's part overflows in, all compute again.
                for found in self.scaler._found_inf_per_device(self.optimizer).values():
                    self.ranks.summed(held(found))
            norm = number(
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
        own, share = _share(batch, self.ranks)
        read, targets, places = self._tensors(own)
        with autocast(self.experiment.precision, self.device):
            losses, *classes = looked(self.worked, _told, read, targets, places)
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
        network = whole(self.network, self.experiment)
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
            return looked(self.worked, _hidden, read).float().cpu().numpy()

    def inspect(self, batch: Batch) -> tuple[Layer, ...]:
        """What each attention layer makes of a batch; changes nothing."""
        network = whole(self.network, self.experiment).eval()
        read, _, _ = self._tensors(batch)
        with autocast(self.experiment.precision, self.device):
            return inspected(network, read.inputs, *read.beside)

    @property
    def rank(self) -> int:
        """Which of the processes that learn together this is, from 0."""
        return self.ranks.rank

    @property
    def count(self) -> int:
        """How many processes learn together."""
        return self.ranks.count

    def agreed(self, *, asked: bool) -> bool:
        """Whether any of them asks for it."""
        return self.ranks.agreed(asked=asked)

    def told(self, text: str) -> str:
        """What the first of them says."""
        return self.ranks.told(text)

    def weights(self) -> dict[str, Tensor]:
        """Live views of all weights, under the names that all backends share.

        Where each device holds a part of them, they are a copy.
        """
        return named_weights(whole(self.network, self.experiment))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over these weights."""
        with edited(self.network, self.experiment) as network:
            load(network, weights)

    def save(self, path: Path) -> None:
        """Write all weights to a safetensors file; of many processes the first does."""
        network = whole(self.network, self.experiment)
        if self.ranks.rank == 0:
            save(network, path)

    def load_matching(self, path: Path) -> tuple[str, ...]:
        """Take over what agrees in name and shape from a file that `save` wrote; those names."""
        with edited(self.network, self.experiment) as network:
            return load_matching(network, read(path))

    @torch.no_grad()
    def state(self) -> dict[str, np.ndarray]:
        """Weights, both moments of the optimizer and its steps, loss scale, state of the draws.

        Of several processes each tells what it holds.
        """
        return {name: held(tensor).cpu().numpy() for name, tensor in self._state().items()}

    def save_state(self, folder: Path) -> None:
        """Write what all processes hold to files in a folder; OSError where they cannot be."""
        write_parts(self._state(), folder)

    @torch.no_grad()
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` told, with the same bits; ValueError where it does not fit.

        Each of several processes is given the whole. Where another number of them has drawn, they
        draw anew from here: what each would go on with is not there.
        """
        given = {name: torch.tensor(array) for name, array in state.items()}
        self._sort_out_draws(given)
        own = self._state()
        for name in sorted(own.keys() | given.keys()):
            here, there = own.get(name), given.get(name)
            if here is None or there is None or _kind(here) != _kind(there):
                raise ValueError(
                    f"{name} is {_said(here)} in this learner and {_said(there)} in the state."
                )
        for name, tensor in self._changed().items():
            put(tensor, given[name].to(tensor.device))
        self.rng.set_state(given[self._drawn])
        if scale := self.scaler.state_dict():
            self.scaler.load_state_dict({key: given[f"scaler.{key}"].item() for key in scale})

    @property
    def _drawn(self) -> str:
        """The name of the state of this process's draws."""
        return _draws_of(self.ranks)[self.ranks.rank]

    def _sort_out_draws(self, given: dict[str, Tensor]) -> None:
        """Leave of all processes' draws this one's; new ones where others have drawn."""
        drawn = {name for name in given if name.split(".")[0] == _DRAWS}
        names = _draws_of(self.ranks)
        if drawn and drawn != set(names):
            step = max((int(given[name]) for name in given if name.endswith(".step")), default=0)
            purpose = f"{_dropout(self.ranks)} after step {step}"
            fresh = torch.Generator(self.device)
            fresh.manual_seed(framework_seed(self.experiment.seed, purpose))
            given[self._drawn] = fresh.get_state()
        for name in drawn.difference([self._drawn]):
            del given[name]

    def _state(self) -> dict[str, Tensor]:
        """All that training has changed: live tensors, and copies of what are none."""
        scale = {key: torch.tensor(value) for key, value in self.scaler.state_dict().items()}
        return {
            **self._changed(),
            self._drawn: self.rng.get_state(),
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
        parts = _own_parts(batch, self.experiment.training.micro_batches, self.ranks)
        for index, (part, scored) in enumerate(parts, 1):
            with summing(self.worked, last=index == len(parts)):
                with autocast(self.experiment.precision, self.device):
                    loss = self.worked(
                        self.training_loss, *self._tensors(part), self.experiment.training.smoothing
                    )
                if scored < places:
                    loss = loss * (scored / places)
                # Ranks take the mean of their gradients, and the sum is what is wanted.
                self.scaler.scale(loss * self.ranks.count).backward()
                total = total + loss.detach()
        return self.ranks.summed(total).item()

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
        """The values at all `count` scored places, of which these are those of this rank's share.

        They are summed over zeros, which changes none of them.
        """
        if self.ranks.count == 1:
            return own.cpu().numpy()
        values = own.new_zeros(count)
        values[share] = own[: share.stop - share.start]
        return self.ranks.summed(values).cpu().numpy()

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


def _own_parts(batch: Batch, count: int, ranks: Ranks) -> list[tuple[Batch, int]]:
    """The parts of a batch that one rank computes, each with its number of scored places.

    As many parts as are asked for, and no larger ones, are shared by all; each computes equally
    many, since they compute together. One without a scored place is left out where all others'
    are; else it stands in with a place that weighs nothing.
    """
    each = -(-count // ranks.count)
    parts = list(batch.parts(each * ranks.count))
    scored = [int(np.count_nonzero(part.targets != IGNORE_INDEX)) for part in parts]
    own: list[tuple[Batch, int]] = []
    for step in range(each):
        if any(scored[step::each]) or not any(scored):
            mine = ranks.rank * each + step
            part = parts[mine]
            if any(scored) and not scored[mine]:
                part = _weightless(part if len(part.inputs) else batch)
            own.append((part, scored[mine]))
    return own


def _weightless(part: Batch) -> Batch:
    """The first item, with one place scored, so that there is a loss to be multiplied by 0."""
    first = next(part.parts(len(part.inputs)))
    targets = np.full_like(first.targets, IGNORE_INDEX)
    targets[0, 0] = 0
    return replace(first, targets=targets)


def _share(batch: Batch, ranks: Ranks) -> tuple[Batch, slice]:
    """The items of a batch that one rank tells of, and which of all scored places are theirs.

    Where there are too few items, a rank computes the first one with the others and tells nothing.
    """
    if ranks.count == 1:
        return batch, slice(0, int(np.count_nonzero(batch.targets != IGNORE_INDEX)))
    parts = list(batch.parts(ranks.count))
    scored = [int(np.count_nonzero(part.targets != IGNORE_INDEX)) for part in parts]
    first = sum(scored[: ranks.rank])
    own = parts[ranks.rank]
    if not len(own.inputs):
        own = next(batch.parts(len(batch.inputs)))
    return own, slice(first, first + scored[ranks.rank])


def _dropout(ranks: Ranks) -> str:
    """What a rank's draws of dropout are for: others draw other masks, for other items."""
    return "dropout" if ranks.count == 1 else f"dropout of {ranks.rank} in {ranks.count}"


def _draws_of(ranks: Ranks) -> list[str]:
    """The names of the states of all processes' draws."""
    return [_DRAWS] if ranks.count == 1 else [f"{_DRAWS}.{each}" for each in range(ranks.count)]


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


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and tables decay; offsets, scales and rotations, which have no zero, do not."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, tensor in network.named_parameters():
        decays = tensor.ndim >= 2 and ".rotation." not in name
        (decayed if decays else free).append(tensor)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
