"""Scores on images, and on images with text."""

from qkvbench.claims.kit.arithmetic import Consistent, NotTestable, OtherConditions, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import Figure, figure, mean, quotient
from qkvbench.claims.kit.reported import ARTICLE, LATER_IMAGENET, VISION
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import AT_VISION, TWO_TOWERS


def _mean(arm: str) -> Figure:
    """The mean of the arm's row over the five tasks."""
    return mean(VISION[arm], 4)


def _tied() -> Arithmetic:
    baseline = _mean("q,k,v")
    return Arithmetic(
        "That is the mean of its own row over the five tasks; the baseline's row gives "
        f"{baseline.text}.",
        (_mean("q,k=v"),),
    )


def _over(above: Figure, below: Figure) -> Figure:
    """One score in percent of another."""
    return quotient(above, below, "%", times=100)


def _encoding() -> Arithmetic:
    later = _over(LATER_IMAGENET["q=k=v+2d"], LATER_IMAGENET["q=k=v"])
    return Arithmetic(
        f"On ImageNet-1K, in a later draft, it is {later.text} of it, but with another size of "
        "batch, one seed each: which of the two made the difference is not known.",
        (later,),
    )


CLAIMS = (
    Claim(
        name="study-vision-average",
        text="Sharing key and value has the baseline's average on the vision tasks, 0.767.",
        place="table of vision tasks",
        quantity="mean accuracy of `q,k=v` on five vision tasks, without TinyImageNet",
        arithmetic=_tied,
        tests=(OwnFigures(),),
        figures=(figure("0.767"),),
    ),
    Claim(
        name="study-vision-single",
        text="On images one projection for all loses nothing: its average is the baseline's, "
        "0.767.",
        place="table of vision tasks",
        quantity="mean accuracy of `q=k=v` on five vision tasks, without TinyImageNet",
        arithmetic=lambda: Arithmetic(
            "Its own row gives that mean, and so does the baseline's. Nothing bounds a loss.",
            (_mean("q=k=v"),),
        ),
        tests=(Consistent(), Runs("q=k=v", "no worse", ("digits",), AT_VISION)),
        figures=(figure("0.767"),),
        recipe="longer",
    ),
    Claim(
        name="study-vision-query-key",
        text="On images using the query as key loses nothing: its average is 0.771, the baseline's "
        "0.767.",
        place="table of vision tasks",
        quantity="mean accuracy of `q=k,v` on five vision tasks, without TinyImageNet",
        arithmetic=lambda: Arithmetic(
            "Its own rows give both means, without an interval. Nothing bounds a loss.",
            (_mean("q=k,v"), _mean("q,k,v")),
        ),
        tests=(Consistent(), Runs("q=k,v", "no worse", ("digits",), AT_VISION)),
        figures=(figure("0.771"), figure("0.767")),
        recipe="longer",
    ),
    Claim(
        name="study-vision-encoding",
        text="On images the two-dimensional encoding helps one projection for all.",
        place="table of vision tasks, the variants marked +",
        quantity="mean accuracy of `q=k=v+2d` over that of `q=k=v`, percent",
        arithmetic=_encoding,
        tests=(OtherConditions(),),
        figures=(_over(_mean("q=k=v+2d"), _mean("q=k=v")),),
    ),
    Claim(
        name="article-value-only-imagenet",
        text="With value projections alone a model keeps 91% of the accuracy on ImageNet-1K.",
        place="text",
        quantity="accuracy of `q=k=x,v` on ImageNet-1K, percent of that of `q,k,v`",
        arithmetic=lambda: Arithmetic(
            "Its table has no column of ImageNet. Of GLUE, Value-only keeps "
            f"{_over(ARTICLE['q=k=x,v'].glue, ARTICLE['q,k,v'].glue).text} there, so the number "
            "seems to be that of another benchmark. The study has no such variant."
        ),
        tests=(
            NotTestable("vision Transformers of both arms, trained on ImageNet-1K, several seeds"),
        ),
        figures=(figure("91", "%"),),
    ),
    Claim(
        name="article-clip-keys",
        text="In CLIP-style models of image and text, keys matter more than in language models.",
        place="text on limits",
        quantity="what `q=k,v` loses in two towers",
        arithmetic=lambda: Arithmetic(
            "Nothing bounds it: both sides are losses of quality, in units that have nothing in "
            'common, so of "more" only this can be tested: whether two towers lose by a missing '
            "key."
        ),
        tests=(Runs("q=k,v", "worse", ("clip", "clip-de"), TWO_TOWERS),),
        recipe="towers",
    ),
)
