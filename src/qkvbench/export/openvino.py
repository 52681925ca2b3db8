"""OpenVINO's own format: the graph in a file .xml, its weights in a file .bin beside it."""

import json
import sys
import warnings
from pathlib import Path

from qkvbench.export import ExportError, Options, missing
from qkvbench.export.stepping import Stepping
from qkvbench.export.torch_export import traced

ABOUT = "a program for OpenVINO: processors, graphics and NPUs of Intel"
SUFFIXES = (".xml", ".bin")


def missing_requirement() -> str | None:
    """The package that is not installed; None if it is."""
    return missing("openvino", ["openvino"])


def write(stepping: Stepping, path: Path, options: Options) -> None:
    """Write the graph and its weights in fp32, with what a program must know as `rt_info`."""
    if options.weights != "fp32":
        raise ExportError("openvino has fp32 weights only; --to onnx and --to edge have int8.")
    # Without this package, which sends usage data unless it was told not to, openvino has its stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # pyright: ignore[reportMissingImports]

    graph = traced(stepping)
    model = stepping.network.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = openvino.convert_model(graph)
    except Exception as error:
        # An operation without a translation raises one of several errors of the library.
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ExportError(
            f"{model.variant} in {model.name} has an operation that OpenVINO lacks: "
            f"{lines[-1][:200] if lines else type(error).__name__}\n"
            "--to onnx and --to torch-export may have it."
        ) from error
    inputs = ["tokens", *(each.past for each in stepping.inputs)]
    outputs = ["logits", *(each.present for each in stepping.inputs)]
    for ports, names in ((program.inputs, inputs), (program.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.tensor.set_names({name})
    program.set_rt_info(json.dumps(stepping.about()), "qkvbench")
    openvino.save_model(program, path, compress_to_fp16=False)
