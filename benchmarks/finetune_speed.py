"""A fine-tuning step of each `qkv_mode` beside the library's own model, interleaved in one run.

Run     python benchmarks/finetune_speed.py [--threads N] [--blocks N] [--rounds N] [--kinds K ...]
        [--findings FOLDER]: `studies/benchmarks` is where the ledger of claims finds them
Size    4 layers, hidden size 256, 4 heads, 64 tokens, batch 4, vocabulary 1024, fp32, fused AdamW
        Llama: feed-forward 688; GPT-2 and BERT: 1024

Printed are the steps a second against `q,k,v` with a 95% interval over blocks of rounds, and the
share of parameters that the mode has. In each block every arm is built anew, elsewhere in memory.
With one thread the clock is the processor's time of this process, which neighbours disturb less.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from findings import add_option, write_findings

from qkvbench import hub
from qkvbench.claims.kit.measured import MeasuredChange
from qkvbench.hub.modes import equations
from qkvbench.measure.samples import Step, ratio

TOKENS, BATCH, VOCABULARY = 64, 4, 1024
_SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": TOKENS,
}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
SHAPES = {
    "llama": ("AutoModelForCausalLM", {**_SIZES, **_ENDS, "intermediate_size": 688}),
    "gpt2": (
        "AutoModelForCausalLM",
        {
            "n_embd": 256,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": TOKENS,
            "vocab_size": VOCABULARY,
            **_ENDS,
        },
    ),
    "bert": ("AutoModelForMaskedLM", {**_SIZES, "intermediate_size": 1024}),
}
LIBRARY = "library"
ARMS = ("q,k,v", LIBRARY, "shared", "no-key", "q,k=v", "q=k=v")


def step_of(kind: str, arm: str, tokens: torch.Tensor) -> tuple[Callable[[], None], int]:
    """A training step of this arm, and how many parameters it trains."""
    auto, sizes = SHAPES[kind]
    mode = {} if arm == LIBRARY else {"qkv_mode": arm}
    config = transformers.AutoConfig.for_model(
        f"qkv_{kind}" if mode else kind, **sizes, **mode, use_cache=False
    )
    model = getattr(transformers, auto).from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(parameter.numel() for parameter in model.parameters())


def measured(
    kind: str, blocks: int, rounds: int, clock: Callable[[], float]
) -> list[MeasuredChange]:
    """Time all arms of one shape in turn, print their speeds, and return their times."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(3, VOCABULARY, (BATCH, TOKENS)))
    samples: dict[str, list[list[Step]]] = {arm: [] for arm in ARMS}
    sizes: dict[str, int] = {}
    for _ in range(blocks):
        steps = {}
        for place in rng.permutation(len(ARMS)):
            arm = ARMS[place]
            steps[arm], sizes[arm] = step_of(kind, arm, tokens)
            steps[arm]()
            samples[arm].append([])
        for _ in range(rounds):
            for place in rng.permutation(len(ARMS)):
                before = clock()
                steps[ARMS[place]]()
                seconds = clock() - before
                samples[ARMS[place]][-1].append(Step(seconds, interrupted=False, alone_s=seconds))
    first = samples[ARMS[0]]
    middle = statistics.median(step.seconds for block in first for step in block)
    print(f"\n{kind}: {ARMS[0]} takes {1e3 * middle:.0f} ms a step, {sizes[ARMS[0]]:,} parameters")
    changes: list[MeasuredChange] = []
    for arm in ARMS[1:]:
        found = ratio(samples[arm], first, to=ARMS[0])
        if arm != LIBRARY:
            changes.append(
                MeasuredChange.of(
                    found,
                    quantity="time of a fine-tuning step",
                    model=f"{kind} of 4 layers of width 256",
                    arm=str(equations(arm)),
                    setting=f"{TOKENS} tokens, cpu",
                )
            )
        low, high = (100 * (1 / (end or float("nan")) - 1) for end in (found.high, found.low))
        share = 100 * sizes[arm] / sizes[ARMS[0]]
        speed = 100 * (1 / found.value - 1)
        print(
            f"{arm:8} {speed:+5.1f}% ({low:+.1f} to {high:+.1f})   parameters {share:5.1f}%",
            flush=True,
        )
    return changes


def main() -> None:
    """Measure each shape."""
    hub.register()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=SHAPES, default=list(SHAPES))
    add_option(parser)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    torch.manual_seed(0)
    print(
        f"threads {words.threads}, {words.blocks} blocks of {words.rounds} rounds, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    clock = time.process_time if words.threads == 1 else time.perf_counter
    found = [
        change
        for kind in words.kinds
        for change in measured(kind, words.blocks, words.rounds, clock)
    ]
    write_findings(words.findings, "finetune_speed", "cpu", found)


if __name__ == "__main__":
    main()
