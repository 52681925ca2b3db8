"""Each backend as the laws see it: functions of fp64 NumPy weights, and of nothing else.

A law that is parametrized by `every_backend` is one sentence about all of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from laws.cases import (
    PADDING,
    STORAGES,
    Inputs,
    at_their_time,
    covering,
    drawn,
    drawn_nightly,
    few,
)
from qkvbench.backends import jax as jax_backend
from qkvbench.backends import torch as torch_backend
from qkvbench.backends.jax.attention import linear_attention as jax_linear
from qkvbench.backends.jax.attention import softmax as jax_softmax
from qkvbench.backends.jax.attention.layer import Attention as JaxAttention
from qkvbench.backends.jax.models.inspect import inspect_arrays, to_layers
from qkvbench.backends.torch import Growing, Reserved
from qkvbench.backends.torch.attention import linear_attention as torch_linear
from qkvbench.backends.torch.attention import softmax as torch_softmax
from qkvbench.backends.torch.attention.layer import Attention as TorchAttention
from qkvbench.model import Model, model_parameters
from qkvbench.variant import Derivation, Plan

Arrays = Mapping[str, np.ndarray]
# The storage of a torch cache: one page for each sequence, pages from the first, pages as needed.
TORCH_STORAGES = dict(zip(STORAGES, (Reserved(), Reserved(2), Growing(3)), strict=True))
# Prompt tokens that are read at once before decoding.
PROMPT = 4
# Tokens in a chunk of linear attention, if it is computed a few rows at a time: no divisor of 7.
SMALL_CHUNK = 3


class Torch:
    """PyTorch in fp64."""

    name = "torch"

    def layer(self, plan: Plan, weights: Arrays) -> TorchAttention:
        """A layer with these weights."""
        layer = TorchAttention(plan).double()
        with torch.no_grad():
            for name, tensor in layer.named_weights().items():
                tensor.copy_(torch.from_numpy(weights[name]))
        return layer

    def network(self, model: Model, weights: Arrays | None = None) -> Any:
        """A network with these weights, or drawn ones, in evaluation."""
        network = torch_backend.build(model).double().eval()
        values = drawn(model_parameters(model).values()) if weights is None else weights
        torch_backend.load(network, {name: torch.from_numpy(v) for name, v in values.items()})
        return network

    def attend(self, plan, weights, x, lengths=None, source=None):
        """A layer over whole sequences."""
        with torch.no_grad():
            return self.layer(plan, weights)(
                torch.from_numpy(x), None, _tensor(lengths), _tensor(source)
            ).numpy()

    def attend_to_cached_source(self, plan, weights, x, lengths, source):
        """Cross-attention over the cached tensors of a source."""
        layer = self.layer(plan, weights)
        with torch.no_grad():
            cached = layer.cache_source(_tensor(source), _tensor(lengths))
            return layer.attend_to_cached_source(torch.from_numpy(x), cached).numpy()

    def attend_to_layers_below(self, plan, weights, x, below):
        """A layer that reads others, each with its weights and its input."""
        with torch.no_grad():
            roots = self._lent(plan, below)
            return self.layer(plan, weights)(torch.from_numpy(x), made=roots).numpy()

    def _lent(self, plan, below):
        found = {}
        for each in plan.lenders:
            own, its_weights, x, others = below[each.root]
            layer, made = self.layer(own, its_weights), self._lent(own, others)
            layer(torch.from_numpy(x[None]), made=made)
            found[Derivation(each.root, ())] = layer.lent((each.role,), made)[each.role]
        return found

    def gradients(self, plan, weights, x, along, source=None):
        """The gradients of the sum of the layer's output times `along`, by name."""
        layer = self.layer(plan, weights)
        layer(torch.from_numpy(x), None, None, _tensor(source)).mul(_tensor(along)).sum().backward()
        return gradients_of(layer)

    def logits(self, model, weights, inputs):
        """A network's logits, (places, classes)."""
        network = self.network(model, weights)
        with torch.no_grad():
            return _torch_logits(network, inputs).numpy()

    def logit_gradients(self, model, weights, inputs):
        """The gradients of the sum of the squares of the finite logits, by name."""
        network = self.network(model, weights)
        logits = _torch_logits(network, inputs)
        logits.where(logits > -torch.inf, torch.zeros(())).square().sum().backward()
        return gradients_of(network)

    def decode(self, case, model, weights, tokens):
        """The logits after a prompt and after each further token, (batch, steps, vocabulary).

        If the case is padded, rows begin with `PADDING` tokens that mean nothing.
        """
        network, time = self.network(model, weights), tokens.shape[1]
        cache = network.new_cache(len(tokens), time, TORCH_STORAGES[case.storage], case.rows)
        padding = torch.tensor(PADDING) if case.padding else None
        read = torch.from_numpy(tokens)
        with torch.no_grad():
            found = [network.prefill(read[:, :PROMPT], cache, padding)]
            found += [network.step(read[:, place], cache) for place in range(PROMPT, time)]
        return torch.stack(found, dim=1).numpy()

    def cache(self, case, model, tokens):
        """The bytes of a live cache for `tokens` of 3 sequences, in the rows of the case."""
        network = torch_backend.build(model)
        cache = network.new_cache(3, tokens, TORCH_STORAGES[case.storage], case.rows)
        cache.fill_randomly(tokens, seed=0)
        return cache.bytes

    def decode_with_source(self, model, weights, tokens, source):
        """As `decode`, over a cached source."""
        network, read = self.network(model, weights), torch.from_numpy(tokens)
        cache = network.new_cache(len(tokens), tokens.shape[1])
        with torch.no_grad():
            network.read_source(*map(_tensor, source), cache)
            found = [network.prefill(read[:, :PROMPT], cache)]
            found += [network.step(each, cache) for each in read[:, PROMPT:].unbind(1)]
        return torch.stack(found, dim=1).numpy()

    def shapes(self, model):
        """The shape of every learned tensor of a network, by name."""
        named = torch_backend.named_weights(torch_backend.build(model))
        return {name: tuple(tensor.shape) for name, tensor in named.items()}

    def initial(self, model, seed):
        """The initial values of a network."""
        network = torch_backend.build(model)
        torch_backend.start(network, model, seed)
        return arrays_of(network)

    def saved(self, model, weights, path):
        """The weights after they are written to a file and read into another network."""
        torch_backend.save(self.network(model, weights), path)
        other = torch_backend.build(model).double()
        torch_backend.load(other, torch_backend.read(path))
        return arrays_of(other)

    def by_rows(self, patch, scores):
        """Compute attention a few rows at a time from now on."""
        patch.setattr(torch_linear, "CHUNK", SMALL_CHUNK)
        patch.setattr(torch_softmax, "MAX_SCORES", scores)
        patch.setattr(torch_softmax, "WINDOW_BLOCK", 2)


