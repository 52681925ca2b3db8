"""Which choices matter, and do they interact? 20 functions × head sharing × positions.

Run       qkvbench run hundreds
Then      qkvbench report results/hundreds --as effects
Takes     about an hour on two cores
Wrong     each run has a part of the task's own steps and one seed: scores show speed of learning,
          and what is left over mixes noise with the interactions that are not named.
          `none`, a model without attention, has none of the choices: it is the floor, and a scheme
          of positions at which half of the arms do no better is left out of the effects
Expect    sharing heads is possible only if K and V do not come from the query or the stream, so
          its effect is that of those functions; the effect of a choice is a mean over the others
"""

from dataclasses import replace

from qkvbench import tasks
from qkvbench.recipes import Study
from qkvbench.variant import (
    NO_ATTENTION,
    Variant,
    every_variant,
    resolve,
    without_value_rotation,
    write,
)

# Factors on the task's own steps, the quickest task first. Recall is learned all at once, by most
# arms within these steps.
BUDGET = {"anomaly-pixels": 0.3, "recall": 0.7, "lm-reviews": 1}
POSITIONS = ("learned", "rotary", "none", "sinusoidal")
SHARED = (None, 2, 1)


def functions() -> tuple[Variant, ...]:
    """One variant for each function: a rotation on V is absorbed by the output projection."""
    return tuple(dict.fromkeys(map(without_value_rotation, every_variant())))


def arms() -> tuple[str, ...]:
    """Each function with each number of key/value heads that it can have, then no attention."""
    geometries = [tasks.find(name).model.geometry for name in BUDGET]
    found: list[str] = []
    for heads in SHARED:
        for function in functions():
            arm = replace(function, kv_heads=heads)
            try:
                for geometry in geometries:
                    resolve(arm, geometry)
            except ValueError:
                # K or V made from the query or the stream has as many heads as the query.
                continue
            found.append(write(arm))
    return (*found, write(NO_ATTENTION))


def study() -> Study:
    """Every arm on three tasks under four position schemes, one seed of each."""
    return Study(
        name="hundreds",
        variants=arms(),
        seeds={f"{task}@{position}": 1 for task in BUDGET for position in POSITIONS},
        budget=BUDGET,
    )
