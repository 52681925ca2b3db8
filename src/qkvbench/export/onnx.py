"""ONNX programs: prompts and steps by one graph, with the cached tensors as inputs and outputs."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from qkvbench.export import ExportError, Options, missing
from qkvbench.export.stepping import Stepping
from qkvbench.export.torch_export import dynamic_shapes, example, translation

ABOUT = "a program for onnxruntime and everything else that reads ONNX"
SUFFIXES = (".onnx",)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def missing_requirement() -> str | None:
    """The packages that are not installed; None if all are."""
    return missing("onnx", PACKAGES)


def write(stepping: Stepping, path: Path, options: Options) -> None:
    """Write the program with its weights in one file."""
    if options.weights == "int4":
        raise ExportError("onnx has weights in fp32 and int8; --to edge has int4.")
    program = _program(stepping)
    model = program.model
    model.metadata_props["qkvbench"] = json.dumps(stepping.about(), ensure_ascii=True)
    if options.weights == "fp32":
        _save(program, path)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / "fp32.onnx"
        _save(program, whole)
        # It warns by the root logger that the model is not pre-processed.
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)
        try:
            quantize_dynamic(
                whole,
                path,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)


def _save(program: Any, path: Path) -> None:
    """Write the program in one file; ExportError if its weights do not fit into one.

    The library then writes them into a second one, whatever it is told.
    """
    program.save(str(path), external_data=False)
    if path.with_name(f"{path.name}.data").exists():
        raise ExportError(
            "The weights of this model take more than the 2 GB that one ONNX file can have.\n"
            "--to torch-export writes it."
        )


def _program(stepping: Stepping) -> Any:
    tokens, past = example(stepping)
    # Its log lists optional packages that are not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with translation(stepping, "ONNX"):
        program = torch.onnx.export(
            stepping,
            (tokens, *past),
            dynamic_shapes=dynamic_shapes(stepping),
            input_names=["tokens", *(each.past for each in stepping.inputs)],
            output_names=["logits", *(each.present for each in stepping.inputs)],
            dynamo=True,
            verbose=False,
        )
        assert program is not None
    return program
