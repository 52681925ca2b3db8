"""A checkpoint whose weights already satisfy a tie, converted to that mode without any change.

Rotations are recovered exactly or not at all. Weights that are only near a tie would give another
model, which has to be trained first.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkvbench.analysis import best_rotation
from qkvbench.backends.torch.attention import ops
from qkvbench.hub.attention import QkvModeAttention
from qkvbench.hub.families import Family, family_of, geometry_of
from qkvbench.hub.models import attention_layers, layer_plans, model_classes, with_mode
from qkvbench.hub.modes import Mode
from qkvbench.variant import HeadNorm, Plan, Variant, write
from qkvbench.variant.scores import ROLES, Role
from qkvbench.variant.spec import Latent, LayerBelow, LearnedMap, Own, Same, Stream, Zeros

# Largest relative error of a tie: a few roundings in fp32.
TIE_TOLERANCE = 1e-6

# Each role's weights by head, with biases as the last column: (heads, head_dim, d_model + 1).
RoleWeights = dict[Role, Tensor]


@torch.no_grad()
def convert(model: Any, mode: Mode) -> Any:
    """The model of transformers with this `qkv_mode` and the same outputs.

    ValueError if its weights do not satisfy the mode's ties, if its head sharing forbids them, if
    the mode is another function of them, or if a setting of its config is unknown.
    """
    family = family_of(model.config)
    for number, plan in enumerate(layer_plans(with_mode(model.config, mode))):
        check_function(plan, family, number)
    return with_weights(model, mode)


def check_function(plan: Plan, family: Family, number: int) -> None:
    """Refuse a layer that is another function than the library's of any weights; ValueError."""
    if norms_otherwise(plan.variant, family):
        own = f"norms {' and '.join(family.normed).upper()}" if family.normed else "norms no heads"
        raise ValueError(
            f"Layer {number}: '{write(plan.variant)}' has other norms of heads than the "
            f"checkpoint, which {own}, so its outputs change with any weights.\n"
            "Leave the suffix out: a checkpoint's own norms are there without it."
        )
    if plan.output_ops or plan.variant.scores.rope_value:
        raise ValueError(
            f"Layer {number}: '{write(plan.variant)}' rotates V, which no checkpoint's layer does, "
            "so its outputs change with any weights.\n'qkvbench convert' fits it to a text, and "
            "measures what is lost."
        )


def norms_otherwise(variant: Variant, family: Family) -> bool:
    """Whether an equation names norms of heads that a checkpoint of this family does not have."""
    named = variant.scores.normed, variant.scores.norm
    return bool(named[0]) and named != (family.normed, HeadNorm())


@torch.no_grad()
def with_weights(model: Any, mode: Mode) -> Any:
    """The model with this mode and the weights of another, which satisfy the mode's ties."""
    family = family_of(model.config)
    auto = auto_of(model)
    config = with_mode(model.config, mode)
    check_heads(config, model.config)
    converted: Any = model_classes(family)[auto](config)
    if converted._can_set_attn_implementation():
        converted.set_attn_implementation(model.config._attn_implementation)
    converted.to(dtype=model.dtype, device=model.device)
    state = model.state_dict()
    for number, (name, attention) in enumerate(attention_layers(converted)):
        prefix = f"{name}."
        names = {each for each in state if each.startswith(prefix)}
        old = {each.removeprefix(prefix): state.pop(each) for each in names}
        new = convert_layer(attention, old, number)
        state |= {f"{prefix}{each}": tensor for each, tensor in new.items()}
    converted.load_state_dict(state)
    if getattr(model, "generation_config", None) is not None:
        converted.generation_config = copy.deepcopy(model.generation_config)
    return converted.train(model.training)


def auto_of(model: Any) -> str:
    """The Auto class of a model of the library's own; ValueError if it takes no `qkv_mode`."""
    family = family_of(model.config)
    auto = next((a for a, name in family.classes.items() if name == type(model).__name__), None)
    if auto is None:
        raise ValueError(
            f"{type(model).__name__} is not one of the classes that take qkv_mode; "
            f"of a {family.kind} these are {', '.join(family.classes.values())}."
        )
    return auto


def check_heads(config: Any, source: Any) -> None:
    """Refuse a mode whose key/value heads those of the source cannot be merged into; ValueError."""
    geometry = geometry_of(source)
    for plan in layer_plans(config):
        if geometry.kv_heads % plan.geometry.kv_heads:
            raise ValueError(
                f"'{write(plan.variant)}' has {plan.geometry.kv_heads} key/value heads and the "
                f"checkpoint {geometry.kv_heads}, which cannot be merged into them; leave out the "
                "'/' for its own number."
            )


def convert_layer(
    attention: QkvModeAttention, old: dict[str, Tensor], number: int
) -> dict[str, Tensor]:
    """The weights of a layer of ours, from the library's; ValueError if a tie is not satisfied."""
    plan, family = attention.plan, attention.family
    names, heads = family.names, geometry_of(attention.config).kv_heads
    fused = names if isinstance(names, str) else None
    old = _by_role(old, family, fused, plan.geometry.head_dim, 3, by_head=family.fused_by == "head")
    old = _merge_heads(plan, family, old, heads, number)
    new = _layer(plan, family, old, attention.state_dict(), number)
    return _as_linear(new, family, fused, attention)


