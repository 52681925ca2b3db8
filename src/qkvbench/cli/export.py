"""`qkvbench export`: a decoder as one file that other programs run."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from qkvbench import export
from qkvbench.cli import names
from qkvbench.cli.convert import read_text
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost import CACHE_FORMATS, cache_bytes_per_token
from qkvbench.cost.units import bytes_text
from qkvbench.data import DataUnavailableError
from qkvbench.data.checkpoints import PACKAGED
from qkvbench.experiment import from_json
from qkvbench.model import Model
from qkvbench.native.build import BuildError
from qkvbench.native.program import build_program

if TYPE_CHECKING:
    from torch import Tensor

    from qkvbench.backends.torch import Decoder

DEFAULT_CONTEXT = 2048
# What is read of a --text: enough for the mean squares of some thousand inputs.
WINDOWS, WINDOW = 8, 512


def answer(request: Request) -> int:
    """Write the file, and print what it holds and how it is called."""
    out, name = Path(request.out), names.known("format", request.to, export.names())
    if request.weights == "int4" and name != "edge":
        raise RequestError(f"{name} has no weights in int4; --to edge has.")
    if request.text and request.weights != "int4":
        raise RequestError("--text fits weights in int4; add --weights int4, or leave it out.")
    form = export.find(name)
    if (reason := form.missing_requirement()) is not None:
        raise RequestError(f"{reason}\nNothing was written.")
    program = Path(request.program) if request.program else None
    _check_places(request, form, out, program)
    source = _source(request)
    model = source.model
    context = request.context or min(DEFAULT_CONTEXT, model.longest or DEFAULT_CONTEXT)
    if not model.causal:
        raise RequestError(
            f"{model.name} is no decoder of one input; only such models are exported."
        )
    print(f"Writing {model.label} for texts of {context:,} tokens ...", file=sys.stderr)
    text = source.tokens(request.text, context) if request.text else None
    options = export.Options(cast(export.WeightDtype, request.weights), text)
    _write(form, options, out, source, context)
    size = sum(out.with_suffix(each).stat().st_size for each in form.SUFFIXES)
    _report(out, size, source, context)
    if program:
        _build(program, out)
    return 0


def _check_places(request: Request, form: export.Format, out: Path, program: Path | None) -> None:
    """Refuse names that do not fit, and to replace what is there unasked."""
    suffix = form.SUFFIXES[0]
    if out.suffix != suffix:
        raise RequestError(
            f"A program of {request.to} is a file *{suffix}; write --out {out.stem}{suffix}."
        )
    if program and request.to != "edge":
        raise RequestError(f"--program goes with --to edge; {request.to} needs none of ours.")
    if program and program.resolve() == out.resolve():
        raise RequestError("--out and --program are the same file; give the program another name.")
    read = _files_read(request)
    for path in map(out.with_suffix, form.SUFFIXES):
        _check_place("--out", path, read, force=request.force)
    if program:
        _check_place("--program", program, read, force=request.force)


def _files_read(request: Request) -> list[Path]:
    """The files that the export reads, which it must not replace."""
    path = Path(request.model)
    own = [*path.iterdir()] if path.is_dir() else [path, path.with_suffix(".safetensors")]
    return [each for each in (*own, Path(request.text or path)) if each.is_file()]


def _write(
    form: export.Format, options: export.Options, out: Path, source: "_Source", context: int
) -> None:
    """Write beside the place, so that nothing unfinished has the file's name."""
    from qkvbench.export.stepping import Stepping

    try:
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as unfinished:
            whole = Path(unfinished) / out.name
            form.write(Stepping(source.network(), context), whole, options)
            # The file that is named comes last: if it is there, all is.
            for each in reversed(form.SUFFIXES):
                written = whole.with_suffix(each)
                # A library may have made it for its owner alone.
                written.chmod(0o666 & ~_umask())
                written.replace(out.with_suffix(each))
    except (ValueError, MemoryError, export.ExportError) as error:
        raise RequestError(f"{error}\nNothing was written.") from None
    except OSError as error:
        raise RequestError(f"{out} cannot be written: {error.strerror}.") from None


def _umask() -> int:
    """The permissions that new files lack: it can be read only by setting it."""
    before = os.umask(0o22)
    os.umask(before)
    return before


