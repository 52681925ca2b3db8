"""The arms of `frontier` after a quarter of the text: does a gap close with the budget?

Run       qkvbench run frontier-short
Size      as of frontier
Takes     not run yet; a quarter of frontier's time at the same size
Expect    frontier.toml, written before the first run; read beside frontier, arm by arm
"""

from dataclasses import replace

from qkvbench.recipes import Study
from qkvbench.recipes.frontier import SIZES
from qkvbench.recipes.frontier import study as frontier

__all__ = ["SIZES", "study"]

BUDGET = 0.25


def study(size: str = SIZES[0]) -> Study:
    """`frontier` on its texts alone, with a quarter of the steps: the schedule is shrunk."""
    whole = frontier(size, BUDGET)
    texts = [task for task in whole.seeds if task.startswith("lm-")]
    name = whole.name.replace("frontier", "frontier-short", 1)
    return replace(whole, name=name, seeds={task: whole.seeds[task] for task in texts})
