"""Does recall without separate K and V depend on the number of heads, or on their size?

Run     python benchmarks/recall_heads.py [--seeds N] [--jobs N] [--arms A B ...] [--out DIR]
Size    the task recall: 2 layers, d_model 64, 1,000 steps; 5 sizes of heads, 2 arms

One, two and four heads fill d_model; then one head of 16 and four of 64 change the number of heads
and not their size, and the other way round. Parameters differ where heads do not fill d_model.
Counted are the seeds that solve the task on its test split, with exact 95% intervals of their
share (Clopper and Pearson). Records stay in DIR, so that the same words go on where they stopped.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scipy.stats import binomtest

from qkvbench import tasks
from qkvbench.experiment import Experiment
from qkvbench.results.record import Record
from qkvbench.results.stats import reaches
from qkvbench.results.store import Store
from qkvbench.sweep.local import Died, Workers
from qkvbench.sweep.study import lost
from qkvbench.variant import sized

ARMS = ["q,k,v", "q,k=v"]
# Heads, and the coordinates of each.
SIZES = [(1, 64), (2, 32), (4, 16), (1, 16), (4, 64)]


def experiments(
    heads: int, head_dim: int, arms: Sequence[str], seeds: int
) -> tuple[Experiment, ...]:
    """The runs of all arms with heads of one size."""
    task = tasks.find("recall")
    geometry = sized(task.model.geometry.d_model, heads, head_dim=head_dim)
    model = replace(task.model, geometry=geometry)
    base = Experiment(model, "recall", task.version, task.training, seed=0)
    return base.vary(variants=arms, seeds=range(seeds))


def row(size: tuple[int, int], arm: str, runs: Sequence[Record]) -> str:
    """What the seeds of one arm came to; a run without a score did not solve the task."""
    scores = [run.score for run in runs if run.status == "done"]
    metric = tasks.find("recall").metric
    assert metric.solved is not None
    solved = sum(reaches(score, metric.solved, better=metric.better) for score in scores)
    bounds = binomtest(solved, len(runs)).proportion_ci(0.95, "exact")
    share = f"{solved}/{len(runs)} [{bounds.low:.2f}, {bounds.high:.2f}]"
    listed = " ".join(f"{run.score:.3f}" if run.status == "done" else run.status for run in runs)
    mean = f"{statistics.mean(scores):.3f}" if scores else "–"
    (parameters,) = {run.cost.total_parameters for run in runs}
    return f"{size[0]:5} {size[1]:8}  {arm:8} {parameters:10,}  {share:20} {mean:>6}   {listed}"


def main() -> None:
    """Run what is missing, then print solved seeds and scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--heads", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--out", type=Path, default=Path("results/recall-heads"))
    words = parser.parse_args()
    sizes = [size for size in SIZES if size[0] in words.heads]
    store = Store(words.out)
    cells = {size: experiments(*size, words.arms, words.seeds) for size in sizes}
    # One seed of everything before the second.
    runs = sorted((run for cell in cells.values() for run in cell), key=lambda run: run.seed)
    missing = [run for run in runs if store.done(run) is None]
    print(f"{len(missing)} of {len(runs)} runs to do, in {words.out}", flush=True)
    with Workers("torch") as workers:
        for experiment, answer in workers.run_all(missing, words.jobs, lambda *_: None):
            store.write_run(lost(experiment, answer) if isinstance(answer, Died) else answer)
    kept = {record.id: record for record in store.runs().good}
    print(f"heads head_dim  {'arm':8} {'parameters':>10}  {'solved':20} {'mean':>6}   accuracy")
    for size, cell in cells.items():
        for arm in dict.fromkeys(run.variant for run in cell):
            print(row(size, arm, [kept[run.id] for run in cell if run.variant == arm]))


if __name__ == "__main__":
    main()
