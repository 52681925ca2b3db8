"""Predict the next byte of documentation; test services are not in training."""

from qkvbench.data.documentation import documentation
from qkvbench.data.tokenizer import Bytes
from qkvbench.tasks.kinds.language import Source, language_model

TASK = language_model(
    Source(
        about="Predict the next byte of documentation; no service is in two splits.",
        tier="packaged",
        version=1,
        model="docs",
        read=documentation,
    ),
    Bytes(),
)
