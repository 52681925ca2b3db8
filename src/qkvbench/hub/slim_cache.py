"""Slim caches for models of transformers: about half the bytes, the same logits."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from qkvbench.hub.encoder_output import EncoderCache, StatesOfEncoder, states_of_encoder
from qkvbench.hub.growing_tensor import GrowingTensor, Heads
from qkvbench.hub.kept_heads import CopiedHeadsReader, OneOfCopies, copied_heads
from qkvbench.hub.key_only import (
    TOLERANCE,
    KeyOnlyReader,
    ValueFromKey,
    conditions,
    values_from_keys,
)
from qkvbench.hub.linear_attention import linear_attentions
from qkvbench.hub.refusals import not_slim, too_inexact
from qkvbench.hub.rows_layer import RowsLayer
from qkvbench.hub.shared_root import KeyFromRoot, SharedRootReader, keys_from_roots
from qkvbench.hub.slim_attention import (
    CHECKED_ROWS,
    IMPLEMENTATION,
    check_rows,
    register_attention,
    uses_readers,
)
from qkvbench.hub.unmade import unmade

Recipe = KeyFromRoot | ValueFromKey | OneOfCopies


@dataclass(frozen=True)
class Recipes:
    """For each slim layer, how K or V is made from what is cached; also in cross-attention."""

    own: Mapping[int, Recipe]
    cross: Mapping[int, StatesOfEncoder]


# The attribute of a slim model that holds its recipes.
_RECIPES = "_qkvbench_slim"
# The argument names of a cache in a model's forward: newer versions of transformers, then older.
_CACHE_NAMES = ("cache", "past_key_values")


def slim(
    model: PreTrainedModel, *, layers: Sequence[int] | None = None, tolerance: float = TOLERANCE
) -> PreTrainedModel:
    """The same model, which from now on caches one tensor in place of K and V.

    Its logits are the same up to rounding. `generate`, and every forward pass without gradients,
    then uses a `SlimCache`. ``layers`` are those that become slim; all by default. The
    cross-attention of a model with an encoder always does. ValueError if none can be, or if V made
    from K could be off by more than `tolerance` in one of them: the message names these layers and
    those that remain.
    """
    recipes = _recipes(model, layers, tolerance)
    is_new = not hasattr(model, _RECIPES)
    setattr(model, _RECIPES, recipes)
    register_attention()
    if type(model)._can_set_attn_implementation():
        _set_attention(model, IMPLEMENTATION)
    setattr(model, "_prepare_cache_for_generation", _Preparation(model))  # noqa: B010
    if is_new:
        model.register_forward_pre_hook(_add_cache, with_kwargs=True)
        for recipe in recipes.cross.values():
            recipe.attention.register_forward_pre_hook(_keep_encoder_output, with_kwargs=True)
    return model


def new_cache(model: PreTrainedModel) -> "SlimCache | SlimEncoderDecoderCache":
    """An empty slim cache of the kind that the model takes."""
    return (SlimEncoderDecoderCache if recipes_of(model).cross else SlimCache)(model)


class SlimCache(Cache):
    """A cache for a model of transformers that keeps one tensor if the other can be made from it.

    It takes the place of the library's own, as ``past_key_values`` or ``cache``. In a `slim` model
    the missing tensor is never materialized; with any other attention implementation it is, for
    one layer at a time. ``reserve`` allocates room for so many tokens at once.
    """

    def __init__(self, model: PreTrainedModel, *, reserve: int = 0) -> None:
        """An empty cache for sequences of this model."""
        own = recipes_of(model).own
        config = _decoder_config(model)
        interface = type(model)._can_set_attn_implementation()
        layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
        layers += [DynamicLayer() for _ in range(max(own, default=-1) + 1 - len(layers))]
        for number, recipe in own.items():
            layers[number] = SlimLayer(recipe, config, reserve, interface=interface)
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


class SlimEncoderDecoderCache(EncoderDecoderCache):
    """The caches of a slim model with an encoder: a `SlimCache`, and the encoder's output."""

    def __init__(self, model: PreTrainedModel, *, reserve: int = 0) -> None:
        """Empty caches for sequences of this model; ValueError if it is not slim."""
        if not hasattr(model, _RECIPES):
            raise ValueError(
                "A model with an encoder passes its output to its cache only if it is slim.\n"
                "Call slim(model) first."
            )
        self.own = SlimCache(model, reserve=reserve)
        self.cross = EncoderCache(recipes_of(model).cross, _decoder_config(model))
        super().__init__(self.own, self.cross)

    @property
    def bytes(self) -> int:
        """The unique storage of the decoder's rows and of the encoder's output."""
        return self.own.bytes + self.cross.bytes

    def check_dynamic_cache(self, method: str) -> None:
        """No-op: both caches grow, and can be cropped and reordered."""


