"""Do the gaps of `rivals` stay if each arm takes as many multiply-accumulates as `q,k,v`?

Run       qkvbench run rivals-compute
Register  --preregister src/qkvbench/recipes/rivals-compute.toml, for the first run
Takes     ten minutes on two cores
Expect    each arm has a feed-forward as wide as its attention leaves room for: at 128 tokens a tie,
          a shared head, a window, blocks and elu take less than softmax, FAVOR+ and the gated
          delta rule more
"""

from qkvbench.recipes import Study
from qkvbench.recipes.rivals import BLOCKS, LINEAR, WINDOW

AS_MUCH = "~q,k,v:macs"


def study() -> Study:
    """The ties and rivals of `rivals` with as much compute, each with its own K and V."""
    own = (*("q,k=v", "q,k,v/1"), *(f"q,k,v{rival}" for rival in (WINDOW, BLOCKS, *LINEAR)))
    return Study(
        name="rivals-compute",
        variants=("q,k,v", *(f"{arm}{AS_MUCH}" for arm in own), "none"),
        seeds={"lm-reviews": 5},
    )
