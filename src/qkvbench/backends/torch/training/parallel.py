"""One network over many devices, wrapped from outside: its layers know nothing of it.

Replicated (DDP), each device has the whole and gradients are summed. Sharded (FSDP), each has a
part of every weight, gradient and optimizer state, and a block is made whole while it computes.
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
from qkvbench.backends.torch.training.process_group import Ranks
from qkvbench.experiment import Experiment

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

Answer = TypeVar("Answer")


class Worked(nn.Module):
    """A network as a module whose forward pass is any work with it: what is wrapped is this."""

    def __init__(self, network: Network) -> None:
        """The network, for work."""
        super().__init__()
        self.network = network

    def forward(self, work: Callable[..., Answer], *arguments: object) -> Answer:
        """What `work` makes of the network and these arguments."""
        return work(self.network, *arguments)


def spread(network: Network, experiment: Experiment, ranks: Ranks) -> nn.Module:
    """The network of one of the ranks, to work with; alone it is whole and wrapped by nothing.

    Precision is autocast's, by the one policy that a single process has: weights are gathered and
    gradients summed in fp32, which takes twice the traffic of bf16 and gives the same result.
    """
    worked = Worked(network)
    if ranks.count == 1:
        return worked
    device = next(network.parameters()).device
    match experiment.sharding:
        case "ddp":
            # Initial values are keyed by name, so all ranks have the same: nothing is broadcast.
            return DistributedDataParallel(
                worked, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        case "fsdp":
            # Seconds to import, which a run on one device does without.
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (ranks.count,))
            for block in network.modules():
                if isinstance(block, Block):
                    fully_shard(block, mesh=mesh)
            fully_shard(worked, mesh=mesh)
            return worked


def summing(module: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """A backward pass over a part of a batch, the `last` one or another.

    Replicas sum their gradients once, after the last part. Shards do so after each, or every device
    would hold the whole gradient in between.
    """
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def looked(module: nn.Module, work: Callable[..., Answer], *arguments: object) -> Answer:
    """What work makes of the network that no backward pass follows.

    It is that pass which cuts the outermost weights into parts again; here nothing else would.
    """
    found = module(work, *arguments)
    if isinstance(module, Worked) and hasattr(module, "reshard"):
        cast("FSDPModule", module).reshard()
    return found


@torch.no_grad()
def whole(network: Network, experiment: Experiment) -> Network:
    """The network with all its weights here: itself, or a copy gathered from all ranks' parts."""
    if not any(map(_in_parts, network.parameters())):
        return network
    device = next(network.parameters()).device
    copy = build(experiment.model, dropout=experiment.training.dropout).to(device).eval()
    for own, part in zip(copy.parameters(), network.parameters(), strict=True):
        own.copy_(_gathered(part))
    return copy


@contextmanager
def edited(network: Network, experiment: Experiment) -> Iterator[Network]:
    """The network with all its weights here, to be changed: each rank then takes its part again."""
    copy = whole(network, experiment)
    yield copy
    if copy is not network:
        with torch.no_grad():
            for own, part in zip(copy.parameters(), network.parameters(), strict=True):
                put(part, own)


def number(tensor: Tensor) -> float:
    """The value of a tensor of one number; of one that ranks hold in parts, the whole's."""
    return _gathered(tensor).item()


def put(place: Tensor, value: Tensor) -> None:
    """Set what a rank holds of a tensor from the whole, which every rank has."""
    if _in_parts(place):
        from torch.distributed.tensor import distribute_tensor

        parts = cast("DTensor", place)
        value = distribute_tensor(value, parts.device_mesh, parts.placements, src_data_rank=None)
    place.copy_(value)


def held(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its part, or the whole."""
    return cast("DTensor", tensor).to_local() if _in_parts(tensor) else tensor


def write_parts(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the tensors that all ranks hold, each part once, as one safetensors file of each rank.

    A file says where its parts belong (`DCP_SHARDING_INFO` in its head); no index, no pickle. All
    ranks return when all have written. OSError on each of them where one could not.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise OSError(getattr(first, "errno", None), str(first)) from None


def _gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which each rank may hold a part."""
    return cast("DTensor", tensor).full_tensor() if _in_parts(tensor) else tensor


def _in_parts(tensor: Tensor) -> bool:
    """Whether ranks hold parts of this tensor; asked by what it can do, to import no class."""
    return hasattr(tensor, "full_tensor")
