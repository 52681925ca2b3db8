"""Does a tie cost more than its parameters? The ties of `quick`, and arms of equal parameters.

Run       qkvbench run matched
Takes     about twenty minutes on two cores
Expect    `q,k,v~q,k=v` is canonical attention with a feed-forward narrowed until the model has as
          many parameters as with `q,k=v`. A tie that loses against `q,k,v` but not against this arm
          loses only the capacity of its parameters
"""

from qkvbench.recipes import CONTROLS, Study
from qkvbench.recipes.quick import BUDGET
from qkvbench.recipes.quick import study as quick


def study() -> Study:
    """Canonical attention at its own size, at that of each tie, and the ties."""
    return Study(
        name="matched",
        variants=(
            "q,k,v",
            "q,k=v",
            "q,k,v~q,k=v",
            "q=k=v",
            "q,k,v~q=k=v",
            "q,k,v/1",
            "q,k,v~q,k,v/1",
            *CONTROLS,
        ),
        seeds=quick().seeds,
        budget=BUDGET,
    )
