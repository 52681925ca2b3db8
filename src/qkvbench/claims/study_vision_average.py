"""The vision average of sharing key and value."""

from qkvbench.claims import STUDY, Arithmetic, Claim, OwnFigures
from qkvbench.claims._figure import mean, printed

# MNIST, FashionMNIST, CIFAR-10, CIFAR-100, anomaly.
TIED = ("0.976", "0.883", "0.659", "0.358", "0.949")
BASELINE = ("0.981", "0.887", "0.663", "0.363", "0.942")


def _arithmetic() -> Arithmetic:
    baseline = mean([printed(each) for each in BASELINE], 4)
    return Arithmetic(
        says="That is the mean of its own row over the five tasks; the baseline's row gives "
        f"{baseline.text}.",
        figures=(mean([printed(each) for each in TIED], 4),),
    )


CLAIM = Claim(
    text="Sharing key and value has the baseline's average on the vision tasks, 0.767.",
    source=STUDY,
    place="table of vision tasks",
    quantity="mean accuracy of `q,k=v` on five vision tasks, without TinyImageNet",
    stated=(printed("0.767"),),
    arithmetic=_arithmetic,
    tests=(OwnFigures(),),
)
