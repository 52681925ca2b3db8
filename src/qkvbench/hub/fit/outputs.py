"""The output projection of a changed layer, fitted again to what its heads now give.

A start makes K and V from an expected error, to first order. Once they are there, what the heads
give on a text is known, and the layer's output is linear in it: the output projection whose output
lies nearest to the original's is a least-squares problem.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qkvbench.hub.fit.calls import Call, recording_calls
from qkvbench.hub.fit.progress import Progress, counted
from qkvbench.hub.fit.projections import Layer, Weights

# How strongly the projection is held to what it was: shares of the heads' mean square.
RIDGES = (1e-3, 1e-2, 1e-1)
# A smaller gain, as a share of the output's square, is within the rounding of the sums.
LEAST_GAIN = 1e-5
# Of sums that are held at once, all layers together.
MOST_BYTES = 2**30

Matrix = Float[Tensor, "inputs outputs"]


class _Sums:
    """Sums over a text of what is needed to fit, and to judge, a linear map of z to y."""

    def __init__(self) -> None:
        self.inputs: Any = 0.0
        self.products: Any = 0.0
        self.squares = 0.0
        self.tokens = 0

    def add(self, z: Float[Tensor, "time inputs"], y: Float[Tensor, "time outputs"]) -> None:
        """Add the tokens of one sequence: products in fp32, sums in fp64."""
        self.inputs = self.inputs + (z.mT @ z).double()
        self.products = self.products + (z.mT @ y).double()
        self.squares += float(y.square().sum())
        self.tokens += len(z)

    def nearest(self, before: Matrix, ridge: float) -> Matrix:
        """The map with the least squared error, held to the one before."""
        held = ridge * self.inputs.diagonal().mean()
        form = self.inputs + held * torch.eye(len(before), dtype=torch.float64)
        return torch.linalg.solve(form, self.products + held * before)

    def error(self, found: Matrix) -> float:
        """The squared error of a map, without what is the same for all."""
        return float((found * (self.inputs @ found - 2 * self.products)).sum())


class OutputFit:
    """The fit of one layer's output projection, after its other weights were changed."""

    def __init__(self, layer: Layer, weights: Weights) -> None:
        """A fit that has read nothing."""
        self.layer, self.weights = layer, weights
        self._halves = (_Sums(), _Sums())
        self._sequences = 0

    @torch.no_grad()
    def add(self, call: Call) -> None:
        """Add one batch; the layer's weights are the changed ones."""
        heads: list[Tensor] = []
        hook = self.layer.output.register_forward_pre_hook(lambda _, args: heads.append(args[0]))
        with hook:
            self.layer.finished(call.again(self.layer.attention))
        bias = self.layer.output.bias is not None
        for z, y in zip(heads[0], call.output, strict=True):
            rows = nn.functional.pad(z, (0, 1), value=1.0) if bias else z
            self._halves[self._sequences % 2].add(rows.float(), y.float())
            self._sequences += 1

    def fitted(self) -> Weights:
        """The weights with the fitted output projection.

        Each half of the sequences judges what is fitted to the other: how strongly the projection
        is held to what it was, and whether it is fitted at all. One sequence changes nothing.
        """
        if min(half.tokens for half in self._halves) == 0:
            return self.weights
        before = self._matrix()
        one, other = self._halves
        errors = {
            ridge: other.error(one.nearest(before, ridge)) + one.error(other.nearest(before, ridge))
            for ridge in RIDGES
        }
        best = min(errors, key=lambda ridge: errors[ridge])
        gain = one.error(before) + other.error(before) - errors[best]
        if gain < LEAST_GAIN * (one.squares + other.squares):
            return self.weights
        whole = _Sums()
        whole.inputs = one.inputs + other.inputs
        whole.products = one.products + other.products
        return self._replaced(whole.nearest(before, best))

    def _matrix(self) -> Matrix:
        """The projection of all heads, its bias as the last row."""
        rows = self.weights.o.transpose(0, 1).flatten(1).mT
        bias = self.weights.output_bias
        return rows if bias is None else torch.cat([rows, bias[None]])

    def _replaced(self, matrix: Matrix) -> Weights:
        heads, _, width = self.weights.o.shape
        rows = matrix[: heads * width].mT.unflatten(1, (heads, width)).transpose(0, 1)
        if self.weights.output_bias is None:
            return self.weights.replaced(o=rows)
        return self.weights.replaced(o=rows, output_bias=matrix[-1])


def refit_behind(layer: Layer, weights: Weights, calls: Iterable[Call]) -> Weights:
    """The weights of one layer with its output projection fitted to these calls.

    The layer is left with the weights that were given.
    """
    layer.write(weights)
    fit = OutputFit(layer, weights)
    for call in calls:
        fit.add(call)
    return fit.fitted()


@torch.no_grad()
def refit(
    model: Any,
    layers: Sequence[Layer],
    changed: Mapping[tuple[int, str], Weights],
    batches: Sequence[Mapping[str, Tensor]],
    progress: Progress = lambda line: None,
) -> dict[tuple[int, str], Weights]:
    """The weights of each layer and equation, their output projections fitted.

    Each layer is changed alone, on its original's inputs, and restored. The text is read once, or
    as often as the sums of all fits are larger than `MOST_BYTES`.
    """
    originals = {number: layers[number].read() for number, _ in changed}
    found: dict[tuple[int, str], Weights] = {}
    waiting = list(changed)
    while waiting:
        together = max(1, MOST_BYTES // _sums_bytes(changed[waiting[0]]))
        now, waiting = waiting[:together], waiting[together:]
        fits = {key: OutputFit(layers[key[0]], changed[key]) for key in now}
        for batch in counted(batches, "windows of the fit, again", progress):
            with recording_calls({fit.layer: None for fit in fits.values()}) as calls:
                model.base_model(**batch)
            for (number, _), fit in fits.items():
                fit.layer.write(fit.weights)
                for call in calls[number]:
                    fit.add(call)
                fit.layer.write(originals[number])
        found |= {key: fit.fitted() for key, fit in fits.items()}
    return found


def _sums_bytes(weights: Weights) -> int:
    """Bytes of the sums of one fit: two halves of two matrices in fp64."""
    heads, d_model, head_dim = weights.o.shape
    return 2 * 8 * heads * head_dim * (heads * head_dim + d_model)
