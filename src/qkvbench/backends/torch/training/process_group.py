"""The processes that learn together: which of them this is, and what they tell each other."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# How long one waits for the others. A process that dies is noticed at once, by its connections;
# this is for a machine that falls silent, and longer than a checkpoint takes that others wait for.
WAIT_S = 300
# Of a text that one tells the others, in bytes.
_LONGEST = 1024


@dataclass(frozen=True)
class Ranks:
    """One of `count` processes that share each batch: the one with this number."""

    rank: int = 0
    count: int = 1

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all of them, which each gets; in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def agreed(self, *, asked: bool) -> bool:
        """Whether any of them asks for it."""
        if self.count == 1:
            return asked
        flag = torch.tensor([float(asked)], device=_told_on())
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def told(self, text: str) -> str:
        """What the first of them says."""
        if self.count == 1:
            return text
        content = bytearray(text.encode().ljust(_LONGEST)[:_LONGEST])
        said = torch.frombuffer(content, dtype=torch.uint8).to(_told_on())
        dist.broadcast(said, 0)
        return bytes(said.cpu().tolist()).decode().rstrip()


def _told_on() -> torch.device:
    """Where a message must be: NCCL sends what is on an accelerator."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def started() -> tuple[int, int]:
    """Which of the processes that were started together this is, from 0, and how many.

    As torchrun, or whoever started it, says; one alone where nobody did.
    """
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def multi_device_error(devices: int) -> str | None:
    """Why a run cannot be spread over so many devices of this machine; None where it can.

    Without accelerators a device is a process, and there may be any number of those.
    """
    here = torch.cuda.device_count()
    if here and devices > here:
        return f"This machine has {here} accelerators, fewer than {devices}."
    return None


def together(devices: int) -> Ranks:
    """The processes for an experiment on so many devices, connected; ValueError where others run.

    An experiment on one device is this process's own, whoever else there is.
    """
    if devices == 1:
        return Ranks()
    ranks = Ranks(*started())
    if ranks.count != devices:
        raise ValueError(
            f"This experiment is one for {devices} devices, and {ranks.count} processes were "
            f"started for it; start {devices}, each for one device."
        )
    if not dist.is_initialized():
        accelerated = torch.cuda.is_available()
        if accelerated:
            # NCCL has never been run here: no machine of this project has a GPU.
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(
            "nccl" if accelerated else "gloo", timeout=timedelta(seconds=WAIT_S)
        )
    return ranks
