"""Model files of the program in native/edge: a safetensors file that also says what to compute.

``__metadata__`` has the sizes of each layer, the matrix of each role and the tensors that its plan
caches, so the program knows no variant by name.
"""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from qkvbench.backends.common.decode_support import WORDS
from qkvbench.backends.torch import Decoder, named_weights
from qkvbench.backends.torch.models.block import Block
from qkvbench.export import BYTES, ExportError, Options
from qkvbench.export.rounding import inputs_of, rounded
from qkvbench.export.stepping import Stepping
from qkvbench.model.parts import (
    AnyFeedForward,
    AnyNorm,
    FeedForward,
    LayerNorm,
    RMSNorm,
    SwiGLU,
)
from qkvbench.model.quantization import GROUP
from qkvbench.native import CAPABILITIES
from qkvbench.variant import ApplyRope, Plan

ABOUT = "a model file for a small program without Python: --program FILE builds it, too"
SUFFIXES = (".safetensors",)
VERSION = 1
POSITIONS = "embedding.positions"

# Features of a plan that the program has. It gives the kernel nothing else.
FEATURES = frozenset({"mask.causal", "read.ApplyRope"})
# Parts of a plan that the program lacks, and how a person would say them.
PARTS = {
    "rope_head": "a part of Q and K that alone gets RoPE",
    "absorbed_by_query": "a map or a scale of K",
    "absorbed_by_output": "a map of V",
    "output_ops": "RoPE on V",
    "exclusive": "an output without the own value",
    "gate": "an output gate",
    "log_scale": "scores that grow with the position",
    "before_output": "an operation on the output of the heads",
    "lenders": "K or V of a layer below",
}


def missing_requirement() -> str | None:
    """Why it cannot be written here: safetensors is always there."""
    return None


def write(stepping: Stepping, path: Path, options: Options) -> None:
    """Write weights, and what the program computes with them.

    With weights in int8 every matrix is rounded row by row, embeddings too; each row has a scale in
    fp32, and biases, norms and position embeddings stay in fp32. With int4 the matrices of the
    blocks are in int4, each 32 numbers of a row with a scale that is fitted, to a text if there is
    one. Embeddings, the output, matrices that make both K and V, and those whose rows are no whole
    groups are in int8.
    """
    network, model = stepping.network, stepping.network.model
    for block in network.layers():
        if lacking := _missing(block):
            raise ExportError(
                f"{model.variant} in {model.name} needs {lacking}, which the edge program lacks.\n"
                "--to onnx and --to torch-export write it."
            )
    weights = named_weights(network)
    added = network.embedding.position_embeddings(stepping.context, network.embedding.table)
    if added is not None:
        weights[POSITIONS] = added[: stepping.context]
    metadata = {"format": "pt", "qkvbench": json.dumps(about(stepping))}
    stored = {name: each.detach().float().contiguous().clone() for name, each in weights.items()}
    if options.weights != "fp32":
        inputs = None if options.text is None else inputs_of(network, options.text)
        tied = tied_matrices(network)
        for name, each in list(stored.items()):
            if each.dim() == 2 and name != POSITIONS:
                in_groups = name.startswith("blocks.") and each.shape[1] % GROUP == 0
                kind = options.weights if in_groups and name not in tied else "int8"
                known = inputs[name] if inputs and kind == "int4" else None
                stored[name], stored[f"{name}_scale"] = rounded(each, kind, known)
    try:
        save_file(stored, path, metadata)
    except SafetensorError as error:
        raise ExportError(f"{path.name} cannot be written: {error}.") from error


def tied_matrices(network: Decoder) -> set[str]:
    """The names of the matrices of which both K and V are made: errors of two roles meet there."""
    found: set[str] = set()
    for number, block in enumerate(network.layers()):
        assert block.attention, "a block without attention is refused"
        plan = block.attention.plan
        key, value = (plan.derivations[role].root for role in ("k", "v"))
        if key == value and (matrix := plan.root(key).matrix):
            found.add(f"blocks.{number}.attention.{matrix}.weight")
    return found


