"""Batches as tensors on a device, and their division among the processes of a group."""

from dataclasses import replace
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from qkvbench.backends.torch.training.process_group import ProcessGroup
from qkvbench.data.batch import IGNORE_INDEX, Batch


class NetworkInputs(NamedTuple):
    """The arguments of a network's `hidden`; lengths and a second input are extra inputs."""

    inputs: Tensor
    extra_inputs: tuple[Tensor | None, ...]


# Network inputs, the targets at scored positions, and those positions; None if all are scored.
BatchTensors = tuple[NetworkInputs, Tensor, Tensor | None]


def to_tensors(batch: Batch, device: torch.device, *, dynamic: bool) -> BatchTensors:
    """The batch on a device; `dynamic` keeps torch.compile from specializing on the targets."""
    extra_inputs = (to_tensor(batch.lengths, device),)
    if batch.second is not None:
        second, lengths = batch.second.inputs, batch.second.lengths
        extra_inputs = (*extra_inputs, to_tensor(second, device), to_tensor(lengths, device))
    inputs = NetworkInputs(to_tensor(batch.inputs, device), extra_inputs)
    targets = to_tensor(batch.targets, device).flatten()  # (items · positions,)
    scored = batch.targets.ravel() != IGNORE_INDEX
    if scored.all():
        return inputs, targets, None
    places = torch.from_numpy(np.flatnonzero(scored)).to(device)  # (scored,)
    targets = targets[places]
    if dynamic:
        # Another number of scored positions must not compile again.
        for tensor in (places, targets):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return inputs, targets, places


@overload
def to_tensor(array: np.ndarray, device: torch.device) -> Tensor: ...
@overload
def to_tensor(array: None, device: torch.device) -> None: ...
def to_tensor(array: np.ndarray | None, device: torch.device) -> Tensor | None:
    """The array on a device."""
    return None if array is None else torch.from_numpy(array).to(device)


def own_parts(batch: Batch, count: int, group: ProcessGroup) -> list[tuple[Batch, int]]:
    """The micro-batches of one rank, each with its number of scored positions.

    The batch is divided into at least `count` parts, the same number for each rank, because ranks
    compute together. A step in which no rank has a scored position is left out; in other steps a
    rank without one computes a position that has no weight.
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
    """The first item, with one position scored, so that there is a loss to multiply by 0."""
    first = next(part.parts(len(part.inputs)))
    targets = np.full_like(first.targets, IGNORE_INDEX)
    targets[0, 0] = 0
    return replace(first, targets=targets)


def own_share(batch: Batch, group: ProcessGroup) -> tuple[Batch, slice]:
    """The items that one rank predicts, and their range among all scored positions.

    If there are fewer items than ranks, the others compute the first item, for an empty range.
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


def gather(own: Tensor, share: slice, count: int, group: ProcessGroup) -> np.ndarray:
    """The values at all `count` scored positions, from each rank's share.

    Shares are summed with zeros elsewhere, which keeps every bit.
    """
    if group.world_size == 1:
        return own.cpu().numpy()
    values = own.new_zeros(count)
    values[share] = own[: share.stop - share.start]
    return group.all_reduce_sum(values).cpu().numpy()
