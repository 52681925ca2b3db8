"""Do one key/value head (`q,k,v/1`) and `q=k,v-diag` match `q,k,v`? Fifty seeds of each.

Run       qkvbench run equivalence
Register  --preregister src/qkvbench/recipes/equivalence.toml, for the first run
Takes     about fifty minutes on two cores
Expect    a match within .02 bits per byte takes more seeds than any other study has. What attention
          is worth on both tasks is in `controls`; with fifty seeds it would cost more than it tells
"""

from qkvbench.recipes import Study


def study() -> Study:
    """The two arms that no study could tell from the baseline on language, fifty seeds each."""
    return Study(
        name="equivalence",
        variants=("q,k,v", "q,k,v/1", "q=k,v-diag"),
        seeds={"lm-reviews": 50, "sort": 50},
    )
