"""Which tensors of a checkpoint project to Q, K and V, by the names that are in use."""

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


@dataclass(frozen=True)
class Found:
    """One attention layer of a checkpoint: the tensor of each role, or one tensor for all three."""

    layer: str
    tensors: dict[Role, str]
    fused: str | None = None


def find_layers(names: Iterable[str]) -> tuple[Found, ...]:
    """The attention layers among these tensors, in the order of their numbers; maybe none."""
    found: dict[str, Found] = {}
    for name in names:
        if match := FUSED.fullmatch(name):
            found[match["layer"]] = Found(match["layer"], {}, fused=name)
        for pattern in SEPARATE:
            if match := pattern.fullmatch(name):
                role: Role = next(role for role in ROLES if match["role"].startswith(role))
                layer = found.setdefault(match["layer"], Found(match["layer"], {}))
                layer.tensors[role] = name
    return tuple(sorted(found.values(), key=lambda layer: _numbered(layer.layer)))


def weights_of(
    layer: Found,
    read: Callable[[str], Float[np.ndarray, "rows columns"]],
    *,
    heads: int,
    kv_heads: int | None = None,
) -> Weights:
    """The projections of a layer, cut into heads; a role without a matrix of its own is left out.

    The number of key/value heads follows from separate matrices; of a fused one it is `heads`,
    if nothing else is said. ValueError, with the reason, where the sizes do not agree.
    """
    if layer.fused is not None:
        return _cut(layer.fused, read(layer.fused), heads, kv_heads or heads)
    matrices: dict[Role, np.ndarray] = {}
    for role in ROLES:
        if role in layer.tensors:
            matrices[role] = read(layer.tensors[role])
    counts: dict[Role, int] = {"q": heads, "k": kv_heads or heads, "v": kv_heads or heads}
    if "q" in matrices and kv_heads is None:
        head_dim = _divided(layer.tensors["q"], len(matrices["q"]), heads)
        counts |= {
            role: max(1, len(matrix) // head_dim)
            for role, matrix in matrices.items()
            if role != "q"
        }
    weights: dict[Role, Projection] = {
        role: _in_heads(layer.tensors[role], matrix, counts[role])
        for role, matrix in matrices.items()
    }
    if len({projection.shape[1:] for projection in weights.values()}) > 1:
        shapes = ", ".join(f"{role} {matrix.shape}" for role, matrix in matrices.items())
        raise ValueError(
            f"The heads of {layer.layer} differ in size ({shapes}) "
            f"with {counts['q']} query and {counts['k']} key/value heads."
        )
    return weights


def _cut(
    name: str, matrix: Float[np.ndarray, "rows columns"], heads: int, kv_heads: int
) -> Weights:
    """Q, K and V from one matrix; the longer side is what it makes, for GPT-2 stores columns."""
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    head_dim = _divided(name, len(matrix), heads + 2 * kv_heads)
    places = np.cumsum([heads, kv_heads]) * head_dim
    parts = np.split(matrix, places)
    counts = (heads, kv_heads, kv_heads)
    return {
        role: _in_heads(name, part, count)
        for role, part, count in zip(ROLES, parts, counts, strict=True)
    }


def _in_heads(name: str, matrix: Float[np.ndarray, "rows columns"], heads: int) -> Projection:
    return matrix.reshape(heads, _divided(name, len(matrix), heads), matrix.shape[1])


def _divided(name: str, rows: int, heads: int) -> int:
    if rows % heads:
        raise ValueError(f"The {rows} rows of {name} cannot be divided into {heads} heads.")
    return rows // heads


def _numbered(name: str) -> tuple[tuple[int, str], ...]:
    """Layer 10 after layer 9."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)
