"""`qkvbench prune`: learn which layers keep which projections, for a target, beside rivals."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from qkvbench import recipes, tasks
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cli.progress import StudyProgress
from qkvbench.cost.budget import Budget
from qkvbench.experiment import Experiment, to_json
from qkvbench.model import Gates, parse_target, write_cycle
from qkvbench.recipes import Study
from qkvbench.results import pruning as results
from qkvbench.results.pruning import Estimate
from qkvbench.results.store import Store, StoreError, write_atomically
from qkvbench.variant import CANONICAL, write

if TYPE_CHECKING:
    from qkvbench.sweep.prune import Result

# The file of everything that was found.
RESULT = "prune.json"


def answer(request: Request) -> int:
    """Learn the plans, run the rivals, print what was found and write it to the folder."""
    from qkvbench.sweep.local import stoppable
    from qkvbench.sweep.prune import FailedRunError, Pruning, run_pruning

    study, folder = _study(request), Path(request.out)
    pruning = Pruning(study, _gates(request, study, folder), request.draws, request.pairs)
    try:
        # Refused before anything is trained.
        budget = pruning.budget
        _ = [pruning.gated(each) for each in pruning.trained]
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None
    store = Store(folder)
    endings: Counter[str] = Counter()
    try:
        store.check_writable()
        with stoppable(), StudyProgress(endings) as progress:
            result = run_pruning(pruning, store, jobs=request.jobs, progress=progress)
    except StoreError as error:
        raise RequestError(f"{error}\nGive another folder with --out DIR.") from None
    except FailedRunError as error:
        print(f"{error}\nThe same command repeats what is not done.", file=sys.stderr)
        return 1
    document = _document(result, budget)
    for number, each in enumerate(result.weights):
        _write_weights(folder, number, each)
    text = json.dumps(document, indent=1, allow_nan=False)
    write_atomically(folder / RESULT, f"{text}\n".encode())
    if request.json:
        print(text)
    else:
        _print(result, budget, folder)
    return 0


def _study(request: Request) -> Study:
    """The study of the model without gates: one task, as it is or deeper."""
    if (Path(request.task) / "config.json").is_file():
        raise RequestError(
            f"{request.task} is a pretrained checkpoint, whose layers get no gates here.\n"
            f"'qkvbench advise {request.task} --cache 50% --text FILE' plans its layers by the "
            "damage of each."
        )
    study = Study("prune", (write(CANONICAL),), {}, smoke=request.smoke)
    if request.task in recipes.names():
        recipe = recipes.find(request.task)
        task = recipe.cost_task or next(iter(recipe.seeds))
        study = replace(study, model=recipe.model, position=recipe.position)
    else:
        task = names.task(request.task)
    if request.model:
        study = replace(study, model=names.model(request.model))
    study = replace(
        study,
        seeds={task: min(request.seeds, 2) if request.smoke else request.seeds},
        position=request.position or study.position,
        threads=request.threads,
    )
    try:
        if request.layers:
            model = study.model_of(task)
            own = tasks.find(task).model.name if study.model is None else model.name
            blocks = model.blocks[:1] * request.layers
            study = replace(study, model=replace(model, name=own, blocks=blocks), position=None)
        _ = study.experiments()
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None
    return study


def _gates(request: Request, study: Study, folder: Path) -> Gates:
    """The gates of a request; the first option is the attention of the model as it is."""
    options = list(dict.fromkeys([CANONICAL, *names.variants(request.options)]))
    (task,) = study.seeds
    try:
        target = parse_target(request.target).at_length(tasks.find(task).tokens)
        gates = Gates(tuple(options), target)
        if target.quantity != "latency":
            return gates
        return replace(gates, latencies_s=_latencies(study, gates, folder))
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None


def _latencies(study: Study, gates: Gates, folder: Path) -> tuple[float, ...]:
    """Seconds of a decode step for each layer with each option: measured here, once.

    ValueError if the model does not decode at this length.
    """
    from qkvbench.measure.conditions import Conditions
    from qkvbench.measure.observe import measurements
    from qkvbench.sweep.local import Workers

    (task,) = study.seeds
    base, context = study.model_of(task), gates.target.tokens
    if not base.causal or context is None or (base.longest or context + 1) <= context:
        raise ValueError(
            f"{base.name} does not decode at {context} tokens; take a language model, and "
            "positions without a length, such as --position rotary."
        )
    path = folder / f"latencies-{context}.json"
    known: dict[str, float] = json.loads(path.read_bytes()) if path.is_file() else {}
    texts = [write(each) for each in gates.options]
    if not set(texts) <= set(known):
        models = [base.with_variant(each) for each in gates.options]
        conditions = Conditions(threads=study.threads, context=context)
        print(f"Timing {len(models)} options at {context} tokens ...", file=sys.stderr)
        with Workers(study.backend) as workers:
            measured, untimed = measurements(models, conditions, workers.call)
        if untimed:
            raise ValueError(f"{untimed[0].variant} cannot be timed: {untimed[0].reason}")
        # All together: only what ran interleaved can be compared.
        known = {
            text: (each.decode_p50_s or 0.0) / len(base.blocks)
            for text, each in zip(texts, measured, strict=True)
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{json.dumps(known, indent=1)}\n".encode())
    return tuple(known[text] for text in texts)


def _write_weights(folder: Path, number: int, run: Experiment) -> None:
    """The weights of a learned plan, healed, and the experiment that reads them.

    They are made again if the cache that kept them was emptied.
    """
    from qkvbench.train.dependencies import ensure_trained

    weights, about = (folder / f"learned-{number}.{end}" for end in ("safetensors", "json"))
    text = json.dumps(to_json(run), indent=1, allow_nan=False) + "\n"
    if weights.is_file() and about.is_file() and about.read_text(encoding="utf-8") == text:
        return
    write_atomically(weights, ensure_trained(run).read_bytes())
    write_atomically(about, text.encode())


def _document(result: "Result", budget: Budget) -> dict[str, object]:
    """Everything that was found, as JSON values."""
    pruning = result.pruning
    rivals = _rivals(result)
    return {
        "version": 1,
        "task": next(iter(pruning.study.seeds)),
        "model": pruning.trained[0].model.name,
        "layers": len(budget.costs),
        "options": [write(each) for each in budget.options],
        "target": str(pruning.gates.target),
        "share": pruning.gates.target.share,
        "reachable": list(budget.bounds),
        "steps": {
            "trained": pruning.trained[0].training.steps,
            "gated": pruning.gated(pruning.trained[0]).training.steps,
            "healed": result.weights[0].training.steps,
        },
        "seeds": [each.seed for each in pruning.trained],
        "learned": [write_cycle(budget.layers(each)) for each in result.learned],
        "integer_program": [write_cycle(budget.layers(each)) for each in result.program],
        "best_rival": (rival := results.best(rivals)),
        "against_all_layers": asdict(_against(result, _continued())),
        "against_best_rival": asdict(_against(result, rival)),
        "agreement": {
            "of_seeds": results.agreement(result.learned),
            "with_integer_program": results.agreement_with(result.learned, result.program),
        },
        "arms": {
            name: {
                "before": None
                if (row := results.before(seeds)) is None
                else asdict(results.estimate(row)),
                "after": asdict(results.estimate(results.after(seeds))),
                "seeds": [[asdict(each) for each in seed] for seed in seeds],
            }
            for name, seeds in result.arms.items()
        },
        "damages": [
            [dict(zip(map(write, budget.options), row, strict=True)) for row in seed]
            for seed in result.damages
        ],
        "history": [
            [{"step": step, "probabilities": rows} for step, rows in seed]
            for seed in result.history
        ],
    }


def _continued() -> str:
    from qkvbench.sweep.prune import CONTINUED

    return CONTINUED


def _rivals(result: "Result") -> Mapping[str, Sequence[Sequence[results.PlanLoss]]]:
    """The arms whose plan no gate has learned."""
    from qkvbench.sweep.prune import ALONE, CONTINUED, LEARNED, SCRATCH

    own = (ALONE, CONTINUED, LEARNED, SCRATCH)
    return {name: seeds for name, seeds in result.arms.items() if name not in own}


def _against(result: "Result", other: str) -> Estimate:
    from qkvbench.sweep.prune import LEARNED

    return results.difference(result.arms[LEARNED], result.arms[other])


def _print(result: "Result", budget: Budget, folder: Path) -> None:
    from qkvbench.sweep.prune import LEARNED

    pruning, plans = result.pruning, result.learned
    common, count = Counter(plans).most_common(1)[0]
    rival = results.best(_rivals(result))
    loss = results.estimate(results.after(result.arms[LEARNED]))
    seeds = f"{len(plans)} seeds; ±: 95% intervals" if len(plans) > 1 else "one seed"
    same = f" ({count} of {len(plans)} seeds)" if len(plans) > 1 else ""
    print(
        f"{pruning.gates.target}: {write_cycle(budget.layers(common))}{same} has "
        f"{budget.share(common):.1%} of the {_QUANTITY[pruning.gates.target.quantity]}.\n"
        f"Its loss is {loss.mean:.4f} nats: {_signed(_against(result, _continued()))} against "
        f"{_continued()},\n{_signed(_against(result, rival))} against the best rival, {rival} "
        f"({seeds})."
    )
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm, after equal steps")
    for head in ("cost", "loss before", "healed", "against all layers"):
        table.add_column(head, justify="right")
    base = result.arms[_continued()]
    for name, rows in sorted(result.arms.items(), key=lambda row: sum(results.after(row[1]))):
        shares = [each.share for seed in rows for each in seed]
        before = results.before(rows)
        table.add_row(
            name,
            f"{sum(shares) / len(shares):.1%}",
            "" if before is None else f"{results.estimate(before).mean:.4f}",
            f"{results.estimate(results.after(rows)).mean:.4f}",
            "" if name == _continued() else _signed(results.difference(rows, base)),
        )
    console.print(table, markup=False)
    layers = Table(box=None, pad_edge=False, header_style="bold")
    layers.add_column("layer", justify="right")
    for each in pruning.trained:
        layers.add_column(f"seed {each.seed}")
    for each in pruning.trained:
        layers.add_column(f"program {each.seed}")
    for number in range(len(budget.costs)):
        row = [write(budget.options[plan[number]]) for plan in (*plans, *result.program)]
        layers.add_row(str(number), *row)
    console.print(layers, markup=False)
    own = results.agreement(plans)
    between = "" if own is None else f"two seeds agree in {own:.0%} of the layers, "
    agreed = results.agreement_with(plans, result.program)
    print(f"Learned plans: {between}a seed and its integer program in {agreed:.0%}.")
    print(f"{folder / RESULT} has all of it; {folder / 'learned-0.safetensors'} the weights.")


_QUANTITY = {
    "cache": "cache",
    "params": "parameters",
    "macs": "multiply-accumulates",
    "latency": "latency",
}


def _signed(found: Estimate) -> str:
    """A difference with its interval."""
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} ± {(found.high - found.low) / 2:.4f}"
