"""Does masking the diagonal repair `q=k,v` on every corpus, length and position scheme?

Run       qkvbench run masked-diagonal
Register  --preregister src/qkvbench/recipes/masked-diagonal.toml, for the first run
Takes     about seven hours on two cores; `--tasks` runs a part
Expect    `q=k,v` loses on texts because a token whose query is its key attends to itself; without
          its own position (`-diag`) it does not. The hypotheses are in the file, written before
          the runs
"""

from qkvbench.recipes import CONTROLS, Study

TIES = ("q,k,v", "q=k,v", "q=k=v", "q=k=x,v")
CORPORA = ("lm-reviews", "lm-docs", "lm-plays")


def study() -> Study:
    """Four functions with and without their own position, on three corpora.

    Each with rotary and learned positions, in windows of the task's own length and of 512.
    """
    return Study(
        name="masked-diagonal",
        variants=(*TIES, *(f"{tie}-diag" for tie in TIES), *CONTROLS),
        seeds={
            f"{corpus}{length}{position}": 6
            for length in ("", "@512")
            for position in ("", "@learned")
            for corpus in CORPORA
        },
    )
