"""The unit of the cache column at 1.2B."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import Figure, agree, exact
from qkvbench.claims._models import cache_bytes, study_1_2b
from qkvbench.claims._reported import CACHE_1_2B

TOKENS = 32_768


def _arithmetic() -> Arithmetic:
    megabytes, mebibytes = _in(1e6, "MB"), _in(2**20, "MiB")
    return Arithmetic(
        says=f"In MB only {_fitting(megabytes)} fit, in MiB only {_fitting(mebibytes)}: the column "
        "mixes decimal and binary units.",
        figures=tuple(megabytes.values()),
    )


def _in(unit: float, name: str) -> dict[str, Figure]:
    """The cache of each arm, computed, in this unit."""
    sizes = {arm: cache_bytes(study_1_2b(), arm, TOKENS) / unit for arm in CACHE_1_2B}
    return {arm: exact(size, f"{size:,.0f} {name}") for arm, size in sizes.items()}


def _fitting(sizes: dict[str, Figure]) -> str:
    return " · ".join(f"`{arm}`" for arm, size in sizes.items() if agree(CACHE_1_2B[arm], size))


CLAIM = Claim(
    text="All cache sizes of the 1.2B table are in the unit that it gives, megabytes.",
    source=STUDY,
    place="table 10",
    quantity=f"cache at 1.2B after {TOKENS:,} tokens, megabytes",
    stated=tuple(CACHE_1_2B.values()),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