def _by_role(
    old: dict[str, Tensor],
    family: Family,
    fused: str | None,
    head_dim: int,
    parts: int,
    *,
    by_head: bool,
) -> dict[str, Tensor]:
    """The tensors with a fused matrix as (inputs, outputs), all of Q before K and V."""
    if fused is None or family.transposed:
        return old
    found = dict(old)
    for name in (f"{fused}.weight", f"{fused}.bias"):
        if name in old:
            rows = old[name]
            if by_head:
                rows = rows.unflatten(0, (-1, parts, head_dim)).transpose(0, 1).flatten(0, 2)
            found[name] = rows.T if rows.dim() == 2 else rows
    return found


def _as_linear(
    new: dict[str, Tensor], family: Family, fused: str | None, attention: QkvModeAttention
) -> dict[str, Tensor]:
    """The inverse of `_by_role` for the matrices that are left."""
    if fused is None or family.transposed:
        return new
    found, matrices = dict(new), len(attention.plan.matrix_rows)
    for name in (f"{fused}.weight", f"{fused}.bias"):
        if name in new:
            rows = new[name].T if new[name].dim() == 2 else new[name]
            if attention.by_head:
                rows = rows.unflatten(0, (matrices, -1, attention.head_dim))
                rows = rows.transpose(0, 1).flatten(0, 2)
            found[name] = rows.contiguous()
    return found


def _merge_heads(
    plan: Plan, family: Family, old: dict[str, Tensor], heads: int, number: int
) -> dict[str, Tensor]:
    """The weights with as many key/value heads as the plan has; those merged must be equal."""
    left, width = plan.geometry.kv_heads, plan.geometry.head_dim
    if left == heads:
        return old
    names, new = family.names, dict(old)
    queries = plan.geometry.heads * width
    for part in ("weight", "bias"):
        for role in ("k", "v"):
            name = f"{names if isinstance(names, str) else names[role]}.{part}"
            if isinstance(names, str) or name not in old:
                continue
            new[name] = _first_of_each(plan, old[name], heads, role, number)
        if isinstance(names, str):
            if f"{names}.{part}" not in old:
                continue
            # Outputs are the last dimension of a fused matrix, and the only one of its bias.
            fused = old[f"{names}.{part}"].movedim(-1, 0)
            q, k, v = fused.split([queries, heads * width, heads * width])
            k = _first_of_each(plan, k, heads, "k", number)
            v = _first_of_each(plan, v, heads, "v", number)
            new[f"{names}.{part}"] = torch.cat([q, k, v]).movedim(0, -1)
    return new


