"""`qkvbench show`: the diagram and the costs of one variant, from its plan."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from qkvbench import cost
from qkvbench.backends.common.decode_support import missing_natively
from qkvbench.cli import names
from qkvbench.cli.parser import Request, RequestError
from qkvbench.cost.units import bytes_text
from qkvbench.model import Model, position_written
from qkvbench.variant import (
    CANONICAL,
    DECAY,
    FIRST_VALUE,
    GATE,
    MAP_LETTERS,
    ROLES,
    STRENGTH,
    ZEROS,
    AlibiBias,
    ApplyMap,
    ApplyRope,
    Bucketed,
    Clamp,
    Derivation,
    DownProject,
    Elu,
    Favor,
    GatedDelta,
    Linear,
    MakeZeros,
    MapKind,
    Mix,
    Multiply,
    Normalize,
    Op,
    Plan,
    Relative,
    Scale,
    Separable,
    Shift,
    Take,
    UpProject,
    write,
)
from qkvbench.variant.catalogue import CATALOGUE

# Caches are counted at 2 bytes a number.
HALF = "bf16"


def answer(request: Request) -> int:
    """Print the variant."""
    base = names.with_position(names.model(request.model), request.position)
    if "@" in request.variant or "~" in request.variant:
        plain = re.split(r"[@~]", request.variant)[0]
        raise RequestError(
            f"'{request.variant}' is an arm of a study, for 'qkvbench run --variants'; a layer is "
            f"drawn by its equation: show '{plain}'."
        )
    model = names.with_variant(base, names.cycle(request.variant))
    if model.longest is not None and request.tokens > model.longest:
        raise RequestError(
            f"{model.name} with {model.position.kind} positions reads at most {model.longest} "
            f"tokens; write --tokens {model.longest} or less."
        )
    if request.json:
        print(json.dumps(facts(model, request.tokens), indent=1))
    else:
        print("\n".join(picture(model, request.tokens)))
    return 0


def facts(model: Model, tokens: int) -> dict[str, object]:
    """The computed costs of the model as JSON values; the cache at 2 bytes a value."""
    parameters = cost.parameters(model)
    return {
        "variant": model.variant,
        "model": model.name,
        "position": position_written(model.position),
        "tokens": tokens,
        "parameters": {"total": parameters.total, **asdict(parameters)},
        "macs": cost.macs(model, tokens),
        "flops": cost.flops(model, tokens),
        "study_flops": cost.study_flops(model, tokens),
        "cache": {
            "tensors": cost.cache_tensors(model),
            "bytes_per_token": cost.cache_bytes_per_token(model),
            "state_bytes": cost.state_bytes(model),
        },
        "native_kernel_lacks": sorted(
            {lack for plan in model.plans if plan for lack in missing_natively(plan, HALF)}
        ),
    }


def picture(model: Model, tokens: int) -> list[str]:
    """The lines of a diagram: the matrices and operations of each role, the cache, the costs.

    One diagram for all layers that are alike.
    """
    layers: dict[str, list[int]] = {}
    for number, plan in enumerate(model.plans):
        if plan:
            cache = ["  An encoder has no cache."]
            if model.causal:
                cache = [*cache_text(plan), decoding_text(plan)]
            diagram = "\n".join([*drawing(plan), "", *cache])
            layers.setdefault(diagram, []).append(number)
    lines: list[str] = []
    for diagram, numbers in layers.items():
        if len(layers) > 1:
            plan = model.plans[numbers[0]]
            of = f"   {write(plan.variant)}" if plan else ""
            lines += [f"{_layers_text(numbers)}{of}", ""]
        lines += [*diagram.split("\n"), ""]
    entry = next((each for each in CATALOGUE if each.equation == model.variant), None)
    return [
        f"{model.variant}   {entry.name}: {entry.about}" if entry else model.variant,
        f"in {model.name}: d_model {model.geometry.d_model}, {model.geometry.heads} heads of "
        f"{model.geometry.head_dim}, {len(model.blocks)} layers, "
        f"positions: {position_written(model.position)}",
        "",
        *lines,
        *_counts(model, tokens),
    ]


def _layers_text(numbers: list[int]) -> str:
    """The numbers of layers, from 0, in words."""
    return f"Layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def drawing(plan: Plan) -> list[str]:
    """From the input by roots and operations to Q, K, V and the output, as lines of text."""
    lines = []
    for root in plan.roots:
        arrow = f"W_{root.matrix} ──" if root.matrix else "───────"
        made = f"{'source' if root.reads == 'source' else 'x'} ── {arrow}▶ {root.name}"
        if root.name == ZEROS:
            made = "0"
        elif root.is_below:
            lender = next(each for each in plan.lenders if each.root == root.name)
            made = f"{lender.role.upper()} of the layer {lender.layers} below"
        heads = "1 head" if root.heads == 1 else f"{root.heads} heads"
        if root.width != plan.geometry.head_dim and root.name != ZEROS:
            heads += f" of {root.width}"
        if root.is_latent:
            latents = "a latent" if root.heads == 1 else f"{root.heads} latents"
            heads = f"{latents} of {root.width} numbers"
        left = f"  {made}  ({heads}) "
        ends = {name: each for name, each in _ends(plan).items() if each.root == root.name}
        for index, (name, derivation) in enumerate(ends.items()):
            corner = "──" if len(ends) == 1 else "┬─" if index == 0 else "├─"
            corner = "└─" if index and index == len(ends) - 1 else corner
            begin = left if index == 0 else " " * len(left)
            lines.append(f"{begin}{corner}{_arrow(derivation.ops)}▶ {name}")
        if root.name == FIRST_VALUE:
            lines.append(f"{left}───▶ {FIRST_VALUE}")
        if root.name in _GATES:
            lines.append(f"{left}── {_GATES[root.name]}")
    return [*lines, f"  {_attention_formula(plan)} ── W_o ──▶ output"]


# From a root that is neither Q, K nor V to what is made of it.
_GATES = {
    GATE: "σ ──▶ gate of the output",
    DECAY: "exp(−rate·softplus) ──▶ α, what is left of the memory",
    STRENGTH: "σ ──▶ β, how much is written",
}


def _ends(plan: Plan) -> dict[str, Derivation]:
    """Everything that is made from roots, by its letter."""
    part = plan.rope_head
    rope = {"Q_r": part.query, "K_r": part.key} if part else {}
    return {role.upper(): plan.derivations[role] for role in ROLES} | rope


def _arrow(ops: tuple[Op, ...]) -> str:
    return "─" + "".join(f" {_OP_LABELS[type(op)](op)} ──" for op in ops)


# The label of each operation on the arrow from a root to a role.
_OP_LABELS: dict[type[Op], Callable[[Any], str]] = {
    ApplyMap: lambda op: f"{MAP_LETTERS[op.kind]}_{op.role}{'ᵀ' if op.back else ''}",
    UpProject: lambda op: f"U_{op.part}",
    DownProject: lambda op: f"D_{op.part} ({op.groups} × {op.rank})",
    Take: lambda op: f"first {op.width}",
    Multiply: lambda op: f"·{op.by:.4g}",
    Clamp: lambda op: f"clamp {op.most}",
    Normalize: lambda op: "LayerNorm" if op.kind == "layer" else "norm",
    Scale: lambda op: f"·s_{op.part}",
    Shift: lambda op: f"+b_{op.part}",
    ApplyRope: lambda op: "inverse RoPE" if op.back else "RoPE",
    Mix: lambda op: f"·(1 − λ) + λ·{op.root}",
    MakeZeros: lambda _: "zeros",
}


def _attention_formula(plan: Plan) -> str:
    """The formula of attention, with everything that is added to the scores."""
    score = "(Q·Kᵀ + Q_r·K_rᵀ)" if plan.rope_head else "Q·Kᵀ"
    if plan.log_scale:
        position = "n" if plan.log_scale.earlier else "(n + 1)"
        score = f"(1 + 0.1·log(1 + ⌊{position}/{plan.log_scale.every:g}⌋))·{score}"
    if plan.scores.softcap:
        score = f"cap{plan.scores.softcap}({score})"
    for bias in plan.biases:
        match bias:
            case Separable():
                score = f"a·{score} + g(key's position)"
            case Relative():
                score = f"a·{score} + g(distance)"
            case Bucketed():
                score = f"{score} + b_head(distance)"
            case AlibiBias():
                score = f"{score} − m_head·distance"
    mask = plan.mask
    near = f"the last {mask.window} keys" if mask.causal else f"keys nearer than {mask.window}"
    limits = "" if mask.window is None else f", {near}"
    limits += f", the keys of its chunk of {mask.chunk}" if mask.chunk else ""
    if mask.blocks:
        limits += f", the keys of its block of {mask.blocks.size}, the one before"
        limits += "" if mask.causal else ", the one behind"
        limits += f" and one of each {mask.blocks.every} blocks"
    limits += f" and the first {mask.sinks}" if mask.sinks else ""
    limits += ", which see all" if mask.global_rows else ""
    limits += "" if mask.diagonal else ", no token on itself"
    limits += ", a learned logit beside them" if plan.scores.sink_logit else ""
    behind = " ── without the part along the token's own V" if plan.exclusive else ""
    behind += " ── inverse RoPE" if plan.output_ops else ""
    behind += " ── ·gate" if plan.gate else ""
    behind += "".join(f" ── {_OP_LABELS[type(op)](op)}" for op in plan.before_output)
    attention = f"softmax({score})·V{limits}" if plan.linear is None else _LINEAR[type(plan.linear)]
    return f"{attention}{behind}"


_LINEAR: dict[type[Linear], str] = {
    Elu: "Σ f(Q)·f(K)·V / Σ f(Q)·f(K), f = elu + 1",
    Favor: "Σ f(Q)·f(K)·V / Σ f(Q)·f(K), f of random features",
    GatedDelta: "Sᵀ·Q, S ← α·(S − β·K·(Kᵀ·S)) + β·K·Vᵀ, Q and K of length 1",
}


def cache_text(plan: Plan) -> list[str]:
    """The content of a decoder's cache, and what is left to do when it is read."""
    if plan.state:
        size = plan.state
        return [
            f"  The cache keeps no tokens: a matrix of {size.rows} × {size.width} in each of "
            f"{size.heads} heads."
        ]
    lent = {role: plan.layers_below(role) for role in ("k", "v")}
    if all(lent.values()):
        layers = "a layer" if lent["k"] == lent["v"] else "two layers"
        return [f"  The cache keeps nothing: K and V are read from the rows of {layers} below."]
    key = _cached_text(plan.cached_key.derivation)
    value = _cached_text(plan.cached_value.derivation)
    shared = plan.shares_rows
    if shared:
        lines = [f"  The cache keeps one tensor: {key}."]
    elif any(lent.values()):
        own, other = (f"V as {value}", "K") if lent["k"] else (f"K as {key}", "V")
        lines = [
            f"  The cache keeps one tensor: {own}. {other} is read from the rows of a layer below."
        ]
    else:
        lines = [f"  The cache keeps two tensors: K as {key}, and V as {value}."]
    if plan.rope_head and not lent["k"]:
        lines.append(f"  It keeps K_r, too: one head of {plan.rope_head.width} numbers.")
    if plan.key_ops_on_read and not lent["k"]:
        read = "it" if shared or lent["v"] else "the first"
        lines.append(f"  When K is read, {read} is {_joined_words(plan.key_ops_on_read)}.")
    absorbed = [
        f"K's {_MAP_NAMES[_kind(op)]} into the query"
        for op in plan.absorbed_by_query
        if not lent["k"] and _kind(op) in _MAP_NAMES
    ]
    if not lent["v"]:
        names = _map_names(plan.absorbed_by_output)
        absorbed += [f"V's {name} into the output" for name in names]
    if absorbed:
        lines.append(f"  Absorbed: {', '.join(absorbed)}.")
    return lines


