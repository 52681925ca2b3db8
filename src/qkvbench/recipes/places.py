"""Where two inputs meet: does a tie cost more across them than within one?

Run       qkvbench run places
Takes     about an hour on two cores
Reported  the article that this project began from says that keys may matter more in models of
          image and text
Expect    arms with `@cross` change attention over the source alone, those with `@encoder` or
          `@self` attention within one input; `q=k,v@cross` shares a matrix between two inputs, so
          no score is the highest because a token meets itself
"""

from qkvbench.recipes import Study


def study() -> Study:
    """Two ties and no key, at each place of attention apart, in captions and translations."""
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
        ),
        seeds={"captioning": 3, "translation": 3},
    )
