"""Second moments of a calibration text in every layer: all that the fitted starts read.

The text is read once. No activations are kept: of each layer there are a matrix of its inputs and,
for each key/value head, one of the queries that read it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.hub.attention import attention_forward
from qkvbench.hub.fit.projections import Layer, layers_of

# The ``attn_implementation`` that records moments.
RECORDING = "qkvbench_moments"
# Pairs of a query and a key that are drawn from each head of each sequence.
PAIRS = 256
# More than these torch.multinomial does not take.
MOST_CATEGORIES = 2**24


@dataclass(eq=False)
class Moments:
    """Sums over a text, of one layer.

    ``inputs``: of x xᵀ, with a one behind x. ``queries``: for each key/value head of q qᵀ, a query
    brought into the frame of the key before RoPE, weighted by how far the key's score moves the
    output: a² ‖O(v − o)‖² for attention weight a, value v and head output o. ``values``: of a², the
    weight of an error of V. To first order, and if the errors of different keys are independent,
    the squared error of the layer's output is queries·(error of K)² + values·(O · error of V)².
    """

    inputs: Float[Tensor, "inputs inputs"]
    queries: Float[Tensor, "kv_heads head_dim head_dim"]
    values: Float[Tensor, " heads"]
    tokens: int = 0

    @property
    def mean(self) -> Float[Tensor, " inputs"]:
        """The mean input, with a one behind it."""
        return self.inputs[:, -1] / max(self.tokens, 1)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A text that was read: its batches, inputs of the model by name, and moments by layer."""

    moments: Sequence[Moments]
    batches: Sequence[Mapping[str, Tensor]]


