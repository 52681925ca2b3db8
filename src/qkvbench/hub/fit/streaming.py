"""A model that is run or converted block by block, with the weights of one block in memory.

Its parameters are on the meta device. A block reads its own from the checkpoint's files when it
runs, and gives them up afterwards; embeddings and the head are read while the whole model runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkvbench.hub.conversion import auto_of, check_function, check_heads, convert_layer
from qkvbench.hub.families import family_of
from qkvbench.hub.fit.calls import Call, recording_calls
from qkvbench.hub.fit.folder import write_settings
from qkvbench.hub.fit.moments import Moments, recording
from qkvbench.hub.fit.outputs import refit_behind
from qkvbench.hub.fit.progress import Progress, TimeLeft
from qkvbench.hub.fit.projections import Layer, block_of, layers_of
from qkvbench.hub.fit.quality import Windows
from qkvbench.hub.fit.shards import SHARD_BYTES, ShardWriter, Tensors
from qkvbench.hub.fit.starts import parse_start
from qkvbench.hub.fit.tying import Change, check_change, fit_layer, is_refitted, start_needs_text
from qkvbench.hub.models import attention_layers, model_classes, with_mode
from qkvbench.hub.modes import Mode, variants
from qkvbench.variant import CANONICAL


class StreamedModel:
    """A model of the library's own, or one with a `qkv_mode`, whose weights stay in their files.

    ``model`` is an ordinary model on the meta device; it computes inside of `running`. ValueError
    if the names in the files are not those of its parameters.
    """

    def __init__(self, folder: Path, auto: str, config: Any) -> None:
        """Read the names of the tensors, and no tensor."""
        import transformers

        self.folder, self.tensors = folder, Tensors(folder)
        with torch.device("meta"):
            self.model: Any = getattr(transformers, auto).from_config(config, dtype=torch.float32)
        _make_buffers(self.model)
        self.model.eval().requires_grad_(requires_grad=False)
        self._uses = _uses(self.model)
        names = (*self._uses, *_saved_buffers(self.model))
        self.stored = _stored_names(self.model, self.tensors.names, names)
        self._read_buffers()
        self._make_absent()

    def stored_tensor(self, name: str) -> Tensor:
        """The parameter of this name as it is in the files."""
        return self.tensors.read(self.stored[name])

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first parameter in the files."""
        return self.stored_tensor(next(name for name in self.stored if name in self._uses)).dtype

    def _read_buffers(self) -> None:
        """Read the buffers that the files have, such as the bias of Marian's predictions."""
        for name in set(self.stored) - set(self._uses):
            parent, _, attribute = name.rpartition(".")
            module = self.model.get_submodule(parent)
            like = module._buffers[attribute]
            module._buffers[attribute] = self.stored_tensor(name).to(like.dtype, copy=True)

    def _make_absent(self) -> None:
        """Initialize parameters that no file has, such as Marian's sines, as the library does."""
        for name in set(self._uses) - set(self.stored):
            shape = self.model.get_parameter(name).shape
            self._put(name, nn.Parameter(torch.zeros(shape), requires_grad=False))
            self.model._init_weights(self._uses[name][0][0])

    def read(self, name: str) -> Tensor:
        """A copy of the parameter of this name, in fp32."""
        return self.stored_tensor(name).to(torch.float32, copy=True)

    @contextmanager
    def loaded(self, names: Sequence[str]) -> Iterator[None]:
        """The parameters of these names are in memory while the block runs."""
        empty = {name: self.model.get_parameter(name) for name in names if name in self.stored}
        try:
            for name in empty:
                self._put(name, nn.Parameter(self.read(name), requires_grad=False))
            yield
        finally:
            for name, parameter in empty.items():
                self._put(name, parameter)

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        """Replace a parameter wherever it is used: an embedding may be the head's matrix, too."""
        for module, attribute in self._uses[name]:
            module._parameters[attribute] = parameter

    def parameters_of(self, *modules: nn.Module) -> list[str]:
        """The names of all parameters of these modules."""
        wanted = {id(p) for module in modules for p in module.parameters()}
        return [name for name, p in self.model.named_parameters() if id(p) in wanted]

    @contextmanager
    def running(self, after: Callable[[int], None] = lambda number: None) -> Iterator[Any]:
        """The model, which computes while the block runs; `after` a block it is still loaded.

        A batch goes through a block row by row.
        """
        blocks = blocks_of(self.model)
        inside = set(self.parameters_of(*blocks))
        outside = [name for name, _ in self.model.named_parameters() if name not in inside]
        with ExitStack() as stack:
            stack.enter_context(self.loaded(outside))
            for number, block in enumerate(blocks):
                block.forward = self._forward(block, number, after)
                stack.callback(delattr, block, "forward")
            yield self.model

    def _forward(self, block: Any, number: int, after: Callable[[int], None]) -> Any:
        own, names = block.forward, self.parameters_of(block)

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            rows = len(hidden)
            with self.loaded(names):
                if rows == 1 or _has_cache([*args, *kwargs.values()]):
                    found = own(hidden, *args, **kwargs)
                else:
                    found = _joined(
                        [
                            own(*_row((hidden, *args), row, rows), **_row(kwargs, row, rows))
                            for row in range(rows)
                        ]
                    )
                after(number)
            return found

        return forward


