"""The state of a training run: everything that a step changes, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from qkvbench.backends import STATE_FILE
from qkvbench.backends.common.checks import check_state
from qkvbench.backends.torch.models.build import Network
from qkvbench.backends.torch.training.parallel import copy_to_shard, local_shard, write_shards
from qkvbench.backends.torch.training.process_group import ProcessGroup
from qkvbench.model.rng import framework_seed

# The prefix of RNG states; checkpoints contain it.
_RNG = "draws"


@dataclass(frozen=True)
class TrainingState:
    """Weights, both optimizer moments and step counts, loss scale, and the RNG of dropout.

    `seed` is that of the experiment. Of several processes each holds its shards.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rng: torch.Generator
    group: ProcessGroup
    seed: int

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """The state as arrays, which may be live."""
        return {name: local_shard(tensor).cpu().numpy() for name, tensor in self._all().items()}

    def save(self, folder: Path) -> None:
        """Write the state to safetensors files in a folder; OSError if any process fails."""
        if self.group.world_size == 1:
            safetensors.numpy.save_file(self.arrays(), folder / STATE_FILE)
        else:
            write_shards(self._all(), folder)

    @torch.no_grad()
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from the state of another process with the same bits; ValueError if it differs.

        Each of several processes is given the full tensors. If the state is of another number of
        processes, their RNG states cannot be continued, and dropout is seeded anew.
        """
        given = {name: torch.tensor(array) for name, array in state.items()}
        self._select_rng(given)
        check_state(self._all(), given)
        for name, tensor in self.live_tensors().items():
            copy_to_shard(tensor, given[name].to(tensor.device))
        self.rng.set_state(given[self._rng_name])
        if scale := self.scaler.state_dict():
            self.scaler.load_state_dict({key: given[f"scaler.{key}"].item() for key in scale})

    def live_tensors(self) -> dict[str, Tensor]:
        """The tensors that a step changes in place: weights, and optimizer state of each."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            own = self.optimizer.state[parameter]
            if not own:
                # The state that the optimizer creates in its first step.
                own["step"] = torch.zeros((), device=parameter.device)
                own |= {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            tensors[f"weights.{name}"] = parameter
            tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in own.items()}
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def _all(self) -> dict[str, Tensor]:
        """The live tensors, and copies of the state that is not a tensor."""
        scale = {key: torch.tensor(value) for key, value in self.scaler.state_dict().items()}
        return {
            **self.live_tensors(),
            self._rng_name: self.rng.get_state(),
            **{f"scaler.{key}": value for key, value in scale.items()},
        }

    @property
    def _rng_names(self) -> list[str]:
        """The names of the RNG states of all processes."""
        if self.group.world_size == 1:
            return [_RNG]
        return [f"{_RNG}.{rank}" for rank in range(self.group.world_size)]

    @property
    def _rng_name(self) -> str:
        """The name of the RNG state of this process."""
        return self._rng_names[self.group.rank]

    def _select_rng(self, given: dict[str, Tensor]) -> None:
        """Remove the RNG states of other processes; add a new one if their number differs."""
        names = {name for name in given if name.split(".")[0] == _RNG}
        if names and names != set(self._rng_names):
            step = max((int(given[name]) for name in given if name.endswith(".step")), default=0)
            purpose = f"{dropout_purpose(self.group)} after step {step}"
            fresh = torch.Generator(self.rng.device)
            fresh.manual_seed(framework_seed(self.seed, purpose))
            given[self._rng_name] = fresh.get_state()
        for name in names.difference([self._rng_name]):
            del given[name]


def dropout_purpose(group: ProcessGroup) -> str:
    """The purpose that seeds a rank's dropout: ranks have different items and different masks."""
    return "dropout" if group.world_size == 1 else f"dropout of {group.rank} in {group.world_size}"
