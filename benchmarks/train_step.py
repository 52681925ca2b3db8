"""A training step of the bench beside a plain GPT written by hand, interleaved in one run.

Run     python benchmarks/train_step.py [--threads N] [--rounds N] [--precision fp32 bf16]
        python benchmarks/train_step.py --quick [--rounds N]
Size    6 layers, d_model 256, 4 heads, 256 tokens, batch 8, vocabulary 4096

The plain GPT is the widely used recipe: one fused matrix for Q, K and V, torch's own attention, a
tied output matrix, fused AdamW, clipping at 1. The share is what the step's matrix products reach
of the rate that the same products reach alone, measured in the same rounds.

With --quick: a step of `q,k,v` on each task of the recipe `quick`, one thread, beside its parts
alone: the matrix products of its linear layers, torch's attention, and the same attention with
scores held whole in batched products. Times are of the processor, the least of all rounds, so that
other work on the machine does not count.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qkvbench import cost, recipes, tasks
from qkvbench.backends.torch import Learner, prepare
from qkvbench.backends.torch.training.precision import autocast
from qkvbench.data.batch import Batch
from qkvbench.experiment import Experiment, Precision, Training
from qkvbench.model import Decoder, Init, Learned, transformer
from qkvbench.task_ref import TaskRef
from qkvbench.train.loop import batch_indices

LAYERS, D_MODEL, HEADS, TOKENS, BATCH, VOCABULARY = 6, 256, 4, 256, 8, 4096


class PlainBlock(nn.Module):
    """One layer of the plain GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(D_MODEL), nn.LayerNorm(D_MODEL)
        self.qkv, self.out = nn.Linear(D_MODEL, 3 * D_MODEL), nn.Linear(D_MODEL, D_MODEL)
        self.up, self.down = nn.Linear(D_MODEL, 4 * D_MODEL), nn.Linear(4 * D_MODEL, D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after this layer."""
        batch, time_, _ = x.shape
        shape = (batch, time_, HEADS, D_MODEL // HEADS)
        q, k, v = (
            t.view(shape).transpose(1, 2) for t in self.qkv(self.norm_1(x)).split(D_MODEL, 2)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).contiguous().view(batch, time_, D_MODEL))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class PlainGPT(nn.Module):
    """The plain GPT, with the loss inside as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(VOCABULARY, D_MODEL), nn.Embedding(TOKENS, D_MODEL)
        self.blocks = nn.ModuleList([PlainBlock() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(D_MODEL)
        self.head = nn.Linear(D_MODEL, VOCABULARY, bias=False)
        self.table.weight = self.head.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""
        x = self.table(tokens) + self.places(torch.arange(TOKENS))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


def plain_step(precision: Precision, batch: Batch) -> Callable[[], None]:
    """A training step of the plain GPT."""
    network = PlainGPT()
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1e-4,
        betas=(0.9, 0.95),
        fused=True,
    )
    tokens, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)

    def step() -> None:
        with autocast(precision, torch.device("cpu")):
            loss = network(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def our_step(variant: str, precision: Precision, batch: Batch) -> Callable[[], None]:
    """A training step of the bench."""
    learner = Learner(experiment(variant, precision))

    def step() -> None:
        learner.gradients(batch)
        learner.update(1e-4)

    return step


def experiment(variant: str, precision: Precision) -> Experiment:
    """The same network in the bench's terms."""
    model = transformer(
        "benchmark",
        Decoder(VOCABULARY, tied=True),
        layers=LAYERS,
        d_model=D_MODEL,
        heads=HEADS,
        position=Learned(TOKENS),
        init=Init(embedding_std=0.02, position_std=0.02, weight_std=0.02),
    )
    training = Training(steps=1, batch=BATCH, learning_rate=1e-4, warmup=0)
    base = Experiment(model, TaskRef("lm-reviews"), 1, training, seed=0, precision=precision)
    return base.vary(variants=[variant], seeds=[0])[0]


def products(precision: Precision) -> tuple[Callable[[], None], float]:
    """All matrix products of a step outside attention, alone, and their FLOPs."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    rows = BATCH * TOKENS
    shapes = [
        (D_MODEL, 3 * D_MODEL),
        (D_MODEL, D_MODEL),
        (D_MODEL, 4 * D_MODEL),
        (4 * D_MODEL, D_MODEL),
    ] * LAYERS + [(D_MODEL, VOCABULARY)]
    triples = [
        (
            torch.randn(rows, i, dtype=kind),
            torch.randn(o, i, dtype=kind),
            torch.randn(rows, o, dtype=kind),
        )
        for i, o in shapes
    ]

    def run() -> None:
        for x, weight, slope in triples:
            functional.linear(x, weight)
            slope @ weight
            slope.mT @ x

    return run, 3 * 2 * rows * sum(i * o for i, o in shapes)


def quick_parts(task: str) -> dict[str, Callable[[], object]]:
    """A step of `q,k,v` on a task of `quick`, and its parts alone."""
    run = next(each for each in recipes.find("quick").experiments() if str(each.task) == task)
    learner, data = Learner(run), tasks.find(run.task).load()
    batch = data.train.batch(next(batch_indices(len(data.train), run.training, run.seed)))
    products: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        x, slope = inputs[0].flatten(0, -2), torch.randn_like(output).flatten(0, -2)
        products.append((x.detach(), layer.weight.detach(), slope))

    linear = [each for each in learner.network.modules() if isinstance(each, nn.Linear)]
    hooks = [each.register_forward_hook(note) for each in linear]
    learner.gradients(batch)
    for hook in hooks:
        hook.remove()
    plans = [layer.attention for layer in run.model.layers[0] if layer.attention]
    size, items, time_ = run.model.geometry, len(batch.inputs), tasks.find(run.task).tokens
    q, k, v, slope = torch.randn(4, items, size.heads, time_, size.head_dim).unbind()
    roots = [each.requires_grad_() for each in (q, k, v)]
    causal = plans[0].mask.causal
    hidden = torch.full((time_, time_), -torch.inf).triu(1)

    def fused() -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def whole() -> Tensor:
        left, right = (q * size.head_dim**-0.5).flatten(0, 1), k.flatten(0, 1).mT
        scores = torch.baddbmm(hidden, left, right) if causal else left @ right
        return (scores.softmax(-1) @ v.flatten(0, 1)).view_as(q)

    def attended(attend: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: [torch.autograd.grad(attend(), roots, slope) for _ in plans]

    def step() -> None:
        learner.gradients(batch)
        learner.update(1e-4)

    return {
        "step": step,
        "products": lambda: [(functional.linear(x, w), g @ w, g.mT @ x) for x, w, g in products],
        "attention": attended(fused),
        "held whole": attended(whole),
    }


def quick(rounds: int) -> None:
    """Print the parts of a step on each task of `quick`."""
    prepare(1)
    for task in recipes.find("quick").seeds:
        parts = quick_parts(task)
        least_s = dict.fromkeys(parts, float("inf"))
        for _ in range(rounds):
            for name, part in parts.items():
                before = time.thread_time()
                part()
                least_s[name] = min(least_s[name], time.thread_time() - before)
        shares = "   ".join(
            f"{name} {1e3 * seconds:6.2f} ms, {seconds / least_s['step']:.2f}"
            for name, seconds in least_s.items()
        )
        print(f"{task:15} {shares}", flush=True)


def main() -> None:
    """Time everything in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    if words.quick:
        quick(words.rounds)
        return
    prepare(words.threads)
    rng = np.random.default_rng(0)
    batch = Batch(*(rng.integers(0, VOCABULARY, (BATCH, TOKENS)) for _ in range(2)))
    print(f"threads {words.threads}, rounds {words.rounds}, torch {torch.__version__}")
    for precision in words.precision:
        alone, flops_alone = products(precision)
        arms = {
            "plain GPT": plain_step(precision, batch),
            "q,k,v": our_step("q,k,v", precision, batch),
            "q,k=v": our_step("q,k=v", precision, batch),
            "products alone": alone,
        }
        times: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(words.rounds + 3):
            for name, step in arms.items():
                before = time.perf_counter()
                step()
                if turn >= 3:
                    times[name].append(time.perf_counter() - before)
        rate = flops_alone / statistics.median(times["products alone"])
        print(f"\n{precision}: matrix products alone {rate / 1e9:.0f} GFLOP/s")
        for name, seconds in times.items():
            ratios = [a / b for a, b in zip(seconds, times["plain GPT"], strict=True)]
            line = f"{name:15} p50 {1e3 * statistics.median(seconds):7.1f} ms"
            line += f"   time / plain GPT's {statistics.median(ratios):.3f}"
            if name in ("q,k,v", "q,k=v"):
                # A backward pass has two products for each of the forward pass.
                flops = 3 * BATCH * cost.flops(experiment(name, precision).model, TOKENS)
                # Causal attention may skip half of its products; counted without them:
                skipped = 3 * BATCH * 2 * LAYERS * TOKENS**2 * D_MODEL
                shares = [
                    each / statistics.median(seconds) / rate for each in (flops, flops - skipped)
                ]
                line += f"   share of rate {shares[0]:.2f}, causal {shares[1]:.2f}"
            print(line)


if __name__ == "__main__":
    main()
