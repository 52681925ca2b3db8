"""Every variant of the catalogue, and the baseline once more, on the tasks of `quick`.

Run       qkvbench run catalogue
Takes     about forty minutes on two cores
Expect    no certain difference between `q,k,v` and `q,k,v~again`, which is the same arm with other
          initial values; `q,k,v=R(k)` near `q,k=v`, whose function class it shares, though its
          parametrisation is another
"""

from qkvbench.model import AGAIN
from qkvbench.recipes import Study
from qkvbench.recipes.quick import BUDGET
from qkvbench.recipes.quick import study as quick
from qkvbench.variant.catalogue import CATALOGUE


def study() -> Study:
    """The catalogue, canonical attention first."""
    equations = [entry.equation for entry in CATALOGUE]
    return Study(
        name="catalogue",
        variants=(*equations, equations[0] + AGAIN),
        seeds=quick().seeds,
        budget=BUDGET,
    )