def _first_of_each(plan: Plan, rows: Tensor, heads: int, role: Role, number: int) -> Tensor:
    """The first head of each group that is merged, if all of them are equal."""
    left, width = plan.geometry.kv_heads, plan.geometry.head_dim
    by_head = rows.reshape(left, heads // left, width, -1)
    _check_tie(plan, number, role, by_head, by_head[:, :1].expand_as(by_head))
    return by_head[:, 0].reshape(left * width, *rows.shape[1:])


def _layer(  # noqa: C901 - one case for each source
    plan: Plan, family: Family, old: dict[str, Tensor], ours: dict[str, Tensor], number: int
) -> dict[str, Tensor]:
    """The weights of one layer of ours, from those of the library's."""
    new = _scales(plan, old, number)
    weights = _role_weights(plan, family, old)
    for role in ROLES:
        match plan.variant.source(role):
            case Own():
                continue
            case Stream():
                expected = _stream(weights[role], plan)
            case Same(origin):
                expected = weights[origin]
            case LearnedMap(origin, "free"):
                matrix = torch.linalg.lstsq(weights[origin].mT, weights[role].mT).solution.mT
                expected = matrix @ weights[origin]
                new[f"map.{role}"] = matrix
            case LearnedMap(origin):
                rotation = _rotation(weights[origin], weights[role])
                expected = rotation @ weights[origin]
                new[f"rotation.{role}"] = ops.generator(rotation)
            case Latent(rank):
                latent, ups = _factors(weights, rank)
                expected = ups[role] @ latent
                new[f"up.{role}"] = ups[role]
                new |= _latent(plan, family, old, latent)
            case LayerBelow() | Zeros():
                raise AssertionError("qkv_mode refuses them")
        _check_tie(plan, number, role, weights[role], expected)
    for name, tensor in ours.items():
        if name not in new:
            new[name] = _projection(name, plan, family, old)
        new[name] = new[name].to(tensor.dtype)
    return new


def _scales(plan: Plan, old: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The learned scales of head norms; roles that are tied must have equal scales."""
    for role in ("q", "k"):
        norm = old.get(f"{role}_norm.weight")
        if norm is not None and role not in plan.scaled_roles:
            _check_tie(plan, number, role, norm, old[f"{plan.scaled_roles[0]}_norm.weight"])
    names = [f"{role}_norm.weight" for role in plan.scaled_roles]
    return {name: old[name] for name in names}


def _role_weights(plan: Plan, family: Family, old: dict[str, Tensor]) -> RoleWeights:
    """Weights and biases of each role's projection by head, in fp64."""
    size = plan.geometry
    names = [family.names] if isinstance(family.names, str) else [*family.names.values()]
    if lacking := [name for name in names if f"{name}.weight" not in old]:
        raise ValueError(
            f"A layer has no {lacking[0]}.weight. If an adapter such as LoRA's is in its place, "
            "merge it first: model.merge_and_unload()."
        )
    counts = {"q": size.heads, "k": size.kv_heads, "v": size.kv_heads}
    if isinstance(family.names, str):
        parts = [old[f"{family.names}.weight"].T]
        if (bias := old.get(f"{family.names}.bias")) is not None:
            parts.append(bias[:, None])
        lengths = [n * size.head_dim for n in counts.values()]
        roles = torch.cat(parts, dim=1).split(lengths)
    else:
        roles = [
            torch.cat(
                [
                    old[f"{name}.{part}"].reshape(len(old[f"{name}.weight"]), -1)
                    for part in ("weight", "bias")
                    if f"{name}.{part}" in old
                ],
                dim=1,
            )
            for name in family.names.values()
        ]
    return {
        role: rows.double().cpu().reshape(counts[role], size.head_dim, -1)
        for role, rows in zip(ROLES, roles, strict=True)
    }


def _projection(name: str, plan: Plan, family: Family, old: dict[str, Tensor]) -> Tensor:
    """The library's tensor, or the columns of a fused one whose roles the plan has."""
    if name.rpartition(".")[0] != family.names or not isinstance(family.names, str):
        return old[name]
    size = plan.geometry
    lengths = [n * size.head_dim for n in (size.heads, size.kv_heads, size.kv_heads)]
    pieces = dict(zip(ROLES, old[name].split(lengths, dim=-1), strict=True))
    return torch.cat([pieces[role] for role in ROLES if role in plan.matrix_rows], dim=-1)


def _factors(weights: RoleWeights, rank: int) -> tuple[Tensor, RoleWeights]:
    """The latent's matrix and the up-projections whose products are nearest to K and V."""
    stacked = torch.cat([weights[role].flatten(0, 1) for role in ("k", "v")])
    u, sizes, vh = torch.linalg.svd(stacked, full_matrices=False)
    root = sizes[:rank].sqrt()
    up = (u[:, :rank] * root).view(2, *weights["k"].shape[:2], rank)
    return root[:, None] * vh[:rank], {"k": up[0], "v": up[1]}


def _latent(
    plan: Plan, family: Family, old: dict[str, Tensor], latent: Tensor
) -> dict[str, Tensor]:
    """The tensors that hold the latent's matrix, with those of Q if both are fused."""
    width = plan.geometry.d_model
    weight, bias = latent[:, :width], latent[:, width:].flatten()
    if not isinstance(family.names, str):
        return {"latent.weight": weight} | ({"latent.bias": bias} if len(bias) else {})
    name, queries = family.names, plan.matrix_rows["q"]
    found = {
        f"{name}.weight": torch.cat([old[f"{name}.weight"][:, :queries].double(), weight.mT], 1)
    }
    if len(bias):
        found[f"{name}.bias"] = torch.cat([old[f"{name}.bias"][:queries].double(), bias])
    return found


def _stream(rows: Tensor, plan: Plan) -> Tensor:
    """The weights with which a role is the stream itself: the identity, and no bias."""
    identity = torch.eye(plan.geometry.d_model, dtype=rows.dtype).view(len(rows), rows.shape[1], -1)
    return torch.nn.functional.pad(identity, (0, rows.shape[2] - identity.shape[2]))


def _rotation(origin: Tensor, role: Tensor) -> Tensor:
    """The rotation of each head that brings `origin` nearest to `role`.

    A head whose best fit is a reflection gets the identity, so that the check of the tie fails.
    """
    rotations = []
    for one, other in zip(origin.numpy(), role.numpy(), strict=True):
        fit = best_rotation(one.T, other.T).T
        # Cayley's parametrization has no rotation with eigenvalue -1.
        proper = np.linalg.det(fit) > 0 and abs(np.linalg.det(fit + np.eye(len(fit)))) > 1e-9
        rotations.append(fit if proper else np.eye(len(fit)))
    return torch.from_numpy(np.stack(rotations))


def _check_tie(plan: Plan, layer: int, role: Role, weights: Tensor, expected: Tensor) -> None:
    """Refuse weights that do not satisfy a tie; ValueError says by how much."""
    error = float((weights - expected).norm() / weights.norm().clamp_min(1e-30))
    # NaN is no tie.
    if not error <= TIE_TOLERANCE:
        raise ValueError(
            f"Layer {layer}: {role} is not what '{write(plan.variant)}' makes of it; the weights "
            f"differ by {error:.2g} of their size, and {TIE_TOLERANCE:g} is allowed.\nOnly weights "
            "that satisfy a tie are converted without loss; 'qkvbench convert' fits others to a "
            "text, with healing, and measures what is lost."
        )
