"""Does a canonical teacher close the gap that sharing opens? Every arm learns from one teacher.

Run       qkvbench run distillation
Then      benchmarks/distilled_gap.py, with the folders of runs without a teacher, such as quick's
Takes     about twenty minutes on two cores
Reported  the article asks how sharing and distillation interact; nobody has answered it for ties
Expect    written on 2026-11-29, before the first run: every arm gains from a teacher that was
          trained four times as long, and the arms that lose gain no more than `q,k,v` does, so no
          gap becomes smaller by half. It came so (NOTES.md)
"""

from qkvbench.recipes import CONTROLS, Study, Teacher


def study() -> Study:
    """The ties of quick as students of canonical attention, for as many tokens as without it."""
    return Study(
        name="distillation",
        variants=("q,k,v", "q=k,v", "q,k=v", "q=k=v", "q=k=v=x", "q,k,v/1", *CONTROLS),
        seeds={"lm-reviews": 5, "sort": 5},
        teacher=Teacher("q,k,v", budget=4.0),
    )
