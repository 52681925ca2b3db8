"""Half a cache for models of transformers, with the same logits: the door, and the cache itself."""

import inspect
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from qkvbench.hub.key_only import (
    TOLERANCE,
    Condition,
    KeyOnly,
    KeyReader,
    check_known,
    conditions,
    key_only,
)
from qkvbench.hub.reading import NAME, Reader, register
from qkvbench.hub.rows import Heads, Rows
from qkvbench.hub.shared_root import RootReader, SharedRoot, shared_roots

# Where a model that is slim says how its layers are read.
_READ = "_qkvbench_slim"
# What a cache is called in a model's forward: newer versions of transformers, then older ones.
_NAMES = ("cache", "past_key_values")
# Layers that a refusal names; more would be no sentence.
SHOWN = 6


def slim(
    model: PreTrainedModel, *, layers: Sequence[int] | None = None, tolerance: float = TOLERANCE
) -> PreTrainedModel:
    """The same model, which from now on keeps one tensor where it kept K and V.

    Its logits are the same, up to rounding. `generate` and every forward pass without gradients
    then use a `SlimCache`. ``layers`` names those that keep K alone, where V is made of K; all by
    default. ValueError where it cannot be, or where a layer is beyond the `tolerance`: it then
    names such layers, and those that remain.
    """
    setattr(model, _READ, _found(model, layers, tolerance))
    register()
    _attend_with(model, NAME)
    setattr(model, "_prepare_cache_for_generation", MethodType(_prepare, model))  # noqa: B010
    model.register_forward_pre_hook(_bring_cache, with_kwargs=True)
    return model


class SlimCache(Cache):
    """A cache for a model of transformers that keeps one tensor where K is made of V, or V of K.

    It goes where the library's own goes, as ``past_key_values`` or ``cache``. With a model that is
    `slim` nothing is made whole; with any other attention implementation the missing tensor of one
    layer at a time is. ``reserve`` makes room for so many tokens at once; else it grows.
    """

    def __init__(self, model: PreTrainedModel, *, reserve: int = 0) -> None:
        """An empty cache for texts of this model."""
        found: Mapping[int, SharedRoot | KeyOnly] | None = getattr(model, _READ, None)
        found = _found(model, None, TOLERANCE) if found is None else found
        if stale := [how.layer for how in found.values() if isinstance(how, KeyOnly) and how.stale]:
            raise ValueError(
                f"The weights of layers {stale} have changed, or moved, since slim was called.\n"
                "Call slim(model) again."
            )
        config = model.config.get_text_config(decoder=True)
        layers = DynamicCache(config=config).layers
        for number, how in found.items():
            layers[number] = SlimLayer(how, config, reserve)
        super().__init__(layers=layers)

    @property
    def slim_layers(self) -> list["SlimLayer"]:
        """The layers that keep one tensor."""
        return [layer for layer in self.layers if isinstance(layer, SlimLayer)]

    @property
    def bytes(self) -> int:
        """The unique storage behind all rows and positions, unused room included."""
        others: list[Any] = [layer for layer in self.layers if not isinstance(layer, SlimLayer)]
        held = [tensor for layer in others for tensor in (layer.keys, layer.values)]
        return sum(layer.bytes for layer in self.slim_layers) + storage_bytes(held)


