"""Fifteen configurations on eight benchmarks: what does each projection do, and for which task?

Run       qkvbench run fifteen-by-eight
Takes     some hours on two cores; `--tasks` runs a part, and the next call goes on from there
Reported  the article that this project began from names fifteen configurations and eight
          benchmarks, GLUE, WMT14 and ImageNet-1K among them, of which these are small, packaged
          relatives
Expect    sizes at which canonical attention learns; three seeds tell large losses apart, and
          recall is counted in solved seeds, of which five say little
"""

from qkvbench.recipes import Study
from qkvbench.variant.catalogue import CATALOGUE

# Left to `catalogue`: its built-in null, which is the same function as another arm, and the latent,
# which leaves out no projection.
LEFT_OUT = ("q,k=L(16),v=L(16)", "q,k,v=R(k)")


def study() -> Study:
    """The catalogue without its null and its latent, on one or two tasks of each benchmark."""
    return Study(
        name="fifteen-by-eight",
        variants=tuple(entry.equation for entry in CATALOGUE if entry.equation not in LEFT_OUT),
        seeds={
            "lm-reviews": 3,
            "sentiment": 3,
            "topics-8": 3,
            "translation": 3,
            "animals": 3,
            "long-plays": 3,
            "sort": 3,
            "recall": 5,
            "anomaly-features": 3,
            "clip": 3,
        },
    )
