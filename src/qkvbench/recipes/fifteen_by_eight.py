"""Fifteen configurations on eight benchmarks: what does each projection do, and for which task?

Run       qkvbench run fifteen-by-eight
Takes     some hours on two cores; `--tasks` runs a part, and the next call goes on from there
Reported  the article that this project began from names fifteen configurations and eight
          benchmarks, GLUE, WMT14 and ImageNet-1K among them, of which these are small, packaged
          relatives
Expect    sizes at which canonical attention learns; five seeds tell large losses apart. On
          sentiment attention is worth too little for a verdict (`qkvbench run controls`)
"""

from qkvbench.recipes import Study
from qkvbench.variant.catalogue import CATALOGUE

# Left to `catalogue`: the arm that is the same function class as another, and the latent,
# which leaves out no projection.
LEFT_OUT = ("q,k=L(16),v=L(16)", "q,k,v=R(k)")


def study() -> Study:
    """The catalogue without `q,k,v=R(k)` and its latent, on one or two tasks of each benchmark."""
    return Study(
        name="fifteen-by-eight",
        variants=tuple(entry.equation for entry in CATALOGUE if entry.equation not in LEFT_OUT),
        seeds={
            "lm-reviews": 5,
            "sentiment": 5,
            "topics-8": 5,
            "translation": 5,
            "animals": 5,
            "long-plays": 5,
            "sort": 5,
            "recall": 7,
            "anomaly-features": 5,
            "clip": 5,
        },
    )
