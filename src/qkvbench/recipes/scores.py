"""Does the score repair a tie? Ties of Q and K with a masked diagonal, norms and corrections.

Run       qkvbench run scores
Takes     about ten minutes on two cores
Reported  arXiv:2606.04032 finds that its 2-D encoding, `+2d` here, helps the arms whose Q is K
Expect    `+2d` cannot say which of two tokens comes first (softmax cancels what depends on the row
          alone), `++` can; whether `-diag` helps a token whose query is its key is a hypothesis
"""

from qkvbench.recipes import Study


def study() -> Study:
    """Canonical attention and two ties, each as it is and with what could mend it."""
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
        ),
        seeds={"sort": 3, "recall": 5, "lm-reviews": 3},
    )
