"""Slim caches for models of transformers: about half the bytes, the same logits."""

import inspect
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from qkvbench.hub.growing_tensor import Heads
from qkvbench.hub.key_only import (
    TOLERANCE,
    Condition,
    KeyOnlyReader,
    ValueFromKey,
    check_known,
    conditions,
    values_from_keys,
)
from qkvbench.hub.shared_root import KeyFromRoot, SharedRootReader, keys_from_roots
from qkvbench.hub.slim_attention import IMPLEMENTATION, Reader, register_attention

# For each slim layer, how the tensor that is not cached is made from the one that is.
Recipes = Mapping[int, KeyFromRoot | ValueFromKey]
# The attribute of a slim model that holds its recipes.
_RECIPES = "_qkvbench_slim"
# The argument names of a cache in a model's forward: newer versions of transformers, then older.
_CACHE_NAMES = ("cache", "past_key_values")
# Layers that an error message names.
MAX_NAMED_LAYERS = 6
# Rows of the first tokens whose recomputed K and V are compared with the layer's own.
CHECKED_ROWS = 2


def slim(
    model: PreTrainedModel, *, layers: Sequence[int] | None = None, tolerance: float = TOLERANCE
) -> PreTrainedModel:
    """The same model, which from now on caches one tensor in place of K and V.

    Its logits are the same up to rounding. `generate`, and every forward pass without gradients,
    then uses a `SlimCache`. ``layers`` are those that become slim; all by default. ValueError if
    none can be, or if V made from K could be off by more than `tolerance` in one of them: the
    message names these layers and those that remain.
    """
    setattr(model, _RECIPES, _recipes(model, layers, tolerance))
    register_attention()
    _set_attention(model, IMPLEMENTATION)
    setattr(model, "_prepare_cache_for_generation", MethodType(_prepare, model))  # noqa: B010
    model.register_forward_pre_hook(_add_cache, with_kwargs=True)
    return model


class SlimCache(Cache):
    """A cache for a model of transformers that keeps one tensor if the other can be made from it.

    It takes the place of the library's own, as ``past_key_values`` or ``cache``. In a `slim` model
    the missing tensor is never materialized; with any other attention implementation it is, for
    one layer at a time. ``reserve`` allocates room for so many tokens at once.
    """

    def __init__(self, model: PreTrainedModel, *, reserve: int = 0) -> None:
        """An empty cache for sequences of this model."""
        recipes: Recipes | None = getattr(model, _RECIPES, None)
        recipes = _recipes(model, None, TOLERANCE) if recipes is None else recipes
        config = model.config.get_text_config(decoder=True)
        layers = DynamicCache(config=config).layers
        for number, recipe in recipes.items():
            layers[number] = SlimLayer(recipe, config, reserve)
        super().__init__(layers=layers)

    @property
    def slim_layers(self) -> list["SlimLayer"]:
        """The layers that keep one tensor."""
        return [layer for layer in self.layers if isinstance(layer, SlimLayer)]

    @property
    def bytes(self) -> int:
        """The unique storage of all rows and positions, unused room included."""
        others: list[Any] = [layer for layer in self.layers if not isinstance(layer, SlimLayer)]
        tensors = [tensor for layer in others for tensor in (layer.keys, layer.values)]
        return sum(layer.bytes for layer in self.slim_layers) + storage_bytes(tensors)


class SlimLayer(CacheLayerMixin):
    """One layer of a slim cache; its reader holds the tensors."""

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, recipe: KeyFromRoot | ValueFromKey, config: Any, reserve: int = 0) -> None:
        """An empty layer."""
        super().__init__()
        self.recipe, self.config = recipe, config
        match recipe:
            case KeyFromRoot():
                self.reader: Reader = SharedRootReader(recipe, reserve)
            case ValueFromKey():
                self.reader = KeyOnlyReader(recipe, reserve)

    @property
    def bytes(self) -> int:
        """Allocated bytes, unused room included."""
        return sum(tensor.bytes for tensor in self.reader.tensors)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """No-op: the first append allocates."""

    def update(
        self, key_states: Heads, value_states: Heads, *args: Any, **kwargs: Any
    ) -> tuple[Heads, Heads]:
        """Cache the new rows; K and V, of which one may be a placeholder."""
        if key_states.requires_grad or value_states.requires_grad:
            raise ValueError(
                "A slim cache keeps rows without their gradients.\n"
                "Run the model under torch.no_grad(), or train it without a cache."
            )
        options = kwargs.get("kwargs") or next((a for a in args if isinstance(a, dict)), kwargs)
        is_first = self.get_seq_length() == 0
        self.reader.append(key_states, value_states, options.get("position_ids"))
        self.is_initialized = True
        if is_first:
            self._check(key_states, value_states)
            return key_states, value_states
        if self.config._attn_implementation == IMPLEMENTATION:
            return self.reader.placeholders()
        return self.reader.materialize()

    @torch.no_grad()
    def _check(self, key_states: Heads, value_states: Heads) -> None:
        """Refuse a layer whose K and V are not those that the cache makes; ValueError."""
        rows = slice(-CHECKED_ROWS, None)
        states = {"K": key_states[:, :, rows], "V": value_states[:, :, rows]}
        for (name, expected), made in zip(
            states.items(), self.reader.materialize(rows), strict=True
        ):
            error = float((made - expected).norm() / expected.norm().clamp_min(1e-30))
            # Low precision rounds the cached tensor, so one step of the dtype is allowed.
            tolerance = max(self.recipe.tolerance, torch.finfo(made.dtype).eps)
            if error > tolerance:
                raise ValueError(
                    f"In layer {self.recipe.layer} {name} made from the cached tensor is off by "
                    f"{error:.2g} of its size; the tolerance is {tolerance:g}.\n"
                    "If weights changed after slim, call slim(model) again. With adapters or hooks "
                    "on the projections, use transformers' own cache."
                )

    def get_seq_length(self) -> int:
        """How many tokens are cached."""
        return self.reader.tensors[0].length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many slots a mask has, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """-1: there is no limit; the name in older versions of the library."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens: so many if negative, else down to so many."""
        before = self.get_seq_length()
        after = tokens_to_remove if tokens_to_remove > 0 else before + tokens_to_remove
        for tensor in self.reader.tensors:
            tensor.crop(before - min(after, before))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace each sequence by the one that a beam continues."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences of the batch."""
        for tensor in self.reader.tensors:
            tensor.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence so many times, copies side by side."""
        for tensor in self.reader.tensors:
            tensor.repeat(repeats)

    def reset(self) -> None:
        """Remove all tokens."""
        self.is_initialized = False
        for tensor in self.reader.tensors:
            tensor.clear()

    def offload(self) -> None:
        """Refuse: the rows stay on the model's device."""
        raise NotImplementedError("A slim cache stays on its device: pass no offloading cache.")


