"""Functions compiled ahead of time, once for each set of argument shapes, with the time it took."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


class Compiled:
    """A pure function, compiled when it is first called with arguments of new shapes or dtypes.

    ``seconds`` is the time spent compiling so far: tracing, lowering, and XLA itself. `donated` are
    the arguments whose memory may be reused for the result.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        donated: Sequence[int] = (),
        out_sharding: jax.sharding.Sharding | None = None,
    ) -> None:
        """The function, not compiled yet; an `out_sharding` of None lets XLA choose."""
        self._function = jax.jit(
            function, donate_argnums=tuple(donated), out_shardings=out_sharding
        )
        self._compiled: dict[object, Any] = {}
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """The result of the function."""
        return self.compile(*arguments)(*arguments)

    def compile(self, *arguments: Any) -> Any:
        """The compiled function for arguments of these shapes and dtypes."""
        leaves, structure = jax.tree.flatten(arguments)
        key = (structure, *((each.shape, each.dtype) for each in leaves))
        if key not in self._compiled:
            began = time.perf_counter()
            self._compiled[key] = self._function.lower(*arguments).compile()
            self.seconds += time.perf_counter() - began
        return self._compiled[key]
