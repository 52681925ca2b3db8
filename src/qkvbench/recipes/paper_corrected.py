"""The decoders of arXiv:2606.04032 without its errors: packed text, seeds, arms of equal size.

Run       qkvbench run paper-corrected
          qkvbench run paper-corrected --size 1.2b; --size small for packaged text on two cores
Tune      qkvbench run paper-corrected --tune lr     a learning rate for each arm
Takes     not run yet; `--dry-run` computes what it needs, and where its text would come from
Hardware  8 devices of 80 GB; the source: 8 A100 of 40 GB
Reported  the authors' later pair on FineWeb-Edu, with padding left out: q,k,v 20.82 · q,k=v 21.28
          (validation perplexity at 300M, one seed)
Expect    what `paper-as-written` gets wrong is right here: documents are packed, so nothing is
          padding; three seeds; q,k,v with as many parameters as each tie (`~`); GQA with 4 heads
          and with the 8 of the released script; the controls. Still one rate for all arms without
          `--tune`, and byte pairs that are not GPT-2's
"""

from dataclasses import replace

from qkvbench.recipes import CONTROLS, Study
from qkvbench.recipes.paper_as_written import (
    SIZES,
    TRAINING_1_2B,
    TRAINING_300M,
)
from qkvbench.recipes.paper_as_written import study as as_written

__all__ = ["SIZES", "study"]

PACKED = "lm-fineweb-edu-10bt"
TIES = ("q=k,v", "q,k=v", "q=k=v")
MATCHED = tuple(f"q,k,v~{arm}" for arm in ("q,k=v", "q=k=v"))


def study(size: str = SIZES[0]) -> Study:
    """The study's arms and their controls at one of its sizes, or on packaged text."""
    written = as_written(size)
    shared = ("q,k,v/2",) if size == "small" else ("q,k,v/8", "q,k,v/4")
    tied = tuple(arm.replace("k,v", "k=v") for arm in shared)
    training = {"300m": TRAINING_300M, "1.2b": TRAINING_1_2B}.get(size)
    return replace(
        written,
        name="paper-corrected" if size == SIZES[0] else f"paper-corrected-{size}",
        variants=(
            "q,k,v",
            *TIES,
            *MATCHED,
            *shared,
            "q,k,v/1",
            *tied,
            "q,k=v/1",
            *CONTROLS,
        ),
        seeds={"lm-reviews" if size == "small" else PACKED: 3},
        # A decoder that sees each text once needs no dropout.
        training=training and replace(training, dropout=0.0),
    )
