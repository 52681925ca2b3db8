"""Results of a network for a batch, without gradients: predictions, texts, features, layers."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qkvbench.analysis import Layer
from qkvbench.backends.common.predictions import scatter_predictions
from qkvbench.backends.torch.generation.beam_search import beam_search
from qkvbench.backends.torch.models.build import Network
from qkvbench.backends.torch.models.decoder import Decoder
from qkvbench.backends.torch.models.inspect import inspect_layers
from qkvbench.backends.torch.models.quantized import quantized_stream
from qkvbench.backends.torch.training.batches import (
    NetworkInputs,
    gather,
    own_share,
    to_tensor,
    to_tensors,
)
from qkvbench.backends.torch.training.loss import place_losses
from qkvbench.backends.torch.training.parallel import forward_only
from qkvbench.backends.torch.training.precision import autocast
from qkvbench.backends.torch.training.process_group import ProcessGroup
from qkvbench.data.batch import IGNORE_INDEX, Batch, Predictions, Search
from qkvbench.experiment import Experiment
from qkvbench.model.quantization import Quantization


@torch.no_grad()
def predict(
    module: nn.Module, experiment: Experiment, group: ProcessGroup, batch: Batch
) -> Predictions:
    """The loss, the most probable class and the rank of the target at each scored position."""
    device = _device(module)
    own, share = own_share(batch, group)
    tensors = to_tensors(own, device, dynamic=experiment.compiled)
    with autocast(experiment.precision, device):
        values = forward_only(module, _place_losses, *tensors)
    count = int(np.count_nonzero(batch.targets != IGNORE_INDEX))
    losses, predicted, ranks = (gather(each, share, count, group) for each in values)
    return scatter_predictions(batch, losses, predicted, ranks)


@torch.no_grad()
def predict_quantized(
    network: Decoder, experiment: Experiment, batch: Batch, how: Quantization
) -> Predictions:
    """As `predict`, over a cache in few bits; in one process."""
    device = _device(network)
    inputs, targets, places = to_tensors(batch, device, dynamic=experiment.compiled)
    with autocast(experiment.precision, device):
        hidden = quantized_stream(network.eval(), inputs.inputs, how).flatten(0, 1)
        values = place_losses(network, hidden if places is None else hidden[places], targets)
    return scatter_predictions(batch, *(each.cpu().numpy() for each in values))


@torch.no_grad()
def write(
    network: Network, experiment: Experiment, batch: Batch, search: Search
) -> list[Int[np.ndarray, " _tokens"]]:
    """The best text for each source of the batch, without begin and end tokens.

    TypeError if the network reads no source.
    """
    if not isinstance(network, Decoder) or network.source is None or batch.second is None:
        raise TypeError("Only a decoder that reads a source writes texts, and only from one.")
    device = _device(network)
    second, lengths = (
        to_tensor(batch.second.inputs, device),
        to_tensor(batch.second.lengths, device),
    )
    with autocast(experiment.precision, device):
        texts = beam_search(network.eval(), second, lengths, search)
    return [tokens.cpu().numpy() for tokens in texts]


@torch.no_grad()
def features(
    module: nn.Module, experiment: Experiment, batch: Batch
) -> Float[np.ndarray, "items places _features"]:
    """The input of the head for each item, in fp32."""
    device = _device(module)
    inputs, _, _ = to_tensors(batch, device, dynamic=experiment.compiled)
    with autocast(experiment.precision, device):
        return forward_only(module, _hidden, inputs).float().cpu().numpy()


def inspect(network: Network, experiment: Experiment, batch: Batch) -> tuple[Layer, ...]:
    """The tensors of each attention layer for a batch."""
    device = _device(network)
    inputs, _, _ = to_tensors(batch, device, dynamic=experiment.compiled)
    with autocast(experiment.precision, device):
        return inspect_layers(network.eval(), inputs.inputs, *inputs.extra_inputs)


def hidden_at(
    network: Network, inputs: NetworkInputs, places: Tensor | None
) -> Float[Tensor, "places _features"]:
    """The stream at the scored positions only: logits of the others are not computed."""
    hidden = _hidden(network, inputs).flatten(0, 1)  # (items · positions, features)
    return hidden if places is None else hidden[places]


def _place_losses(
    network: Network, inputs: NetworkInputs, targets: Tensor, places: Tensor | None
) -> tuple[Tensor, ...]:
    return place_losses(network, hidden_at(network, inputs, places), targets)


def _hidden(network: Network, inputs: NetworkInputs) -> Tensor:
    return network.hidden(inputs.inputs, *inputs.extra_inputs)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
