"""Models as frozen values: blocks, stacks, positions and how they begin."""

from qkvbench.model.presets import PRESETS, transformer
from qkvbench.model.spec import (
    Attention,
    Block,
    Decoder,
    Encoder,
    FeedForward,
    LayerNorm,
    Learned,
    Model,
    NoPosition,
    Position,
    Rotary,
    Stack,
    Start,
    Tokens,
    Vectors,
)

__all__ = [
    "PRESETS",
    "Attention",
    "Block",
    "Decoder",
    "Encoder",
    "FeedForward",
    "LayerNorm",
    "Learned",
    "Model",
    "NoPosition",
    "Position",
    "Rotary",
    "Stack",
    "Start",
    "Tokens",
    "Vectors",
    "transformer",
]
