"""Where the sources made their claims, and what it would take to be there."""

from qkvbench.claims._models import gpt2_small, study_1_2b, study_300m, study_synthetic
from qkvbench.claims._runs import Scale
from qkvbench.cost import flops
from qkvbench.model import Model

# What the study trains on: 10 B tokens, padding among them.
_STUDY_TOKENS = 10_000_000_000
_SEEDS = 3


def _training(model: Model, tokens: float, text: str) -> str:
    """The floating-point operations of matched runs: a backward pass costs two forward ones."""
    length = 1024
    one = 3 * flops(model, length) / length * tokens
    return (
        f"{2 * _SEEDS} runs of {model.name} (two arms, {_SEEDS} seeds) of {one:.0e} floating-point "
        f"operations, on {text}"
    )


AT_300M = Scale(
    models=lambda: (study_300m(), study_300m()),
    setting="300M models on SlimPajama",
    takes=lambda: _training(
        study_300m(), _STUDY_TOKENS, "10 B tokens of SlimPajama, scored without padding"
    ),
)

AT_1_2B = Scale(
    models=lambda: (study_1_2b(), study_1_2b()),
    setting="1.2B models on SlimPajama",
    takes=lambda: _training(
        study_1_2b(), _STUDY_TOKENS, "10 B tokens of SlimPajama, scored without padding"
    ),
)

# The article does not say on how much text its models were trained.
AT_125M = Scale(
    models=lambda: (gpt2_small(), gpt2_small()),
    setting="a 125M model on GLUE and WMT14",
    takes=lambda: (
        "pretrained models of GPT-2's size, fine-tuned on GLUE and WMT14 with several seeds an arm"
    ),
)

SYNTHETIC = Scale(
    models=study_synthetic,
    setting="the study's synthetic encoders",
    takes=lambda: "runs of these tasks with models of the study's sizes",
    tasks=("sort",),
)

# Claims on small models that are not bound to one of the study's tasks.
SMALL = Scale(
    models=study_synthetic,
    setting="small models on tasks that attention must solve",
    takes=lambda: "runs of these tasks with models of the study's sizes",
    tasks=("sort", "recall", "recall@4x16"),
)

VISION = Scale(
    models=None,
    setting="the study's vision Transformers on MNIST, FashionMNIST, CIFAR and an anomaly task",
    takes=lambda: "those five data sets, and vision encoders with patches of 4 pixels",
)

# The article names no model, and no data.
TWO_TOWERS = Scale(
    models=None,
    setting="CLIP-style models of photographs and captions",
    takes=lambda: (
        "two-tower models trained on millions of captioned photographs, with several seeds an arm"
    ),
)
