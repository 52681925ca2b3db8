"""The scales at which the sources made their claims, and the cost of runs at them."""

from qkvbench.claims.kit.models import (
    gpt2_small,
    study_1_2b,
    study_300m,
    study_keyless,
    study_synthetic,
)
from qkvbench.claims.kit.reported import SORT
from qkvbench.claims.kit.runs import Scale
from qkvbench.cost import flops
from qkvbench.model import Model

_STUDY_TOKENS = 10_000_000_000  # padding included
_SEEDS = 3
_LENGTH = 2048


def _training(model: Model) -> str:
    """Matched runs and their operations: a backward pass costs two forward passes."""
    one = 3 * flops(model, _LENGTH) / _LENGTH * _STUDY_TOKENS
    return (
        f"{2 * _SEEDS} runs of {model.name} (two arms, {_SEEDS} seeds) of {one:.0e} floating-point "
        "operations, on 10 B tokens of SlimPajama, scored without padding"
    )


AT_300M = Scale(
    (study_300m(),),
    "300M models on SlimPajama",
    _training(study_300m()),
    tokens=_LENGTH,
    sequences=_STUDY_TOKENS // _LENGTH,
)

AT_1_2B = Scale(
    (study_1_2b(),),
    "1.2B models on SlimPajama",
    _training(study_1_2b()),
    tokens=_LENGTH,
    sequences=_STUDY_TOKENS // _LENGTH,
)

# The article gives neither the size of its training set nor the length of its sequences.
AT_125M = Scale(
    (gpt2_small(),),
    "a 125M model on GLUE and WMT14",
    "pretrained models of GPT-2's size, fine-tuned on GLUE and WMT14 with several seeds an arm",
)

# Lengths of 16, 64 and 128; two epochs of 50,000 sequences, by the code of arXiv:2305.19129.
_SYNTHETIC_TOKENS, _SYNTHETIC_SEQUENCES = 128, 100_000

AT_SYNTHETIC = Scale(
    study_synthetic(),
    "the study's synthetic encoders on five tasks",
    "runs of reverse, sort, subtract, swap and copy at the study's sizes and lengths, up to "
    f"{_SYNTHETIC_TOKENS}",
    tasks=("reverse", "sort", "subtract", "swap", "copy"),
    tokens=_SYNTHETIC_TOKENS,
    sequences=_SYNTHETIC_SEQUENCES,
)

AT_SORTING = Scale(
    study_synthetic(),
    "the study's synthetic encoders on sorting",
    f"runs of sorting at the study's sizes and lengths, up to {_SYNTHETIC_TOKENS}",
    tasks=("sort",),
    tokens=_SYNTHETIC_TOKENS,
    sequences=_SYNTHETIC_SEQUENCES,
    score=SORT["q,k,v"],
)

# Five epochs of 10,000 sequences, by the authors' later code (commit ff3ef42); no length is known.
AT_RECALL = Scale(
    (study_keyless(),),
    "the authors' later models on associative recall",
    "runs of recall with models of that size",
    tasks=("recall@4x16",),
    sequences=50_000,
)

AT_VISION = Scale(
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
