"""`qkvbench export`: a decoder as one file that other programs run."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qkvbench import export
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost import CACHE_FORMATS, cache_bytes_per_token
from qkvbench.cost.units import bytes_text
from qkvbench.experiment import from_json
from qkvbench.model import Model
from qkvbench.native.build import BuildError
from qkvbench.native.program import build_program

if TYPE_CHECKING:
    from qkvbench.backends.torch import Decoder

DEFAULT_CONTEXT = 2048


def answer(request: Request) -> int:
    """Write the file, and print what it holds and how it is called."""
    out = Path(request.out)
    form = export.find(_known_format(request.to))
    if (reason := form.missing_requirement()) is not None:
        raise RequestError(f"{reason}\nNothing was written.")
    if out.suffix != form.SUFFIX:
        raise RequestError(
            f"A program of {request.to} is a file *{form.SUFFIX}; write "
            f"--out {out.stem}{form.SUFFIX}."
        )
    program = Path(request.program) if request.program else None
    if program and request.to != "edge":
        raise RequestError(f"--program goes with --to edge; {request.to} needs none of ours.")
    for option, path in (("--out", out), ("--program", program)):
        if path:
            _check_place(option, path, force=request.force)
    model, weights = _source(request)
    context = request.context or min(DEFAULT_CONTEXT, model.longest or DEFAULT_CONTEXT)
    if not model.causal:
        raise RequestError(
            f"{model.name} is no decoder of one input; only such models are exported."
        )

    from qkvbench.export.stepping import Stepping

    unfinished = out.with_name(f".{out.name}.unfinished")
    print(f"Writing {model.label} for texts of {context:,} tokens ...", file=sys.stderr)
    try:
        stepping = Stepping(_network(model, weights), context)
        options = export.Options(cast(export.WeightDtype, request.weights))
        form.write(stepping, unfinished, options)
        unfinished.replace(out)
    except (ValueError, export.ExportError) as error:
        raise RequestError(f"{error}\nNothing was written.") from None
    finally:
        unfinished.unlink(missing_ok=True)
    _report(out, model, request, context)
    if program:
        _build(program, out)
    return 0


def _check_place(option: str, path: Path, *, force: bool) -> None:
    """Refuse to replace a file unasked, and a folder that does not exist."""
    if path.exists() and not force:
        raise RequestError(
            f"{path} is there already; write --force to replace it, or another {option}."
        )
    if not path.parent.is_dir():
        raise RequestError(f"The folder {path.parent} does not exist; make it first.")


def _build(program: Path, out: Path) -> None:
    print("Building the program, which takes minutes the first time ...", file=sys.stderr)
    try:
        machine = build_program(program)
    except BuildError as error:
        raise RequestError(
            f"{out} is written, but not the program: {error}.\n"
            "$CXX names another compiler; 'pip install ziglang' brings one."
        ) from None
    print(
        f"{program}: the program, for {machine}, {bytes_text(program.stat().st_size)}. "
        f"Run {program} {out} --prompt TEXT, or --help."
    )


def _known_format(name: str) -> str:
    found = export.names()
    if name not in found:
        raise RequestError(f"There is no format '{name[:40]}'; there are {', '.join(found)}.")
    return name


def _source(request: Request) -> tuple[Model, Path | None]:
    """The model, and the file of its weights; None if it is untrained."""
    source = Path(request.model)
    if source.suffix == ".json":
        if request.variant is not None:
            raise RequestError(f"{source} has its variant already; leave out --variant.")
        weights = source.with_suffix(".safetensors")
        for path in (source, weights):
            if not path.is_file():
                raise RequestError(
                    f"{path} is not a file. An experiment FILE.json has its weights in "
                    "FILE.safetensors beside it, as 'prune' writes them."
                )
        try:
            return from_json(json.loads(source.read_text(encoding="utf-8"))).model, weights
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{source} is not an experiment: {error}") from None
    base = names.with_position(names.model_or_task(request.model), request.position)
    return names.with_variant(base, names.cycle(request.variant or "q,k,v")), None


def _network(model: Model, weights: Path | None) -> "Decoder":
    from qkvbench.backends import torch as backend

    network = backend.build(model)
    assert isinstance(network, backend.Decoder)
    if weights is None:
        backend.start(network, model, 0)
    else:
        backend.load(network, backend.read(weights))
    return network


def _report(out: Path, model: Model, request: Request, context: int) -> None:
    row = cache_bytes_per_token(model, CACHE_FORMATS["fp32"]) or 0
    whole = cache_bytes_per_token(
        replace(model).with_variant(names.variant("q,k,v")), CACHE_FORMATS["fp32"]
    )
    share = f", {row / whole:.0%} of q,k,v" if whole else ""
    untrained = "" if request.model.endswith(".json") else " Its weights are untrained."
    print(
        f"{out}: {model.label}, {bytes_text(out.stat().st_size)}.{untrained}\n"
        f"Its cache is an input and an output: {bytes_text(row)} a token in fp32{share}; at most "
        f"{context:,} tokens."
    )
