"""K or V that is not made: a tensor that takes no memory and is computed when it is needed.

It is for readers that a registered attention function does not reach: models with attention code of
their own, and code that reads the tensors of a cache.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map_only

from qkvbench.hub.growing_tensor import Heads

# Products with V of more new tokens at once than this (a prompt) make it.
MAX_QUERIES = 32
# The attribute with the reader, in this kind of tensor and in a placeholder.
READER = "_qkvbench_reader"
_PLACE, _HEADS = "_qkvbench_place", "_qkvbench_heads"

_PRODUCTS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm)
_SHAPES = (Tensor.reshape, Tensor.view)
_METADATA = ("__get__", "size", "dim", "numel", "is_floating_point")


class SumReader(Protocol):
    """A reader that makes K and V, and sums V without making it."""

    def materialize(self, rows: slice = slice(None)) -> tuple[Heads, Heads]:
        """K and V of these rows."""
        ...

    def weighted(self, weights: Float[Tensor, "batch heads queries slots"]) -> Heads:
        """The sum of V with these weights."""
        ...


class Unmade(Tensor):
    """K or V of a reader. Sizes are known, and a product of weights with V is the reader's sum.

    Any other operation makes the tensor first.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of an operation of torch on tensors, some of which are not made."""
        kwargs = kwargs or {}
        if func in _PRODUCTS and isinstance(args[1], cls) and _sums(args[0], args[1]):
            return _weighted(*args)
        with torch._C.DisableTorchFunctionSubclass():
            if func in _SHAPES:
                tensor: Any = args[0]
                shaped = func(*args, **kwargs)
                if shaped.shape[-2:] == tensor.shape[-2:]:
                    return _wrap(shaped, *(getattr(tensor, each) for each in _ATTRIBUTES))
            elif getattr(func, "__name__", "") in _METADATA:
                found = func(*args, **kwargs)
                if not isinstance(found, Tensor):
                    return found
            made_args, made_kwargs = tree_map_only(cls, _tensor, (args, kwargs))
            return func(*made_args, **made_kwargs)


_ATTRIBUTES = (READER, _PLACE, _HEADS)


def unmade(like: Heads, reader: SumReader, place: int) -> Heads:
    """K (place 0) or V (place 1) of a reader, of the shape of `like`."""
    nan = like.new_full((), torch.nan).expand(like.shape)
    return _wrap(nan, reader, place, tuple(like.shape[:2]))


def _wrap(nan: Tensor, reader: SumReader, place: int, heads: tuple[int, ...]) -> Tensor:
    tensor = nan.as_subclass(Unmade)
    for name, value in zip(_ATTRIBUTES, (reader, place, heads), strict=True):
        setattr(tensor, name, value)
    return tensor


def _sums(weights: Tensor, value: Tensor) -> bool:
    """Whether the product of weights with `value` is a sum of V for a few queries."""
    return (
        not isinstance(weights, Unmade)
        and getattr(value, _PLACE) == 1
        and weights.shape[-2] <= MAX_QUERIES
    )


def _weighted(weights: Tensor, value: Tensor) -> Tensor:
    """The reader's sum of V, in the shape that the product has."""
    whole = weights.reshape(*getattr(value, _HEADS), *weights.shape[-2:])
    output = getattr(value, READER).weighted(whole)
    return output.reshape(*weights.shape[:-1], output.shape[-1])


def _tensor(tensor: Tensor) -> Tensor:
    """The tensor in the shape that it has now."""
    states = getattr(tensor, READER).materialize()
    return states[getattr(tensor, _PLACE)].reshape(tensor.shape)
