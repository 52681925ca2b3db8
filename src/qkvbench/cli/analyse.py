"""`qkvbench analyse`: what the weights of a checkpoint suggest of K and V, layer by layer."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from qkvbench.cli.parser import Request, RequestError
from qkvbench.reports.parts.formatting import number, printable
from qkvbench.results.store import read_regular
from qkvbench.variant import ROLES, Role

if TYPE_CHECKING:
    import numpy as np

    from qkvbench.analysis import LayerNames, Weights
    from qkvbench.analysis.conclusions import Sizes

# The heading and the decimals of each measure.
COLUMNS = {
    "kv_weight_cosine": ("K,V\ncosine", 3),
    "kv_weight_cka": ("K,V\nCKA", 3),
    "kv_weight_overlap": ("K,V\noverlap", 3),
    "kv_weight_residual": ("K,V\nresidual", 3),
    "qk_weight_symmetry": ("Q,K\nsymmetry", 3),
    "q_weight_rank": ("rank\nQ", 1),
    "k_weight_rank": ("rank\nK", 1),
    "v_weight_rank": ("rank\nV", 1),
}
MAX_NAMES = 4
# The model type whose fused matrix is Q, K and V head by head, if it has as many of each.
INTERLEAVED = "gpt_bigcode"
# How a checkpoint's config.json names its numbers of query and of key/value heads.
HEADS = (("num_attention_heads", "n_head", "num_heads"), ("num_key_value_heads",))


def answer(request: Request) -> int:
    """Print what the weights suggest in sentences, then every measure, layer by layer."""
    paths = _files(request.files)
    heads, kv_heads = _head_counts(request, paths[0].parent / "config.json")
    # Importing torch takes a second, so the request is checked first.
    from qkvbench.analysis import measure_weights
    from qkvbench.analysis.conclusions import conclusions
    from qkvbench.backends.torch.models.weights import lazy_tensors

    try:
        tensors = lazy_tensors(paths)
    except (SafetensorError, OSError) as error:
        raise RequestError(f"This is not a readable safetensors file: {error}.") from None
    sizes: "dict[str, Sizes]" = {}
    rows: dict[str, dict[str, float]] = {}
    left_out: dict[str, ValueError] = {}
    for layer in _layers(tensors):
        try:
            weights = _weights(layer, tensors, heads, kv_heads)
        except ValueError as error:
            left_out[layer.layer] = error
            continue
        rows[layer.layer] = measure_weights(weights)
        sizes[layer.layer] = {role: matrix.shape for role, matrix in weights.items()}
    if not rows:
        raise _no_layer(next(iter(left_out.values())))
    first, last = _common_affixes(list(rows))
    names = {layer: layer[len(first) : len(layer) - len(last)] for layer in rows}
    short = {names[layer]: row for layer, row in rows.items()}
    short_sizes = {names[layer]: own for layer, own in sizes.items()}
    said = [
        *conclusions(short, sizes=short_sizes),
        *(f"Left out: layer {layer}. {error}" for layer, error in left_out.items()),
    ]
    if request.json:
        print(json.dumps({"conclusions": said, **_document(rows, sizes)}, indent=1))
        return 0
    console = Console()
    for sentence in said:
        console.print(printable(sentence), markup=False, highlight=False)
    console.print()
    _print_table(short, console)
    if len(rows) > 1:
        console.print(printable(f"Layers: {first}…{last}"), markup=False, highlight=False)
    for line in _legend(short_sizes):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    return 0


def _files(names: Iterable[str]) -> list[Path]:
    """The files of these names; of a folder all files with weights."""
    paths: list[Path] = []
    for name in map(Path, names):
        found = sorted(name.glob("*.safetensors")) if name.is_dir() else [name]
        if not found or not found[0].is_file():
            what = "file" if found else "*.safetensors in"
            raise RequestError(
                f"There is no {what} {printable(str(name))}.\n"
                "Give the folder of a checkpoint, its .safetensors file, or all of its parts."
            )
        paths += found
    return paths


def _head_counts(request: Request, config: Path) -> tuple[int, int | None]:
    """The numbers of query and key/value heads, by the request or the checkpoint's own file."""
    if request.heads is not None:
        return request.heads, request.kv_heads
    try:
        found: object = json.loads(read_regular(config))
    except (OSError, ValueError, RecursionError):
        found = None
    said = found if isinstance(found, dict) else {}
    text = said.get("text_config")
    # A model of images and texts has the layers of its language model below.
    said = {**said, **(text if isinstance(text, dict) else {})}
    counts = (next((said[key] for key in keys if key in said), None) for keys in HEADS)
    heads, kv_heads = (each if isinstance(each, int) and each > 0 else None for each in counts)
    if said.get("model_type") == INTERLEAVED and said.get("multi_query") is False:
        raise RequestError(
            f"{printable(str(config))} says {INTERLEAVED} without multi-query attention: its fused "
            "matrices have Q, K and V of each head side by side, which is not read here.\n"
            "Save Q, K and V as q_proj, k_proj and v_proj, or as all of Q, then K, then V."
        )
    # gpt_bigcode has no number of key/value heads but this word for one.
    kv_heads = 1 if said.get("multi_query") is True else kv_heads
    if heads is None:
        raise RequestError(
            f"The number of heads is not known, for {printable(str(config))} does not say it; "
            "write --heads N, and --kv-heads N if keys and values have fewer."
        )
    return heads, request.kv_heads or kv_heads


