"""A small decoder learns letters for a moment, then writes: greedily, by draws and by beams.

Run     python examples/write.py [--steps N]
Reads   this package's own source, letter by letter; nothing is downloaded
Expect  words and brackets in the manner of Python, not sense: it has seen a few pages
"""

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional

import qkvbench

TIME, BATCH = 64, 16
STARTS = ("def ", '    """The ')


def main() -> None:
    """Train `q,k=v` on letters, then go on after two starts, with rows of two types."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    words = parser.parse_args()
    qkvbench.torch.prepare(threads=1)

    folder = Path(qkvbench.__file__).parent
    text = "".join(path.read_text("utf-8") for path in sorted(folder.glob("variant/*.py")))
    letters = sorted(set(text))
    number = {letter: place for place, letter in enumerate(letters)}
    network = qkvbench.torch.decoder(
        "q,k=v", vocabulary=len(letters), layers=2, d_model=96, heads=4
    )
    began = time.perf_counter()
    loss = learnt(network, torch.tensor([number[letter] for letter in text]), words.steps)
    print(f"{words.steps} steps in {time.perf_counter() - began:.0f} s, last loss {loss:.2f}")

    prompts = [[number[letter] for letter in start] for start in STARTS]
    rng = qkvbench.torch.Sampling(temperature=0.8, top_p=0.95, seed=1)
    for strategy in (qkvbench.torch.Greedy(), rng, qkvbench.torch.Beams(4)):
        for rows in ("fp32", "int8"):
            found = qkvbench.torch.generate(
                network, prompts, tokens=60, strategy=strategy, rows=rows
            )
            print(f"{strategy}, a cache of {rows}:")
            for prompt, tokens in zip(prompts, found, strict=True):
                print("  " + repr("".join(letters[token] for token in prompt + tokens)))

    print("As it is written:")
    qkvbench.torch.generate(
        network,
        prompts[:1],
        tokens=60,
        stop={number["\n"]},
        on_token=lambda _, token: print(letters[token], end="", flush=True),
    )
    print()


def learnt(network: qkvbench.torch.Decoder, read: torch.Tensor, steps: int) -> float:
    """Train on stretches of the text; the last loss, in nats a letter."""
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        starts = torch.randint(len(read) - TIME, (BATCH,), generator=rng)
        rows = read[starts[:, None] + torch.arange(TIME + 1)]
        loss = functional.cross_entropy(network(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    main()
