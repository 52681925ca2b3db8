"""The loss by rows is the loss: the same value and gradients as with all logits at once."""

import pytest
import torch
from torch.nn import functional

from laws.cases import decoder
from qkvbench.backends.torch import build, start
from qkvbench.backends.torch.training import loss

PLACES, VOCABULARY = 13, 1031


def _network(vocabulary=VOCABULARY):
    model = decoder("q,k=v", vocabulary=vocabulary)
    network = build(model)
    start(network, model, seed=0)
    return network.double()


@pytest.mark.parametrize("rows", [1, 5, 13, 100])
def test_the_loss_by_rows_has_the_value_and_gradients_of_the_whole(rows, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_LOGITS", rows * VOCABULARY)
    network = _network()
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(PLACES, 24, dtype=torch.float64, generator=rng, requires_grad=True)
    targets = torch.randint(VOCABULARY, (PLACES,), generator=rng)
    whole = functional.cross_entropy(network.head(hidden), targets)
    by_rows = loss.mean_loss(network, hidden, targets)
    inputs = [hidden, network.matrix]
    # The loss is scaled, as it is under accumulation or loss scaling.
    expected = torch.autograd.grad(3 * whole, inputs)
    found = torch.autograd.grad(3 * by_rows, inputs)
    torch.testing.assert_close(by_rows, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)

    losses, likeliest, ranks = loss.place_losses(network, hidden.detach(), targets)
    torch.testing.assert_close(losses.mean(), whole.detach().float())
    logits = network.head(hidden)
    assert torch.equal(likeliest, logits.argmax(-1))
    order = logits.argsort(-1, descending=True)
    assert torch.equal(ranks, (order == targets[:, None]).nonzero()[:, 1])


def test_a_class_that_others_are_as_likely_as_is_behind_them():
    network = _network()
    hidden = torch.zeros(2, 24, dtype=torch.float64)
    _, _, ranks = loss.place_losses(network, hidden, torch.tensor([0, 5]))
    assert ranks.tolist() == [VOCABULARY - 1, VOCABULARY - 1]


def test_the_loss_by_rows_holds_in_bf16_too():
    network = _network().float()
    hidden = torch.randn(PLACES, 24, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(PLACES)
    whole = functional.cross_entropy(network.head(hidden), targets)
    with torch.autocast("cpu", torch.bfloat16):
        by_rows = loss.mean_loss(network, hidden.requires_grad_(), targets)
    by_rows.backward()
    assert by_rows.dtype == torch.float32
    # bf16 keeps eight bits.
    torch.testing.assert_close(by_rows.detach(), whole.detach(), rtol=0.02, atol=0)
    assert network.matrix.grad.dtype == torch.float32


def _slopes_of_the_loss(kind, hidden, matrix, targets, scale, smoothing=0.0):
    """The gradients of the scaled mean loss by rows, unscaled again in fp32."""
    inputs = [hidden.clone().requires_grad_(), matrix.clone().requires_grad_()]
    halves = [each.to(kind) for each in inputs]
    mean = loss._ChunkedCrossEntropy.apply(*halves, targets, smoothing)
    return [slope / scale for slope in torch.autograd.grad(scale * mean, inputs)]


@pytest.mark.parametrize("vocabulary", [7, VOCABULARY])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_a_smoothed_label_is_the_right_class_mixed_with_all_alike(
    vocabulary, smoothing, monkeypatch
):
    """arXiv:1512.00567, section 7: cross-entropy with (1 - ε) one-hot + ε / classes."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 5 * vocabulary)
    network = _network(vocabulary)
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(PLACES, 24, dtype=torch.float64, generator=rng, requires_grad=True)
    targets = torch.randint(vocabulary, (PLACES,), generator=rng)
    certain = functional.one_hot(targets, vocabulary).double()
    label = (1 - smoothing) * certain + smoothing / vocabulary
    whole = -(label * network.head(hidden).log_softmax(-1)).sum(-1).mean()
    found = loss.mean_loss(network, hidden, targets, smoothing)
    inputs = [hidden, network.matrix]
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs),
        torch.autograd.grad(whole, inputs),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("sure", [0.0, 12.0, 20.0])
def test_small_gradients_of_the_loss_survive_fp16(sure, smoothing, monkeypatch):
    """Also where nearly all of the probability is on the right class: 1 - p is 1e-2 or 1e-6."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 5 * VOCABULARY)
    rng = torch.Generator().manual_seed(0)
    hidden = 4 * torch.eye(PLACES, 24)
    matrix = torch.randn(VOCABULARY, 24, generator=rng) / 24**0.5
    targets = torch.arange(PLACES)
    # The right classes' rows point where their own streams do.
    matrix[:PLACES] += sure * hidden / hidden.square().sum(-1, keepdim=True)
    # Inputs that fp16 holds exactly: what differs is what the pass itself loses.
    hidden, matrix = hidden.half().float(), matrix.half().float()
    # Many places make each one's share small; the usual scale of a loss that has not overflowed.
    expected = _slopes_of_the_loss(torch.float32, hidden, matrix, targets, 1.0, smoothing)
    found = _slopes_of_the_loss(torch.float16, hidden, matrix, targets, 2.0**16, smoothing)
    for slope, whole in zip(found, expected, strict=True):
        # fp16 keeps eleven bits; a logit of 20 is off by 0.01, and with it its probability by 1%.
        assert (slope - whole).norm() < 0.02 * whole.norm()
