"""A model that learns: the loss and its gradients, the AdamW update, predictions."""

import os

import numpy as np
import torch
from torch import Tensor, nn

from qkvbench.backends.torch.loss import mean_loss, place_losses
from qkvbench.backends.torch.precision import autocast
from qkvbench.backends.torch.stacks import build
from qkvbench.backends.torch.weights import load, named_weights, start
from qkvbench.data.batch import UNSCORED, Batch, Outcome
from qkvbench.experiment import Experiment
from qkvbench.model.draws import framework_seed


def prepare(threads: int) -> None:
    """Make this process repeatable: a fixed number of threads, deterministic kernels only."""
    torch.set_num_threads(threads)
    # cuBLAS is deterministic only with a workspace of a stated size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(mode=True)
    # Filling fresh memory with NaN finds reads before writes; it takes 4% of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def level_bytes() -> int | None:
    """Memory held on the accelerator, whose peak counts from here; None where there is none."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes() -> int | None:
    """The most memory held on the accelerator since `level_bytes`; None where there is none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class Learner:
    """The network of an experiment, its optimizer, and nothing of the loop around them."""

    def __init__(self, experiment: Experiment) -> None:
        """The network with its initial values, and a fresh optimizer."""
        training = experiment.training
        self.experiment = experiment
        self.device = device()
        # Dropout is drawn by the framework; everything else is keyed by name.
        torch.manual_seed(framework_seed(experiment.seed, "dropout"))
        self.network = build(experiment.model, dropout=training.dropout).to(self.device)
        start(self.network, experiment.model, experiment.seed)
        self.optimizer = torch.optim.AdamW(
            _groups(self.network, training.weight_decay),
            lr=training.learning_rate,
            betas=training.betas,
            fused=True,
        )

    def gradients(self, batch: Batch) -> tuple[float, float]:
        """The mean loss in nats, and the norm of its gradient before clipping.

        Nothing is updated: a caller sees a loss that is not finite before it does harm.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.experiment.precision, self.device):
            loss = mean_loss(self.network, *self._scored(batch))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.experiment.training.clip)
        return loss.item(), norm.item()

    def update(self, learning_rate: float) -> None:
        """One AdamW step along the gradients. arXiv:1711.05101, algorithm 2."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, batch: Batch) -> Outcome:
        """The loss and the likeliest class at each place; loss 0 where nothing is scored."""
        self.network.eval()
        with autocast(self.experiment.precision, self.device):
            losses, likeliest = place_losses(self.network, *self._scored(batch))
        scored = batch.targets != UNSCORED
        loss = np.zeros(batch.targets.shape, np.float32)
        loss[scored] = losses.cpu().numpy()
        predicted = np.full(batch.targets.shape, UNSCORED, np.int64)
        predicted[scored] = likeliest.cpu().numpy()
        return Outcome(loss, predicted, batch.targets)

    def weights(self) -> dict[str, Tensor]:
        """Live views of all weights, under the names that all backends share."""
        return named_weights(self.network)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over these weights."""
        load(self.network, weights)

    def _scored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The stream and the targets at the scored places: logits of the others are never made."""
        inputs = torch.from_numpy(batch.inputs).to(self.device)
        targets = torch.from_numpy(batch.targets).to(self.device).flatten()
        lengths = None if batch.lengths is None else torch.from_numpy(batch.lengths)
        if lengths is not None:
            lengths = lengths.to(self.device)
        hidden = self.network.hidden(inputs, lengths).flatten(0, 1)
        scored = batch.targets.ravel() != UNSCORED
        if not scored.all():
            places = torch.from_numpy(np.flatnonzero(scored)).to(self.device)
            hidden, targets = hidden[places], targets[places]
        return hidden, targets


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and tables decay; offsets, scales and rotations, which have no zero, do not."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, tensor in network.named_parameters():
        decays = tensor.ndim >= 2 and ".rotation." not in name
        (decayed if decays else free).append(tensor)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
