"""Which gaps of `rivals` close with three times the steps? The same arms, tasks and seeds.

Run       qkvbench run rivals-longer
Register  --tasks lm-reviews --preregister src/qkvbench/recipes/rivals-longer.toml, at first
Tune      qkvbench run rivals-longer --tune lr      a learning rate for each arm
Takes     about three hours on two cores, of which lm-reviews alone 45 minutes; with the tuning
          thirteen. Run for lm-reviews alone, untuned
Expect    an arm that was only slower comes nearer here; one that cannot hold what it read does not
"""

from dataclasses import replace

from qkvbench.recipes import Study
from qkvbench.recipes.rivals import study as rivals


def study() -> Study:
    """`rivals` with three times the budget: the schedule is stretched, not repeated."""
    return replace(rivals(), name="rivals-longer", budget=3)
