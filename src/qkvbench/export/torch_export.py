"""Programs of `torch.export`: one file that torch loads without the code of the model."""

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import _DimHint

from qkvbench.export import ExportError, Options
from qkvbench.export.stepping import Stepping

ABOUT = "a program that torch.export.load reads, without qkvbench"
SUFFIX = ".pt2"

# Sizes of the example that is traced: different, and none is 0 or 1, which are traced as constants.
BATCH, CACHED, NEW = 2, 5, 3


def missing_requirement() -> str | None:
    """Why it cannot be written here: torch is always there."""
    return None


def write(stepping: Stepping, path: Path, options: Options) -> None:
    """Write the program, in fp32."""
    if options.weights != "fp32":
        raise ExportError("torch-export has fp32 weights only; --to onnx has int8.")
    torch.export.save(traced(stepping), path)


def traced(stepping: Stepping) -> ExportedProgram:
    """The graph of the model, for any number of sequences, cached and new tokens."""
    tokens, past = example(stepping)
    try:
        with torch.no_grad():
            return torch.export.export(
                stepping, (tokens, *past), dynamic_shapes=dynamic_shapes(stepping), strict=False
            )
    except Exception as error:
        # torch raises different errors for what it cannot trace.
        raise ExportError(_reason(stepping, error)) from error


def example(stepping: Stepping) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens and past tensors to trace with."""
    tokens = torch.zeros(BATCH, NEW, dtype=torch.int64)
    past = [
        each.new_zeros(BATCH, *each.shape[1:2], CACHED, *each.shape[3:])
        for each in stepping.empty(BATCH)
    ]
    return tokens, past


def dynamic_shapes(
    stepping: Stepping,
) -> tuple[dict[int, _DimHint], tuple[dict[int, _DimHint], ...]]:
    """The sizes that vary: sequences, new tokens, cached tokens."""
    past = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    return {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, tuple(dict(past) for _ in stepping.inputs)


def _reason(stepping: Stepping, error: Exception) -> str:
    line = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    return (
        f"{stepping.network.model.variant} in {stepping.network.model.name} cannot be traced: "
        f"{type(error).__name__}: {line}"
    )