def storage_bytes(tensors: Sequence[Tensor | None]) -> int:
    """The unique storage of these tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _recipes(model: PreTrainedModel, layers: Sequence[int] | None, tolerance: float) -> Recipes:
    """The recipe of each slim layer; ValueError if there is none."""
    roots = keys_from_roots(model, tolerance)
    if not roots:
        check_known(model)
    by_layer = {one.layer: one for one in conditions(model, tolerance)}
    wanted = _wanted(roots or by_layer, layers)
    if roots:
        return {number: roots[number] for number in wanted}
    if refused := [by_layer[number] for number in wanted if not by_layer[number].fits]:
        raise ValueError(_refusal(model, tuple(by_layer.values()), refused))
    return values_from_keys(model, wanted, tolerance)


def _wanted(known: Mapping[int, object], layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers that are to be slim, of those that can be."""
    if layers is None:
        return tuple(known)
    if not layers or not set(layers) <= set(known):
        raise ValueError(
            f"slim(model, layers={list(layers)}) names no layer, or one that cannot be slim.\n"
            f"Those that can are {list(known)}."
        )
    return tuple(number for number in known if number in layers)


def _refusal(
    model: PreTrainedModel, known: Sequence[Condition], refused: Sequence[Condition]
) -> str:
    """The message: which layers cannot be slim, why, and what to write instead."""
    named = ", ".join(f"{one.layer} ({one.number:.2g})" for one in refused[:MAX_NAMED_LAYERS])
    more = f" and {len(refused) - MAX_NAMED_LAYERS} more" if len(refused) > MAX_NAMED_LAYERS else ""
    fitting = [one.layer for one in known if one.fits]
    worst = max(one.error_bound for one in refused)
    instead = (
        f"Write slim(model, layers={fitting}), and the others keep both."
        if fitting
        else "Load the model in a wider type (dtype=torch.float32), or use the library's own cache."
    )
    return (
        f"In {type(model).__name__} V cannot be made from K closely enough in layers (with the "
        f"condition number of W_K) {named}{more}.\n"
        f"In {str(model.dtype).removeprefix('torch.')} V could be off by {worst:.2g} of its size; "
        f"the tolerance is {refused[0].tolerance:g}.\n{instead}"
    )


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Set the attention implementation of the text decoder."""
    config = model.config
    text = config.get_text_config(decoder=True)
    parts = [key for key in config.sub_configs if getattr(config, key, None) is text]
    model.set_attn_implementation(dict.fromkeys(parts, name) if parts else name)


def _prepare(
    model: PreTrainedModel, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any
) -> None:
    """The hook of `generate` that makes its cache: a slim one, unless one was given."""
    given = any(model_kwargs.get(name) is not None for name in _CACHE_NAMES)
    if given or generation_config.use_cache is False:
        library: Any = type(model)
        library._prepare_cache_for_generation(model, generation_config, model_kwargs, *rest)
        return
    implementation = getattr(generation_config, "cache_implementation", None)
    if implementation not in (None, "dynamic"):
        raise ValueError(
            f"This model is slim, and a {implementation} cache keeps both K and V.\n"
            "Leave out cache_implementation: a slim cache grows token by token. To allocate it at "
            "once, pass past_key_values=SlimCache(model, reserve=N)."
        )
    cache = SlimCache(model)
    if getattr(generation_config, "is_assistant", False):
        cache.activate_past_recording()
    model_kwargs[_cache_name(model)] = cache


def _add_cache(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A forward pre-hook: pass a slim cache if the library would make its own."""
    names = list(inspect.signature(model.forward).parameters)
    given = {*names[: len(args)], *(key for key, value in kwargs.items() if value is not None)}
    wanted = kwargs.get("use_cache")
    if wanted is None:
        wanted = model.config.get_text_config(decoder=True).use_cache
    if torch.is_grad_enabled() or not wanted or given.intersection(_CACHE_NAMES):
        return None
    return args, {**kwargs, _cache_name(model): SlimCache(model)}


def _cache_name(model: nn.Module) -> str:
    """The argument name of a cache in this model's forward."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in _CACHE_NAMES if name in known), _CACHE_NAMES[-1])
