"""`qkvbench prune`: learn which layers keep which projections, for a target, beside rivals."""

import hashlib
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
from qkvbench.cli import names, prune_checkpoint
from qkvbench.cli.parser import START, Request, RequestError
from qkvbench.cli.probes import print_probes
from qkvbench.cli.progress import StudyProgress
from qkvbench.cli.train import read_experiment
from qkvbench.cost.budget import Budget
from qkvbench.cost.search import Probe, UnreachableLossError, check_cheaper
from qkvbench.experiment import Experiment, to_json
from qkvbench.model import (
    QUANTITY_NAMES,
    Gates,
    LossTarget,
    Target,
    parse_target,
    write_cycle,
)
from qkvbench.recipes import Study
from qkvbench.results import pruning as results
from qkvbench.results.pruning import ALONE, CONTINUED, LEARNED, RESULT, SCRATCH, Estimate
from qkvbench.results.store import Store, StoreError, write_atomically
from qkvbench.variant import CANONICAL, write

if TYPE_CHECKING:
    from qkvbench.sweep.prune import Pruning, Result


def answer(request: Request) -> int:
    """Learn the plans, run the rivals, print what was found and write it to the folder."""
    if request.text or names.is_checkpoint(request.task):
        return prune_checkpoint.answer(request)
    if request.heal or request.steps or request.start != START:
        raise RequestError(
            "--heal, --start and --steps are for a pretrained model: add --text FILE."
        )
    from qkvbench.sweep.local import stoppable
    from qkvbench.sweep.prune import (
        FailedRunError,
        Pruning,
        learn_within,
        run_pruning,
    )

    trained, folder = _trained(request), Path(request.out)
    target, gates = _gates(request, trained[0], folder)
    pruning = Pruning(trained, gates, request.draws, request.pairs, request.distill)
    probes: list[Probe] = []
    _check_reachable(pruning, target)
    store = Store(folder)
    endings: Counter[str] = Counter()
    try:
        store.check_writable()
        with stoppable(), StudyProgress(endings) as progress:
            if isinstance(target, LossTarget):
                pruning, probes = learn_within(
                    pruning, target, store, jobs=request.jobs, progress=progress
                )
            result = run_pruning(pruning, store, jobs=request.jobs, progress=progress)
    except StoreError as error:
        raise RequestError(f"{error}\nGive another folder with --out DIR.") from None
    except UnreachableLossError as error:
        raise RequestError(f"{error}") from None
    except FailedRunError as error:
        print(f"{error}\nThe same command repeats what is not done.", file=sys.stderr)
        return 1
    budget = pruning.budget
    document = _document(result, budget, target, probes)
    for number, each in enumerate(result.weights):
        _write_weights(folder, number, each)
    text = json.dumps(document, indent=1, allow_nan=False)
    write_atomically(folder / RESULT, f"{text}\n".encode())
    if request.json:
        print(text)
    else:
        print_probes(str(target), probes, pruning.gates.target)
        _print(result, budget, folder)
    return 0


def _check_reachable(pruning: "Pruning", target: Target | LossTarget) -> None:
    """Raise RequestError for what cannot be done, before anything is trained."""
    try:
        budget = pruning.budget
        _ = [pruning.gated(each) for each in pruning.trained]
        if isinstance(target, LossTarget):
            check_cheaper(budget, target)
    except (ValueError, UnreachableLossError) as error:
        raise RequestError(f"{error}\nNothing was run.") from None


def _trained(request: Request) -> tuple[Experiment, ...]:
    """The runs of the model as it is, one for each seed; of a checkpoint the one that made it."""
    path = Path(request.task)
    if path.suffix == ".json":
        return (_checkpoint(request, path),)
    return _study(request).experiments()


def _checkpoint(request: Request, path: Path) -> Experiment:
    """The experiment in a file; its weights, if they are beside it, are kept for the runs."""
    from qkvbench.sweep.local import Workers
    from qkvbench.train.dependencies import adopt_weights

    if request.layers or request.model or request.position or request.smoke:
        raise RequestError(
            f"{path} has its own model and steps; leave out --layers, --model, --position and "
            "--smoke."
        )
    experiment = read_experiment(path)
    weights = path.with_suffix(".safetensors")
    if weights.is_file():
        try:
            with Workers(experiment.backend) as workers:
                workers.call(adopt_weights, experiment, weights)
        except ChildProcessError as error:
            raise RequestError(
                f"{weights} cannot be taken as the weights of the run in {path}:\n{error}"
            ) from None
    return experiment


def _study(request: Request) -> Study:
    """The study of the model without gates: one task, as it is or deeper."""
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


def _gates(
    request: Request, trained: Experiment, folder: Path
) -> tuple[Target | LossTarget, Gates]:
    """The target, and gates under it; the first option is the attention of the model as it is.

    Under a target of loss they may keep everything, until the bound of the cost is found.
    """
    own = trained.model.blocks[0].attention
    options = dict.fromkeys([own.variant if own else CANONICAL, *names.variants(request.options)])
    try:
        target = parse_target(request.target)
        bound = target.at(1.0) if isinstance(target, LossTarget) else target
        gates = Gates(tuple(options), bound.at_length(tasks.find(trained.task).tokens))
        if bound.quantity == "latency":
            gates = replace(gates, latencies_s=_latencies(trained, gates, folder))
    except ValueError as error:
        raise RequestError(f"{error}\nNothing was run.") from None
    return target, gates