def decoding_text(plan: Plan) -> str:
    """The program that decodes over the cache on a CPU, with the reason if it is not ours."""
    lacks = missing_natively(plan, HALF)
    if not lacks:
        return "  The native kernel decodes on a CPU."
    return f"  Torch decodes on a CPU: the native kernel has no {', no '.join(lacks)}."


# Operations in words, by what `_kind` makes of them.
_MAP_NAMES: dict[type[Op] | MapKind, str] = {
    "rotation": "rotation",
    "free": "matrix",
    UpProject: "up-projection",
    Take: "first numbers",
}


def _map_names(ops: tuple[Op, ...]) -> list[str]:
    return list(dict.fromkeys(_MAP_NAMES[_kind(op)] for op in ops))


def _kind(op: Op) -> type[Op] | MapKind:
    return op.kind if isinstance(op, ApplyMap) else type(op)


def _cached_text(path: Derivation) -> str:
    """A root and the operations that were applied to it."""
    done = _joined_words(path.ops)
    return f"{path.root} {done}" if done else path.root


_OP_WORDS: dict[type[Op] | MapKind, str] = {
    "rotation": "rotated",
    "free": "multiplied by its matrix",
    UpProject: "projected up",
    Take: "cut to its first numbers",
    Multiply: "multiplied",
    Clamp: "clamped",
    Normalize: "normed",
    Scale: "scaled",
    Shift: "shifted",
    Mix: "mixed with V of the first layer",
    ApplyRope: "rotated by RoPE",
    MakeZeros: "replaced by zeros",
}


