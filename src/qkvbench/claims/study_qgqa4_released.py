"""The 300M model called Q-GQA-4, as released."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Computed
from qkvbench.claims._figure import exact, percent, printed, share, whole
from qkvbench.claims._models import kept, study_300m, total


def _arithmetic() -> Arithmetic:
    model = study_300m()
    counts = {groups: total(model, f"q,k=v/{groups}") for groups in (4, 8)}
    saved = {groups: percent(1 - kept(model, f"q,k=v/{groups}")) for groups in counts}
    return Arithmetic(
        says="; ".join(
            f"with {groups} groups there are {count:,} parameters and {saved[groups]} is saved"
            for groups, count in counts.items()
        ).capitalize()
        + ". The released configuration has 8.",
        figures=(exact(counts[4], f"{counts[4]:,}"), share(1 - kept(model, "q,k=v/4"))),
    )


CLAIM = Claim(
    text=("Q-GQA-4 has four groups, the released parameter count, and saves 87.5% of the cache."),
    source=STUDY,
    place="table 4 and released configuration",
    quantity="parameters of `q,k=v/4` at 300M, and cache saved, percent",
    stated=(whole(274_046_976), printed("87.5", "%")),
    arithmetic=_arithmetic,
    tests=(Computed(),),
)
