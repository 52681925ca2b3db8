"""The scales at which the sources made their claims, and the cost of runs at them."""

from qkvbench.claims.kit.models import gpt2_small, study_1_2b, study_300m, study_synthetic
from qkvbench.claims.kit.runs import Scale
from qkvbench.cost import flops
from qkvbench.model import Model

# Training tokens of the study, padding included.
_STUDY_TOKENS = 10_000_000_000
_SEEDS = 3


def _training(model: Model, tokens: float, text: str) -> str:
    """Matched runs and their operations: a backward pass costs two forward passes."""
    length = 1024
    one = 3 * flops(model, length) / length * tokens
    return (
        f"{2 * _SEEDS} runs of {model.name} (two arms, {_SEEDS} seeds) of {one:.0e} floating-point "
        f"operations, on {text}"
    )


AT_300M = Scale(
    models=lambda: (study_300m(), study_300m()),
    setting="300M models on SlimPajama",
    requires=lambda: _training(
        study_300m(), _STUDY_TOKENS, "10 B tokens of SlimPajama, scored without padding"
    ),
)

AT_1_2B = Scale(
    models=lambda: (study_1_2b(), study_1_2b()),
    setting="1.2B models on SlimPajama",
    requires=lambda: _training(
        study_1_2b(), _STUDY_TOKENS, "10 B tokens of SlimPajama, scored without padding"
    ),
)

# The article does not give the size of its training set.
AT_125M = Scale(
    models=lambda: (gpt2_small(), gpt2_small()),
    setting="a 125M model on GLUE and WMT14",
    requires=lambda: (
        "pretrained models of GPT-2's size, fine-tuned on GLUE and WMT14 with several seeds an arm"
    ),
)

SYNTHETIC = Scale(
    models=study_synthetic,
    setting="the study's synthetic encoders",
    requires=lambda: "runs of these tasks with models of the study's sizes",
    tasks=("sort",),
)

# Claims on small models that are not about one of the study's tasks.
SMALL = Scale(
    models=study_synthetic,
    setting="small models on tasks that attention must solve",
    requires=lambda: "runs of these tasks with models of the study's sizes",
    tasks=("sort", "recall", "recall@4x16"),
)

VISION = Scale(
    models=None,
    setting="the study's vision Transformers on MNIST, FashionMNIST, CIFAR and an anomaly task",
    requires=lambda: "those five data sets, and vision encoders with patches of 4 pixels",
)

# The article names neither a model nor data.
TWO_TOWERS = Scale(
    models=None,
    setting="CLIP-style models of photographs and captions",
    requires=lambda: (
        "two-tower models trained on millions of captioned photographs, with several seeds an arm"
    ),
)
