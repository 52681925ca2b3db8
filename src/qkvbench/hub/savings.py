"""The bytes that a slim cache saves of a checkpoint, from its settings and few of its weights.

The model is built on the meta device, so it takes no memory, and both caches are filled by its own
code: the sizes are those of the tensors that the two caches would hold. Of the weights only W_K is
read, and only if V could be made from K.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, DynamicCache, EncoderDecoderCache, PreTrainedModel

from qkvbench.hub.checkpoint_files import CheckpointFiles
from qkvbench.hub.families import LINEAR
from qkvbench.hub.key_only import TOLERANCE, Condition, condition_of, is_square
from qkvbench.hub.linear_attention import linear_attentions, weights_of
from qkvbench.hub.refusals import reason_of
from qkvbench.hub.safety import UnsafeFolderError, printable
from qkvbench.hub.shared_root import KeyFromRoot
from qkvbench.hub.slim_cache import Recipe, new_cache, recipes_of, slim, storage_bytes

# Tokens whose bytes are the growth of a cache.
_STEP = 16


@dataclass(frozen=True)
class Part:
    """One kind of attention of a model and the bytes of its caches, for so many tokens."""

    name: str
    layers: int
    tokens: int
    library: str
    enough: str
    exactness: str
    library_bytes_per_token: float
    slim_bytes_per_token: float
    library_bytes: int
    slim_bytes: int


@dataclass(frozen=True)
class Savings:
    """The answer for one checkpoint; ``reason`` if a layer keeps both tensors."""

    source: str
    model: str
    dtype: str
    layers: tuple[int, ...] | None
    conditions: tuple[Condition, ...]
    parts: tuple[Part, ...]
    reason: str | None
    code: tuple[str, ...]

    @property
    def library_bytes(self) -> int:
        """The bytes of the library's cache at the context."""
        return sum(part.library_bytes for part in self.parts)

    @property
    def slim_bytes(self) -> int:
        """The bytes of the slim cache at the context."""
        return sum(part.slim_bytes for part in self.parts)


def savings(source: str, *, context: int, tolerance: float = TOLERANCE) -> Savings:
    """The bytes that a slim cache saves of a checkpoint: a folder, a packaged model, a Hub name.

    ValueError if it cannot be read, if it is not safe, or if transformers does not know it.
    """
    files = CheckpointFiles(source)
    model = _empty_model(files.settings, files.folder)
    dtype = str(model.dtype).removeprefix("torch.")
    name, code = type(model).__name__, _code(source, files, model)
    conditions = _conditions(model, files, tolerance)
    fitting = tuple(one.layer for one in conditions if one.fits)
    layers = None if len(fitting) == len(conditions) else fitting
    before = _sizes(model, context, _library_cache)
    try:
        slim(model, layers=layers)
    except ValueError:
        reason = _inexact(conditions, dtype) or reason_of(model)
        parts = tuple(_part(each, None, None, ()) for each in before)
        return Savings(source, name, dtype, None, conditions, parts, reason, ())
    after = _sizes(model, context, new_cache)
    recipes = recipes_of(model)
    exactness = tuple(recipes.own.values()), conditions
    parts = tuple(_part(one, other, *exactness) for one, other in zip(before, after, strict=True))
    words = "" if layers is None else f", layers={list(layers)}"
    lines = (*code[:-1], f"model = hub.slim({code[-1]}{words})")
    reason = _inexact(conditions, dtype) if layers is not None else None
    return Savings(source, name, dtype, layers, conditions, parts, reason, lines)


