"""Do changed scores repair a tie? Ties of Q and K with masked diagonal, norms, corrections.

Run       qkvbench run scores
Takes     about a quarter of an hour on two cores
Reported  arXiv:2606.04032 finds that its 2-D encoding, `+2d` here, helps the arms whose Q is K
Expect    `+2d` cannot say which of two tokens comes first (softmax cancels what depends on the row
          alone), `++` can; whether `-diag` helps a token whose query is its key is a hypothesis
"""

from qkvbench.recipes import CONTROLS, Study


def study() -> Study:
    """Canonical attention and two ties, each plain and with the changes that could repair it."""
    return Study(
        name="scores",
        variants=(
            "q,k,v",
            "q,k,v+qknorm",
            "q,k,v++",
            "q,k,v-diag",
            "q=k,v",
            "q=k,v+2d",
            "q=k,v++",
            "q=k,v-diag",
            "q=k=v",
            "q=k=v+2d",
            "q=k=v++",
            "q=k=v-diag",
            *CONTROLS,
        ),
        seeds={"sort": 5, "recall": 7, "lm-reviews": 5},
    )
