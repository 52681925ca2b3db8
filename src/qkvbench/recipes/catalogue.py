"""Every variant of the catalogue, the built-in null among them, on the tasks of `quick`.

Run       qkvbench run catalogue
Takes     about twenty minutes on two cores
Expect    `q,k,v=R(k)` like `q,k=v`: they are one function class, so a significant difference is
          an effect of the optimizer, or a bug
"""

from qkvbench.recipes import Study
from qkvbench.recipes.quick import BUDGET
from qkvbench.recipes.quick import study as quick
from qkvbench.variant.catalogue import CATALOGUE


def study() -> Study:
    """The catalogue, canonical attention first."""
    return Study(
        name="catalogue",
        variants=tuple(entry.equation for entry in CATALOGUE),
        seeds=quick().seeds,
        budget=BUDGET,
    )