class SlimLayer(RowsLayer):
    """One layer of a slim cache; its reader holds the tensors."""

    def __init__(
        self, recipe: Recipe, config: Any, reserve: int = 0, *, interface: bool = True
    ) -> None:
        """An empty layer; `interface`: the model calls registered attention functions."""
        super().__init__()
        self.recipe, self.config, self.interface = recipe, config, interface
        match recipe:
            case KeyFromRoot():
                self.reader = SharedRootReader(recipe, reserve)
            case ValueFromKey():
                self.reader = KeyOnlyReader(recipe, reserve)
            case OneOfCopies():
                self.reader = CopiedHeadsReader(recipe, reserve)

    @property
    def keys(self) -> Tensor | None:
        """K of all tokens, for code that reads a cache without appending to it."""
        return self.reader.materialize()[0] if self.is_initialized else None

    @keys.setter
    def keys(self, _: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No-op: K is in the reader's tensors, or made from them."""

    @property
    def values(self) -> Tensor | None:
        """V of all tokens, for code that reads a cache without appending to it."""
        return self.reader.materialize()[1] if self.is_initialized else None

    @values.setter
    def values(self, _: Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No-op: V is in the reader's tensors, or made from them."""

    @property
    def tensors(self) -> tuple[GrowingTensor, ...]:
        """All tensors that take memory."""
        return self.reader.tensors

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
        # The last rows, of at most as many as are new.
        rows = slice(-min(CHECKED_ROWS, key_states.shape[2]), None)
        states = key_states[:, :, rows], value_states[:, :, rows]
        check_rows(self.recipe, states, lambda: self.reader.materialize(rows))
        if is_first:
            return key_states, value_states
        match self.reader:
            case CopiedHeadsReader():
                return self.reader.materialize()
            case KeyOnlyReader() if not self.interface:
                keys, values = self.reader.placeholders()
                return keys, unmade(values, self.reader, 1)
            case _ if uses_readers(self.config):
                return self.reader.placeholders()
            case _:
                return self.reader.materialize()


def storage_bytes(tensors: Sequence[Tensor | None]) -> int:
    """The unique storage of these tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    # By the storage's own address: on the meta device all data is at 0.
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def recipes_of(model: PreTrainedModel) -> Recipes:
    """The recipes of a slim model, or those that it would have."""
    recipes: Recipes | None = getattr(model, _RECIPES, None)
    return _recipes(model, None, TOLERANCE) if recipes is None else recipes


def _recipes(model: PreTrainedModel, layers: Sequence[int] | None, tolerance: float) -> Recipes:
    """The recipe of each slim layer; ValueError if there is none."""
    cross = states_of_encoder(model, tolerance)
    exact: dict[int, Recipe] = {**keys_from_roots(model, tolerance), **copied_heads(model)}
    by_layer = {} if exact else {one.layer: one for one in conditions(model, tolerance)}
    if not exact and not cross and not linear_attentions(model):
        raise ValueError(not_slim(model))
    wanted = _wanted(exact or by_layer, layers, some=not cross)
    if exact:
        return Recipes({number: exact[number] for number in wanted}, cross)
    if refused := [by_layer[number] for number in wanted if not by_layer[number].fits]:
        raise ValueError(
            too_inexact(model, tuple(by_layer.values()), refused, with_cross=bool(cross))
        )
    own = values_from_keys(model, wanted, tolerance)
    if not own and not cross:
        raise ValueError(not_slim(model))
    return Recipes(own, cross)


def _wanted(
    known: Mapping[int, object], layers: Sequence[int] | None, *, some: bool
) -> tuple[int, ...]:
    """The layers that are to be slim, of those that can be; `some`: there must be one."""
    if layers is None:
        return tuple(known)
    if (some and not layers) or not set(layers) <= set(known):
        raise ValueError(
            f"slim(model, layers={list(layers)}) names no layer, or one that cannot be slim.\n"
            f"Those that can are {list(known)}."
        )
    return tuple(number for number in known if number in layers)


def _decoder_config(model: PreTrainedModel) -> Any:
    """The config whose attention implementation the decoder's layers read."""
    config = model.config
    return config if config.is_encoder_decoder else config.get_text_config(decoder=True)


def _keep_encoder_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A forward pre-hook of cross-attention: pass the encoder's output to the cache."""
    cache = next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None)
    states = kwargs.get("key_value_states")
    if isinstance(cache, SlimEncoderDecoderCache) and states is not None:
        cache.cross.keep(states)


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Set the attention implementation of the text decoder."""
    config, text = model.config, _decoder_config(model)
    parts = [key for key in config.sub_configs if getattr(config, key, None) is text]
    model.set_attn_implementation(dict.fromkeys(parts, name) if parts else name)


class _Preparation:
    """The hook of `generate` that makes its cache: a slim one, unless one was given.

    It is put into `model_kwargs`; without them, as DiffusionGemma calls it, it is returned.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """The hook of this model."""
        self.model = model

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A model that was pickled is slim in the process that loads it, too."""
        register_attention()
        self.__dict__ |= state

    def __call__(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any] | None = None,
        *rest: Any,
        **sizes: Any,
    ) -> Cache | None:
        """The cache, put into `model_kwargs` or returned; the library's own if one was given."""
        given = any((model_kwargs or {}).get(name) is not None for name in _CACHE_NAMES)
        if given or generation_config.use_cache is False:
            library: Any = type(self.model)
            return library._prepare_cache_for_generation(
                self.model, generation_config, model_kwargs, *rest, **sizes
            )
        implementation = getattr(generation_config, "cache_implementation", None)
        if implementation not in (None, "dynamic"):
            raise ValueError(
                f"This model is slim, and a {implementation} cache keeps both K and V.\n"
                "Leave out cache_implementation: a slim cache grows token by token. To allocate "
                "it at once, pass past_key_values=SlimCache(model, reserve=N)."
            )
        cache = new_cache(self.model)
        if model_kwargs is None:
            return cache
        if getattr(generation_config, "is_assistant", False):
            cache.activate_past_recording()
        model_kwargs[_cache_name(self.model)] = cache
        return None


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
    return args, {**kwargs, _cache_name(model): new_cache(model)}


def _cache_name(model: nn.Module) -> str:
    """The argument name of a cache in this model's forward."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in _CACHE_NAMES if name in known), _CACHE_NAMES[-1])
