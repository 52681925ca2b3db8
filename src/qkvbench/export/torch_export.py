"""Programs of `torch.export`: one file that torch loads without the code of the model."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import _DimHint

from qkvbench.export import ExportError, Options, check_weights
from qkvbench.export.stepping import Stepping

ABOUT = "a program that torch.export.load reads, without qkvbench"
SUFFIXES = (".pt2",)

# What of the tokens and of each past tensor varies.
Shapes = tuple[dict[int, _DimHint], tuple[dict[int, _DimHint], ...]]

# Sizes of the example that is traced: different, and none is 0 or 1, which are traced as constants.
BATCH, CACHED, NEW = 2, 5, 3


def missing_requirement() -> str | None:
    """Why it cannot be written here: torch is always there."""
    return None


def write(stepping: Stepping, path: Path, options: Options) -> None:
    """Write the program, in fp32."""
    check_weights(options, "torch-export")
    program = traced(stepping)
    try:
        torch.export.save(program, path)
    except RuntimeError as error:
        # What torch raises of a full disk has no number of the system.
        raise ExportError(f"{path.name} cannot be written; the disk may be full.") from error


def traced(stepping: Stepping, *, pieces: int | None = None) -> ExportedProgram:
    """The graph of the model, for any number of sequences, cached and new tokens.

    With `pieces` for one sequence of `stepping.context` tokens at most, of which so many are read
    at once: a program whose memory is laid out beforehand must know the largest size.
    """
    tokens, past = example(stepping, BATCH if pieces is None else 1)
    shapes = dynamic_shapes(stepping) if pieces is None else _bounded_shapes(stepping, pieces)
    try:
        with torch.no_grad():
            return torch.export.export(
                stepping, (tokens, *past), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        # torch raises different errors for what it cannot trace.
        raise ExportError(_reason(stepping, error)) from error


@contextmanager
def translation(stepping: Stepping, name: str) -> Generator[None]:
    """Translates the graph into a format; ExportError says which operation the format lacks."""
    model = stepping.network.model
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Translators warn of their own deprecated calls.
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        # They raise different errors for an operator that has no translation.
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ExportError(
            f"{model.variant} in {model.name} has an operation that {name} lacks: "
            f"{lines[-1][:200] if lines else type(error).__name__}\n"
            "--to torch-export writes it for torch."
        ) from error


def example(stepping: Stepping, sequences: int = BATCH) -> tuple[Tensor, list[Tensor]]:
    """Tokens and past tensors to trace with."""
    tokens = torch.zeros(sequences, NEW, dtype=torch.int64)
    past = [
        each.new_zeros(*each.shape[:2], CACHED, *each.shape[3:])
        for each in stepping.empty(sequences)
    ]
    return tokens, past


def dynamic_shapes(stepping: Stepping) -> Shapes:
    """The sizes that vary: sequences, new tokens, cached tokens."""
    past = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    return {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, tuple(dict(past) for _ in stepping.inputs)


def _bounded_shapes(stepping: Stepping, pieces: int) -> Shapes:
    """The same for one sequence, each with its largest value."""
    past = {2: Dim.DYNAMIC(min=0, max=stepping.context - 1)}
    return {1: Dim.DYNAMIC(min=1, max=pieces)}, tuple(dict(past) for _ in stepping.inputs)


def _reason(stepping: Stepping, error: Exception) -> str:
    line = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    return (
        f"{stepping.network.model.variant} in {stepping.network.model.name} cannot be traced: "
        f"{type(error).__name__}: {line}"
    )
