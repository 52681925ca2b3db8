"""Scores on images, and on images with text."""

from qkvbench.claims.kit.arithmetic import Consistent, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import figure, mean
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import TWO_TOWERS, VISION

# Accuracies on MNIST, FashionMNIST, CIFAR-10, CIFAR-100 and the anomaly task.
BASELINE = ("0.981", "0.887", "0.663", "0.363", "0.942")
TIED = ("0.976", "0.883", "0.659", "0.358", "0.949")
SINGLE = ("0.978", "0.877", "0.672", "0.376", "0.933")


def _tied() -> Arithmetic:
    baseline = mean([figure(each) for each in BASELINE], 4)
    return Arithmetic(
        "That is the mean of its own row over the five tasks; the baseline's row gives "
        f"{baseline.text}.",
        (mean([figure(each) for each in TIED], 4),),
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
            (mean([figure(each) for each in SINGLE], 4),),
        ),
        tests=(Consistent(), Runs("q=k=v", "no worse", ("digits",), VISION)),
        figures=(figure("0.767"),),
        recipe="longer",
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
