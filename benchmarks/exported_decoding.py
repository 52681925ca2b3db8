"""Memory and speed of an exported decoder in onnxruntime, seen from outside its process.

Run     python benchmarks/exported_decoding.py [--context N] [--steps N] [--variants V ...]
Size    4 layers of width 512 with 8 heads of 64, 2,048 cached tokens of 8 sequences
Takes   about three minutes on an idle core

Each program runs in a process that imports onnxruntime and NumPy alone. The cache is filled with
random rows, `--steps` tokens are decoded, and the process reports the peak of its own memory, which
the system counts. What is printed beside it is that of the same program with an empty cache, so the
difference is what caches add: a step holds the past and the present tensors.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from qkvbench.backends.torch import decoder
from qkvbench.cost import CACHE_FORMATS, cache_bytes_per_token
from qkvbench.cost.units import bytes_text, seconds_text
from qkvbench.export import Options, find
from qkvbench.export.stepping import Stepping

PROGRAM = """
import json, sys, time
import numpy as np
import onnxruntime
path, context, batch, steps = sys.argv[1], *map(int, sys.argv[2:])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
# It takes memory in powers of two and keeps what it took.
options.enable_cpu_mem_arena = False
session = onnxruntime.InferenceSession(path, options)
about = json.loads(session.get_modelmeta().custom_metadata_map["qkvbench"])
rng = np.random.default_rng(0)
past = {
    each["past"]: rng.standard_normal((batch, each["heads"], context, each["width"]), np.float32)
    for each in about["cached"]
}
held = sum(each.nbytes for each in past.values())
tokens = np.zeros((batch, 1), np.int64)
times = []
for _ in range(steps):
    began = time.process_time()
    logits, *present = session.run(None, {"tokens": tokens, **past})
    past = dict(zip(past, present))
    del present
    tokens = logits.argmax(-1)[:, None]
    times.append(time.process_time() - began)
# Not ru_maxrss: a process inherits that of the one that started it.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"peak": peak, "held": held, "step": sorted(times)[len(times) // 2]}))
"""


def main() -> None:
    """Export, run and print every variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--variants", nargs="+", default=["q,k,v", "q,k=v", "q,k=v+ropevalue", "q,k,v/1", "q,k=v/1"]
    )
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    print("variant  bytes a token  cache  peak memory  of it for caches  a step")
    with TemporaryDirectory() as folder:
        for variant in args.variants:
            network = decoder(variant, vocabulary=512, layers=4, d_model=512, heads=8)
            path = Path(folder) / "model.onnx"
            path.unlink(missing_ok=True)
            find("onnx").write(Stepping(network, args.context + args.steps), path, Options())
            empty = outside(path, 1, args)
            full = outside(path, args.context, args)
            row = cache_bytes_per_token(network.model, CACHE_FORMATS["fp32"])
            print(
                f"{variant}  {row}  {bytes_text(full['held'])}  {bytes_text(full['peak'])}  "
                f"{bytes_text(full['peak'] - empty['peak'])}  {seconds_text(full['step'])}",
                flush=True,
            )


def outside(path: Path, context: int, args: argparse.Namespace) -> dict[str, float]:
    """The measurements of the program in a process of its own."""
    words = [str(path), str(context), str(args.batch), str(args.steps)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
