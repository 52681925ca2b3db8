"""Compiling the training pass: what it needs of the machine, and what is said where that lacks."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Result = TypeVar("Result")


class CompileError(Exception):
    """The training pass could not be compiled; its first line says what to do."""


def compiled(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function, compiled when it is first called, for sizes such as it is then given."""
    import torch._inductor.config as inductor

    # Runs are processes, one for each core: they need no further processes to compile in.
    inductor.compile_threads = 1
    return torch.compile(function)


def compile_error(device: torch.device) -> str | None:
    """Why nothing can be compiled for `device` here; None where a compiler is found."""
    if device.type == "cuda":
        return None if find_spec("triton") else "--compile needs triton, which is not installed."
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name):
        return None
    return f"--compile needs a C++ compiler, and '{name}' is not here (CXX names another)."


@contextmanager
def failures_told() -> Iterator[None]:
    """Say of an error in compiling that it is one, and what helps."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    try:
        yield
    except (TorchDynamoException, InductorError, CppCompileError, InvalidCxxCompiler) as error:
        raise CompileError(
            "The training pass could not be compiled; run without --compile. "
            f"The compiler said: {str(error).strip().splitlines()[0]}"
        ) from error