def _empty_model(settings: Mapping[str, Any], folder: Path) -> PreTrainedModel:
    """The model without weights."""
    kind = str(settings.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        raise UnsafeFolderError(
            f"transformers {transformers.__version__} has no model of type {printable(kind)}; code "
            "of a checkpoint is not run.\nA slim cache is for its own classes."
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Otherwise the library looks for padding among tokens that have no values here.
    for each in (config, config.get_text_config(decoder=True)):
        each.pad_token_id = None
    named = settings.get("architectures") or [""]
    library: Any = getattr(transformers, str(named[0]), None)
    if not (isinstance(library, type) and issubclass(library, PreTrainedModel)):
        auto: Any = (
            transformers.AutoModelForSeq2SeqLM
            if config.is_encoder_decoder
            else transformers.AutoModelForCausalLM
        )
        if type(config) not in auto._model_mapping:
            auto = transformers.AutoModel
        library = auto._model_mapping[type(config)]
    with torch.device("meta"), _quiet():
        return library._from_config(config, dtype=config.dtype or torch.float32).eval()


def _conditions(
    model: PreTrainedModel, files: CheckpointFiles, tolerance: float
) -> tuple[Condition, ...]:
    """How well V can be made from K in each layer, from its W_K; none if that is not asked."""
    layers = [(n, part) for n, part in linear_attentions(model) if is_square(part)]
    names = {part: name for name, part in model.named_modules()}
    if torch.finfo(model.dtype).eps > tolerance:
        # No condition number is below 1.
        eps = torch.finfo(model.dtype).eps
        return tuple(Condition(number, math.nan, eps, tolerance) for number, _ in layers)
    wanted, projections = {}, {}
    for number, part in layers:
        row = LINEAR[type(part).__name__].names
        projection = row if isinstance(row, str) else row["k"]
        name = f"{names[part]}.{projection}.weight"
        wanted[name], projections[name] = name, (number, part, part.get_submodule(projection))
    found: dict[int, Condition] = {}
    for name, tensor in files.tensors(wanted) if wanted else ():
        number, part, projection = projections[name]
        empty = projection.weight
        projection.weight = nn.Parameter(tensor.to(empty.dtype), requires_grad=False)
        found[number] = condition_of(number, weights_of(part).key, tolerance)
        projection.weight = empty
    if missing := [number for number, _ in layers if number not in found]:
        raise UnsafeFolderError(
            f"The weights of layer {missing[0]} are not in the checkpoint under the names of "
            f"{type(model).__name__}.\nLoad it and save it again with save_pretrained."
        )
    return tuple(found[number] for number, _ in layers)


@dataclass(frozen=True)
class _Size:
    """The bytes of one part of a cache."""

    name: str
    layers: int
    tokens: int
    bytes: int
    bytes_per_token: float


@torch.no_grad()
def _sizes(
    model: PreTrainedModel, context: int, cache_of: Callable[[PreTrainedModel], Any]
) -> list[_Size]:
    """The bytes of each part of a cache at a context, and of one more token."""
    longest = _longest(model)
    if context <= _STEP:
        raise ValueError(
            f"A context of {context} is too short: sizes are computed from {_STEP + 1} tokens on."
        )
    tokens = min(context, longest)
    sizes = []
    if not model.config.is_encoder_decoder:
        full, less = (_filled(model, cache_of, n) for n in (tokens, tokens - _STEP))
        growth = (_bytes(full) - _bytes(less)) / _STEP
        return [_Size("self-attention", len(full.layers), tokens, _bytes(full), growth)]
    read = min(context, getattr(model.config, "max_source_positions", longest))
    full = _filled(model, cache_of, tokens, read)
    less = _filled(model, cache_of, tokens - _STEP, read - _STEP)
    for name, count in (("self_attention", tokens), ("cross_attention", read)):
        one, other = (getattr(cache, f"{name}_cache") for cache in (full, less))
        growth = (_bytes(one) - _bytes(other)) / _STEP
        text = name.replace("_", "-")
        sizes.append(_Size(text, len(one.layers), count, _bytes(one), growth))
    return sizes


def _filled(
    model: PreTrainedModel,
    cache_of: Callable[[PreTrainedModel], Any],
    tokens: int,
    read: int | None = None,
) -> Any:
    """A cache of so many tokens, filled by the model's own code on the meta device."""
    cache = cache_of(model)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    options: dict[str, Any] = {"use_cache": True, "cache": cache}
    try:
        with torch.device("meta"), _quiet():
            if read is None:
                model(input_ids=ids, **options)
            else:
                width = model.config.d_model
                states = torch.zeros(1, read, width, dtype=model.dtype, device="meta")
                decoder: Any = model.get_decoder()
                # Of the shape that the library uses as it is.
                mask = torch.zeros(1, 1, tokens, tokens, dtype=model.dtype, device="meta")
                decoder(ids, attention_mask=mask, encoder_hidden_states=states, **options)
    except (RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"The cache of {type(model).__name__} cannot be computed without its weights: "
            f"{printable(error)}\nIn Python: hub.slim(model) says whether it can be slim."
        ) from None
    return cache


def _longest(model: PreTrainedModel) -> int:
    """The most tokens that the model has positions for."""
    config = model.config.get_text_config(decoder=True)
    names = ("max_target_positions", "max_position_embeddings", "n_positions")
    found = [value for name in names if isinstance(value := getattr(config, name, None), int)]
    relative = config.model_type in ("t5", "mt5", "bloom", "mpt")
    return 10**9 if relative or not found else max(found[0], 2 * _STEP)


def _library_cache(model: PreTrainedModel) -> Any:
    """The library's own cache."""
    config = model.config.get_text_config(decoder=True)
    if not model.config.is_encoder_decoder:
        return DynamicCache(config=config)
    return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))