def blocks_of(model: Any) -> list[Any]:
    """The blocks of a model in order: members of a list of modules that hold attention."""
    ours = attention_layers(model)
    names = [name for name, _ in ours] if ours else [layer.name for layer in layers_of(model)]
    found = {id(block): block for block in (block_of(model, name) for name in names)}
    return list(found.values())


class LayerByLayer:
    """The conversion of a checkpoint to a mode, layer by layer.

    ValueError, before a weight is changed, if an equation can neither be fitted nor is satisfied.
    """

    def __init__(self, source: StreamedModel, mode: Mode, progress: Progress) -> None:
        """Find the layers that have to be fitted."""
        self.source, self.progress = source, progress
        model, family = source.model, family_of(source.model.config)
        family.check(model.config)
        self.layers = layers_of(model)
        changes, refused = _changes(self.layers, mode)
        try:
            self.config = with_mode(model.config, mode)
            check_heads(self.config, model.config)
        except ValueError as error:
            raise next(iter(refused.values()), error) from None
        with torch.device("meta"):
            self.model: Any = model_classes(family)[auto_of(model)](self.config)
        self.attentions = [attention for _, attention in attention_layers(self.model)]
        exact = {number for number in (*changes, *refused) if self._is_exact(number)}
        for number, error in refused.items():
            if number not in exact:
                raise error
        self.changes = {n: change for n, change in changes.items() if n not in exact}

    def _is_exact(self, number: int) -> bool:
        """Whether the weights of a layer satisfy its equation."""
        layer = self.layers[number]
        with self.source.loaded(self.source.parameters_of(layer.attention)):
            try:
                check_function(self.attentions[number].plan, layer.family, number)
                self._new_weights(layer)
            except ValueError:
                return False
        return True

    def _new_weights(self, layer: Layer) -> dict[str, Tensor]:
        old = {name: part.detach() for name, part in layer.attention.state_dict().items()}
        return convert_layer(self.attentions[layer.number], old, layer.number)

    @property
    def changed(self) -> list[int]:
        """The layers that have other matrices than the original's, fitted or not."""
        own = {layer.number: layer.family.plan(CANONICAL, layer.geometry) for layer in self.layers}
        rows = {number: self.attentions[number].plan.matrix_rows for number in own}
        return [number for number, plan in own.items() if rows[number] != plan.matrix_rows]

    def write(self, folder: Path, text: Windows | None, start: str) -> int:
        """Write the weights, in the types of the source, and the settings; the tokens of the fit.

        A text is read only if a layer has to be fitted to it: all of it by each block in turn.
        """
        fitted = bool(self.changes) and parse_start(start).is_fitted
        if fitted and text is None:
            raise ValueError(start_needs_text(start))
        changed: set[str] = set()
        limit = min(SHARD_BYTES, self.source.tensors.shard_bytes)
        with ShardWriter(folder, limit) as writer:
            if fitted and text is not None:
                self._write_fitted(writer, changed, text, start)
            else:
                time_left = TimeLeft("layers", len(self.layers), self.progress)
                for layer in self.layers:
                    parts = (layer.attention, layer.output)
                    with self.source.loaded(self.source.parameters_of(*parts)):
                        self._write_layer(writer, changed, layer, None, start)
                    time_left.done(layer.number + 1)
            for name in self.source.stored:
                if name not in changed:
                    writer.add(name, self.source.stored_tensor(name))
        self.config.dtype = self.source.dtype
        self.config.architectures = [type(self.model).__name__]
        write_settings(self.config, self.source.folder, folder)
        return text.numel() if fitted and text is not None else 0

    def _write_fitted(
        self, writer: ShardWriter, changed: set[str], text: Windows, start: str
    ) -> None:
        """Read the text block by block, and fit and write each layer behind its block."""
        blocks = blocks_of(self.source.model)
        time_left = TimeLeft("blocks read and fitted", len(blocks), self.progress)
        again = [n for n, change in self.changes.items() if is_refitted(change, start)]
        refitted = [self.layers[number] for number in again]
        with recording(self.source.model) as moments, recording_calls(refitted) as calls:

            def write_layers(number: int) -> None:
                inside = set(blocks[number].modules())
                for layer in self.layers:
                    if layer.attention in inside:
                        own, read = moments.by_layer.pop(layer.number), calls.pop(layer.number, [])
                        with moments.paused():
                            self._write_layer(writer, changed, layer, own, start, read)
                time_left.done(number + 1)

            with torch.no_grad(), self.source.running(write_layers) as model:
                without = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
                model.base_model(input_ids=text, **without)

    def _write_layer(
        self,
        writer: ShardWriter,
        changed: set[str],
        layer: Layer,
        moments: Moments | None,
        start: str,
        calls: Sequence[Call] = (),
    ) -> None:
        """Write the tensors of a layer, whose weights are in memory."""
        source, names = self.source, self.source.parameters_of(layer.attention)
        dtype = source.stored_tensor(names[0]).dtype
        change = self.changes.get(layer.number)
        if change is not None:
            weights = fit_layer(layer, change, moments, start, layer.read())
            layer.write(refit_behind(layer, weights, calls) if calls else weights)
        found = {f"{layer.name}.{name}": part for name, part in self._new_weights(layer).items()}
        if change is not None:
            outputs = source.parameters_of(layer.output)
            found |= {name: source.model.get_parameter(name) for name in outputs}
            names = list(dict.fromkeys([*names, *outputs]))
        changed.update(names)
        for name, part in found.items():
            writer.add(name, part.to(dtype))


