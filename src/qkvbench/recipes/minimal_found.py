"""Is the smallest model that a search found about as good elsewhere, tuned, and with more steps?

Run       qkvbench run minimal-found
Tune      --tune lr: a learning rate for each arm, as in the registered runs; --rates FOLDER of
          these with 1500 steps
Size      --size 500, 1500: steps of the tasks of language, with the schedule stretched to them
Register  --preregister src/qkvbench/recipes/minimal-found.toml, for the first run of each size
Takes     23 minutes on two cores with 500 steps, of which most is tuning, 12 with 1500
Expect    the search (benchmarks/minimal_search.py) saw lm-reviews and recall, so neither is here;
          what it found there is no evidence for it
"""

from qkvbench.recipes import Study

# What the search left on 2026-11-30: 233,472 of 273,024 learned numbers.
FOUND = "q=k,v-diag~rms-no-scale~no-output-projection~no-biases"
LANGUAGE = ("lm-docs", "lm-plays")
SIZES = ("500", "1500")


def study(size: str = SIZES[0]) -> Study:
    """The plain block, what was found, and no attention."""
    first = size == SIZES[0]
    return Study(
        name="minimal-found" if first else f"minimal-found-{size}",
        variants=("q,k,v", FOUND, "none"),
        seeds=dict.fromkeys(LANGUAGE, 5) | ({"sort": 5} if first else {}),
        budget=int(size) / int(SIZES[0]),
    )
