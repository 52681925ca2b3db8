"""What is each projection worth in classifying texts? Packaged tasks in place of GLUE.

Run       qkvbench run glue
          qkvbench run glue --init-from masked-reviews    each arm is pre-trained first
Takes     about seventy minutes on two cores; with the start a quarter of an hour more
Expect    sentences and documents of praise and blame, topics of 8 and of 20 classes, and one
          average under its own name, which is none of GLUE's; a run takes two thirds of a minute,
          so scores show speed of learning more than final quality
"""

from qkvbench.recipes import Study
from qkvbench.recipes.quick import study as quick


def study() -> Study:
    """The arms of `quick` on tasks like those of GLUE."""
    return Study(
        name="glue",
        variants=quick().variants,
        seeds={"sentiment": 5, "sentiment-documents": 5, "topics-8": 5, "topics-20": 5},
    )