def _bytes(cache: Any) -> int:
    """The unique storage of all tensors of a cache."""
    if hasattr(cache, "bytes"):
        return cache.bytes
    return storage_bytes([t for layer in cache.layers for t in (layer.keys, layer.values)])


def _part(
    before: _Size,
    after: _Size | None,
    own: tuple[Recipe, ...] | None,
    conditions: tuple[Condition, ...],
) -> Part:
    """One row of the table; without `after` nothing is saved."""
    after = after or before
    enough, exactness = "K and V", "to the bit"
    if before.bytes != after.bytes:
        enough, exactness = _enough(before.name, own or (), conditions)
    return Part(
        before.name,
        before.layers,
        before.tokens,
        "K and V",
        enough,
        exactness,
        before.bytes_per_token,
        after.bytes_per_token,
        before.bytes,
        after.bytes,
    )


def _enough(
    name: str, own: tuple[Recipe, ...], conditions: tuple[Condition, ...]
) -> tuple[str, str]:
    """The tensors that are enough, and how exact the others are."""
    if name == "cross-attention":
        return "the encoder's output, once", "sums in another order"
    if conditions:
        worst = max(one.error_bound for one in conditions if one.fits)
        return "K alone", f"V within {worst:.1g} of its size"
    if isinstance(own[0], KeyFromRoot):
        return "V and positions", "K to a rounding of the dtype"
    copies = getattr(own[0], "copies", 1)
    return f"one of {copies} copies of each head", "to the bit"


def _inexact(conditions: tuple[Condition, ...], dtype: str) -> str | None:
    """Why layers keep both because V cannot be made from K; None if all can."""
    refused = [one for one in conditions if not one.fits]
    if not refused:
        return None
    worst = max(refused, key=lambda one: one.error_bound)
    numbers = "" if math.isnan(worst.number) else f" (condition number of W_K {worst.number:.2g})"
    text = (
        f"in {len(refused)} of {len(conditions)} layers V made from K could be off by "
        f"{worst.error_bound:.1g} of its size in {dtype}{numbers}; {worst.tolerance:g} is allowed"
    )
    if math.isnan(worst.number):
        text += ". In float32 K alone takes as many bytes as K and V in 16 bits"
    return text


def _code(source: str, files: CheckpointFiles, model: PreTrainedModel) -> tuple[str, ...]:
    """The lines of Python that load the model; the last is an expression."""
    autos = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")
    kind = type(model.config)
    auto = next(
        (
            name
            for name in autos
            if kind in (mapping := getattr(transformers, name)._model_mapping)
            and type(model).__name__ == mapping[kind].__name__
        ),
        "AutoModel",
    )
    if files.repository is None:
        more = "" if auto == "AutoModelForCausalLM" else f', auto="{auto}"'
        return ("from qkvbench import hub", f"hub.load({str(source)!r}{more})")
    return (
        "import transformers; from qkvbench import hub",
        f"transformers.{auto}.from_pretrained({source!r}, use_safetensors=True)",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings, which are about models with weights."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
