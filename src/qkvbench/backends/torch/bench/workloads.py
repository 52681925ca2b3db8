"""Work to be timed: decoding, prefill and a forward pass, without a gradient.

Weights and cache are in the precision's own type throughout, as a served model's are.
"""

import torch
from torch import Tensor

from qkvbench.backends import Kind, Workload
from qkvbench.backends.torch.bench.profile import attention_kernel, training_kernel
from qkvbench.backends.torch.models.build import Network, build
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.weights import start
from qkvbench.backends.torch.training.learner import device
from qkvbench.backends.torch.training.precision import PRODUCTS
from qkvbench.cost import CacheDtype
from qkvbench.experiment import Precision
from qkvbench.model import PRESETS, Model, Tokens, Vectors


class Decoding:
    """One decode step over `context` cached tokens of `batch` sequences, again and again.

    The cache holds random roots, as if they had been read: no prefill is needed.
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
        """The decoder and its filled cache, in rows of this type."""
        self.network = _decoder(model, precision)
        self.context = context
        self.tokens = batch
        self.cache = self.network.new_cache(batch, context + 1, rows=rows)
        self.cache.fill_randomly(context, seed=0)
        self.cache_bytes = self.cache.bytes
        self.last = torch.zeros(batch, dtype=torch.long, device=device())

    @torch.inference_mode()
    def step(self) -> None:
        """Decode one token of each sequence, wait for the result, and forget it again."""
        logits = self.network.step(self.last, self.cache)
        logits.argmax(-1).cpu()
        self.cache.rollback(1)

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        _move_weights(self.network)
        self.cache.move()

    def kernel(self) -> str:
        """What does attention in a step."""
        return attention_kernel(self.step)


class Prefill:
    """A prompt of `context` tokens of each of `batch` sequences into an empty cache."""

    def __init__(
        self,
        model: Model,
        precision: Precision,
        *,
        context: int,
        batch: int,
        rows: CacheDtype | None = None,
    ) -> None:
        """The decoder, its empty cache of rows of this type, and the prompts."""
        self.network = _decoder(model, precision)
        self.tokens = batch * context
        self.cache = self.network.new_cache(batch, context, rows=rows)
        self.cache_bytes = self.cache.bytes
        self.prompts = _inputs(model, precision, batch, context)

    @torch.inference_mode()
    def step(self) -> None:
        """Read the prompts, wait for the logits after their last tokens, empty the cache."""
        logits = self.network.prefill(self.prompts, self.cache)
        logits.argmax(-1).cpu()
        self.cache.clear()

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        _move_weights(self.network)
        self.cache.move()

    def kernel(self) -> str:
        """What does attention in a step."""
        return attention_kernel(self.step)


class Forward:
    """One pass over `batch` whole sequences of `context` inputs, with all logits."""

    cache_bytes = None

    def __init__(self, model: Model, precision: Precision, *, context: int, batch: int) -> None:
        """The network and the sequences."""
        if model.longest is not None and context > model.longest:
            raise ValueError(
                f"This model reads at most {model.longest} tokens, fewer than {context}."
            )
        self.network = _network(model, precision)
        self.tokens = batch * context
        self.inputs = _inputs(model, precision, batch, context)

    @torch.inference_mode()
    def step(self) -> None:
        """Make the logits at every position, and wait for the last one."""
        self.network(self.inputs)[:, -1].argmax(-1).cpu()

    def move(self) -> None:
        """Lie elsewhere in memory from now on."""
        _move_weights(self.network)

    def kernel(self) -> str:
        """What does attention in a step."""
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
    """Work of this kind; ValueError where the model reads less, TypeError where it has no cache."""
    match kind:
        case "decode":
            return Decoding(model, precision, context=context, batch=batch, rows=rows)
        case "prefill":
            return Prefill(model, precision, context=context, batch=batch, rows=rows)
        case "forward":
            return Forward(model, precision, context=context, batch=batch)


def attention_kernels(precision: Precision) -> dict[str, str]:
    """What does attention in training and in decoding of a small model at this precision."""
    model = PRESETS["small-decoder"]()
    return {
        "training": training_kernel(model, precision, time=64),
        "decoding": Decoding(model, precision, context=64, batch=2).kernel(),
    }


def _network(model: Model, precision: Precision) -> Network:
    network = build(model)
    start(network, model, seed=0)
    return network.to(device(), PRODUCTS[precision]).eval()


def _decoder(model: Model, precision: Precision) -> Decoder:
    network = _network(model, precision)
    if not isinstance(network, Decoder):
        raise TypeError(f"{model.name} is no decoder: it has no cache to fill or to read.")
    return network


def _inputs(model: Model, precision: Precision, batch: int, time: int) -> Tensor:
    """Random inputs of the kind that the model reads."""
    rng = torch.Generator().manual_seed(0)
    match model.inputs:
        case Tokens(vocabulary):
            return torch.randint(vocabulary, (batch, time), generator=rng).to(device())
        case Vectors(features):
            rows = torch.randn(batch, time, features, generator=rng)
            return rows.to(device(), PRODUCTS[precision])


@torch.no_grad()
def _move_weights(network: Network) -> None:
    for weight in network.parameters():
        weight.data = weight.data.clone()