def _in_fp64(method: Callable[..., Any]) -> Callable[..., Any]:
    """JAX has fp64 only where it is asked for."""

    @wraps(method)
    def inside(*given: Any, **named: Any) -> Any:
        with jax.enable_x64():
            return method(*given, **named)

    return inside


class Jax:
    """JAX in fp64, operation by operation: a program compiled for each case would take minutes."""

    name = "jax"

    @_in_fp64
    def attend(self, plan, weights, x, lengths=None, source=None):
        given = (None if each is None else jnp.asarray(each) for each in (x, lengths, source))
        return np.asarray(JaxAttention.of(plan)(_jax(weights), *given))

    @_in_fp64
    def attend_to_cached_source(self, plan, weights, x, lengths, source):
        layer, own = JaxAttention.of(plan), _jax(weights)
        cached = layer.cache_source(own, jnp.asarray(source), jnp.asarray(lengths))
        return np.asarray(layer.attend_to_cached_source(own, jnp.asarray(x), cached))

    @_in_fp64
    def attend_to_layers_below(self, plan, weights, x, below):
        roots = self._lent(plan, below)
        return np.asarray(JaxAttention.of(plan)(_jax(weights), jnp.asarray(x), made=roots))

    def _lent(self, plan, below):
        found = {}
        for each in plan.lenders:
            own, its_weights, x, others = below[each.root]
            layer, made = JaxAttention.of(own), self._lent(own, others)
            layer(_jax(its_weights), jnp.asarray(x[None]), made=made)
            found[Derivation(each.root, ())] = layer.lent((each.role,), made)[each.role]
        return found

    @_in_fp64
    def gradients(self, plan, weights, x, along, source=None):
        layer = JaxAttention.of(plan)
        other = None if source is None else jnp.asarray(source)

        def total(own):
            return (layer(own, jnp.asarray(x), None, other) * along).sum()

        return _numpy(jax.grad(total)(_jax(weights)))

    @_in_fp64
    def logits(self, model, weights, inputs):
        return np.asarray(_jax_logits(jax_backend.build(model), _jax(weights), inputs))

    @_in_fp64
    def logit_gradients(self, model, weights, inputs):
        network = jax_backend.build(model)

        def total(own):
            logits = _jax_logits(network, own, inputs)
            return jnp.square(jnp.where(logits > -jnp.inf, logits, 0)).sum()

        return _numpy(jax.grad(total)(_jax(weights)))

    @_in_fp64
    def decode(self, case, model, weights, tokens):
        network, own = jax_backend.build(model), _jax(weights)
        cache = network.new_cache(own, len(tokens), tokens.shape[1])
        padding = jnp.asarray(PADDING) if case.padding else None
        return self._steps(network, own, cache, jnp.asarray(tokens), padding)

    @_in_fp64
    def cache(self, case, model, tokens):
        weights = jax_backend.start(model_parameters(model), model, seed=0)
        return jax_backend.build(model).new_cache(weights, 3, tokens).bytes

    @_in_fp64
    def decode_with_source(self, model, weights, tokens, source):
        network, own = jax_backend.build(model), _jax(weights)
        cache = network.new_cache(own, len(tokens), tokens.shape[1])
        cache = network.read_source(own, *map(jnp.asarray, source), cache)
        return self._steps(network, own, cache, jnp.asarray(tokens), None)

    def _steps(self, network, own, cache, tokens, padding):
        logits, cache = network.prefill(own, tokens[:, :PROMPT], cache, padding)
        found = [logits]
        for place in range(PROMPT, tokens.shape[1]):
            logits, cache = network.step(own, tokens[:, place], cache)
            found.append(logits)
        return np.stack(found, axis=1)

    @_in_fp64
    def shapes(self, model):
        weights = jax_backend.start(jax_backend.build(model).parameters, model, seed=0)
        return {name: value.shape for name, value in weights.items()}

    @_in_fp64
    def initial(self, model, seed):
        return _numpy(jax_backend.start(jax_backend.build(model).parameters, model, seed))

    @_in_fp64
    def saved(self, model, weights, path):
        from qkvbench.backends.jax.models.weights import check_weights, read, save

        save(_jax(weights), path)
        return _numpy(check_weights(jax_backend.build(model).parameters, read(path)))

    @_in_fp64
    def inspected(self, model, weights, *inputs):
        """The layers of a network on these inputs, as arrays."""
        network = jax_backend.build(model)
        arrays = inspect_arrays(network, _jax(weights), *map(jnp.asarray, inputs))
        return to_layers(network, arrays)

    def by_rows(self, patch, scores):
        patch.setattr(jax_linear, "CHUNK", SMALL_CHUNK)
        patch.setattr(jax_softmax, "MAX_SCORES", scores)


