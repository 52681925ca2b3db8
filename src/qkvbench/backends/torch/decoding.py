"""Decoding to be timed: a decoder whose cache holds random roots, so that no prefill is needed."""

import torch

from qkvbench.backends.torch.causal import Decoder
from qkvbench.backends.torch.learner import device
from qkvbench.backends.torch.precision import PRODUCTS
from qkvbench.backends.torch.stacks import build
from qkvbench.backends.torch.weights import start
from qkvbench.experiment import Precision
from qkvbench.model import Model


class Decoding:
    """One decode step over `context` cached tokens of `batch` sequences, again and again.

    Weights and cache are in the precision's own type throughout, as a served model's are.
    """

    kernel = "matmul-softmax-matmul over kept roots, K of a shared root turned tile by tile"

    def __init__(self, model: Model, precision: Precision, *, context: int, batch: int) -> None:
        """The decoder and its filled cache."""
        network = build(model)
        if not isinstance(network, Decoder):
            raise TypeError(f"{model.name} is no decoder, so there is no decoding to time.")
        start(network, model, seed=0)
        self.network = network.to(device(), PRODUCTS[precision]).eval()
        self.context = context
        self.cache = self.network.new_cache(batch, context + 1)
        self.cache.fill_randomly(context, seed=0)
        self.cache_bytes = self.cache.bytes
        self.tokens = torch.zeros(batch, dtype=torch.long, device=device())

    @torch.inference_mode()
    def step(self) -> None:
        """Decode one token of each sequence, wait for the result, and forget it again."""
        logits = self.network.step(self.tokens, self.cache)
        logits.argmax(-1).cpu()
        self.cache.begin(self.context, None)
