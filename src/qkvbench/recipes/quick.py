"""What is each projection worth? Eight variants and two controls on four small tasks.

Run       qkvbench run quick
Takes     about twelve minutes on two cores
Expect    tasks and sizes at which canonical attention learns on one core in seconds; enough to
          show large losses and to rank speeds of learning, not to show small ones
"""

from qkvbench.recipes import CONTROLS, Study


def study() -> Study:
    """The baseline, the ties of the study, what the article calls value-only, MQA, the controls."""
    return Study(
        name="quick",
        variants=(
            "q,k,v",
            "q=k,v",
            "q,k=v",
            "q=k=v",
            "q,k=R(q),v=R(q)",
            "q=k=x,v",
            "q=k=v=x",
            "q,k,v/1",
            *CONTROLS,
        ),
        # Recall is solved or not, so more seeds are needed to tell arms apart.
        seeds={"digits": 3, "sort": 3, "recall": 5, "lm-reviews": 3},
    )
