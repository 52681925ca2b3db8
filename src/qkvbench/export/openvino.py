"""OpenVINO's own format: the graph in a file .xml, its weights in a file .bin beside it."""

import json
import sys
from pathlib import Path

from qkvbench.export import Options, check_weights, missing
from qkvbench.export.stepping import Stepping
from qkvbench.export.torch_export import traced, translation

ABOUT = "a program for OpenVINO: processors, graphics and NPUs of Intel"
SUFFIXES = (".xml", ".bin")


def missing_requirement() -> str | None:
    """The package that is not installed; None if it is."""
    return missing("openvino", ["openvino"])


def write(stepping: Stepping, path: Path, options: Options) -> None:
    """Write the graph and its weights in fp32, with what a program must know as `rt_info`."""
    check_weights(options, "openvino")
    # Without this package, which sends usage data unless it was told not to, openvino has its stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # pyright: ignore[reportMissingImports]

    graph = traced(stepping)
    with translation(stepping, "OpenVINO"):
        program = openvino.convert_model(graph)
    inputs = ["tokens", *(each.past for each in stepping.inputs)]
    outputs = ["logits", *(each.present for each in stepping.inputs)]
    for ports, names in ((program.inputs, inputs), (program.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.tensor.set_names({name})
    program.set_rt_info(json.dumps(stepping.about()), "qkvbench")
    openvino.save_model(program, path, compress_to_fp16=False)
