"""Every learned tensor of a model: the only list of weights, which all backends and costs read."""

from collections.abc import Iterator
from typing import Literal, get_args

from qkvbench.model.positions import Learned
from qkvbench.model.spec import Block, EncoderDecoder, LayerPlans, Model, Tower, TwoTowers
from qkvbench.variant import Normal, Parameter

Part = Literal["attention", "feed_forward", "embedding", "norm", "head"]
PARTS: tuple[Part, ...] = get_args(Part)


def parameters_by_part(model: Model) -> dict[Part, tuple[Parameter, ...]]:
    """The learned tensors by part, under the names that all backends share.

    ``blocks.0.attention.q.weight``; those of a second input begin with the tower's name.
    """
    found: dict[Part, list[Parameter]] = {part: [] for part in PARTS}
    for prefix, number, tower in _towers(model):
        for part, parameter in _tower(model, number, tower):
            found[part].append(parameter.under(prefix) if prefix else parameter)
    found["head"] += model.built.head(model.geometry.d_model)
    return {part: tuple(parameters) for part, parameters in found.items()}


def model_parameters(model: Model) -> dict[str, Parameter]:
    """Every learned tensor of the model by its name."""
    return {
        parameter.name: parameter
        for parameters in parameters_by_part(model).values()
        for parameter in parameters
    }


def _towers(model: Model) -> Iterator[tuple[str, int, Tower]]:
    """The prefix of each tower's names, its number, and the tower."""
    match model.architecture:
        case TwoTowers(names=names):
            prefixes = tuple(f"towers.{name}" for name in names)
        case EncoderDecoder():
            prefixes = ("", "source")
        case _:
            prefixes = ("",)
    for number, (prefix, tower) in enumerate(zip(prefixes, model.towers, strict=True)):
        yield prefix, number, tower


def _tower(model: Model, number: int, tower: Tower) -> Iterator[tuple[Part, Parameter]]:
    d_model = model.geometry.d_model
    embedding = [*tower.inputs.parameters(d_model)]
    if class_tokens := 0 if number else model.positions(0):
        shape = (class_tokens, d_model)
        embedding.append(Parameter("class_token", shape, Normal("embedding_std"), dtype="full"))
    if isinstance(tower.position, Learned):
        shape = (tower.position.length, d_model)
        embedding.append(Parameter("positions", shape, Normal("position_std"), dtype="full"))
    for parameter in embedding:
        yield "embedding", parameter.under("embedding")
    for layer, (block, plans) in enumerate(zip(tower.blocks, model.layers[number], strict=True)):
        for part, parameter in _block(block, plans, d_model, first=not layer):
            yield part, parameter.under(f"blocks.{layer}")
    for parameter in tower.final_norm.parameters(d_model):
        yield "norm", parameter.under("norm")


def _block(
    block: Block, plans: LayerPlans, d_model: int, *, first: bool
) -> Iterator[tuple[Part, Parameter]]:
    feed_forward = None
    if block.feed_forward:
        own = first or not block.shared_feed_forward
        feed_forward = block.feed_forward.parameters(d_model, biases=block.biases) if own else ()
    parts: dict[str, tuple[Part, tuple[Parameter, ...] | None]] = {
        "attention": ("attention", plans.attention and plans.attention.parameters),
        "cross": ("attention", plans.cross and plans.cross.parameters),
        "feed_forward": ("feed_forward", feed_forward),
    }
    for name, (part, parameters) in parts.items():
        if parameters is None:
            continue
        for norm in block.norms(name, attends=plans.attention is not None):
            for parameter in block.norm.parameters(d_model):
                yield "norm", parameter.under(norm)
        for parameter in parameters:
            yield part, parameter.under(name)