Backend = Torch | Jax
TORCH, JAX = Torch(), Jax()
BACKENDS = (TORCH, JAX)
# A case of JAX takes seconds: its operations are compiled for every new shape.
JAX_CASES = 2

every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda each: each.name)


def every_backend_and_case(
    *names: str, nightly: int = 300, share: int = 1, jax_cases: int = JAX_CASES
) -> pytest.MarkDecorator:
    """The law holds in torch for a covering array of these axes, and in JAX for a few of its cases.

    In torch quick for one of `share` cases, slow for the others. Nightly in JAX for the whole
    array, and in both for random cases.
    """
    cases = covering(*names)
    of_jax = few(cases, jax_cases)
    pairs = [(TORCH, case, "slow" if n % share else "quick") for n, case in enumerate(cases)]
    pairs += [(JAX, case, "quick" if case in of_jax else "nightly") for case in cases]
    random = drawn_nightly(nightly, *names)
    pairs += [(each, case, "nightly") for each in BACKENDS for case in random]
    return _each(pairs)


def every_backend_and(cases: Sequence[Any], jax_cases: int = 1) -> pytest.MarkDecorator:
    """The law holds for each of these in every backend; in JAX quick for the first few only."""
    return _each(
        (backend, case, "quick" if backend is TORCH or number < jax_cases else "nightly")
        for backend in BACKENDS
        for number, case in enumerate(cases)
    )


def _each(pairs: Iterable[tuple[Backend, Any, str]]) -> pytest.MarkDecorator:
    """The test with each backend and case, and when it runs."""
    chosen = at_their_time(((backend, case), when) for backend, case, when in pairs)
    names = [f"{each.values[0].name} {each.values[1]}" for each in chosen]
    return pytest.mark.parametrize(("backend", "case"), chosen, ids=names)


def gradients_of(module: torch.nn.Module) -> Arrays:
    """The gradients of a layer or network, under the names of the weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.grad)
    return arrays_of(module)


def arrays_of(module: torch.nn.Module) -> Arrays:
    """The weights of a torch layer or network by name."""
    named = (
        module.named_weights()
        if isinstance(module, TorchAttention)
        else torch_backend.named_weights(module)
    )
    return {name: tensor.detach().clone().numpy() for name, tensor in named.items()}


def _torch_logits(network: Any, inputs: Inputs) -> torch.Tensor:
    return network.head(network.hidden(*map(_tensor, inputs)).flatten(0, 1))


def _jax_logits(network: Any, weights: Mapping[str, jax.Array], inputs: Inputs) -> jax.Array:
    given = (None if each is None else jnp.asarray(each) for each in inputs)
    hidden = network.hidden(weights, *given)
    return network.head(weights, hidden.reshape(-1, hidden.shape[-1]))


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _jax(weights: Arrays) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in weights.items()}


def _numpy(weights: Mapping[str, jax.Array]) -> Arrays:
    return {name: np.asarray(value) for name, value in weights.items()}
