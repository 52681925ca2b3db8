"""The processes that train one model: the rank of this one, and their collective operations."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# Timeout of a collective operation. A process that dies is noticed at once, because its connections
# break. This is for an unreachable machine, and longer than saving a checkpoint takes.
TIMEOUT_S = 300
# Size of the buffer of `broadcast`.
_TEXT_BYTES = 1024


@dataclass(frozen=True)
class ProcessGroup:
    """The process `rank` of `world_size` processes that share each batch. Alone, all is a no-op."""

    rank: int = 0
    world_size: int = 1

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any_rank(self, *, flag: bool) -> bool:
        """True if the flag is set in any process. All processes must call this."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([float(flag)], device=_message_device())
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def broadcast(self, text: str) -> str:
        """The text of rank 0, at most a kilobyte. All processes must call this."""
        if self.world_size == 1:
            return text
        content = bytearray(text.encode().ljust(_TEXT_BYTES)[:_TEXT_BYTES])
        message = torch.frombuffer(content, dtype=torch.uint8).to(_message_device())
        dist.broadcast(message, 0)
        return bytes(message.cpu().tolist()).decode().rstrip()


def _message_device() -> torch.device:
    """The device of messages: NCCL sends tensors of an accelerator only."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the number of processes that torchrun started; else 0 and 1."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def multi_device_error(devices: int) -> str | None:
    """Why this machine cannot train on so many devices; None if it can.

    Without accelerators each device is a CPU process, and their number is not limited.
    """
    accelerators = torch.cuda.device_count()
    if accelerators and devices > accelerators:
        return f"This machine has {accelerators} accelerators, fewer than {devices}."
    return None


def init_process_group(devices: int) -> ProcessGroup:
    """The connected processes of an experiment on so many devices.

    An experiment on one device uses this process only, even under torchrun. ValueError if another
    number of processes was started.
    """
    if devices == 1:
        return ProcessGroup()
    group = ProcessGroup(*rank_and_world_size())
    if group.world_size != devices:
        raise ValueError(
            f"This experiment needs {devices} devices, but {group.world_size} processes were "
            f"started for it; start {devices}, one for each device."
        )
    if not dist.is_initialized():
        accelerated = torch.cuda.is_available()
        if accelerated:
            # Not tested on hardware yet: no machine of this project has several GPUs.
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(
            "nccl" if accelerated else "gloo", timeout=timedelta(seconds=TIMEOUT_S)
        )
    return group
