"""How far our layers are from those of transformers, with the same weights: the rows of the atlas.

Run     ./qkv setup hf, then
        .venv/bin/python benchmarks/atlas_library.py [FORM ...]
Writes  src/qkvbench/atlas/kit/equalities.json, unless forms are named

A small network of the library with random weights reads random tokens; the input and the output of
one attention layer are caught by hooks, and our layer, made from the row's plan with the library's
weights, reads the same input. In fp64 the library's own code runs with fp64 wherever it says fp32.
Differences are the largest, as a share of the largest output.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qkvbench.atlas import CONFIG, Form, Layer, forms, mapped
from qkvbench.atlas.kit.equality import FILE
from qkvbench.atlas.kit.form import Reading
from qkvbench.atlas.kit.weights import Arrays, Weights
from qkvbench.backends.torch.attention.layer import Attention
from qkvbench.backends.torch.cache.kv_cache import Cache, MadeFor, new_table
from qkvbench.backends.torch.cache.page_table import Reserved
from qkvbench.backends.torch.cache.quantize import cache_format
from qkvbench.variant import Derivation, Plan

BATCH, TIME, PROMPT, SOURCE_TIME, VOCABULARY = 3, 19, 11, 13, 29
# Tokens before which a sequence is padded.
PADDING = (0, 3, 5)


@contextlib.contextmanager
def widened() -> Iterator[None]:
    """The library's own code, with fp64 where it says fp32: norms, softmax, angles of RoPE."""
    before = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = before
        torch.set_default_dtype(torch.float32)


def classes(layer: Layer) -> tuple[Any, Any]:
    """The config and the network of a layer."""
    folder = f"transformers.models.{layer.model}"
    network = getattr(importlib.import_module(f"{folder}.modeling_{layer.model}"), layer.network)
    return network.config_class, network


def sizes_of(layer: Layer, config: Any) -> dict[str, float]:
    """The sizes of a layer by our names, as its network's config has them."""
    always = ("d_model", "heads", "kv_heads", "head_dim", "norm_eps")
    names = dict.fromkeys((*always, *layer.sizes, *layer.own))
    found = {name: _read(layer.sizes.get(name, CONFIG.get(name)), config) for name in names}
    if found["kv_heads"] is None:
        found["kv_heads"] = found["heads"]
    if found["head_dim"] is None:
        found["head_dim"] = found["d_model"] // found["heads"]
    return found


def _read(reading: Reading | None, config: Any) -> Any:
    match reading:
        case None:
            return None
        case str():
            return getattr(config, reading, None)
        case float() | int():
            return reading
        case _:
            return reading(config)


@dataclass
class Run:
    """The input and output of a layer pass by pass, and the library's cache after the last.

    Beside them the input of the layer below whose K and V it reads, and the source.
    """

    inputs: list[Tensor] = field(default_factory=list[Tensor])
    outputs: list[Tensor] = field(default_factory=list[Tensor])
    below: list[Tensor] = field(default_factory=list[Tensor])
    source: Tensor | None = None
    cache: Any = None

    @property
    def x(self) -> Tensor:
        """The input of all passes."""
        return torch.cat(self.inputs, dim=1)

    @property
    def y(self) -> Tensor:
        """The output of all passes."""
        return torch.cat(self.outputs, dim=1)