def _changes(
    layers: Sequence[Layer], mode: Mode
) -> tuple[dict[int, Change], dict[int, ValueError]]:
    """The changes of a mode by layer, and why an equation of it cannot be fitted."""
    found, refused = {}, {}
    for layer, variant in zip(layers, variants(mode, len(layers)), strict=True):
        try:
            change = check_change(layer, variant)
        except ValueError as error:
            refused[layer.number] = error
        else:
            if change is not None:
                found[layer.number] = change
    return found, refused


def _uses(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """The modules that have each parameter, under its first name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found[names[id(parameter)]].append((module, attribute))
    return found


def _saved_buffers(model: nn.Module) -> list[str]:
    """The names of the buffers that the library saves."""
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]


def _stored_names(model: Any, stored: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The name in the files of each of these tensors of the model, in the order of the files.

    The library renames those of older versions. ValueError if attention is not in the files, or not
    tensor by tensor.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters: Any = [each for each in mapping if not isinstance(each, WeightRenaming)]
    meta = model.state_dict()
    found = {}
    for key in stored:
        name, merged = rename_source_key(key, renamings, converters, model.base_model_prefix, meta)
        if merged is None and name in names:
            found[name] = key
    inside = [
        name
        for block in blocks_of(model)
        for name, parameter in model.named_parameters()
        if any(parameter is own for own in block.parameters())
    ]
    if lost := next((name for name in inside if name not in found), None):
        raise ValueError(
            f"The files have no tensor for {lost} of {type(model).__name__}.\nLoad it with "
            "transformers, and save it again with save_pretrained."
        )
    return found


def _make_buffers(model: Any) -> None:
    """Compute the buffers that no file has, such as frequencies of RoPE."""
    for module in model.modules():
        empty = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
        if any(buffer.is_meta for buffer in empty.values()):
            for name, buffer in empty.items():
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
            model._init_weights(module)


def _has_cache(values: Sequence[Any]) -> bool:
    from transformers import Cache

    return any(isinstance(value, Cache) for value in values)


def _row(value: Any, row: int, rows: int) -> Any:
    """One row of every tensor that has a row for each of the batch."""
    match value:
        case Tensor() if value.dim() > 1 and len(value) == rows:
            return value[row : row + 1]
        case tuple():
            return tuple(_row(each, row, rows) for each in value)
        case dict():
            return {name: _row(each, row, rows) for name, each in value.items()}
        case _:
            return value


def _joined(found: Sequence[Any]) -> Any:
    """The outputs of all rows as one batch."""
    match found[0]:
        case Tensor():
            return torch.cat(list(found))
        case tuple():
            return tuple(_joined(parts) for parts in zip(*found, strict=True))
        case _:
            return found[0]
