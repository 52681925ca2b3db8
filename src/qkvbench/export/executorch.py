"""Programs of ExecuTorch: one .pte file for phones and boards, its products by XNNPACK.

Its memory is laid out when it is written, for the largest sizes. So it has one sequence, and reads
a prompt in pieces: scores of `PIECES` new tokens for all of the context are what it holds at most.
"""

import json
import logging
from pathlib import Path

from qkvbench.export import Options, check_weights, missing
from qkvbench.export.stepping import Stepping
from qkvbench.export.torch_export import traced, translation

ABOUT = "a program for ExecuTorch: phones and boards; one sequence"
SUFFIXES = (".pte",)
PIECES = 64


def missing_requirement() -> str | None:
    """The package that is not installed; None if it is."""
    return missing("executorch", ["executorch"])


def write(stepping: Stepping, path: Path, options: Options) -> None:
    """Write the program in fp32; its method `about` returns what a program must know, as JSON."""
    check_weights(options, "executorch")
    pieces = min(PIECES, stepping.context)
    graph = traced(stepping, pieces=pieces)
    about = json.dumps({**stepping.about(), "pieces": pieces})
    # It logs packages that it does not need.
    logging.disable(logging.WARNING)
    try:
        with translation(stepping, "ExecuTorch"):
            program = _lowered(graph, about)
    finally:
        logging.disable(logging.NOTSET)
    path.write_bytes(program)


def _lowered(graph: object, about: str) -> bytes:
    from executorch import exir  # pyright: ignore[reportMissingImports]
    from executorch.backends.xnnpack.partition import (  # pyright: ignore[reportMissingImports]
        xnnpack_partitioner,
    )

    lowered = exir.to_edge_transform_and_lower(
        graph,
        partitioner=[xnnpack_partitioner.XnnpackPartitioner()],
        # With the check the largest sizes are forgotten, and those of the example taken instead.
        compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
        constant_methods={"about": about},
    )
    return lowered.to_executorch().buffer