class Library:
    """A small network of the library, and our layer with the weights of one of its own."""

    def __init__(self, form: Form, layer: Layer, dtype: torch.dtype) -> None:
        config_class, network = classes(layer)
        self.form, self.layer, self.dtype = form, layer, dtype
        torch.manual_seed(0)
        with self._precision():
            self.config = config_class(**layer.config)
            # Fused kernels leave out what they do not know, such as a cap on scores.
            self.config._attn_implementation = "eager"
            self.config._experts_implementation = "eager"
            self.network = network(self.config).to(dtype).eval()
            for at in (layer.at, *([layer.lender.at] if layer.lender else [])):
                for parameter in self.network.get_submodule(at).parameters():
                    # Not as initialized: norms would be ones, and biases zeros.
                    parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
        self.module = self.network.get_submodule(layer.at)
        self.sizes = sizes_of(layer, self.config)
        self.plan = form.plan(self.sizes, layer.position)
        self.ours = self._ours(self.plan, layer.weights, self.weights())
        self.lender: Attention | None = None
        if layer.lender:
            module = self.network.get_submodule(layer.lender.at)
            self.lender = self._ours(self.plan.owner("k"), layer.lender.weights, _arrays(module))

    def weights(self) -> dict[str, np.ndarray]:
        """The weights of the library's layer, by their names in it."""
        parts = (self.layer.reads, self.layer.writes)
        found = _arrays(self.module)
        return {name: each for name, each in found.items() if name.startswith(parts)}

    def run(self, *passes: dict[str, Any]) -> Run:
        """The network on these inputs, one after the other over one cache."""
        seen = Run()
        reads = self.module.get_submodule(self.layer.reads)
        writes = self.module.get_submodule(self.layer.writes)

        def keep_input(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.inputs.append(given[0] if given else named["hidden_states"])
            sources = (named.get(name) for name in ("key_value_states", "encoder_hidden_states"))
            seen.source = next((source for source in sources if source is not None), None)

        def keep_below(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.below.append(given[0] if given else named["hidden_states"])

        def keep_output(_: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            seen.outputs.append(out[0] if isinstance(out, tuple) else out)

        hooks = [
            reads.register_forward_pre_hook(keep_input, with_kwargs=True),
            writes.register_forward_hook(keep_output),
        ]
        if self.layer.lender:
            lender = self.network.get_submodule(self.layer.lender.at)
            hooks.append(lender.register_forward_pre_hook(keep_below, with_kwargs=True))
        with torch.no_grad(), self._precision():
            more: dict[str, Any] = {}
            for each in passes:
                out = self.network(**each, **more)
                # Where the library has renamed it, the old name is there, too.
                name = "cache" if "cache" in out else "past_key_values"
                more = {name: out[name]} if out.get(name) is not None else {}
        for hook in hooks:
            hook.remove()
        seen.cache = next(iter(more.values()), None)
        return seen

    def feed(self, padding: tuple[int, ...] | None = None) -> dict[str, Any]:
        """An input of the network, padded on the left of a decoder and on the right of others."""
        rng = torch.Generator().manual_seed(1)
        fed: dict[str, Any] = {}
        match self.layer.feeds:
            case "tokens" | "decoder tokens":
                shape = (BATCH, TIME)
                fed["input_ids"] = torch.randint(1, VOCABULARY, shape, generator=rng)
            case "two texts":
                for name, tokens in (("input_ids", SOURCE_TIME), ("decoder_input_ids", TIME)):
                    fed[name] = torch.randint(1, VOCABULARY, (BATCH, tokens), generator=rng)
            case "pixels":
                size, channels = self.config.image_size, self.config.num_channels
                shape = (BATCH, channels, size, size)
                fed["pixel_values"] = torch.randn(shape, generator=rng, dtype=self.dtype)
            case "frames":
                shape = (BATCH, self.config.num_mel_bins, 2 * self.config.max_source_positions)
                fed["input_features"] = torch.randn(shape, generator=rng, dtype=self.dtype)
        if self.layer.feeds == "decoder tokens":
            shape = (BATCH, SOURCE_TIME, self.config.hidden_size)
            states = torch.randn(shape, generator=rng, dtype=self.dtype)
            fed["encoder_hidden_states"] = states
        if padding:
            mask = torch.ones(BATCH, TIME, dtype=torch.long)
            for row, count in zip(mask, padding, strict=True):
                padded = row[TIME - count :] if self.form.site == "encoder" else row[:count]
                padded[:] = 0
            # Of two texts the decoder's.
            name = "decoder_attention_mask" if "decoder_input_ids" in fed else "attention_mask"
            fed[name] = mask
            if "position_ids" in inspect.signature(self.network.forward).parameters:
                # Sequences begin at position 0, as in the library's own generation.
                fed["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        return fed

    def passes(self) -> list[dict[str, Any]]:
        """A prompt, then single tokens."""
        fed = self.feed()
        name = "decoder_input_ids" if "decoder_input_ids" in fed else "input_ids"
        pieces = fed.pop(name).split([PROMPT, *[1] * (TIME - PROMPT)], dim=1)
        return [{name: piece, "use_cache": True, **fed} for piece in pieces]

    @torch.no_grad()
    def attend(
        self,
        x: Tensor,
        below: list[Tensor],
        lengths: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """Our layer over whole sequences; `below` is the input of the layer below."""
        made: dict[Any, Any] = {}
        if self.lender:
            self.lender(torch.cat(below, dim=1), made=made)
            lent = self.lender.lent(("k", "v"), made)
            made = {Derivation(each.root, ()): lent[each.role] for each in self.plan.lenders}
        return self.ours(x, None, lengths, source, made)

    def decode(self, x: Tensor, below: list[Tensor]) -> tuple[Tensor, Cache]:
        """Our layer, a token at a time over our cache; the outputs, and the cache."""
        table = new_table(len(x), x.shape[1], Reserved(), x.device, self.plan.mask.sinks)
        format = cache_format(self.dtype)
        lender = self.lender and self.lender.new_cache(table, format, {})
        layer = self.ours.new_cache(table, format, {"k": lender, "v": lender} if lender else {})
        layers = [lender, layer] if lender else [layer]
        made_for = MadeFor((self.plan,), self.dtype, x.device)
        tables = {self.plan.mask: table}
        cache = Cache(layers, tables, len(x), x.shape[1], format, made_for)
        read = torch.cat(below, dim=1) if self.lender else x
        outputs = []
        with torch.no_grad():
            for place in range(x.shape[1]):
                cache.open()
                if self.lender and lender:
                    self.lender.step(read[:, place : place + 1], cache, lender)
                outputs.append(self.ours.step(x[:, place : place + 1], cache, layer))
                cache.advance()
        return torch.cat(outputs, dim=1), cache

    def kept(self, cache: Any) -> int:
        """Bytes of the library's cache of this layer, each storage counted once."""
        number = getattr(self.module, "layer_idx", None)
        if number is None:
            number = int(next(part for part in self.layer.at.split(".") if part.isdigit()))
        part = "cross" if self.form.site == "cross" else "self"
        cache = getattr(cache, f"{part}_attention_cache", cache)
        storages = {
            each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
            for each in _tensors(vars(cache.layers[number]))
        }
        return sum(storages.values())

    def _ours(self, plan: Plan, weights: Weights, library: Arrays) -> Attention:
        values = mapped(weights, plan, self.sizes, library)
        ours = Attention(plan).to(self.dtype)
        with torch.no_grad():
            for name, tensor in ours.named_weights().items():
                tensor.copy_(torch.from_numpy(values[name]))
        return ours

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        return widened() if self.dtype == torch.float64 else contextlib.nullcontext()


def difference(ours: Tensor, library: Tensor) -> float:
    """The largest difference as a share of the largest output."""
    return float((ours - library).abs().max() / library.abs().max())


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: each.detach().numpy() for name, each in module.named_parameters()}


def _tensors(found: Any) -> list[Tensor]:
    """All tensors of rows inside of this value."""
    match found:
        case Tensor():
            return [found] if found.ndim > 1 else []
        case dict():
            return [each for value in found.values() for each in _tensors(value)]
        case list() | tuple():
            return [each for value in found for each in _tensors(value)]
        case _:
            return []


@dataclass(frozen=True, eq=False)
class Row:
    """One layer of a form."""

    form: Form
    layer: Layer

    def __str__(self) -> str:
        """The form and the class."""
        return self.form.key(self.layer)


def rows() -> list[Row]:
    """Every layer of the atlas."""
    return [Row(form, layer) for form in forms() for layer in form.layers]


def whole(library: Library) -> float:
    """The difference over whole sequences."""
    run = library.run(library.feed())
    return difference(library.attend(run.x, run.below, None, run.source), run.y)


def padded(library: Library) -> float:
    """The difference at what is no padding: on the left of a decoder, on the right of others."""
    run = library.run(library.feed(padding=PADDING))
    if library.form.site == "encoder":
        lengths = torch.tensor([TIME - count for count in PADDING])
        ours = library.attend(run.x, run.below, lengths)
        places = [slice(0, TIME - count) for count in PADDING]
        pairs = [(ours[row, place], run.y[row, place]) for row, place in enumerate(places)]
    else:
        pairs = []
        for row, count in enumerate(PADDING):
            # Our sequences begin at their first token.
            x, *below = (each[row : row + 1, count:] for each in (run.x, *run.below))
            pairs.append((library.attend(x, below)[0], run.y[row, count:]))
    return max(difference(ours, y) for ours, y in pairs)


def stepwise(library: Library) -> float:
    """The difference if both decode a prompt and single tokens, each over its own cache."""
    run = library.run(*library.passes())
    return difference(library.decode(run.x, run.below)[0], run.y)


def across(library: Library) -> float:
    """The difference of cross-attention over a cached source."""
    run = library.run(library.feed())
    with torch.no_grad():
        assert run.source is not None
        cached = library.ours.cache_source(run.source, None)
        return difference(library.ours.attend_to_cached_source(run.x, cached), run.y)


def differences(library: Library) -> dict[str, float]:
    """The differences in every way in which the layer is run."""
    ways = {"whole": whole}
    texts = library.layer.feeds in ("tokens", "two texts") and library.form.site != "cross"
    if texts and not library.layer.counts_padding:
        ways["padded"] = padded
    ways |= {"decoder": {"token by token": stepwise}, "cross": {"cached": across}}.get(
        library.form.site, {}
    )
    return {way: float(f"{measure(library):.1e}") for way, measure in ways.items()}


def main() -> None:
    """Print the differences of all forms, or of some; store those of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("forms", nargs="*", metavar="FORM")
    chosen = parser.parse_args().forms
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows():
        if chosen and row.form.name not in chosen:
            continue
        found[str(row)] = {
            name: differences(Library(row.form, row.layer, dtype))
            for name, dtype in (("fp64", torch.float64), ("fp32", torch.float32))
        }
        print(row, found[str(row)], flush=True)
    if not chosen:
        library = f"transformers {importlib.metadata.version('transformers')}"
        document = {"library": library, "layers": found}
        FILE.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
