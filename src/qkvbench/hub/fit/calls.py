"""The inputs and outputs of attention layers on a text."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qkvbench.hub.fit.projections import Layer

# Names of the cache in transformers: a layer is called again without it, since it holds its rows.
CACHES = ("cache", "past_key_values", "layer_past")


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of one layer on one batch, and its output: behind the output projection."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    def again(self, attention: Any, cache: Any = None) -> Tensor:
        """The output of this attention for the same arguments, with a cache of ours or without."""
        given = {} if cache is None else {"cache": cache}
        return attention(*self.args, **self.kwargs, **given)[0]


@contextmanager
def recording_calls(layers: Iterable[Layer]) -> Iterator[dict[int, list[Call]]]:
    """Record the calls of each layer, by its number, while the block runs."""
    found: dict[int, list[Call]] = {}

    def record(layer: Layer) -> Any:
        def hook(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            kept = {name: value for name, value in kwargs.items() if name not in CACHES}
            found.setdefault(layer.number, []).append(Call(args, kept, layer.finished(output[0])))

        return hook

    hooks = [
        layer.attention.register_forward_hook(record(layer), with_kwargs=True) for layer in layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