def about(stepping: Stepping) -> dict[str, object]:
    """Everything that the program must know besides the weights."""
    network = stepping.network
    return {
        "version": VERSION,
        "variant": network.model.variant,
        "context": stepping.context,
        "vocabulary": len(network.matrix),
        "bytes": len(network.matrix) == BYTES,
        "d_model": network.model.geometry.d_model,
        "norm": _norm(network.model.towers[0].final_norm),
        "layers": [_layer(block) for block in network.layers()],
    }


def _layer(block: Block) -> dict[str, object]:
    assert block.attention, "a block without attention is refused"
    plan = block.attention.plan
    return {
        "heads": plan.geometry.heads,
        "kv_heads": plan.heads("k"),
        "head_dim": plan.geometry.head_dim,
        "matrices": [
            {"name": root.matrix, "heads": root.heads} for root in plan.roots if root.matrix
        ],
        "query": plan.root(plan.derivations["q"].root).matrix,
        "cached": [
            {
                "name": tensor.name,
                "matrix": plan.root(tensor.derivation.root).matrix,
                "rope": ApplyRope() in tensor.derivation.ops,
            }
            for tensor in plan.cached
        ],
        "rope_on_read": ApplyRope() in plan.key_ops_on_read,
        "frequencies": list(plan.rope.frequencies) if plan.rope else [],
        "norm": _norm(block.spec.norm),
        "feed_forward": _feed_forward(block.spec.feed_forward),
    }


def _norm(norm: AnyNorm) -> dict[str, object]:
    match norm:
        case LayerNorm(eps):
            return {"kind": "layer", "eps": eps}
        case RMSNorm(eps=eps, scale=True):
            return {"kind": "rms", "eps": eps}
        case _:
            raise AssertionError("another norm is refused")


def _feed_forward(feed_forward: AnyFeedForward | None) -> dict[str, object]:
    match feed_forward:
        case FeedForward(width):
            return {"kind": "gelu", "width": width}
        case SwiGLU(width):
            return {"kind": "swiglu", "width": width}
        case _:
            raise AssertionError("another feed-forward is refused")


def _missing(block: Block) -> str | None:
    """Something that the program lacks for this block; None if it runs it."""
    spec = block.spec
    if block.attention is None:
        return "a block without attention"
    if not isinstance(spec.feed_forward, FeedForward | SwiGLU):
        return f"the feed-forward {type(spec.feed_forward).__name__}"
    if not isinstance(spec.norm, LayerNorm | RMSNorm) or not getattr(spec.norm, "scale", True):
        return "a norm that is neither LayerNorm nor RMSNorm with a scale"
    if (spec.norm_place, spec.residual) != ("input", "sequential"):
        return "another place of norms, or parallel parts"
    if spec.shared_feed_forward or not (spec.output_projection and spec.biases):
        return "a shared feed-forward, or attention without output projection or biases"
    return _missing_of(block.attention.plan)


def _missing_of(plan: Plan) -> str | None:
    """Something that the program lacks for this layer of attention."""
    for part, words in PARTS.items():
        if getattr(plan, part):
            return words
    if lacking := sorted(plan.features - FEATURES):
        return WORDS.get(lacking[0], lacking[0])
    if any(root.matrix is None for root in plan.roots):
        return "Q, K or V that is the input itself"
    ops = [op for each in plan.all_derivations for op in each.ops]
    if found := next((op for op in ops if not isinstance(op, ApplyRope)), None):
        return f"the operation {type(found).__name__} on heads"
    if plan.rope and (plan.rope.attention_factor != 1 or plan.rope.roles != ("q", "k")):
        return "RoPE that also scales, or of other roles than Q and K"
    width = plan.geometry.head_dim
    if {plan.width("q"), plan.width("k"), plan.width("v")} != {width}:
        return "K or V of another width than heads have"
    if not CAPABILITIES.can_run("fp32", width):
        return f"heads of {width} numbers; its kernel has multiples of 8 up to 256"
    return None
