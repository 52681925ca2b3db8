"""Which part of a Transformer can go? One change of a block or of its attention at a time.

Run       qkvbench run minimal
Register  --preregister src/qkvbench/recipes/minimal.toml, for the first run
Tune      --tune lr --tasks lm-reviews --preregister src/qkvbench/recipes/minimal-tuned.toml
Size      --size 500, 1500: steps of lm-reviews, with the schedule stretched to them; with 1500
          --rates FOLDER of the tuned ones
Then      python benchmarks/minimal_search.py FOLDER combines what can go, by a stated rule
Takes     about an hour on two cores; with 1500 steps, without recall, an hour and a half
Expect    a first look at one budget and one learning rate for all arms. Published signs flip with
          the budget, so no part is called needless from this alone: `--tune lr`, and more steps,
          come before
"""

from qkvbench.model import CHANGES
from qkvbench.recipes import CONTROLS, Study

# What every block is made of already.
OWN = ("gelu",)
SIZES = ("500", "1500")


def study(size: str = SIZES[0]) -> Study:
    """The plain block, each change of it alone, ties, and what attention can do without."""
    first = size == SIZES[0]
    return Study(
        name="minimal" if first else f"minimal-{size}",
        variants=(
            "q,k,v",
            *(f"q,k,v~{name}" for name in CHANGES if name not in OWN),
            # Three matrices with as many parameters as two.
            "q,k,v~swiglu~q,k,v",
            "q,k,v~bilinear~q,k,v",
            "q,k=v",
            "q,k,v/1",
            "q=k,v-diag",
            "q,k,v-own",
            "q,k,v+headgate",
            "q,k,v+sinklogit",
            "q,k,v+nope",
            *CONTROLS,
        ),
        seeds={"lm-reviews": 5} | ({"recall": 7} if first else {}),
        budget=int(size) / int(SIZES[0]),
    )
