"""What is each projection worth? Eight variants and two controls on four small tasks.

Run       qkvbench run quick
Takes     a quarter of an hour to an hour on two cores, by the machine; a first table a fifth of it
Expect    tasks and sizes at which canonical attention learns on one core in seconds and a model
          without attention does not; enough to show large losses and to rank speeds of learning,
          not to show small ones
"""

from qkvbench.recipes import CONTROLS, Study

# Factors on the tasks' own steps.
BUDGET = {"anomaly-pixels": 0.4, "sort": 1, "recall": 1, "lm-reviews": 1}


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
        # What is solved or not takes seven seeds for a difference to be certain.
        seeds={"anomaly-pixels": 5, "sort": 5, "recall": 7, "lm-reviews": 5},
        budget=BUDGET,
    )
