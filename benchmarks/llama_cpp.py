"""SmolLM2-135M in the program without Python, onnxruntime and llama.cpp: an outside mark.

Run     python benchmarks/llama_cpp.py --python FOLDER/bin/python [--contexts N ...] [--steps N]
Needs   another environment with `pip install llama-cpp-python`, which is compiled (ten minutes)
Size    the packaged checkpoint: 30 layers, 9 query and 3 key/value heads of 64; a prompt, 32 steps
Takes   about ten minutes on an idle core, after the programs are built

The same weights in fp32 for all three; beside them the program's in int8 and int4, and llama.cpp's
with the four bits that the package has and its own 16-bit cache. Each reader is a process of its
own with one thread. In fp32 the texts must be the same. Memory and steps are taken as in edge.py;
for llama.cpp a step is the median of the processor time of each.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
from edge import ONNX, Run, by_program, by_python, launched, peak_of

from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.data import checkpoints
from qkvbench.export import Options, WeightDtype, checkpoint, find
from qkvbench.export.stepping import Stepping
from qkvbench.hub.fit.source import packaged_folder
from qkvbench.native.program import build_program

FEW_BITS: tuple[WeightDtype, ...] = ("int8", "int4")
MODEL = "smollm2-135m"
F32, F16 = 0, 1

LLAMA = """
import ctypes, json, statistics, sys, time
import llama_cpp
import numpy as np
path, kind, steps, tokens = sys.argv[1], *map(json.loads, sys.argv[2:])
model = llama_cpp.Llama(
    path, n_ctx=len(tokens) + steps + 8, n_threads=1, n_threads_batch=1, verbose=False,
    type_k=kind, type_v=kind,
)
def read(tokens):
    model.eval(tokens)
    logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
    return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())
times, text = [], [read(tokens)]
for _ in range(steps):
    began = time.process_time()
    text.append(read([text[-1]]))
    times.append(time.process_time() - began)
print(json.dumps({"step": statistics.median(times), "text": text}))
"""


def main() -> None:
    """Write the files, run each reader in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="one that has llama_cpp")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], help="readers that are left out")
    args = parser.parse_args()
    with TemporaryDirectory() as name, checkpoints.unpack(checkpoints.PACKAGED[MODEL]) as packaged:
        folder = Path(name)
        bits = packaged / checkpoints.PACKAGED[MODEL].gguf
        whole = folder / "fp32.gguf"
        dequantize(bits, whole)
        program = folder / "qkvbench-edge"
        build_program(program)
        stepping = Stepping(
            checkpoint.read(packaged_folder(MODEL)), max(args.contexts) + args.steps + 1
        )
        find("edge").write(stepping, folder / "m.safetensors", Options())
        for weights in FEW_BITS:
            find("edge").write(stepping, folder / f"{weights}.safetensors", Options(weights))
        if "onnxruntime" not in args.without:
            find("onnx").write(stepping, folder / "m.onnx", Options())
        for context in args.contexts:
            tokens = np.random.default_rng(0).integers(0, 49152, context).tolist()
            readers = {
                "edge": lambda tokens=tokens: by_program(
                    program, folder / "m.safetensors", tokens, args.steps
                ),
                "onnxruntime": lambda tokens=tokens: by_python(
                    ONNX, [str(folder / "m.onnx")], tokens, args.steps
                ),
                "llama.cpp": lambda tokens=tokens: by_llama(args, whole, F32, tokens),
                **{
                    f"edge, {weights}": lambda tokens=tokens, weights=weights: by_program(
                        program, folder / f"{weights}.safetensors", tokens, args.steps
                    )
                    for weights in FEW_BITS
                },
                "llama.cpp, 4 bits": lambda tokens=tokens: by_llama(args, bits, F16, tokens),
            }
            for name in args.without:
                del readers[name]
            exact = [name for name in readers if "," not in name]
            print(
                f"{context:,} tokens: reader  peak memory  of it for the text  a step", flush=True
            )
            runs = [{reader: run() for reader, run in readers.items()} for _ in range(args.rounds)]
            texts = {str(each[reader].text) for each in runs for reader in exact}
            print(f"  texts in fp32: {'equal' if len(texts) == 1 else f'{len(texts)} different'}")
            for reader in readers:
                show(reader, [each[reader] for each in runs])


def show(reader: str, runs: list[Run]) -> None:
    """The least of the rounds."""
    peak = min(run.peak for run in runs)
    step = min(run.step_s for run in runs)
    added = peak - min(run.empty for run in runs)
    print(f"  {reader}  {bytes_text(peak)}  {bytes_text(added)}  {seconds_text(step)}", flush=True)


def by_llama(args: argparse.Namespace, path: Path, cache: int, prompt: list[int]) -> Run:
    """By llama.cpp in its own environment."""

    def once(tokens: list[int]) -> tuple[dict[str, Any], int]:
        words = [str(path), str(cache), json.dumps(args.steps), json.dumps(tokens)]
        done = launched([args.python, "-c", LLAMA, *words])
        run, peak = done.stdout.splitlines()[-2:]
        return json.loads(run), peak_of(peak)

    run, peak = once(prompt)
    return Run(run["text"], peak, once(prompt[:1])[1], run["step"])


def dequantize(source: Path, path: Path) -> None:
    """The same GGUF file with all its tensors in fp32."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(path, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = 0 if field.name == "general.file_type" else field.contents()
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
