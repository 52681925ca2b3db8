"""The library in one minute: a variant as a value, what it costs, the layer, a run, its record.

Run     python examples/tour.py
"""

from dataclasses import replace

import torch

import qkvbench
from qkvbench import cost, tasks
from qkvbench.experiment import Experiment
from qkvbench.model import PRESETS
from qkvbench.task_ref import TaskRef
from qkvbench.variant import parse, resolve, sized, write


def main() -> None:
    """Walk through the layers, lowest first."""
    print("A variant is a value, and has one text:")
    shared = parse("v=k, q")
    print(f"  {write(shared)}   {shared}")

    print("At a size it is a plan, which everything else reads:")
    plan = resolve(shared, sized(d_model=96, heads=4))
    print(f"  matrices {list(plan.matrix_rows)}, cached {[each.name for each in plan.cached]}")
    print(f"  weights {[each.name for each in plan.parameters]}")

    print("What it costs is computed, here for the 300M decoder of the study:")
    for text in ("q,k,v", "q,k=v", "q,k,v/1"):
        model = PRESETS["gpt-300m"]().with_variant(parse(text))
        total = cost.parameters(model).total
        print(
            f"  {text:8} {total:>12,} parameters, {cost.cache_bytes_per_token(model):>6,} B a token"
        )

    print("The layer is a drop-in module:")
    layer = qkvbench.torch.Attention("q,k=v", d_model=96, heads=4, causal=True)
    print(f"  {tuple(layer(torch.randn(2, 10, 96)).shape)}")

    print("A decoder keeps half the cache, and decodes what one forward pass gives:")
    model = qkvbench.torch.decoder("q,k=v", vocabulary=256, layers=2, d_model=96, heads=4)
    tokens = torch.randint(256, (1, 12))
    with torch.no_grad():
        cache = model.new_cache(batch=1, capacity=12)
        steps = torch.stack([model.step(tokens[:, t], cache) for t in range(12)], dim=1)
        apart = (steps - model(tokens)).abs().max().item()
    print(f"  cache {cache.bytes:,} B, largest difference {apart:.1e}")

    print("A run is an experiment in, a record out:")
    task = tasks.find("sort")
    base = Experiment(
        task.model, TaskRef("sort"), task.version, replace(task.training, steps=60), seed=0
    )
    for experiment in base.vary(variants=["q,k,v", "q=k=v=x"], seeds=[0]):
        record = qkvbench.run(experiment)
        print(f"  {record.variant:8} {record.metric.name} {record.score:.3f}   {record.id}")


if __name__ == "__main__":
    main()
