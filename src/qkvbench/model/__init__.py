"""Models as frozen values: blocks, stacks, positions and how they begin."""

from qkvbench.model.positions import POSITIONS
from qkvbench.model.positions import named as position_named
from qkvbench.model.positions import written as position_written
from qkvbench.model.presets import PRESETS, transformer
from qkvbench.model.spec import (
    Alibi,
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
    Sinusoidal,
    Stack,
    Start,
    Tokens,
    TurnedBack,
    Vectors,
    turned_coordinates,
)

__all__ = [
    "POSITIONS",
    "PRESETS",
    "Alibi",
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
    "Sinusoidal",
    "Stack",
    "Start",
    "Tokens",
    "TurnedBack",
    "Vectors",
    "position_named",
    "position_written",
    "transformer",
    "turned_coordinates",
]
