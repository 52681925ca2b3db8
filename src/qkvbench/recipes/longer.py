"""Which gaps of `quick` close with three times the steps? The same arms, tasks and seeds.

Run       qkvbench run longer
Takes     about three quarters of an hour on two cores
Expect    what `quick` ranks is the speed of learning; an arm that was only slower comes nearer here
"""

from dataclasses import replace

from qkvbench.recipes import Study
from qkvbench.recipes.quick import BUDGET
from qkvbench.recipes.quick import study as quick


def study() -> Study:
    """`quick` with three times the budget: the schedule is stretched, not repeated."""
    return replace(
        quick(), name="longer", budget={task: 3 * factor for task, factor in BUDGET.items()}
    )
