"""Pictures and names: does it matter from which of two towers a projection is removed?

Run       qkvbench run towers
Takes     about fifty minutes on two cores
Reported  the article that this project began from says that keys may matter more in models of
          image and text
Expect    few pictures and a small score: large losses show, small ones do not
"""

from qkvbench.recipes import CONTROLS, Study


def study() -> Study:
    """Two ties and no key, in both towers and in each alone."""
    return Study(
        name="towers",
        variants=(
            "q,k,v",
            "q=k,v",
            "q=k,v@image",
            "q=k,v@text",
            "q,k=v",
            "q,k=v@image",
            "q,k=v@text",
            "q,k=x,v",
            "q,k=x,v@image",
            "q,k=x,v@text",
            *CONTROLS,
        ),
        seeds={"clip": 5, "clip-de": 5},
    )
