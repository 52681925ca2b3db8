"""Networks whose every number matters, in fp64."""

import numpy as np
import torch

from qkvbench.backends.torch import build, named_weights, start


def drawn_network(model, seed=0):
    """A network with its initial values, in evaluation."""
    network = build(model).double().eval()
    start(network, model, seed)
    # What begins at one or zero would hide a mistake.
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in named_weights(network).items():
            if name.endswith((".scale", ".temperature", ".features")):
                tensor += torch.from_numpy(rng.normal(size=tuple(tensor.shape)))
    return network
