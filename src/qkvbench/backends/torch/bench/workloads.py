"""Timed workloads: decoding, prefill and a forward pass, without gradients.

Weights and cache are entirely in the dtype of the precision, as in serving.
"""

import torch
from torch import Tensor

from qkvbench.backends import Kind, Workload
from qkvbench.backends.common.bench import check_context, no_cache_error, random_inputs
from qkvbench.backends.torch.bench.profile import attention_kernel, training_kernel
from qkvbench.backends.torch.models.build import Network, build
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.weights import start
from qkvbench.backends.torch.training.device import device
from qkvbench.backends.torch.training.precision import COMPUTE_DTYPE
from qkvbench.cost import CacheDtype
from qkvbench.experiment import Precision
from qkvbench.model import PRESETS, Model


class Decoding:
    """One decode step over `context` cached tokens of `batch` sequences.

    The cache is filled with random roots, so no prefill is needed.
    """

    def __init__(
        self,
        model: Model,
        precision: Precision,
        *,
        context: int,
        batch: int,
        rows: CacheDtype | None = None,
    ) -> None:
        """The decoder and its filled cache, with rows of this dtype."""
        self.network = _decoder(model, precision)
        self.context = context
        self.tokens = batch
        self.cache = self.network.new_cache(batch, context + 1, rows=rows)
        self.cache.fill_randomly(context, seed=0)
        self.cache_bytes = self.cache.bytes
        self.last = torch.zeros(batch, dtype=torch.long, device=device())

    @torch.inference_mode()
    def step(self) -> None:
        """Decode one token of each sequence, wait for the result, and roll the cache back."""
        memories = self.cache.memories()
        logits = self.network.step(self.last, self.cache)
        logits.argmax(-1).cpu()
        self.cache.rollback(1, memories)

    def move(self) -> None:
        """Move weights and cache to other memory."""
        _move_weights(self.network)
        self.cache.move()

    def kernel(self) -> str:
        """The kernels that compute attention in a step."""
        return attention_kernel(self.step)


class Prefill:
    """Prefill: prompts of `context` tokens of `batch` sequences into an empty cache."""

    def __init__(
        self,
        model: Model,
        precision: Precision,
        *,
        context: int,
        batch: int,
        rows: CacheDtype | None = None,
    ) -> None:
        """The decoder, its empty cache with rows of this dtype, and the prompts."""
        self.network = _decoder(model, precision)
        self.tokens = batch * context
        self.cache = self.network.new_cache(batch, context, rows=rows)
        self.cache_bytes = self.cache.bytes
        self.prompts = _inputs(model, precision, batch, context)

    @torch.inference_mode()
    def step(self) -> None:
        """Read the prompts, wait for the logits after their last tokens, clear the cache."""
        logits = self.network.prefill(self.prompts, self.cache)
        logits.argmax(-1).cpu()
        self.cache.clear()

    def move(self) -> None:
        """Move weights and cache to other memory."""
        _move_weights(self.network)
        self.cache.move()

    def kernel(self) -> str:
        """The kernels that compute attention in a step."""
        return attention_kernel(self.step)


class Forward:
    """One pass over `batch` whole sequences of `context` inputs, with all logits."""

    cache_bytes = None

    def __init__(self, model: Model, precision: Precision, *, context: int, batch: int) -> None:
        """The network and the sequences."""
        check_context(model, context)
        self.network = _network(model, precision)
        self.tokens = batch * context
        self.inputs = _inputs(model, precision, batch, context)

    @torch.inference_mode()
    def step(self) -> None:
        """Compute the logits at every position, and wait for the last one."""
        self.network(self.inputs)[:, -1].argmax(-1).cpu()

    def move(self) -> None:
        """Move weights and cache to other memory."""
        _move_weights(self.network)

    def kernel(self) -> str:
        """The kernels that compute attention in a step."""
        return attention_kernel(self.step)


def workload(
    kind: Kind,
    model: Model,
    precision: Precision,
    *,
    context: int,
    batch: int,
    rows: CacheDtype | None = None,
) -> Workload:
    """A workload; ValueError if the context is too long, TypeError if the model has no cache."""
    match kind:
        case "decode":
            return Decoding(model, precision, context=context, batch=batch, rows=rows)
        case "prefill":
            return Prefill(model, precision, context=context, batch=batch, rows=rows)
        case "forward":
            return Forward(model, precision, context=context, batch=batch)


def attention_kernels(precision: Precision) -> dict[str, str]:
    """The kernels that compute attention in training and decoding of a small model."""
    model = PRESETS["small-decoder"]()
    return {
        "training": training_kernel(model, precision, time=64),
        "decoding": Decoding(model, precision, context=64, batch=2).kernel(),
    }


def _network(model: Model, precision: Precision) -> Network:
    network = build(model)
    start(network, model, seed=0)
    return network.to(device(), COMPUTE_DTYPE[precision]).eval()


def _decoder(model: Model, precision: Precision) -> Decoder:
    network = _network(model, precision)
    if not isinstance(network, Decoder):
        raise no_cache_error(model)
    return network


def _inputs(model: Model, precision: Precision, batch: int, time: int) -> Tensor:
    inputs = torch.from_numpy(random_inputs(model, batch, time)).to(device())
    return inputs.to(COMPUTE_DTYPE[precision]) if inputs.is_floating_point() else inputs


@torch.no_grad()
def _move_weights(network: Network) -> None:
    for weight in network.parameters():
        weight.data = weight.data.clone()
