"""Floating-point operations of a forward pass."""

from functools import partial

from qkvbench.claims.kit.arithmetic import Computed
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import figure, percent, percent_figure, range_figure
from qkvbench.claims.kit.models import gpt2_small, saved_flops, study_300m
from qkvbench.cost import study_flops
from qkvbench.variant import parse

LONGEST = 2048

# Sequence lengths at which the study profiles its models.
PROFILED = (128, 512, 1024, 2048)


def _profile(arm: str) -> Arithmetic:
    model = study_300m()
    variant = model.with_variant(parse(arm))
    shares = [1 - study_flops(variant, n) / study_flops(model, n) for n in PROFILED]
    plain = [saved_flops(model, arm, n) for n in PROFILED]
    return Arithmetic(
        "At " + ", ".join(f"{n:,}" for n in PROFILED) + " tokens, counted as its profiler does: "
        f"{', '.join(percent(each, 2) for each in shares)}. Matrix products alone give at most "
        f"{100 * max(abs(a - b) for a, b in zip(shares, plain, strict=True)):.2f} points more.",
        tuple(percent_figure(each) for each in shares),
    )


def _profiled(name: str, arm: str, saved: tuple[str, str, str, str], text: str) -> Claim:
    """A claim of the profile at 300M, with the operations saved in percent at each length."""
    return Claim(
        name=name,
        text=text,
        place="released profile, 300M",
        quantity=f"operations that `{arm}` saves in a forward pass, percent, by number of tokens",
        arithmetic=partial(_profile, arm),
        tests=(Computed(),),
        figures=tuple(figure(each, "%") for each in saved),
    )


def _shared() -> Arithmetic:
    model = gpt2_small()
    least, usual, most = (saved_flops(model, "q=k=v", tokens) for tokens in (LONGEST, 128, 1))
    return Arithmetic(
        f"The longer the input, the less: {percent(usual)} at 128 tokens, "
        f"{percent(least)} at {LONGEST}. A third is one projection's share of the projection step.",
        (range_figure(usual, least, most),),
    )


CLAIMS = (
    _profiled(
        "study-flops-tied",
        "q,k=v",
        ("6.80", "6.47", "6.07", "5.41"),
        "Sharing key and value saves 5 to 7% of the operations of the whole 300M model.",
    ),
    _profiled(
        "study-flops-single",
        "q=k=v",
        ("13.60", "12.94", "12.15", "10.83"),
        "One projection for all saves 11 to 14% of the operations of the whole 300M model.",
    ),
    Claim(
        name="article-shared-flops",
        text="One shared projection needs a third fewer floating-point operations.",
        place="text",
        quantity="operations that `q=k=v` saves in a forward pass of the 125M model, percent",
        arithmetic=_shared,
        tests=(Computed(),),
        figures=(figure("33", "%"),),
    ),
)
