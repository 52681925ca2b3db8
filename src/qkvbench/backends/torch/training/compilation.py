"""Compiling the training pass with torch.compile, and a clear error if the machine cannot."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class CompileError(Exception):
    """The training pass could not be compiled; the first line says what to do."""


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, compiled at its first call."""
    import torch._inductor.config as inductor

    # There is a run for each core already: compiling in subprocesses would oversubscribe them.
    inductor.compile_threads = 1
    return torch.compile(function)


def compile_error(device: torch.device) -> str | None:
    """Why nothing can be compiled for `device`; None if it can."""
    if device.type == "cuda":
        return None if find_spec("triton") else "--compile needs triton, which is not installed."
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name):
        return None
    return f"--compile needs a C++ compiler, and '{name}' is not here (CXX names another)."


@contextmanager
def translate_compile_errors() -> Iterator[None]:
    """Raise errors of the compiler as CompileError."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    try:
        yield
    except (TorchDynamoException, InductorError, CppCompileError, InvalidCxxCompiler) as error:
        raise CompileError(
            "The training pass could not be compiled; run without --compile. "
            f"The compiler said: {str(error).strip().splitlines()[0]}"
        ) from error
