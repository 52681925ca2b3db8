"""Cross-entropy over a vocabulary: with all logits at once, or a few rows of them at a time."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from qkvbench.backends.torch.models.build import Network
from qkvbench.backends.torch.models.decoder import Decoder

# From this vocabulary on, logits are larger than what made them, and are never held as a whole.
MANY = 1024
# Logits that are held at a time: about what a processor's cache holds.
HELD = 2**20

Hidden = Float[Tensor, "places d_model"]
Targets = Int[Tensor, " places"]


def mean_loss(
    network: Network, hidden: Hidden, targets: Targets, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """The mean loss in nats, for a backward pass.

    With `smoothing` ε a label is no certainty: the right class has probability 1 − ε, and ε is
    spread evenly over all classes, the right one among them (arXiv:1512.00567, section 7).
    """
    if not isinstance(network, Decoder) or len(network.matrix) < MANY:
        return functional.cross_entropy(network.head(hidden), targets, label_smoothing=smoothing)
    device = hidden.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _InRows.apply(hidden.to(kind), network.matrix.to(kind), targets, smoothing)


def place_losses(
    network: Network, hidden: Hidden, targets: Targets
) -> tuple[Float[Tensor, " places"], Int[Tensor, " places"], Int[Tensor, " places"]]:
    """The loss in nats, the likeliest class and the right one's rank; without a backward pass."""
    losses, likeliest, ranks = [], [], []
    rows = max(1, HELD // network.classes)
    for part, right in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = network.head(part)
        losses.append(functional.cross_entropy(logits, right, reduction="none").float())
        likeliest.append(logits.argmax(-1))
        ranks.append((logits >= logits.gather(1, right[:, None])).sum(-1) - 1)
    return torch.cat(losses), torch.cat(likeliest), torch.cat(ranks)


class _InRows(torch.autograd.Function):
    """The mean cross-entropy of hidden · matrixᵀ, and its gradients in the same pass.

    The gradient of a row's logits is softmax − label, which needs no other row: it is made while
    the logits are at hand, so the backward pass finds it done. The largest number in it is what the
    right class's label and probability differ by, or that and ε where labels are smoothed; a part's
    rows are divided by the largest of these before a product in half precision, and multiplied by
    it, by the loss's own slope and by 1/places in fp32: what is small is not lost, and what is
    scaled against loss is scaled before it is rounded.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, smoothing: float
    ) -> Tensor:
        """The loss, in fp32 or better."""
        rows, even = max(1, HELD // len(matrix)), smoothing / len(matrix)
        loss = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        hidden_slope = torch.empty_like(hidden)
        sizes = torch.empty_like(targets, dtype=loss.dtype)[:, None]
        matrix_slope = torch.zeros_like(matrix, dtype=loss.dtype)
        for first in range(0, len(hidden), rows):
            part, right = hidden[first : first + rows], targets[first : first + rows, None]
            logits = (part @ matrix.mT).to(loss.dtype)
            total = logits.logsumexp(-1, keepdim=True)
            losses = total - logits.gather(1, right)
            missed = torch.expm1(-losses)
            if smoothing:
                losses = losses.lerp(total - logits.mean(-1, keepdim=True), smoothing)
                missed = missed + (smoothing - even)
            loss += losses.sum()
            size = (missed.abs().amax() + smoothing).clamp(min=torch.finfo(loss.dtype).tiny)
            slope = logits.sub_(total).exp_()
            if smoothing:
                slope.sub_(even)
            slope = slope.scatter_(1, right, missed).div_(size).to(hidden.dtype)
            torch.mm(slope, matrix, out=hidden_slope[first : first + rows])
            matrix_slope += (slope.mT @ part) * size[None, None]
            sizes[first : first + rows] = size
        ctx.save_for_backward(hidden_slope, sizes, matrix_slope)
        ctx.kind = matrix.dtype
        return loss / len(hidden)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients, multiplied by the loss's own."""
        hidden_slope, sizes, matrix_slope = ctx.saved_tensors
        slope = slopes[0] / len(hidden_slope)
        return (
            (hidden_slope * (slope * sizes)).to(hidden_slope.dtype),
            (matrix_slope * slope).to(ctx.kind),
            None,
            None,
        )
