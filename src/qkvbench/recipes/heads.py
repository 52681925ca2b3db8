"""Does recall without separate K and V depend on the number of heads, or on their size?

Run       qkvbench run heads
Takes     about half an hour on two cores
Reported  the later runs of arXiv:2606.04032's authors: a relative of `q,k=v` fails at associative
          recall with four heads and not with one, both as wide as the model together
Wrong     their runs change number and size of heads at once; here each changes alone as well,
          so models whose heads do not add up to d_model have fewer or more parameters
Expect    each size has its own baseline: runs are compared within a column, never across
"""

from qkvbench.recipes import CONTROLS, Study


def study() -> Study:
    """Canonical attention, the tie, the same functions with a rotation, and one tensor for all."""
    return Study(
        name="heads",
        variants=("q,k,v", "q,k=v", "q,k,v=R(k)", "q=k=v", *CONTROLS),
        seeds={
            "recall@1x64": 10,
            "recall@4x16": 10,
            "recall@1x16": 10,
            "recall@4x64": 10,
            "mqar@1x64": 5,
            "mqar@4x16": 5,
        },
    )