class SlimLayer(CacheLayerMixin):
    """One layer of a slim cache: its reader keeps the rows, and makes what is missing."""

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, how: SharedRoot | KeyOnly, config: Any, reserve: int = 0) -> None:
        """No rows yet."""
        super().__init__()
        self.config = config
        match how:
            case SharedRoot():
                self.reader: _KeepingReader = RootReader(how, reserve)
            case KeyOnly():
                self.reader = KeyReader(how, reserve)

    @property
    def bytes(self) -> int:
        """What its rows take, unused room included."""
        return sum(rows.bytes for rows in self.reader.rows)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: rows are made when the first come."""

    def update(
        self, key_states: Heads, value_states: Heads, *args: Any, **kwargs: Any
    ) -> tuple[Heads, Heads]:
        """Keep the new rows; all K and V, where a stand-in is what the reader makes while read."""
        if key_states.requires_grad or value_states.requires_grad:
            raise ValueError(
                "A slim cache keeps rows without their gradients.\n"
                "Run the model under torch.no_grad(), or train it without a cache."
            )
        more = kwargs.get("kwargs") or next((a for a in args if isinstance(a, dict)), kwargs)
        alone = self.reader.append(key_states, value_states, more.get("position_ids"))
        self.is_initialized = True
        if alone is not None:
            return alone
        if self.config._attn_implementation == NAME:
            return self.reader.handed()
        return self.reader.whole()

    def get_seq_length(self) -> int:
        """How many tokens are kept."""
        return self.reader.rows[0].length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many slots a mask is for, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """There is no limit; the name in older versions of the library."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: so many for a negative number, down to so many for another."""
        before = self.get_seq_length()
        after = tokens_to_remove if tokens_to_remove > 0 else before + tokens_to_remove
        for rows in self.reader.rows:
            rows.crop(before - min(after, before))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Each sequence goes on as the one that stands here for it."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these sequences alone."""
        for rows in self.reader.rows:
            rows.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Have every sequence there so many times, side by side."""
        for rows in self.reader.rows:
            rows.repeat(repeats)

    def reset(self) -> None:
        """Forget everything."""
        self.is_initialized = False
        for rows in self.reader.rows:
            rows.clear()

    def offload(self) -> None:
        """Refuse: rows lie where the model is."""
        raise NotImplementedError("A slim cache stays on its device: pass no offloading cache.")


class _KeepingReader(Reader, Protocol):
    """A reader with the rows that it reads."""

    @property
    def rows(self) -> tuple[Rows, ...]: ...

    def append(
        self, key: Heads, value: Heads, position_ids: Tensor | None
    ) -> tuple[Heads, Heads] | None: ...

    def handed(self) -> tuple[Heads, Heads]: ...


def storage_bytes(tensors: Sequence[Tensor | None]) -> int:
    """The unique storage behind these tensors."""
    found = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def _found(
    model: PreTrainedModel, layers: Sequence[int] | None, tolerance: float
) -> Mapping[int, SharedRoot | KeyOnly]:
    """How each layer that keeps one tensor makes the other; ValueError where none can."""
    roots = shared_roots(model)
    if roots:
        return {n: how for n, how in roots.items() if layers is None or n in layers}
    check_known(model)
    known = conditions(model, tolerance)
    wanted = [one for one in known if layers is None or one.layer in layers]
    if refused := [one for one in wanted if not one.fits]:
        raise ValueError(_refusal(model, known, refused))
    return key_only(model, tuple(one.layer for one in wanted))


def _refusal(
    model: PreTrainedModel, known: Sequence[Condition], refused: Sequence[Condition]
) -> str:
    """Which layers cannot be slim, why, and what to write instead."""
    named = ", ".join(f"{one.layer} ({one.number:.2g})" for one in refused[:SHOWN])
    more = f" and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
    fitting = [one.layer for one in known if one.fits]
    kind, worst = refused[0], max(one.loss for one in refused)
    instead = (
        f"Write slim(model, layers={fitting}), and the others keep both."
        if fitting
        else "Load the model in a wider type (dtype=torch.float32), or use the library's own cache."
    )
    return (
        f"In {type(model).__name__} V cannot be made of K closely enough in layers (with the "
        f"condition number of W_K) {named}{more}.\n"
        f"In {str(model.dtype).removeprefix('torch.')} V could be off by {worst:.2g} of its size; "
        f"the tolerance is {kind.tolerance:g}.\n{instead}"
    )


def _attend_with(model: PreTrainedModel, name: str) -> None:
    """Have the part of the model that writes text attend by this implementation."""
    config = model.config
    text = config.get_text_config(decoder=True)
    parts = [key for key in config.sub_configs if getattr(config, key, None) is text]
    model.set_attn_implementation(dict.fromkeys(parts, name) if parts else name)


def _prepare(
    model: PreTrainedModel, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any
) -> None:
    """What `generate` calls for its cache: a slim one, unless another was given."""
    given = any(model_kwargs.get(name) is not None for name in _NAMES)
    if given or generation_config.use_cache is False:
        library: Any = type(model)
        library._prepare_cache_for_generation(model, generation_config, model_kwargs, *rest)
        return
    asked = getattr(generation_config, "cache_implementation", None)
    if asked not in (None, "dynamic"):
        raise ValueError(
            f"This model is slim, and a {asked} cache keeps both K and V.\n"
            "Leave out cache_implementation: a slim cache grows as tokens come. For room that is "
            "made at once pass past_key_values=SlimCache(model, reserve=N)."
        )
    cache = SlimCache(model)
    if getattr(generation_config, "is_assistant", False):
        cache.activate_past_recording()
    model_kwargs[_name(model)] = cache


def _bring_cache(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before each forward pass: a slim cache, where the library would make its own."""
    names = list(inspect.signature(model.forward).parameters)
    given = {*names[: len(args)], *(key for key, value in kwargs.items() if value is not None)}
    wanted = kwargs.get("use_cache")
    if wanted is None:
        wanted = model.config.get_text_config(decoder=True).use_cache
    if torch.is_grad_enabled() or not wanted or given.intersection(_NAMES):
        return None
    return args, {**kwargs, _name(model): SlimCache(model)}


def _name(model: nn.Module) -> str:
    """What this model's forward pass calls its cache."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in _NAMES if name in known), _NAMES[-1])
