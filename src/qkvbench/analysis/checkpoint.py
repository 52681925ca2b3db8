"""The Q, K and V projections of a checkpoint, found by the names of its tensors."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from qkvbench.analysis.layer import Projection, Weights
from qkvbench.variant import ROLES, Role

# A matrix for each role: `self_attn.k_proj` (Llama, Mistral, Qwen, OPT, BART), `self.key` (BERT,
# ViT), `attention.k_lin` (DistilBERT), `SelfAttention.k` (T5) and `attention.k` (this bench).
SEPARATE = (
    re.compile(r"(?P<layer>.+)\.(?P<role>[qkv])_(?:proj|lin)\.weight"),
    re.compile(r"(?P<layer>.+)\.(?P<role>query|key|value)\.weight"),
    re.compile(r"(?P<layer>(?:.+\.)?\w*[aA]ttention)\.(?P<role>[qkv])\.weight"),
)
# One matrix whose rows are Q, then K, then V: GPT-2 and Qwen 1, Phi-3, timm, torch itself.
FUSED = re.compile(r"(?P<layer>.+)\.(?:c_attn\.weight|qkv_proj\.weight|qkv\.weight|in_proj_weight)")


class HeadsError(ValueError):
    """The numbers of heads do not fit the matrices of a layer."""


@dataclass(frozen=True)
class LayerNames:
    """The tensors of one attention layer: one for each role, or a fused one for all three."""

    layer: str
    tensors: dict[Role, str]
    fused: str | None = None


def find_layers(names: Iterable[str]) -> tuple[LayerNames, ...]:
    """The attention layers among these tensors, in the order of their numbers; may be empty."""
    layers: dict[str, LayerNames] = {}
    for name in names:
        if match := FUSED.fullmatch(name):
            layers[match["layer"]] = LayerNames(match["layer"], {}, fused=name)
        for pattern in SEPARATE:
            if match := pattern.fullmatch(name):
                role: Role = next(role for role in ROLES if match["role"].startswith(role))
                layer = layers.setdefault(match["layer"], LayerNames(match["layer"], {}))
                layer.tensors[role] = name
    return tuple(sorted(layers.values(), key=lambda layer: _natural_key(layer.layer)))


def read_weights(
    layer: LayerNames,
    read: Callable[[str], Float[np.ndarray, "rows columns"]],
    *,
    heads: int,
    kv_heads: int | None = None,
) -> Weights:
    """The projections of a layer, split into heads; roles without a matrix are left out.

    The number of key/value heads is inferred from separate matrices; for a fused one whose three
    parts have one size it is `heads`. HeadsError if the sizes do not agree.
    """
    if layer.fused is not None:
        return _split_fused(layer.fused, read(layer.fused), heads, kv_heads)
    matrices: dict[Role, np.ndarray] = {}
    for role in ROLES:
        if role in layer.tensors:
            matrices[role] = read(layer.tensors[role])
    counts: dict[Role, int] = {"q": heads, "k": kv_heads or heads, "v": kv_heads or heads}
    if "q" in matrices and kv_heads is None:
        head_dim = _rows_per_head(layer.tensors["q"], len(matrices["q"]), heads)
        counts |= {
            role: max(1, len(matrix) // head_dim)
            for role, matrix in matrices.items()
            if role != "q"
        }
    weights: dict[Role, Projection] = {
        role: _split_heads(layer.tensors[role], matrix, counts[role])
        for role, matrix in matrices.items()
    }
    _check_heads(layer.layer, weights)
    return weights


def _check_heads(layer: str, weights: Weights) -> None:
    """HeadsError if heads differ in size, or if query heads cannot share those of K or V.

    The widths of their inputs may differ: in cross-attention Q reads another stream.
    """
    heads = max(len(projection) for projection in weights.values())
    counts = ", ".join(f"{role} {len(projection)}" for role, projection in weights.items())
    if len({projection.shape[1] for projection in weights.values()}) > 1:
        shapes = ", ".join(f"{role} {each.shape[1]}" for role, each in weights.items())
        raise HeadsError(
            f"The heads of {layer} differ in size ({shapes}) with these numbers of heads: {counts}."
        )
    shared = len(weights["q"]) if "q" in weights else heads
    if any(shared % len(projection) for projection in weights.values()):
        raise HeadsError(
            f"The heads of {layer} cannot be shared equally with these numbers of heads: {counts}."
        )


def _split_fused(
    name: str, matrix: Float[np.ndarray, "rows columns"], heads: int, kv_heads: int | None
) -> Weights:
    """Q, K and V from one matrix. The longer side is the output, because GPT-2 stores Wᵀ."""
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    if kv_heads is None:
        # Only three parts of the stream's width are known to have one size: with multi-query
        # attention, many other numbers of rows can be divided by `heads`, too.
        if len(matrix) != 3 * matrix.shape[1]:
            raise HeadsError(
                f"{name} has {len(matrix)} outputs of {matrix.shape[1]} inputs, which is not three "
                "times as many, so its number of key/value heads has to be given."
            )
        kv_heads = heads
    head_dim = _rows_per_head(name, len(matrix), heads + 2 * kv_heads)
    parts = np.split(matrix, np.cumsum([heads, kv_heads]) * head_dim)
    counts = (heads, kv_heads, kv_heads)
    return {
        role: _split_heads(name, part, count)
        for role, part, count in zip(ROLES, parts, counts, strict=True)
    }


def _split_heads(name: str, matrix: Float[np.ndarray, "rows columns"], heads: int) -> Projection:
    return matrix.reshape(heads, _rows_per_head(name, len(matrix), heads), matrix.shape[1])


def _rows_per_head(name: str, rows: int, heads: int) -> int:
    if rows % heads:
        raise HeadsError(f"The {rows} rows of {name} cannot be divided into {heads} heads.")
    return rows // heads


def _natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """A sort key that puts layer 10 after layer 9."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)
