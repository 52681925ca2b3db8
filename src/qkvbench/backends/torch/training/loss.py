"""Cross-entropy over a vocabulary: with all logits at once, or a chunk of rows at a time."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qkvbench.backends.torch.models.build import Network
from qkvbench.backends.torch.models.decoder import Decoder

# From this vocabulary size on, the logits are larger than the hidden states and are computed in
# chunks.
CHUNKED_VOCABULARY = 1024
# Logits in a chunk: about what a processor's cache holds.
CHUNK_LOGITS = 2**20

Hidden = Float[Tensor, "places d_model"]
Targets = Int[Tensor, " places"]


def mean_loss(
    network: Network, hidden: Hidden, targets: Targets, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """The mean loss in nats, for a backward pass.

    With label smoothing ε the target class has probability 1 − ε, plus ε spread evenly over all
    classes (arXiv:1512.00567, section 7).
    """
    if not isinstance(network, Decoder) or len(network.matrix) < CHUNKED_VOCABULARY:
        return functional.cross_entropy(network.head(hidden), targets, label_smoothing=smoothing)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _ChunkedCrossEntropy.apply(
        hidden.to(dtype), network.matrix.to(dtype), targets, smoothing
    )


def mean_divergence(
    network: Network, hidden: Hidden, teacher: Network, expected: Hidden
) -> Float[Tensor, ""]:
    """The mean divergence in nats of the predictions from a teacher's, for a backward pass.

    KL(teacher, network) at temperature 1 (arXiv:1503.02531, section 2); of a large vocabulary the
    logits of some places at a time, made again in the backward pass.
    """
    rows = max(1, CHUNK_LOGITS // network.classes)

    def summed(hidden: Hidden, expected: Hidden) -> Tensor:
        logs, wanted = (
            net.head(stream).float().log_softmax(-1)
            for net, stream in ((network, hidden), (teacher, expected))
        )
        return functional.kl_div(logs, wanted, reduction="sum", log_target=True)

    parts = zip(hidden.split(rows), expected.split(rows), strict=True)
    if len(hidden) <= rows:
        return summed(hidden, expected) / len(hidden)
    sums = [checkpoint(summed, *part, use_reentrant=False) for part in parts]
    return torch.stack(sums).sum() / len(hidden)


def place_losses(
    network: Network, hidden: Hidden, targets: Targets
) -> tuple[Float[Tensor, " places"], Int[Tensor, " places"], Int[Tensor, " places"]]:
    """The loss in nats, the most probable class and the rank of the target; no backward pass."""
    losses, predicted, ranks = [], [], []
    rows = max(1, CHUNK_LOGITS // network.classes)
    for part, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = network.head(part)  # (rows, vocabulary)
        losses.append(functional.cross_entropy(logits, target, reduction="none").float())
        predicted.append(logits.argmax(-1))
        ranks.append((logits >= logits.gather(1, target[:, None])).sum(-1) - 1)
    return torch.cat(losses), torch.cat(predicted), torch.cat(ranks)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The mean cross-entropy of hidden · matrixᵀ, with its gradients computed in the forward pass.

    The gradient of a row's logits is softmax − label and depends on no other row, so it is computed
    while the logits of the chunk are at hand. Logit gradients are divided by their largest entry
    before the half-precision matmul and rescaled in fp32, so small entries do not underflow. The
    largest entry is bounded by the target's, p − 1, plus ε if labels are smoothed.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, smoothing: float
    ) -> Tensor:
        """The loss, in fp32 or better."""
        # even: the probability that smoothing adds to each class
        rows, even = max(1, CHUNK_LOGITS // len(matrix)), smoothing / len(matrix)
        loss = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        hidden_grad = torch.empty_like(hidden)  # (places, d_model), before rescaling
        sizes = torch.empty_like(targets, dtype=loss.dtype)[:, None]  # (places, 1)
        matrix_grad = torch.zeros_like(matrix, dtype=loss.dtype)  # (vocabulary, d_model)
        for first in range(0, len(hidden), rows):
            part, target = hidden[first : first + rows], targets[first : first + rows, None]
            logits = (part @ matrix.mT).to(loss.dtype)  # (rows, vocabulary)
            total = logits.logsumexp(-1, keepdim=True)
            losses = total - logits.gather(1, target)  # (rows, 1)
            target_grad = torch.expm1(-losses)
            if smoothing:
                losses = losses.lerp(total - logits.mean(-1, keepdim=True), smoothing)
                target_grad = target_grad + (smoothing - even)
            loss += losses.sum()
            size = (target_grad.abs().amax() + smoothing).clamp(min=torch.finfo(loss.dtype).tiny)
            grad = logits.sub_(total).exp_()
            if smoothing:
                grad.sub_(even)
            grad = grad.scatter_(1, target, target_grad).div_(size).to(hidden.dtype)
            torch.mm(grad, matrix, out=hidden_grad[first : first + rows])
            matrix_grad += (grad.mT @ part) * size[None, None]
            sizes[first : first + rows] = size
        ctx.save_for_backward(hidden_grad, sizes, matrix_grad)
        ctx.dtype = matrix.dtype
        return loss / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients, multiplied by that of the loss."""
        hidden_grad, sizes, matrix_grad = ctx.saved_tensors
        grad = grads[0] / len(hidden_grad)
        return (
            (hidden_grad * (grad * sizes)).to(hidden_grad.dtype),
            (matrix_grad * grad).to(ctx.dtype),
            None,
            None,
        )
