"""Memory and speed of the program without Python beside torch and onnxruntime, from outside.

Run     python benchmarks/edge.py [--variants V ...] [--context N] [--steps N] [--program FILE]
Size    4 layers of width 512 with 8 heads of 64, fp32; a prompt of 2,048 tokens, then 32 steps
Takes   about five minutes on an idle core, after the program is built

Each reader is a process of its own with one thread, over the same weights. It reads the prompt
(torch whole, onnxruntime in pieces of 128 tokens, the program in pieces of 8), and then writes
tokens, which must be the same. The peak of its memory is what the system counts, its maximum
resident set, which includes the mapped weights. Beside it is what a prompt of this length adds to
that of one token. A step is the median of the processor time of each, for the program the mean.
Rounds go through all variants and readers in turn; the least of each is printed.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qkvbench.backends.torch import decoder
from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.export import Options, find
from qkvbench.export.stepping import Stepping
from qkvbench.native.program import build_program

SIZE = {"vocabulary": 512, "layers": 4, "d_model": 512, "heads": 8}

# Starts a reader and adds the peak of its memory. It is small itself: a new process begins with the
# peak of the one that starts it.
LAUNCHER = """
import json, os, subprocess, sys
reader = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(reader.pid, 0)
print(json.dumps({"peak": usage.ru_maxrss * 1024}))
sys.exit(status != 0)
"""

TORCH = """
import json, statistics, sys, time
import torch
from qkvbench.backends.torch import decoder
torch.set_num_threads(1)
variant, size, steps, tokens = sys.argv[1], *map(json.loads, sys.argv[2:])
network = decoder(variant, **size).eval()
times, text = [], []
with torch.inference_mode():
    cache = network.new_cache(1, len(tokens) + steps)
    logits = network.prefill(torch.tensor([tokens]), cache)
    for _ in range(steps):
        text.append(int(logits.argmax()))
        began = time.process_time()
        logits = network.step(torch.tensor([text[-1]]), cache)
        times.append(time.process_time() - began)
    text.append(int(logits.argmax()))
print(json.dumps({"step": statistics.median(times), "text": text}))
"""

ONNX = """
import json, statistics, sys, time
import numpy as np
import onnxruntime
path, steps, tokens = sys.argv[1], *map(json.loads, sys.argv[2:])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options)
about = json.loads(session.get_modelmeta().custom_metadata_map["qkvbench"])
past = {
    each["past"]: np.zeros((1, each["heads"], 0, each["width"]), np.float32)
    for each in about["cached"]
}
def read(tokens):
    global past
    logits, *present = session.run(None, {"tokens": np.array([tokens]), **past})
    past = dict(zip(past, present))
    return int(logits.argmax())
for at in range(0, len(tokens), 128):
    token = read(tokens[at : at + 128])
times, text = [], [token]
for _ in range(steps):
    began = time.process_time()
    text.append(read([text[-1]]))
    times.append(time.process_time() - began)
print(json.dumps({"step": statistics.median(times), "text": text}))
"""


def main() -> None:
    """Write every variant in both formats, run each reader, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=["q,k,v", "q,k=v", "q,k,v/1", "q,k=v/1"])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", type=Path, help="one that is built; otherwise it is built")
    args = parser.parse_args()
    prompt = np.random.default_rng(0).integers(0, SIZE["vocabulary"], args.context).tolist()
    found: dict[tuple[str, str], list[Run]] = {}
    with TemporaryDirectory() as folder:
        program = args.program or Path(folder) / "qkvbench-edge"
        if not args.program:
            build_program(program)
        print(f"The program has {bytes_text(program.stat().st_size)}.")
        paths = [write(variant, args, Path(folder)) for variant in args.variants]
        for _ in range(args.rounds):
            for variant, path in zip(args.variants, paths, strict=True):
                runs = {
                    "edge": by_program(program, path, prompt, args.steps),
                    "torch": by_python(TORCH, [variant, json.dumps(SIZE)], prompt, args.steps),
                    "onnxruntime": by_python(ONNX, [f"{path}.onnx"], prompt, args.steps),
                }
                assert len({str(run.text) for run in runs.values()}) == 1, f"{variant} differs"
                for reader, run in runs.items():
                    found.setdefault((reader, variant), []).append(run)
    print("reader  variant  peak memory  of it for the text  a step  tokens a second")
    for (reader, variant), runs in sorted(found.items()):
        peak = min(run.peak for run in runs)
        added = peak - min(run.empty for run in runs)
        step = min(run.step_s for run in runs)
        print(
            f"{reader}  {variant}  {bytes_text(peak)}  {bytes_text(added)}  "
            f"{seconds_text(step)}  {1 / step:.0f}"
        )


@dataclass(frozen=True)
class Run:
    """The text that a reader wrote, its peak memory in bytes, that of a prompt of one token."""

    text: list[int]
    peak: int
    empty: int
    step_s: float


def write(variant: str, args: argparse.Namespace, folder: Path) -> Path:
    """The file of the program; that of onnxruntime is beside it."""
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    stepping = Stepping(decoder(variant, **SIZE), args.context + args.steps + 1)
    find("edge").write(stepping, path, Options())
    find("onnx").write(stepping, Path(f"{path}.onnx"), Options())
    return path


def by_program(program: Path, path: Path, prompt: list[int], steps: int) -> Run:
    """By the program in edge/, whose steps are all but the first token."""

    def once(tokens: list[int]) -> tuple[list[int], dict[str, float], int]:
        text = " ".join(map(str, tokens))
        words = ["--tokens", text, "--count", str(steps + 1), "--ids", "--report"]
        done = launched([str(program), str(path), *words])
        *made, peak = done.stdout.splitlines()
        return list(map(int, " ".join(made).split())), json.loads(done.stderr), peak_of(peak)

    text, report, peak = once(prompt)
    return Run(text, peak, once(prompt[:1])[2], report["decode_cpu_s"] / steps)


def by_python(source: str, words: list[str], prompt: list[int], steps: int) -> Run:
    """By a reader in Python."""

    def once(tokens: list[int]) -> tuple[dict[str, Any], int]:
        numbers = [json.dumps(steps), json.dumps(tokens)]
        done = launched([sys.executable, "-c", source, *words, *numbers])
        run, peak = done.stdout.splitlines()
        return json.loads(run), peak_of(peak)

    run, peak = once(prompt)
    return Run(run["text"], peak, once(prompt[:1])[1], run["step"])


def launched(command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command by the launcher, which prints the peak last."""
    words = [sys.executable, "-S", "-c", LAUNCHER, *command]
    return subprocess.run(words, capture_output=True, text=True, check=True)


def peak_of(line: str) -> int:
    """The peak that the launcher printed."""
    return json.loads(line)["peak"]


if __name__ == "__main__":
    main()
