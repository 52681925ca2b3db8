"""The contract of a decode kernel: attention of one query per head over cached rows."""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

# The name under which a profiler sees a decode kernel.
PROFILER_NAME = "qkvbench::decode"

Slots = int | Sequence[int]
Queries = Float[Tensor, "batch roots queries head_dim"]


class DecodeKernel(Protocol):
    """A kernel over the rows of one layer."""

    def __call__(self, query: Queries, first: Slots, end: Slots) -> Queries:
        """The attention output over the slots [first, end) of each sequence, in fp32.

        Queries are scaled, have RoPE applied, and are at position end - 1. The sinks of the plan's
        mask are visible, too.
        """
        ...
