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

if TYPE_CHECKING:
    import numpy as np

    from qkvbench.analysis import LayerNames, Weights

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
    layers = _layers(tensors)
    rows: dict[str, dict[str, float]] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        weights = _weights(layer, tensors, heads, kv_heads)
        rows[layer.layer] = measure_weights(weights)
        sizes |= {role: matrix.shape for role, matrix in weights.items()}
    first, last = _common_affixes(list(rows))
    short = {layer[len(first) : len(layer) - len(last)]: row for layer, row in rows.items()}
    said = conclusions(short, sizes=sizes)
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
    for line in _legend(sizes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
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
    from qkvbench.analysis import read_weights

    def read(name: str) -> "np.ndarray":
        matrix = tensors[name]()
        if matrix.ndim != 2:
            raise ValueError(f"{name} is not a matrix; its shape is {matrix.shape}.")
        if not math.isfinite(matrix.sum(dtype="float64")):
            raise RequestError(f"{printable(name)} has numbers that are not finite.")
        return matrix

    try:
        return read_weights(layer, read, heads=heads, kv_heads=kv_heads)
    except ValueError as error:
        raise RequestError(
            f"{printable(str(error))}\nThe number of heads is in the checkpoint's configuration: "
            "write --heads N, and --kv-heads N if keys and values have fewer."
        ) from None


def _document(
    rows: dict[str, dict[str, float]], sizes: Mapping[str, tuple[int, ...]]
) -> dict[str, object]:
    from qkvbench.analysis import WEIGHT_MEASURES

    return {
        "measures": {name: measure.about for name, measure in WEIGHT_MEASURES.items()},
        "heads": {role: shape[0] for role, shape in sizes.items()},
        "layers": [
            {
                "layer": layer,
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


def _legend(sizes: Mapping[str, tuple[int, ...]]) -> list[str]:
    from qkvbench.analysis.conclusions import random_residual

    heads = ", ".join(f"{shape[0]} of {role.upper()}" for role, shape in sizes.items())
    _, head_dim, d_model = next(iter(sizes.values()))
    lines = [
        f"Heads: {heads}; head_dim {head_dim}, d_model {d_model}. Means over heads; the ranks are "
        "effective ranks of all heads together.",
        "For independent random matrices: cosine, CKA and symmetry 0, overlap "
        f"{head_dim / d_model:.3f}, residual about {random_residual(head_dim, d_model):.3f}.",
        "For identical matrices: cosine, CKA and overlap 1, residual 0.",
    ]
    absent = [role.upper() for role in ("q", "k", "v") if role not in sizes]
    if absent:
        lines.append(f"No matrix of its own in the file: {', '.join(absent)}.")
    return lines
