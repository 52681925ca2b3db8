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

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()


def started() -> tuple[int, int]:
    """Which of the processes that were started together this is, from 0, and how many.

    As torchrun, or whoever started it, says; one alone where nobody did.
    """
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def cannot_spread(devices: int) -> str | None:
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
