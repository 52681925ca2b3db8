"""Data parallelism of one network, wrapped from outside: its layers do not know of it.

DDP: each device holds the whole model, and gradients are summed. FSDP: each device holds a shard of
every weight, gradient and optimizer state, and gathers a block while it computes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qkvbench.backends.torch.models.block import Block
from qkvbench.backends.torch.models.build import Network, build
from qkvbench.backends.torch.training.process_group import ProcessGroup
from qkvbench.experiment import Experiment

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

Answer = TypeVar("Answer")


class CallableModule(nn.Module):
    """A module whose forward pass is any function of a network: DDP and FSDP can wrap it."""

    def __init__(self, network: Network) -> None:
        """The module for functions of this network."""
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Answer], *arguments: object) -> Answer:
        """Call the function with the network and these arguments."""
        return function(self.network, *arguments)


def parallelize(network: Network, experiment: Experiment, group: ProcessGroup) -> nn.Module:
    """The network as a module to call in each process; a single process wraps nothing.

    Autocast alone sets the precision, as in a single process: weights are gathered and gradients
    summed in fp32, which takes twice the traffic of bf16 and gives the same result.
    """
    module = CallableModule(network)
    if group.world_size == 1:
        return module
    device = next(network.parameters()).device
    match experiment.sharding:
        case "ddp":
            # Initial values are keyed by name, so all ranks have the same: no broadcast.
            return DistributedDataParallel(
                module, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        case "fsdp":
            # These imports take seconds, and a run on one device does not need them.
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (group.world_size,))
            for block in network.modules():
                if isinstance(block, Block):
                    fully_shard(block, mesh=mesh)
            fully_shard(module, mesh=mesh)
            return module


def no_sync_until_last(module: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """The context of the backward pass of a micro-batch: DDP sums gradients after the last one.

    FSDP sums them after each: otherwise every device would hold the full gradient in between.
    """
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def forward_only(module: nn.Module, function: Callable[..., Answer], *arguments: object) -> Answer:
    """The function's result without a backward pass.

    FSDP reshards the outermost weights in the backward pass; without one they are resharded here.
    """
    result = module(function, *arguments)
    if isinstance(module, CallableModule) and hasattr(module, "reshard"):
        cast("FSDPModule", module).reshard()
    return result


@torch.no_grad()
def full_model(network: Network, experiment: Experiment) -> Network:
    """The network with full weights: the network itself, or a copy gathered from all shards."""
    if not any(map(_is_sharded, network.parameters())):
        return network
    device = next(network.parameters()).device
    copy = build(experiment.model, dropout=experiment.training.dropout).to(device).eval()
    for full, shard in zip(copy.parameters(), network.parameters(), strict=True):
        full.copy_(_full_tensor(shard))
    return copy


@contextmanager
def full_params(network: Network, experiment: Experiment) -> Iterator[Network]:
    """The network with full weights, to be changed: each rank copies its shard back at the end."""
    copy = full_model(network, experiment)
    yield copy
    if copy is not network:
        with torch.no_grad():
            for full, shard in zip(copy.parameters(), network.parameters(), strict=True):
                copy_to_shard(shard, full)


def full_scalar(tensor: Tensor) -> float:
    """The value of a tensor of one number, which may be sharded."""
    return _full_tensor(tensor).item()


def copy_to_shard(tensor: Tensor, full: Tensor) -> None:
    """Set this rank's shard of a tensor from the full value, which every rank has."""
    if _is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        shard = cast("DTensor", tensor)
        full = distribute_tensor(full, shard.device_mesh, shard.placements, src_data_rank=None)
    tensor.copy_(full)


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or the whole tensor if it is not sharded."""
    return cast("DTensor", tensor).to_local() if _is_sharded(tensor) else tensor


def write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the tensors of all ranks, each shard once, to one safetensors file per rank.

    The header of a file holds the offsets of its shards (`DCP_SHARDING_INFO`); no index, no pickle.
    All ranks return when all have written. OSError in every rank if one could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise OSError(getattr(first, "errno", None), str(first)) from None


def _full_tensor(tensor: Tensor) -> Tensor:
    return cast("DTensor", tensor).full_tensor() if _is_sharded(tensor) else tensor


def _is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, found by attribute because importing the class takes long."""
    return hasattr(tensor, "full_tensor")
