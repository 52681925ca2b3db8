"""The scales at which the sources made their claims, and the cost of runs at them."""

from qkvbench.claims.kit.models import gpt2_small, study_1_2b, study_300m, study_synthetic
from qkvbench.claims.kit.runs import Scale
from qkvbench.cost import flops
from qkvbench.model import Model

_STUDY_TOKENS = 10_000_000_000  # padding included
_SEEDS = 3


def _training(model: Model) -> str:
    """Matched runs and their operations: a backward pass costs two forward passes."""
    length = 1024
    one = 3 * flops(model, length) / length * _STUDY_TOKENS
    return (
        f"{2 * _SEEDS} runs of {model.name} (two arms, {_SEEDS} seeds) of {one:.0e} floating-point "
        "operations, on 10 B tokens of SlimPajama, scored without padding"
    )


AT_300M = Scale((study_300m(),), "300M models on SlimPajama", _training(study_300m()))

AT_1_2B = Scale((study_1_2b(),), "1.2B models on SlimPajama", _training(study_1_2b()))

# The article does not give the size of its training set.
AT_125M = Scale(
    (gpt2_small(),),
    "a 125M model on GLUE and WMT14",
    "pretrained models of GPT-2's size, fine-tuned on GLUE and WMT14 with several seeds an arm",
)

SYNTHETIC = Scale(
    study_synthetic(),
    "the study's synthetic encoders",
    "runs of these tasks with models of the study's sizes",
    tasks=("sort",),
)

# Claims on small models that are not about one of the study's tasks.
SMALL = Scale(
    study_synthetic(),
    "small models on tasks that attention must solve",
    "runs of these tasks with models of the study's sizes",
    tasks=("sort", "recall", "recall@4x16"),
)

VISION = Scale(
    (),
    "the study's vision Transformers on MNIST, FashionMNIST, CIFAR and an anomaly task",
    "those five data sets, and vision encoders with patches of 4 pixels",
)

# The article names neither a model nor data.
TWO_TOWERS = Scale(
    (),
    "CLIP-style models of photographs and captions",
    "two-tower models trained on millions of captioned photographs, with several seeds an arm",
)
