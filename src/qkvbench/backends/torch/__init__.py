"""PyTorch: one attention layer for all variants, the stacks around it, and a learner."""

from qkvbench.backends.torch.attention import Attention
from qkvbench.backends.torch.cache import Cache
from qkvbench.backends.torch.decoder import Decoder
from qkvbench.backends.torch.encoder import Encoder
from qkvbench.backends.torch.learner import Learner, device, prepare
from qkvbench.backends.torch.stacks import build
from qkvbench.backends.torch.weights import named_weights, start

__all__ = [
    "Attention",
    "Cache",
    "Decoder",
    "Encoder",
    "Learner",
    "build",
    "device",
    "named_weights",
    "prepare",
    "start",
]