@torch.no_grad()
def collect(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Calibration:
    """The moments of every layer over the text: batches are inputs of the model by name.

    ValueError for a batch with padding.
    """
    kept = []
    with recording(model) as found:
        body: Any = model.base_model  # pyright: ignore[reportAttributeAccessIssue]
        for batch in batches:
            if "attention_mask" in batch and not bool(batch["attention_mask"].all()):
                raise ValueError(
                    "A batch has padding, which would count as text.\nGive rows without, one by "
                    "one or of equal length."
                )
            body(**batch)
            kept.append(batch)
    return Calibration([found.by_layer[number] for number in sorted(found.by_layer)], kept)


@dataclass(eq=False)
class Recording:
    """The moments of each layer that has run, by its number."""

    model: Any
    implementation: str
    by_layer: dict[int, Moments] = field(default_factory=dict)
    is_paused: bool = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Layers that run inside are not recorded."""
        self.model.config._attn_implementation, self.is_paused = self.implementation, True
        try:
            yield
        finally:
            self.is_paused = False
            self.model.config._attn_implementation = RECORDING


def _empty(layer: Layer) -> Moments:
    size = layer.geometry
    inputs = torch.zeros(size.d_model + 1, size.d_model + 1, dtype=torch.float64)
    queries = torch.zeros(size.kv_heads, size.head_dim, size.head_dim, dtype=torch.float64)
    return Moments(inputs, queries, torch.zeros(size.heads, dtype=torch.float64))


@contextmanager
def recording(model: Any) -> Iterator[Recording]:
    """Record while the block runs.

    A layer's weights are read when it runs, so they may be absent before and after.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    recorded = Recording(model, model.config._attn_implementation)
    found = recorded.by_layer
    layers = layers_of(model)
    # One for each layer, so that the order in which layers and texts are read changes nothing.
    draws = [torch.Generator().manual_seed(layer.number) for layer in layers]
    by_module = {layer.attention: layer for layer in layers}
    rope: dict[Any, Any] = {}

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if recorded.is_paused:
            return
        x = kwargs.get("key_value_states")
        if x is None:
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        rows = nn.functional.pad(x.flatten(0, 1), (0, 1), value=1.0)
        layer = by_module[module]
        moments = found.setdefault(layer.number, _empty(layer))
        moments.inputs += _second_moment(rows)
        moments.tokens += len(rows)
        rope[module] = kwargs.get("position_embeddings")

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        output, weights = attention_forward(module, query, key, value, mask, **kwargs)
        layer = by_module[module]
        if not bool(output.isfinite().all()):
            raise ValueError(not_finite(layer))
        heads = output.transpose(1, 2)
        o = layer.output_heads().to(query.dtype)
        moments, rng = found[layer.number], draws[layer.number]
        # OPT scales its queries before, and passes 1 here.
        share = kwargs["scaling"]
        _add(moments, layer, o, query, value, heads, weights, share, rope.pop(module), rng)
        return output, weights

    AttentionInterface.register(RECORDING, attend)
    AttentionMaskInterface.register(RECORDING, eager_mask)
    hooks = [
        layer.attention.register_forward_pre_hook(before, with_kwargs=True) for layer in layers
    ]
    training = model.training
    model.config._attn_implementation = RECORDING
    model.eval()
    try:
        yield recorded
    finally:
        model.config._attn_implementation = recorded.implementation
        model.train(training)
        for hook in hooks:
            hook.remove()


def not_finite(layer: Layer) -> str:
    """The message for a layer that computes, or has, what is no number."""
    return (
        f"Attention layer {layer.number} has NaN or infinite numbers, so nothing is fitted to it.\n"
        "The checkpoint is damaged, or its training diverged."
    )


def _add(  # noqa: PLR0913
    moments: Moments,
    layer: Layer,
    o: Tensor,
    query: Tensor,
    value: Tensor,
    output: Tensor,
    weights: Tensor,
    scaling: float,
    rope: tuple[Tensor, Tensor] | None,
    rng: torch.Generator,
) -> None:
    """Add the moments of one batch; all tensors are (batch, heads, time, …)."""
    group = layer.geometry.heads // layer.geometry.kv_heads
    for head in range(layer.geometry.heads):
        metric = o[head].mT @ o[head]
        v, y, a = value[:, head // group], output[:, head], weights[:, head]
        products = [v @ metric, y @ metric]
        # ‖O(v_s − o_t)‖² for every query t and key s.
        distance = (products[0] * v).sum(-1)[:, None, :] + (products[1] * y).sum(-1)[:, :, None]
        distance = (distance - 2 * products[1] @ v.mT).clamp_min(0)
        moments.values[head] += a.square().sum().double()
        weight = (a.square() * distance).flatten(1)
        places = _draw(weight + 1e-30, rng)
        time = a.shape[-1]
        rows = query[:, head].gather(1, (places // time)[..., None].expand(-1, -1, query.shape[-1]))
        if rope is not None:
            rows = _unrotated(rows, places % time, rope)
        share = weight.sum(1) / PAIRS * scaling**2
        rows = (rows * share.sqrt()[:, None, None]).flatten(0, 1)
        moments.queries[head // group] += _second_moment(rows)


def _draw(weight: Float[Tensor, "batch pairs"], rng: torch.Generator) -> Tensor:
    """Places that are drawn in proportion to their weight."""
    if weight.shape[1] <= MOST_CATEGORIES:
        return torch.multinomial(weight, PAIRS, replacement=True, generator=rng)
    ends = weight.double().cumsum(1)
    at = torch.rand(len(weight), PAIRS, dtype=torch.float64, generator=rng) * ends[:, -1:]
    return torch.searchsorted(ends, at).clamp_max(weight.shape[1] - 1)


def _second_moment(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "width width"]:
    """The sum of x xᵀ, in fp64.

    A small text leaves directions without an input; rounding in fp32 gives some a negative square.
    """
    wide = rows.double()
    return wide.mT @ wide


def _unrotated(rows: Tensor, positions: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """The rows rotated back from these positions."""
    cos, sin = (part.expand(len(rows), -1, -1) for part in rope)
    index = positions[..., None].expand(-1, -1, cos.shape[-1])
    cos, sin = cos.gather(1, index), sin.gather(1, index)
    rows, others = rows.split([cos.shape[-1], rows.shape[-1] - cos.shape[-1]], dim=-1)
    first, second = rows.chunk(2, dim=-1)
    back = rows * cos - torch.cat([-second, first], dim=-1) * sin
    return torch.cat([back, others], dim=-1)
