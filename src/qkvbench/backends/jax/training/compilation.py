"""Functions compiled for what they are given, once for each kind of it, and the time that took."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


class Compiled:
    """A pure function, compiled when it is first given arrays of such shapes and types.

    ``seconds`` is what compiling has taken so far: tracing, lowering, and XLA's own work. `reused`
    are the arguments whose memory may be taken for the result.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        reused: Sequence[int] = (),
        lies: jax.sharding.Sharding | None = None,
    ) -> None:
        """The function, not compiled yet; `lies` says where its results do, None leaves it open."""
        self._function = jax.jit(function, donate_argnums=tuple(reused), out_shardings=lies)
        self._made: dict[object, Any] = {}
        self.seconds = 0.0

    def __call__(self, *given: Any) -> Any:
        """What the function makes of this."""
        return self.made_for(*given)(*given)

    def made_for(self, *given: Any) -> Any:
        """The compiled function for such arguments."""
        leaves, structure = jax.tree.flatten(given)
        kinds = (structure, *((each.shape, each.dtype) for each in leaves))
        if kinds not in self._made:
            began = time.perf_counter()
            self._made[kinds] = self._function.lower(*given).compile()
            self.seconds += time.perf_counter() - began
        return self._made[kinds]
