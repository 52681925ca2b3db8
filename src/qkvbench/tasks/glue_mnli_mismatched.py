"""Does a sentence follow from another? On genres that are not in training (MNLI, mismatched)."""

from dataclasses import replace

from qkvbench.tasks.glue_mnli import MNLI
from qkvbench.tasks.kinds.glue import glue

TASK = glue(
    replace(
        MNLI,
        about="The same, genres not as in training",
        name="MNLI, mismatched",
        scored="validation_mismatched",
    )
)
