"""The arguments of the command line, and the errors for unknown ones."""

import argparse
import importlib
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn, cast

# The settings of `--heal`.
HEALING = (
    "tokens=N (half by blocks, half by logits), or blocks=N logits=N; lora=RANK, blocks_lr=X, "
    "logits_lr=X, temperature=X, seed=N, teacher=FOLDER, precision=bf16 or fp32"
)


# Of a checkpoint's conversion, unless asked for otherwise.
START, WINDOW = "refitted", 512


class RequestError(Exception):
    """The request was wrong; the message has the reason, and what to write instead."""


class Request(argparse.Namespace):
    """A parsed request; `answer` carries it out."""

    answer: Callable[["Request"], int]
    # The start of the command by `time.monotonic`.
    began_s: float


class _Parser(argparse.ArgumentParser):
    """A parser that raises its errors, with the closest known word."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"(?:unrecognized arguments: |invalid choice: ')([^' ]+)", message)
        near = get_close_matches(unknown[1], self._words(), n=1) if unknown else []
        lines = [f"{self.prog}: {message}"]
        if near:
            lines.append(f"Did you mean {near[0]}?")
        missing = re.search(r"required: ([A-Z]\w*)", message)
        if missing and any(action.nargs in ("+", "*") for action in self._options()):
            name = missing[1]
            lines.append(f"An option of several values takes all words behind it; {name} is first.")
        lines.append(f"'{self.prog} --help' lists what can be written.")
        raise RequestError("\n".join(lines))

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str], namespace: Request
    ) -> Request:
        request, unknown = self.parse_known_args(args, namespace)
        if unknown:
            # The subcommand's parser knows its flags and can suggest one.
            getattr(request, "parser", self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return request

    def _options(self) -> list[argparse.Action]:
        return [action for action in self._actions if action.option_strings]

    def _words(self) -> list[str]:
        flags = [flag for action in self._options() for flag in action.option_strings]
        choices = [str(one) for action in self._actions for one in action.choices or ()]
        return flags + choices


def parse_request(words: Sequence[str]) -> Request:
    """The request of these words; RequestError if they are not a valid one."""
    return build_parser().parse_args(words, Request())


def build_parser() -> _Parser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="qkvbench",
        description="Does a Transformer need separate query, key and value projections, "
        "and what is saved without them?",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_run(commands)

    train = _command(commands, "train", "carry out one run from a file, also under torchrun")
    train.add_argument("experiment", metavar="FILE", help="an experiment, or a record of one")
    train.add_argument(
        "--out", type=_path, required=True, metavar="DIR", help="the store for the record"
    )

    kinds = ["variants", "suffixes", "blocks", "tasks", "recipes", "models", "positions"]
    kinds += ["reports", "claims", "hardware"]
    ls = _command(commands, "ls", f"list {', '.join(kinds[:-1])} or {kinds[-1]}")
    ls.add_argument("what", choices=kinds)
    ls.add_argument("--json", action="store_true", help="one JSON document")

    show = _command(
        commands, "show", "draw a variant, and count its parameters, operations and cache"
    )
    show.add_argument("variant", help="an equation such as 'q,k=v', or a name")
    show.add_argument(
        "--model", default="small-decoder", metavar="NAME", help="a model (small-decoder)"
    )
    _position(show)
    show.add_argument(
        "--tokens",
        type=_count,
        default=1024,
        metavar="N",
        help="tokens of the forward pass that is counted (1024)",
    )
    show.add_argument("--json", action="store_true", help="one JSON document")

    _add_measure(commands)
    _add_cost(commands)

    doctor = _command(commands, "doctor", "check the installation, the kernels and their speed")
    doctor.add_argument(
        "--calibrate",
        metavar="FILE",
        help="measure this machine, and write its record NAME.toml for 'cost --hardware'",
    )
    doctor.add_argument(
        "--threads", type=_count, metavar="N", help="threads that --calibrate measures (1)"
    )
    doctor.add_argument("--json", action="store_true", help="one JSON document")

    _add_analyse(commands)
    _add_slim(commands)
    _add_pretrained(commands)
    _add_prune(commands)
    _add_export(commands)
    _add_claims(commands)
    _add_atlas(commands)
    _add_readers(commands)
    return parser


def _add_run(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`run`: the study, and the execution of its runs."""
    run = _command(commands, "run", "train and measure arms that differ in nothing else; resumes")
    run.add_argument("recipe", nargs="?", help="a recipe; 'qkvbench ls recipes' lists them")
    run.add_argument(
        "--size",
        metavar="NAME",
        help="one of a recipe's sizes: article-table, budgets, frontier, frontier-short, minimal, "
        "minimal-found and paper-* have several; another name lists them",
    )
    run.add_argument(
        "--variants",
        nargs="+",
        metavar="V",
        help="equations or names; the first is the baseline; V@SITE: there only",
    )
    run.add_argument(
        "--tasks", nargs="+", metavar="T", help="'qkvbench ls tasks' lists them; or a path"
    )
    run.add_argument(
        "--seeds",
        type=_count,
        metavar="N",
        help="runs of each arm, with different seeds (a recipe's own number, otherwise 5)",
    )
    run.add_argument(
        "--tune",
        choices=["lr"],
        help="lr: choose each arm's learning rate by validation scores of other seeds, first",
    )
    run.add_argument(
        "--rates",
        nargs="+",
        type=_results,
        metavar="DIR",
        help="give each arm the learning rate that a tuned study chose for it (of several folders "
        "the first that has one), times the ratio of widths if its model is another; for longer "
        "runs and larger models",
    )
    run.add_argument(
        "--preregister",
        metavar="FILE",
        help="store the hypotheses of this TOML file before the first run; the report judges them",
    )
    run.add_argument(
        "--model",
        metavar="NAME",
        help="train this model in place of each task's own; 'qkvbench ls models' lists them",
    )
    _position(run)
    run.add_argument(
        "--pooling",
        metavar="P",
        help="how an encoder pools a sequence: mean or class-token (the task's own)",
    )
    run.add_argument(
        "--init-from", metavar="TASK", help="initialize each arm from its trained run on this task"
    )
    run.add_argument("--backend", default="torch", metavar="NAME", help="torch or jax (torch)")
    run.add_argument(
        "--quantize",
        dest="quantizations",
        nargs="+",
        metavar="Q",
        help="score trained decoders with few bits, too: int8, int4:channel, w8, w4, int4+w4",
    )
    run.add_argument("--precision", metavar="P", help="compute dtype: fp32 (default), bf16, fp16")
    run.add_argument(
        "--compile", dest="compiled", action="store_true", help="compile the training step"
    )
    run.add_argument(
        "--checkpointing", action="store_true", help="recompute activations in the backward pass"
    )
    run.add_argument(
        "--micro-batches", type=_count, metavar="N", help="gradient accumulation steps (1)"
    )
    run.add_argument(
        "--devices", type=_count, metavar="N", help="data-parallel devices of each run (1)"
    )
    run.add_argument(
        "--sharding",
        metavar="S",
        help="weights replicated (ddp, default) or sharded (fsdp)",
    )
    run.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        help="parallel runs (local: one per core, fewer if memory is short, one on a GPU; slurm: "
        "64; ray with an address: what the cluster holds)",
    )
    run.add_argument(
        "--engine",
        default="local",
        metavar="NAME",
        help="what carries out the runs: local, slurm or ray (local)",
    )
    run.add_argument(
        "--with",
        dest="options",
        nargs="+",
        default=[],
        metavar="K=V",
        help="options of the engine: partition=…, minutes=…, gpus=…, address=…",
    )
    run.add_argument(
        "--track",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also send learning curves to tensorboard, wandb, trackio or mlflow",
    )
    run.add_argument(
        "--out", type=_path, metavar="DIR", help="folder of the results (results/NAME)"
    )
    run.add_argument(
        "--replace", action="store_true", help="let the folder's study be this one; records stay"
    )
    run.add_argument(
        "--smoke",
        action="store_true",
        help="everything with very few steps: a test that learns nothing",
    )
    run.add_argument(
        "--files",
        type=_path,
        metavar="DIR",
        help="write each run's experiment to a file for 'train', and stop",
    )
    run.add_argument("--dry-run", action="store_true", help="print the plan, and stop")
    run.add_argument("--fail-fast", action="store_true", help="stop at the first run that fails")


