"""Does a tie cost more in cross-attention than in self-attention?

Run       qkvbench run places
Takes     about an hour and a half on two cores
Reported  the article that this project began from says that keys may matter more in models of
          image and text
Expect    arms with `@cross` change cross-attention alone, those with `@encoder` or `@self`
          self-attention; `q=k,v@cross` shares a matrix between two inputs, so
          no score is the highest because a token meets itself
"""

from qkvbench.recipes import CONTROLS, Study


def study() -> Study:
    """Two ties and no key, at each attention site alone, in captions and translations."""
    return Study(
        name="places",
        variants=(
            "q,k,v",
            "q=k,v@cross",
            "q=k,v@self",
            "q=k,v@encoder",
            "q,k=v@cross",
            "q,k=v@self",
            "q,k=v@encoder",
            "q,k=x,v@cross",
            "q,k=x,v@self",
            "q,k=x,v@encoder",
            *CONTROLS,
        ),
        seeds={"captioning": 5, "translation": 5},
    )