def _check_place(option: str, path: Path, read: Sequence[Path], *, force: bool) -> None:
    """Refuse to replace a file unasked, one that is `read`, and a folder; and to make a folder."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder; give {option} the name of a file.")
    if path.exists() and any(path.samefile(each) for each in read):
        raise RequestError(f"{path} is read for the export; give {option} another name.")
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
    except OSError as error:
        raise RequestError(
            f"{out} is written, but not the program: {program} cannot be written: {error.strerror}."
        ) from None
    print(
        f"{program}: the program, for {machine}, {bytes_text(program.stat().st_size)}; "
        "its --help says how it is called."
    )


@dataclass(frozen=True)
class _Source:
    """A model and how it is built; `trained`: it does not begin with random weights.

    `read` makes windows of tokens of a text, (windows, time), at most so many tokens long.
    """

    model: Model
    network: "Callable[[], Decoder]"
    trained: bool = True
    read: "Callable[[str, int], Tensor] | None" = None

    def tokens(self, file: str, context: int) -> "Tensor":
        """The windows of a file; RequestError if it has none."""
        vocabulary = getattr(self.model.architecture, "vocabulary", None)
        if self.read is None and vocabulary != export.BYTES:
            raise RequestError(
                f"{self.model.name} reads neither bytes nor a checkpoint's tokens, so no text "
                "shows what it reads; leave out --text."
            )
        try:
            return (self.read or _bytes)(read_text(file) or "", min(WINDOW, context))
        except ValueError as error:
            # Its second line names an option of another command.
            raise RequestError(f"{str(error).splitlines()[0]}\nGive a longer --text.") from None


def _source(request: Request) -> _Source:
    """The model that is asked for: a checkpoint, an experiment with its weights, or a name."""
    path = Path(request.model)
    folder = path.is_dir() or request.model in PACKAGED
    if (folder or path.suffix == ".json") and (request.variant or request.position):
        raise RequestError(
            f"{path} has its variant and positions already; leave out --variant and --position."
        )
    if folder:
        return _checkpoint(request.model)
    if path.suffix == ".json":
        return _experiment(path)
    base = names.with_position(names.model_or_task(request.model), request.position)
    model = names.with_variant(base, names.cycle(request.variant or "q,k,v"))
    return _Source(model, partial(_network, model, None), trained=False)


def _checkpoint(name: str) -> _Source:
    """A decoder of transformers."""
    try:
        from qkvbench.export import checkpoint
        from qkvbench.hub.fit.quality import windows
        from qkvbench.hub.fit.source import packaged_folder, read_tokenizer

        folder = packaged_folder(name) if name in PACKAGED else Path(name)
        network = checkpoint.read(folder)
    except (DataUnavailableError, ValueError) as error:
        raise RequestError(f"{error}\nNothing was written.") from None
    except ImportError:
        raise RequestError(
            "Pretrained models need transformers, which is not installed: ./qkv setup hf"
        ) from None

    def read(text: str, length: int) -> "Tensor":
        try:
            tokenizer = read_tokenizer(name, folder)
        except ValueError as error:
            raise RequestError(f"{error}\nNothing was written.") from None
        return windows(tokenizer, text, length, WINDOWS)

    return _Source(network.model, lambda: network, read=read)


def _bytes(text: str, length: int) -> "Tensor":
    import torch

    found = torch.tensor(list(text.encode()[: length * WINDOWS]))
    if len(found) < length:
        raise ValueError(f"The text has {len(found)} bytes; at least {length} are needed.")
    return found[: len(found) // length * length].view(-1, length)


def _experiment(path: Path) -> _Source:
    """A model that was trained here, as `prune` writes it."""
    weights = path.with_suffix(".safetensors")
    for each in (path, weights):
        if not each.is_file():
            raise RequestError(
                f"{each} is not a file. An experiment FILE.json has its weights in "
                "FILE.safetensors beside it, as 'prune' writes them."
            )
    try:
        model = from_json(json.loads(path.read_text(encoding="utf-8"))).model
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is not an experiment: {error}") from None
    return _Source(model, partial(_network, model, weights))


def _network(model: Model, weights: Path | None) -> "Decoder":
    from qkvbench.backends import torch as backend

    network = backend.build(model)
    assert isinstance(network, backend.Decoder)
    if weights is None:
        backend.start(network, model, 0)
    else:
        backend.load(network, backend.read(weights))
    return network


def _report(out: Path, size: int, source: _Source, context: int) -> None:
    model = source.model
    row = cache_bytes_per_token(model, CACHE_FORMATS["fp32"]) or 0
    whole = cache_bytes_per_token(
        replace(model).with_variant(names.variant("q,k,v")), CACHE_FORMATS["fp32"]
    )
    share = f", {row / whole:.0%} of q,k,v" if whole else ""
    untrained = "" if source.trained else " Its weights are untrained."
    print(
        f"{out}: {model.label}, {bytes_text(size)}.{untrained}\n"
        f"It caches {bytes_text(row)} a token in fp32{share}; at most {context:,} tokens."
    )
