"""Does what a tie loses shrink with the budget? Six arms on texts, for 500 to 15,000 steps.

Run       qkvbench run budgets
Size      --size 500, 1500, 5000, 15000: steps, with the schedule stretched to them
Register  --preregister src/qkvbench/recipes/budgets.toml, for the first run of each size
Takes     48 minutes on two cores with 5,000 steps, and in proportion with others
Then      qkvbench report FOLDER FOLDER ..., for the gaps of all sizes and their trend
Expect    differences at 500 steps show speed of learning; those left at 15,000 show what an arm
          cannot represent
"""

from qkvbench import tasks
from qkvbench.recipes import Study

TASK = "lm-reviews"
SIZES = ("500", "1500", "5000", "15000")


def study(size: str = SIZES[0]) -> Study:
    """The baseline, the ties, one key/value head, and no attention."""
    return Study(
        name="budgets" if size == SIZES[0] else f"budgets-{size}",
        variants=("q,k,v", "q=k,v", "q,k=v", "q=k=v", "q,k,v/1", "none"),
        seeds={TASK: 5},
        budget=int(size) / tasks.find(TASK).training.steps,
    )
