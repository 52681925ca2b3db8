"""`qkvbench show`: one variant, drawn and counted from its plan."""

import json
from dataclasses import asdict

from qkvbench import cost
from qkvbench.cli import names
from qkvbench.cli.parser import Request
from qkvbench.cost.units import bytes_text
from qkvbench.model import Model, Rotary
from qkvbench.variant import CANONICAL, ROLES, Op, Plan, Role, Rotate, Variant, resolve, write
from qkvbench.variant.catalogue import CATALOGUE


def answer(request: Request) -> int:
    """Print the variant."""
    variant = names.variant(request.variant)
    base = names.model(request.model)
    model = names.with_variant(base, variant)
    if request.json:
        print(json.dumps(facts(model, request.tokens), indent=1))
    else:
        print("\n".join(picture(variant, model, request.tokens)))
    return 0


def facts(model: Model, tokens: int) -> dict[str, object]:
    """What is computed of the model, as JSON values; the cache at 2 bytes a value."""
    parameters = cost.parameters(model)
    return {
        "variant": model.variant,
        "model": model.name,
        "tokens": tokens,
        "parameters": {"total": parameters.total, **asdict(parameters)},
        "macs": cost.macs(model, tokens),
        "flops": cost.flops(model, tokens),
        "study_flops": cost.study_flops(model, tokens),
        "cache": {
            "tensors": cost.cache_tensors(model),
            "bytes_per_token": cost.cache_bytes_per_token(model),
        },
    }


def picture(variant: Variant, model: Model, tokens: int) -> list[str]:
    """The lines of a drawing: which matrix feeds which role, what a cache keeps, what it costs."""
    plan = resolve(variant, model.geometry)
    entry = next((each for each in CATALOGUE if each.variant == variant), None)
    title = f"{write(variant)}   {entry.name}: {entry.about}" if entry else write(variant)
    return [
        title,
        f"in {model.name}: d_model {model.geometry.d_model}, {model.geometry.heads} heads of "
        f"{model.geometry.head_dim}, {len(model.blocks)} layers",
        "",
        *_roots(plan),
        "",
        *_cache(plan, model),
        "",
        *_counts(model, tokens),
    ]


def _roots(plan: Plan) -> list[str]:
    lines = []
    for root in plan.roots:
        made = f"x ── W_{root.name} ──▶ {root.name}" if root.projected else "x ──────────▶ x"
        heads = "head" if root.heads == 1 else "heads"
        left = f"  {made}  ({root.heads} {heads}) "
        roles: list[Role] = [role for role in ROLES if plan.paths[role].root == root.name]
        for index, role in enumerate(roles):
            corner = "──" if len(roles) == 1 else "┬─" if index == 0 else "├─"
            corner = "└─" if index and role == roles[-1] else corner
            begin = left if index == 0 else " " * len(left)
            lines.append(f"{begin}{corner}{_way(plan.paths[role].ops)}▶ {role.upper()}")
    return [*lines, "  softmax(Q·Kᵀ)·V ── W_o ──▶ output"]


def _way(ops: tuple[Op, ...]) -> str:
    rotations = [f" R_{op.role} ──" for op in ops if isinstance(op, Rotate)]
    return "".join(["─", *rotations, "─"]) if rotations else "─"


def _cache(plan: Plan, model: Model) -> list[str]:
    if not model.causal:
        return ["  An encoder keeps no cache."]
    rotary = isinstance(model.position, Rotary)
    if len(plan.kept) == 1:
        kept = plan.kept_key
        read = ", turned by position when read as K" if rotary else ""
        root = _frame(kept.path.root, kept.path.ops)
        folded = "; V's rotation is folded into the output" if plan.unfold else ""
        return [f"  The cache keeps one tensor: {root}{read}{folded}."]
    key = "K, turned by position" if rotary else "K"
    value = _frame(plan.kept_value.path.root, ())
    folded = " (V's rotation is folded into the output)" if plan.unfold else ""
    return [f"  The cache keeps two tensors: {key}, and {value}{folded}."]


def _frame(root: str, ops: tuple[Op, ...]) -> str:
    for op in ops:
        if isinstance(op, Rotate):
            root = f"R_{op.role}·{root}"
    return root


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
    return lines


def _change(value: int, whole: int) -> str:
    return "as q,k,v" if value == whole else f"{value / whole - 1:+.1%} of q,k,v".replace("-", "−")
