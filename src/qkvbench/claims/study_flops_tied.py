"""Operations that `q,k=v` saves at 300M."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import percent, printed, share
from qkvbench.claims._models import saved_flops, study_300m
from qkvbench.cost import study_flops
from qkvbench.variant import parse

SAVED = {128: "6.80", 512: "6.47", 1024: "6.07", 2048: "5.41"}


def _arithmetic() -> Arithmetic:
    model = study_300m()
    variant = model.with_variant(parse("q,k=v"))
    shares = [1 - study_flops(variant, n) / study_flops(model, n) for n in SAVED]
    plain = [saved_flops(model, "q,k=v", n) for n in SAVED]
    return Arithmetic(
        says="At " + ", ".join(f"{n:,}" for n in SAVED) + " tokens, counted as its profiler does: "
        f"{', '.join(percent(each, 2) for each in shares)}. Matrix products alone give at most "
        f"{100 * max(abs(a - b) for a, b in zip(shares, plain, strict=True)):.2f} points more.",
        figures=tuple(share(each) for each in shares),
    )


CLAIM = Claim(
    text="Sharing key and value saves 5 to 7% of the operations of the whole 300M model.",
    source=STUDY,
    place="released profile, 300M",
    quantity="operations that `q,k=v` saves in a forward pass, percent, by number of tokens",
    stated=tuple(printed(each, "%") for each in SAVED.values()),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
