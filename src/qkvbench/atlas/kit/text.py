"""The atlas in words and numbers, computed from its rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from qkvbench import cost
from qkvbench.atlas.kit.equality import library
from qkvbench.atlas.kit.form import TOKENS, Form, Layer
from qkvbench.atlas.kit.weights import (
    ByGroup,
    Fill,
    HeadRows,
    Inputs,
    LastToFront,
    PairsToHalves,
    PlusOne,
    Rows,
    ScoreScale,
    Sizes,
    SpreadHalves,
    Stacked,
    Step,
    SwapHalves,
    Times,
    Transpose,
    Weight,
)
from qkvbench.model import position_written

HALF = cost.CACHE_FORMATS["bf16"]


@dataclass(frozen=True)
class Cost:
    """One layer of a form: learned numbers, MACs, and bytes for each past token at 2 a number.

    ``cache_bytes`` suffice, and the library keeps ``library_bytes``; in cross-attention for each
    token of the source.
    """

    parameters: int
    macs: int
    cache_bytes: int
    library_bytes: int


def cost_of(form: Form, sizes: Sizes) -> Cost:
    """The cost of one layer of a form with an equation, at these sizes."""
    plan = form.plan(sizes)
    return Cost(
        parameters=cost.attention_parameters(plan),
        macs=cost.attention_macs(plan, TOKENS, TOKENS if plan.is_cross else 0),
        cache_bytes=0 if form.site == "encoder" else cost.cached_bytes(plan, HALF),
        library_bytes=form.library_bytes(sizes),
    )


def answer(forms: Sequence[Form]) -> str:
    """The atlas in one line."""
    said = [form for form in forms if form.equation]
    proved = [form for form in said if form.proved]
    layers = sum(len(form.layers) for form in proved)
    classes = len({layer.name for form in proved for layer in form.layers})
    return (
        f"{len(forms)} forms in use. {len(said)} can be written as one equation, and {len(proved)} "
        "of these were measured equal to the library's layer "
        f"({layers} layers of {classes} classes, {library()})."
    )


def positions_text(form: Form) -> str:
    """The position scheme, and the mask of what is no decoder."""
    text = position_written(form.position)
    return text if form.site == "decoder" else f"{text}, {form.site}"


def weights_text(layer: Layer) -> list[str]:
    """The map of the weights, a line for each of ours."""
    lines = []
    for ours, weight in layer.weights.items():
        match weight:
            case Fill(value):
                lines.append(f"{ours} = {value:g}")
            case Weight(name, steps):
                lines.append(f"{ours} = {', '.join([name, *map(_step_text, steps)])}")
    return lines


def _step_text(step: Step) -> str:
    match step:
        case Stacked(role):
            return f"the rows of {role} in q, k, v"
        case ByGroup(role):
            return f"the rows of {role} in each group of heads"
        case Rows(first, last):
            return f"rows {' + '.join(first) or '0'} to {' + '.join(last) or 'the end'}"
        case HeadRows(first, last, _):
            return f"of each head the rows {' + '.join(first) or '0'} to {' + '.join(last)}"
        case Times(by):
            return f"times {by}"
        case Inputs(inner):
            return f"columns: {_step_text(inner)}"
        case ScoreScale(by):
            return f"times {by} · √head_dim"
        case _:
            return PLAIN_STEPS[type(step)]


PLAIN_STEPS: dict[type[Step], str] = {
    Transpose: "transposed",
    PairsToHalves: "adjacent pairs to halves",
    LastToFront: "rotated coordinates to the front",
    SwapHalves: "halves exchanged",
    SpreadHalves: "pairs half a head apart to halves of the rotated part",
    PlusOne: "plus 1",
}
