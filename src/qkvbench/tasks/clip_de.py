"""Pictures and their German names, brought together by two towers. arXiv:2103.00020."""

from qkvbench.tasks.kinds.matching import matching

TASK = matching(
    "german", "Find the German name of an emoji and the emoji of a name, of 256 never seen."
)