def _layers(names: Iterable[str]) -> "tuple[LayerNames, ...]":
    from qkvbench.analysis import find_layers

    names = list(names)
    layers = find_layers(names)
    if not layers:
        examples = ", ".join(printable(name) for name in names[:MAX_NAMES])
        raise RequestError(
            "No tensor has a known name of a projection to Q, K or V.\n"
            f"There are {len(names)} tensors, such as {examples}.\n"
            "Known names: q_proj, k_proj, v_proj; query, key, value; c_attn; qkv; qkv_proj; "
            "in_proj_weight; attention.q, .k, .v."
        )
    return layers


def _weights(
    layer: "LayerNames",
    tensors: "Mapping[str, Callable[[], np.ndarray]]",
    heads: int,
    kv_heads: int | None,
) -> "Weights":
    """The projections of a layer. ValueError if this layer has none that can be compared."""
    from qkvbench.analysis import read_weights

    def read(name: str) -> "np.ndarray":
        try:
            matrix = tensors[name]()
        except TypeError as error:
            raise RequestError(
                f"{printable(str(error))}\nIt is quantized, and its scales are not read here: "
                "give the checkpoint with floating-point weights that it was made from."
            ) from None
        if matrix.ndim != 2 or not matrix.size:
            kind = "empty" if matrix.ndim == 2 else "not a matrix"
            raise ValueError(f"{name} is {kind}; its shape is {matrix.shape}.")
        if not math.isfinite(matrix.sum(dtype="float64")):
            raise RequestError(f"{printable(name)} has numbers that are not finite.")
        return matrix

    return read_weights(layer, read, heads=heads, kv_heads=kv_heads)


def _no_layer(error: ValueError) -> RequestError:
    """The refusal of a checkpoint without a layer that can be analysed, by its first reason."""
    from qkvbench.analysis import HeadsError

    if not isinstance(error, HeadsError):
        return RequestError(f"No layer can be analysed: {printable(str(error))}")
    return RequestError(
        f"{printable(str(error))}\nThe number of heads is in the checkpoint's configuration: "
        "write --heads N, and --kv-heads N if keys and values have fewer."
    )


def _document(
    rows: Mapping[str, Mapping[str, float]], sizes: "Mapping[str, Sizes]"
) -> dict[str, object]:
    from qkvbench.analysis import WEIGHT_MEASURES

    return {
        "measures": {name: measure.about for name, measure in WEIGHT_MEASURES.items()},
        "layers": [
            {
                "layer": layer,
                "heads": {role: shape[0] for role, shape in sizes[layer].items()},
                **{name: value if math.isfinite(value) else None for name, value in row.items()},
            }
            for layer, row in rows.items()
        ],
    }


def _print_table(rows: Mapping[str, Mapping[str, float]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    for head, _ in COLUMNS.values():
        table.add_column(head, justify="right", no_wrap=True)
    for layer, row in rows.items():
        values = (_cell(row[name], places) for name, (_, places) in COLUMNS.items())
        table.add_row(printable(layer), *values)
    console.print(table, markup=False)


def _common_affixes(names: list[str]) -> tuple[str, str]:
    """The common prefix and suffix of the names; empty for a single name."""
    if len(names) == 1:
        return "", ""
    first = _common_prefix(names)
    return first, _common_prefix([name[len(first) :][::-1] for name in names])[::-1]


def _common_prefix(names: list[str]) -> str:
    """The longest common prefix."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def _cell(value: float, places: int) -> str:
    return number(value, places) if math.isfinite(value) else "–"


def _legend(sizes: "Mapping[str, Sizes]") -> list[str]:
    """The sizes of the layers and the values by chance, once for all layers that share them."""
    from qkvbench.analysis.conclusions import layer_names

    layers: dict[tuple[tuple[Role, tuple[int, ...]], ...], list[str]] = {}
    for layer, own in sizes.items():
        layers.setdefault(tuple(own.items()), []).append(layer)
    lines: list[str] = []
    for own, names in layers.items():
        lines += _sizes_legend(dict(own), "" if len(layers) == 1 else f"In {layer_names(names)}: ")
    return [
        *lines,
        "Means over heads; the ranks are effective ranks of all heads together.",
        "For identical matrices: cosine, CKA and overlap 1, residual 0.",
    ]


def _sizes_legend(sizes: "Sizes", where: str) -> list[str]:
    from qkvbench.analysis.conclusions import random_residual

    heads = ", ".join(f"{shape[0]} of {role.upper()}" for role, shape in sizes.items())
    _, head_dim, d_model = sizes.get("k") or next(iter(sizes.values()))
    widths = {role.upper(): shape[2] for role, shape in sizes.items() if shape[2] != d_model}
    others = "".join(f" ({width} of {role})" for role, width in widths.items())
    lines = [
        f"{where}Heads: {heads}; head_dim {head_dim}, d_model {d_model}{others}.",
        f"{where}For independent random matrices: cosine, CKA and symmetry 0, overlap "
        f"{min(1, head_dim / d_model):.3f}, residual about "
        f"{random_residual(head_dim, d_model):.3f}.",
    ]
    absent = [role.upper() for role in ROLES if role not in sizes]
    if absent:
        lines.append(f"{where}No matrix of its own in the file: {', '.join(absent)}.")
    return lines