def _latencies(trained: Experiment, gates: Gates, folder: Path) -> tuple[float, ...]:
    """Seconds of a decode step for each layer with each option: measured here, once.

    The first layer has K and V of its own if an option reads them below: its time is taken off.
    ValueError if the model does not decode at this length.
    """
    from qkvbench.measure.conditions import Conditions
    from qkvbench.measure.observe import measurements
    from qkvbench.sweep.local import Workers

    base, context = trained.model, gates.target.tokens
    if not base.causal or context is None or (base.longest or context + 1) <= context:
        raise ValueError(
            f"{base.name} does not decode at {context} tokens; take a language model, and "
            "positions without a length, such as --position rotary."
        )
    model = hashlib.sha256(f"{trained.id} {trained.threads}".encode()).hexdigest()[:8]
    path = folder / f"latencies-{context}-{model}.json"
    known: dict[str, float] = json.loads(path.read_bytes()) if path.is_file() else {}
    texts = [write(each) for each in gates.options]
    if not set(texts) <= set(known):
        models = [base.with_variant(each) for each in gates.options]
        conditions = Conditions(threads=trained.threads, context=context)
        print(f"Timing {len(models)} options at {context} tokens ...", file=sys.stderr)
        with Workers(trained.backend) as workers:
            measured, untimed = measurements(models, conditions, workers.call)
        if untimed:
            raise ValueError(f"{untimed[0].variant} cannot be timed: {untimed[0].reason}")
        # All together: only what ran interleaved can be compared.
        layers, whole = len(base.blocks), [each.decode_p50_s or 0.0 for each in measured]
        known = {text: time / layers for text, time in zip(texts, whole, strict=True)}
        if layers > 1:
            for number in gates.borrowed:
                known[texts[number]] = (whole[number] - known[texts[0]]) / (layers - 1)
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


def _document(
    result: "Result", budget: Budget, target: Target | LossTarget, probes: Sequence[Probe]
) -> dict[str, object]:
    """Everything that was found, as JSON values."""
    pruning = result.pruning
    rivals = _rivals(result)
    return {
        "version": 1,
        "task": str(pruning.trained[0].task),
        "model": pruning.trained[0].model.name,
        "layers": len(budget.costs),
        "options": [write(each) for each in budget.options],
        "wanted": str(target),
        "tried": [asdict(each) for each in probes],
        "distilled": pruning.distills,
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
        "weights": result.kept,
        "best_rival": (rival := results.best(rivals)),
        "against_all_layers": asdict(_against(result, CONTINUED)),
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


def _rivals(result: "Result") -> Mapping[str, Sequence[Sequence[results.PlanLoss]]]:
    """The arms whose plan no gate has learned."""
    own = (ALONE, CONTINUED, LEARNED, SCRATCH)
    return {name: seeds for name, seeds in result.arms.items() if name not in own}


def _against(result: "Result", other: str) -> Estimate:
    return results.difference(result.arms[LEARNED], result.arms[other])


def _print(result: "Result", budget: Budget, folder: Path) -> None:
    pruning, plans = result.pruning, result.learned
    common, count = Counter(plans).most_common(1)[0]
    rival = results.best(_rivals(result))
    loss = results.estimate(results.after(result.arms[LEARNED]))
    seeds = f"{len(plans)} seeds; ±: 95% intervals" if len(plans) > 1 else "one seed"
    same = f" ({count} of {len(plans)} seeds)" if len(plans) > 1 else ""
    print(
        f"{pruning.gates.target}: {write_cycle(budget.layers(common))}{same} has "
        f"{budget.share(common):.1%} of the {QUANTITY_NAMES[pruning.gates.target.quantity]}.\n"
        f"Its loss is {loss.mean:.4f} nats: {_signed(_against(result, CONTINUED))} against "
        f"{CONTINUED},\n{_signed(_against(result, rival))} against the best rival, {rival} "
        f"({seeds})."
    )
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm, after equal steps")
    for head in ("cost", "loss before", "healed", "against all layers"):
        table.add_column(head, justify="right")
    base = result.arms[CONTINUED]
    for name, rows in sorted(result.arms.items(), key=lambda row: sum(results.after(row[1]))):
        shares = [each.share for seed in rows for each in seed]
        before = results.before(rows)
        table.add_row(
            name,
            f"{sum(shares) / len(shares):.1%}",
            "" if before is None else f"{results.estimate(before).mean:.4f}",
            f"{results.estimate(results.after(rows)).mean:.4f}",
            "" if name == CONTINUED else _signed(results.difference(rows, base)),
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
    print(
        f"{folder / RESULT} has all of it; {folder / 'learned-0.safetensors'} the weights of "
        f"'{result.kept}'."
    )


def _signed(found: Estimate) -> str:
    """A difference with its interval."""
    if found.low is None or found.high is None:
        return f"{found.mean:+.4f}"
    return f"{found.mean:+.4f} ± {(found.high - found.low) / 2:.4f}"
