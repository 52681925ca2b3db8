"""The size of the key-value cache."""

from functools import partial

from qkvbench.claims.kit.arithmetic import Computed
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import Figure, agree, exact_figure, figure, percent_figure
from qkvbench.claims.kit.models import cache_bytes, cache_ratio, study_1_2b, study_300m
from qkvbench.claims.kit.reported import CACHE_1_2B
from qkvbench.cost.units import bytes_text

# A length of "32k", and the one at which the 1.2B table counts.
TOKENS, BINARY_TOKENS = 32_000, 32_768

# Cache of the variants in percent of that of `q,k,v`, by a later draft.
LATER_RATIOS = {"q=k=v": "33", "q=k,v": "50"}


def _savings(*arms: str) -> Arithmetic:
    model = study_300m()
    sizes = [f"`{arm}` {bytes_text(cache_bytes(model, arm, 1))}" for arm in ("q,k,v", *arms)]
    return Arithmetic(
        f"Kept of each token at 2 bytes a value: {', '.join(sizes)}.",
        tuple(percent_figure(1 - cache_ratio(model, arm)) for arm in arms),
    )


def _saving(name: str, text: str, saved: dict[str, str]) -> Claim:
    """A claim of table 4, which gives the cache saved by arms in percent."""
    arms = " and ".join(f"`{arm}`" for arm in saved)
    return Claim(
        name=name,
        text=text,
        place="table 4",
        quantity=f"cache that {arms} saves of each token at 300M, percent",
        arithmetic=partial(_savings, *saved),
        tests=(Computed(),),
        figures=tuple(figure(each, "%") for each in saved.values()),
    )


def _at_32k() -> Arithmetic:
    decimal, binary = (cache_bytes(study_300m(), "q,k,v", n) / 1e9 for n in (TOKENS, BINARY_TOKENS))
    return Arithmetic(
        f"That is {TOKENS:,} tokens in decimal gigabytes; {BINARY_TOKENS:,}, which the table "
        f"for 1.2B counts, would be {binary:.2f} GB.",
        (exact_figure(decimal, f"{decimal:.2f} GB"),),
    )


def _largest_reduction() -> Arithmetic:
    heads = study_1_2b().geometry.heads
    ratio = 1 / cache_ratio(study_1_2b(), "q,k=v/1")
    mixed_units = CACHE_1_2B["q,k,v"].value / CACHE_1_2B["q,k=v/1"].value
    return Arithmetic(
        f"Two tensors of {heads} heads become one of one head. Its own table gives "
        f"{mixed_units:.0f}× only because it divides decimal megabytes by binary ones.",
        (exact_figure(ratio, f"{ratio:.0f}×"),),
    )


def _units() -> Arithmetic:
    megabytes, mebibytes = _sizes(1e6, "MB"), _sizes(2**20, "MiB")
    return Arithmetic(
        f"In MB only {_agreeing(megabytes)} fit, in MiB only {_agreeing(mebibytes)}: the column "
        "mixes decimal and binary units.",
        tuple(megabytes.values()),
    )


def _sizes(unit: float, name: str) -> dict[str, Figure]:
    """The computed cache of each arm of the 1.2B table, in this unit."""
    sizes = {arm: cache_bytes(study_1_2b(), arm, BINARY_TOKENS) / unit for arm in CACHE_1_2B}
    return {arm: exact_figure(size, f"{size:,.0f} {name}") for arm, size in sizes.items()}


def _agreeing(sizes: dict[str, Figure]) -> str:
    return " · ".join(f"`{arm}`" for arm, size in sizes.items() if agree(CACHE_1_2B[arm], size))


def _later_ratios() -> Arithmetic:
    ratios = {arm: cache_ratio(study_300m(), arm) for arm in LATER_RATIOS}
    text = ", ".join(f"`{arm}` {100 * ratio:.0f}%" for arm, ratio in ratios.items())
    return Arithmetic(
        f"A decoder keeps, at any size: {text}, as the published paper says. The draft seems "
        "to count projections; and the image encoder that it is about has no cache.",
        tuple(percent_figure(ratio) for ratio in ratios.values()),
    )


CLAIMS = (
    _saving("study-cache-query-key", "Using the query as key saves no cache.", {"q=k,v": "0"}),
    _saving("study-cache-tied", "Using the key as value halves the cache.", {"q,k=v": "50"}),
    _saving(
        "study-cache-single",
        "One projection for all halves the cache, as sharing key and value does.",
        {"q=k=v": "50"},
    ),
    _saving(
        "study-cache-gqa-mqa",
        "Grouped queries with four groups save 75% of the cache, one group saves 93.8%.",
        {"q,k,v/4": "75", "q,k,v/1": "93.8"},
    ),
    _saving(
        "study-cache-tied-mqa",
        "Sharing key and value on top of one group saves 96.9% of the cache.",
        {"q,k=v/1": "96.9"},
    ),
    Claim(
        name="study-cache-67-times",
        text="One head that is both key and value makes the cache of the 1.2B model 67 times "
        "smaller.",
        place="poster; table 10",
        quantity="cache of `q,k,v` at 1.2B, times that of `q,k=v/1`",
        arithmetic=_largest_reduction,
        tests=(Computed(),),
        figures=(figure("67", "×"),),
    ),
    Claim(
        name="study-cache-32k",
        text="At 32k tokens the cache of the 300M baseline takes 2.62 GB.",
        place="table 4",
        quantity="cache of `q,k,v` at 300M after 32,000 tokens, decimal gigabytes",
        arithmetic=_at_32k,
        tests=(Computed(),),
        figures=(figure("2.62", "GB"),),
    ),
    Claim(
        name="study-cache-unit",
        text="The cache sizes of the 1.2B table are in megabytes, the unit in its heading.",
        place="table 10, read with its heading",
        quantity=f"cache at 1.2B after {BINARY_TOKENS:,} tokens, megabytes",
        arithmetic=_units,
        tests=(Computed(),),
        figures=tuple(CACHE_1_2B.values()),
    ),
    Claim(
        name="study-later-cache",
        text="One projection for all keeps a third of the cache, using the query as key keeps "
        "half.",
        place="authors' later draft on ImageNet, commit a2708ab",
        quantity="cache that `q=k=v` and `q=k,v` keep, percent of that of `q,k,v`",
        arithmetic=_later_ratios,
        tests=(Computed(),),
        figures=tuple(figure(each, "%") for each in LATER_RATIOS.values()),
    ),
)