def _add_measure(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`measure`: the model, the arms and the conditions."""
    measure = _command(
        commands, "measure", "time and memory of several variants, measured side by side"
    )
    measure.add_argument(
        "variants",
        nargs="+",
        metavar="VARIANT",
        help="equations or names; the same one twice shows the noise",
    )
    measure.add_argument(
        "--model",
        default="small-decoder",
        metavar="NAME",
        help="a model, or that of a task or of your data (small-decoder)",
    )
    _position(measure)
    measure.add_argument(
        "--context", type=_count, metavar="N", help="tokens of a sequence (4096, or what fits)"
    )
    measure.add_argument(
        "--batch", type=_count, default=4, metavar="N", help="sequences at once (4)"
    )
    measure.add_argument("--precision", default="fp32", metavar="P", help="fp32, bf16 or fp16")
    measure.add_argument("--backend", default="torch", metavar="NAME", help="torch or jax (torch)")
    measure.add_argument(
        "--cache",
        metavar="T",
        help="dtype of cached rows: fp32, bf16, int8, int4 (that of --precision)",
    )
    measure.add_argument(
        "--threads", type=_count, default=1, metavar="N", help="threads of the processor (1)"
    )
    measure.add_argument(
        "--seconds",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="seconds that the whole call may take (60)",
    )
    measure.add_argument("--json", action="store_true", help="one JSON document")


def _add_cost(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`cost`: the model, the variants, the devices and the conditions."""
    cost = _command(
        commands, "cost", "least time, memory and price on named hardware, by data sheets"
    )
    cost.add_argument(
        "model",
        metavar="MODEL",
        help="a model or a task, such as gpt-1.2b; or a pretrained decoder: a folder of "
        "transformers, smollm2-135m, or a name on the Hub",
    )
    cost.add_argument(
        "--variants",
        nargs="+",
        default=["q,k,v", "q,k=v", "q,k,v/1", "q,k=v/1"],
        metavar="V",
        help="equations or names; the first is the baseline, a checkpoint's own before all (q,k,v "
        "q,k=v q,k,v/1 q,k=v/1)",
    )
    cost.add_argument(
        "--hardware",
        nargs="+",
        metavar="D",
        help="devices by name, or by file NAME.toml; 'qkvbench ls hardware' lists them (all, a "
        "line each)",
    )
    _position(cost)
    cost.add_argument(
        "--context", type=_count, metavar="N", help="tokens of a sequence (4096, or what fits)"
    )
    cost.add_argument("--batch", type=_count, default=1, metavar="N", help="sequences at once (1)")
    cost.add_argument(
        "--precision",
        metavar="P",
        help="of the arithmetic (the first of bf16, fp16 and fp32 that the device has)",
    )
    cost.add_argument(
        "--weights", metavar="T", help="dtype of stored weights: bf16, int8, int4 (--precision)"
    )
    cost.add_argument("--cache", metavar="T", help="dtype of cached rows (that of --weights)")
    cost.add_argument(
        "--price-per-hour", type=_dollars, metavar="X", help="dollars for an hour of the device"
    )
    cost.add_argument(
        "--power-price", type=_dollars, metavar="X", help="dollars for a kWh, added to the hour"
    )
    cost.add_argument("--json", action="store_true", help="one JSON document")


def _add_analyse(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`analyse`: the checkpoint and its numbers of heads."""
    analyse = _command(
        commands, "analyse", "what a checkpoint's weights suggest about sharing K and V"
    )
    analyse.add_argument(
        "files", nargs="+", metavar="FILE", help="a checkpoint's folder, or its .safetensors"
    )
    analyse.add_argument(
        "--heads", type=_count, metavar="N", help="query heads (by the checkpoint's config.json)"
    )
    analyse.add_argument(
        "--kv-heads", type=_count, metavar="N", help="key/value heads (by the shapes)"
    )
    analyse.add_argument("--json", action="store_true", help="one JSON document")


def _add_slim(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`slim`: the checkpoint and the context."""
    slim = _command(commands, "slim", "what of a checkpoint's cache can be left out without loss")
    slim.add_argument(
        "source",
        metavar="SRC",
        help="a folder that save_pretrained wrote, smollm2-135m, or a name on the Hub such as "
        "openai-community/gpt2",
    )
    slim.add_argument(
        "--context", type=_count, default=8192, metavar="N", help="tokens in the cache (8192)"
    )
    slim.add_argument("--json", action="store_true", help="one JSON document")


def _add_pretrained(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`advise` and `convert`: the checkpoint, the texts, and what is wanted."""
    advise = _command(commands, "advise", "which layers of a checkpoint to change, for a budget")
    _source(advise)
    budget = advise.add_mutually_exclusive_group(required=True)
    budget.add_argument("--cache", metavar="SHARE", help="size of the cache, such as 50%%")
    budget.add_argument("--params", metavar="SHARE", help="parameters of the model, such as 95%%")
    budget.add_argument(
        "--latency",
        metavar="SHARE@N",
        help="measured time of a step behind N tokens, such as 90%%@2048",
    )
    advise.add_argument("--text", type=_path, required=True, metavar="FILE", help="plain text")
    advise.add_argument(
        "--options",
        nargs="+",
        default=["q,k=v"],
        metavar="E",
        help="equations that a layer may get ('q,k=v')",
    )
    advise.add_argument(
        "--pairs", type=_count, default=8, metavar="N", help="pairs measured together (8)"
    )
    advise.add_argument(
        "--out", type=_path, default="plan.json", metavar="FILE", help="the plan (plan.json)"
    )
    convert = _command(
        commands, "convert", "a checkpoint with a smaller cache, measured before and after"
    )
    _source(convert)
    convert.add_argument(
        "--to",
        metavar="E",
        help="an equation such as 'q,k=v' or 'q,k=L(192),v=L(192)'; needed unless --layers is a "
        "plan",
    )
    convert.add_argument(
        "--layers", metavar="L", help="layers such as 0,3,5-9, or a plan of 'advise' (all)"
    )
    convert.add_argument(
        "--out", type=_path, required=True, metavar="DIR", help="folder of the new model"
    )
    convert.add_argument("--text", type=_path, metavar="FILE", help="plain text to fit and heal on")
    convert.add_argument(
        "--held-out", type=_path, metavar="FILE", help="plain text to measure on (end of --text)"
    )
    convert.add_argument(
        "--heal",
        nargs="+",
        metavar="K=V",
        help=f"train the changed layers (no training): {HEALING}",
    )
    convert.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory that a measured model may take, such as 2GB; a larger one is read by blocks",
    )
    convert.add_argument("--force", action="store_true", help="replace the folder if it is there")


def _add_prune(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`prune`: the model, the target, and how many rivals."""
    prune = _command(
        commands, "prune", "learn what each layer keeps, for a target, beside rivals (torch only)"
    )
    prune.add_argument(
        "task",
        metavar="TASK|FILE|CHECKPOINT",
        help="a task or a recipe, whose model is trained; FILE.json of a trained run, with "
        "FILE.safetensors; or a pretrained model, with --text",
    )
    prune.add_argument(
        "--target",
        required=True,
        metavar="T",
        help="cache=50%%, params=80%%, macs=80%%@8192 or latency=80%%@8192 of the model's own; "
        "loss=1%%, loss=1%%:latency@8192: the cheapest within that loss",
    )
    prune.add_argument(
        "--options",
        nargs="+",
        default=["q,k=v", "q,k,v/1"],
        metavar="E",
        help="what a layer may get beside q,k,v; none is no attention ('q,k=v' 'q,k,v/1')",
    )
    prune.add_argument(
        "--layers", type=_count, metavar="N", help="number of layers (the model's own)"
    )
    prune.add_argument(
        "--model",
        metavar="NAME",
        help="in place of the task's own; 'qkvbench ls models' lists them",
    )
    _position(prune)
    prune.add_argument("--seeds", type=_count, default=3, metavar="N", help="seeds (3)")
    prune.add_argument(
        "--draws", type=_count, default=3, metavar="N", help="random plans of each seed (3)"
    )
    prune.add_argument(
        "--pairs",
        type=_count,
        default=64,
        metavar="N",
        help="pairs of changes measured together, for the rival of that name (64)",
    )
    prune.add_argument(
        "--threads", type=_count, default=1, metavar="N", help="threads of each run (1)"
    )
    prune.add_argument(
        "--distill",
        action="store_true",
        help="every run after the first learns from the trained model's predictions, too",
    )
    prune.add_argument("--jobs", type=_count, metavar="N", help="parallel runs (one per core)")
    pretrained = prune.add_argument_group("a pretrained model")
    pretrained.add_argument(
        "--text", type=_path, metavar="FILE", help="text for the fit, the gates and healing"
    )
    _start(pretrained)
    pretrained.add_argument(
        "--steps",
        type=_count,
        metavar="N",
        help="steps in which the gates learn, of 256 tokens each (128)",
    )
    pretrained.add_argument(
        "--window", type=_count, default=WINDOW, metavar="N", help="tokens of a sequence (512)"
    )
    pretrained.add_argument(
        "--tokens", type=_count, default=4096, metavar="N", help="tokens of the fit (4096)"
    )
    pretrained.add_argument(
        "--held-out-tokens", type=_count, default=2048, metavar="N", help="tokens measured (2048)"
    )
    pretrained.add_argument(
        "--heal",
        nargs="+",
        default=[],
        metavar="K=V",
        help=f"heal every plan (no training): {HEALING}",
    )
    prune.add_argument(
        "--smoke", action="store_true", help="everything with very few steps: learns nothing"
    )
    prune.add_argument(
        "--out", type=_path, required=True, metavar="DIR", help="folder of the results"
    )
    prune.add_argument("--json", action="store_true", help="one JSON document")


def _add_export(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`export`: the model, the format and the file."""
    export = _command(commands, "export", "a decoder as one file that other programs run")
    export.add_argument(
        "model",
        metavar="MODEL",
        help="FILE.json of a trained model with FILE.safetensors beside it, as 'prune' writes; "
        "the folder of a Llama, Mistral, Qwen2 or Qwen3, plain or converted; smollm2-135m; or a "
        "model or task, with random weights",
    )
    export.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="onnx, torch-export (a .pt2 file), openvino, executorch, or edge (a file for "
        "--program)",
    )
    export.add_argument("--out", type=_path, required=True, metavar="FILE", help="the new file")
    export.add_argument("--variant", metavar="V", help="of an untrained model (q,k,v)")
    _position(export)
    export.add_argument(
        "--context", type=_count, metavar="N", help="the most tokens of a text (2048, or fewer)"
    )
    export.add_argument(
        "--weights",
        choices=["fp32", "int8", "int4"],
        default="fp32",
        help="dtype of the matrices; int8: onnx and edge alone; int4: edge alone (fp32)",
    )
    export.add_argument(
        "--text",
        type=_path,
        metavar="FILE",
        help="int4: plain text that shows which numbers matter; the loss is then much smaller",
    )
    export.add_argument(
        "--program",
        type=_path,
        metavar="FILE",
        help="edge: also build the program that runs the file, for this machine or that of $CXX",
    )
    export.add_argument("--force", action="store_true", help="replace the file if it is there")


def _start(parser: argparse._ActionsContainer) -> None:
    """The first weights of a changed layer."""
    parser.add_argument(
        "--start",
        default=START,
        metavar="NAME",
        help="the new weights: keep-k, keep-v, average, aligned, regressed, whitened or refitted "
        "(refitted); refitted:int8 and refitted:int4 for a cache that stores a tie's rows so",
    )


def _source(parser: _Parser) -> None:
    """The checkpoint, and how much text is read."""
    parser.add_argument(
        "source", metavar="SRC", help="a checkpoint's folder, smollm2-135m, or a name on the Hub"
    )
    _start(parser)
    parser.add_argument(
        "--tokens", type=_count, default=8192, metavar="N", help="tokens of the fit (8192)"
    )
    parser.add_argument(
        "--held-out-tokens", type=_count, default=2048, metavar="N", help="tokens measured (2048)"
    )
    parser.add_argument(
        "--window", type=_count, default=WINDOW, metavar="N", help="tokens of a sequence (512)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _add_readers(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """The commands that only read a folder of results."""
    report = _command(commands, "report", "print the answer of a study, and write its page")
    report.add_argument(
        "folders",
        nargs="+",
        type=_results,
        metavar="DIR",
        help="a folder of results of 'qkvbench run'; several that differ in budget or size, for "
        "how the gaps change; or folders of 'qkvbench prune'",
    )
    form = report.add_mutually_exclusive_group()
    form.add_argument(
        "--as", dest="report", metavar="NAME", help="one report: 'qkvbench ls reports' lists them"
    )
    form.add_argument("--full", action="store_true", help="every interval and finding in words")
    form.add_argument("--json", action="store_true", help="the same as --as summary")
    form.add_argument("--paper", metavar="FOLDER", help="figures and table for a paper, as files")
    _margin(report)
    report.add_argument(
        "--out",
        type=_path,
        metavar="FILE",
        help="file of the page (DIR/report.html), or of what --full, --json or --as print; of "
        "several folders of the figure, an SVG",
    )
    report.add_argument("--strict", action="store_true", help="exit 1 if a record is damaged")

    watch = _command(
        commands, "watch", "follow a study while it runs: the answer so far, the time left"
    )
    watch.add_argument(
        "folder", type=_results, metavar="DIR", help="a folder that 'qkvbench run' writes to"
    )
    watch.add_argument(
        "--every", type=_seconds, default=10.0, metavar="S", help="seconds between looks (10)"
    )
    watch.add_argument("--once", action="store_true", help="look once, and end")

    query = _command(commands, "query", "ask about the runs of one or more studies in SQL")
    query.add_argument(
        "words",
        nargs="+",
        metavar="DIR|SQL",
        help="folders of results, then the question; without one: the tables and their columns",
    )
    query.add_argument(
        "--format", choices=["table", "csv", "json"], default="table", help="of the rows (table)"
    )

    compare = _command(commands, "compare", "compare two arms of a study, task by task")
    _folder(compare)
    compare.add_argument("first", metavar="A", help="the arm to compare with")
    compare.add_argument("second", metavar="B", help="the arm that is compared with it")
    _margin(compare)
    compare.add_argument("--json", action="store_true", help="one JSON document")

    evidence = _command(commands, "evidence", "what all studies together show of one arm")
    evidence.add_argument("variant", metavar="ARM", help="an equation such as 'q,k=v', or a name")
    evidence.add_argument(
        "folders",
        nargs="*",
        metavar="DIR",
        help="folders of results (all in studies/ and results/)",
    )
    evidence.add_argument("--against", metavar="ARM", help="the baseline (q,k,v)")
    _margin(evidence)
    evidence.add_argument("--json", action="store_true", help="one JSON document")

    texts = _command(commands, "texts", "write generated texts as files for sacreBLEU")
    _folder(texts)
    texts.add_argument(
        "--out", type=_path, metavar="FOLDER", required=True, help="folder of the files"
    )

    plan = _command(commands, "plan", "how many seeds the next study needs")
    _folder(plan)
    _margin(plan)
    plan.add_argument("--json", action="store_true", help="one JSON document")


def _folder(parser: _Parser) -> None:
    parser.add_argument(
        "folder", type=_results, metavar="DIR", help="a folder of results of 'qkvbench run'"
    )


def _position(parser: _Parser) -> None:
    parser.add_argument(
        "--position",
        metavar="P",
        help="position scheme such as learned or rotary, in place of the model's own; "
        "'qkvbench ls positions' lists them",
    )


def _margin(parser: _Parser) -> None:
    parser.add_argument(
        "--margin",
        nargs="+",
        metavar="X",
        help="equivalence margin: X for every task, or TASK=X (by unit: 0.01, 0.02 bits)",
    )


def _add_claims(commands: "argparse._SubParsersAction[_Parser]") -> None:
    claims = _command(
        commands, "claims", "claims of the literature, each with a verdict from your runs"
    )
    claims.add_argument(
        "words",
        nargs="*",
        metavar="DIR|NAME",
        help="folders of results to judge by (no run is read without); or the name of a claim, "
        "which is printed at length",
    )
    claims.add_argument(
        "--source",
        metavar="S",
        help="article, or study (arXiv:2606.04032)",
    )
    claims.add_argument(
        "--verdict",
        metavar="V",
        help="impossible, refuted, supported, not-distinguishable, not-yet-run or "
        "not-testable-here",
    )
    form = claims.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document")
    form.add_argument("--out", type=_path, metavar="FILE", help="write the ledger as one HTML page")


def _add_atlas(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """`atlas`: a form or a model, and the form of the answer."""
    atlas = _command(
        commands, "atlas", "every attention in use as an equation, with costs and caches"
    )
    atlas.add_argument("name", nargs="?", metavar="NAME", help="a form, or a model of transformers")
    form = atlas.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document")
    form.add_argument("--out", type=_path, metavar="FILE", help="write all of it as Markdown")


def _command(commands: "argparse._SubParsersAction[_Parser]", name: str, about: str) -> _Parser:
    """A subcommand; the module of its name answers it and is imported only then."""
    parser = commands.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".", allow_abbrev=False
    )

    def answer(request: Request) -> int:
        module = importlib.import_module(f"qkvbench.cli.{name}")
        return cast(int, module.answer(request))

    parser.set_defaults(answer=answer, parser=parser)
    return parser


# Where `run` writes, and where studies are committed.
ROOTS = ("results", "studies")
# Of a count: no run has a longer one, and Python reads no number of thousands of digits.
MOST_DIGITS = 12


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > MOST_DIGITS or int(text) < 1:
        shown = text if len(text) <= MOST_DIGITS else f"{text[:MOST_DIGITS]}…"
        raise argparse.ArgumentTypeError(
            f"'{shown}' is not a whole number from 1, of at most {MOST_DIGITS} digits"
        )
    return int(text)


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a path is not empty; write '.' for this folder")
    return text


def _results(text: str) -> str:
    # Checked here, before a command and all that it needs are imported.
    if not Path(text).is_dir():
        near = next((f"{root}/{text}" for root in ROOTS if Path(root, text).is_dir()), None)
        way = f"did you mean {near}?" if near else "'qkvbench run' writes one"
        if "," in text:
            way = "the folder comes first, then the arms"
        raise argparse.ArgumentTypeError(f"{text} is not a folder of results; {way}")
    return text


def _seconds(text: str) -> float:
    return _number(text, "seconds")


def _dollars(text: str) -> float:
    return _number(text, "dollars")


def _number(text: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of {unit}")
    return value
