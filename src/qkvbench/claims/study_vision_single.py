"""One projection on images."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Consistent, Runs
from qkvbench.claims._figure import mean, printed
from qkvbench.claims._scales import VISION

# MNIST, FashionMNIST, CIFAR-10, CIFAR-100, anomaly.
SINGLE = ("0.978", "0.877", "0.672", "0.376", "0.933")


def _arithmetic() -> Arithmetic:
    return Arithmetic(
        says="Its own row gives that mean, and so does the baseline's. Nothing bounds a loss.",
        figures=(mean([printed(each) for each in SINGLE], 4),),
    )


CLAIM = Claim(
    text="On images one projection for all loses nothing: its average is the baseline's, 0.767.",
    source=STUDY,
    place="table of vision tasks",
    quantity="mean accuracy of `q=k=v` on five vision tasks, without TinyImageNet",
    stated=(printed("0.767"),),
    arithmetic=_arithmetic,
    tests=(Consistent(), Runs("q=k=v", "no worse", ("digits",), VISION)),
    recipe="longer",
)
