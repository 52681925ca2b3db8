"""The size of the baseline's cache at 32k tokens."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import exact, printed
from qkvbench.claims._models import cache_bytes, study_300m

TOKENS, BINARY_TOKENS = 32_000, 32_768


def _arithmetic() -> Arithmetic:
    decimal, binary = (cache_bytes(study_300m(), "q,k,v", n) / 1e9 for n in (TOKENS, BINARY_TOKENS))
    return Arithmetic(
        says=f"That is {TOKENS:,} tokens in decimal gigabytes; {BINARY_TOKENS:,}, which the table "
        f"for 1.2B counts, would be {binary:.2f} GB.",
        figures=(exact(decimal, f"{decimal:.2f} GB"),),
    )


CLAIM = Claim(
    text="At 32k tokens the cache of the 300M baseline takes 2.62 GB.",
    source=STUDY,
    place="table 4",
    quantity="cache of `q,k,v` at 300M after 32,000 tokens, decimal gigabytes",
    stated=(printed("2.62", "GB"),),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
