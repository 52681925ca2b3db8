"""What is attention worth on each task? Models without it, and with one that cannot choose.

Run       qkvbench run controls
Takes     about half an hour on two cores
Expect    a task that a model without attention solves as well says nothing of variants; from
          `none` to `q=k=0,v` is what mixing tokens is worth, from there to `q,k,v` what choosing is
"""

from qkvbench.recipes import CONTROLS, Study
from qkvbench.recipes.fifteen_by_eight import study as fifteen_by_eight


def study() -> Study:
    """The baseline and the controls on all tasks of `quick` and of `fifteen-by-eight`."""
    return Study(
        name="controls",
        variants=("q,k,v", *CONTROLS),
        # What attention is worth is large or does not matter, so fewer seeds show it.
        seeds={
            task: 5 if task == "recall" else 3 for task in ("digits", *fifteen_by_eight().seeds)
        },
    )