def _joined_words(ops: tuple[Op, ...]) -> str:
    *first, last = [_OP_WORDS[_kind(op)] for op in ops] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _counts(model: Model, tokens: int) -> list[str]:
    baseline = model.with_variant(CANONICAL)
    rows = [
        ("parameters", cost.parameters(model).total, cost.parameters(baseline).total, "{:,}"),
        (f"MACs of {tokens} tokens", cost.macs(model, tokens), cost.macs(baseline, tokens), "{:,}"),
    ]
    lines = []
    for name, value, whole, form in rows:
        lines.append(f"  {name:22} {form.format(value):>18}   {_change(value, whole)}")
    kept, whole = cost.cache_bytes_per_token(model), cost.cache_bytes_per_token(baseline)
    if kept is not None and whole is not None:
        lines.append(f"  {'cache of one token':22} {bytes_text(kept):>18}   {_change(kept, whole)}")
        if state := cost.state_bytes(model):
            as_many = f"as of {state / whole:,.0f} tokens of q,k,v"
            lines.append(f"  {'state of one text':22} {bytes_text(state):>18}   {as_many}")
    return lines


def _change(value: int, whole: int) -> str:
    return "as q,k,v" if value == whole else f"{value / whole - 1:+.1%} of q,k,v".replace("-", "−")
