"""Where FlashAttention runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Elsewhere, Finding, Shown
from qkvbench.claims._evidence import kernels

FLASH = re.compile(r"(?<!no )(?<!not )(?<!without )\bflash", re.IGNORECASE)


@dataclass(frozen=True)
class NeverOnCpu:
    """Refuted by one measurement of a flash kernel on a CPU."""

    def finding(self, claim: Claim, shown: Sequence[Shown]) -> Finding | None:
        """Refuted or nothing."""
        for store, device, kernel in kernels(shown):
            if device.startswith("cpu") and FLASH.search(kernel):
                return Finding("refuted", f"Measured in {store} on {device}: {kernel}.")
        return None


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="Nothing bounds it: the method is an order of computation, and names no device."
    )


CLAIM = Claim(
    text="FlashAttention runs on GPUs only.",
    source=ARTICLE,
    place="table of approaches, column Hardware",
    quantity="a measured step on a CPU whose kernel is a flash kernel",
    stated=(),
    arithmetic=_arithmetic,
    tests=(
        NeverOnCpu(),
        Elsewhere("a store with a measurement on a CPU whose kernel is a flash kernel"),
    ),
)
