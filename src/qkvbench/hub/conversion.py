"""A checkpoint whose weights already satisfy a tie, in the mode of that tie: nothing changes.

Only what is equal becomes one. Rotations are found exactly or not at all; what comes near a tie
would be another model, which has to be trained before it is one of use.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkvbench.analysis import best_rotation
from qkvbench.backends.torch.attention import ops
from qkvbench.hub.families import Family, family_of
from qkvbench.hub.models import models, planned_layers, plans, with_mode
from qkvbench.hub.modes import Mode
from qkvbench.variant.notation import write
from qkvbench.variant.plan import Plan
from qkvbench.variant.scores import ROLES, Role
from qkvbench.variant.spec import Latent, LearnedRotation, Own, Same, Stream

# How far weights may be from a tie, as a share of their size: a few last digits of fp32.
TOLERANCE = 1e-6

# For each role its rows of weights and, where there are any, its offsets, cut into heads.
Rows = dict[Role, Tensor]


@torch.no_grad()
def converted(model: Any, mode: Mode) -> Any:
    """The model of transformers with this `qkv_mode`, computing what it computed.

    ValueError where its weights do not satisfy the mode's ties, where its head sharing forbids
    them, or where a setting of its config is not known.
    """
    family = family_of(model.config)
    auto = next((a for a, name in family.classes.items() if name == type(model).__name__), None)
    if auto is None:
        raise ValueError(
            f"{type(model).__name__} is none of the classes that take qkv_mode; "
            f"of a {family.kind} there are {', '.join(family.classes.values())}."
        )
    config = with_mode(model.config, mode)
    for plan in plans(config):
        if plan.geometry != family.geometry(model.config):
            raise ValueError(
                f"'{write(plan.variant)}' has {plan.geometry.kv_heads} key/value heads and the "
                f"checkpoint {family.geometry(model.config).kv_heads}; leave out the '/' for its "
                "own number."
            )
    made: Any = models(family)[auto](config)
    made.to(dtype=model.dtype, device=model.device)
    state = model.state_dict()
    ours = dict(planned_layers(made))
    for number, (place, attention) in enumerate(ours.items()):
        taken = {name for name in state if name.startswith(f"{place}.")}
        old = {name.removeprefix(f"{place}."): state.pop(name) for name in taken}
        new = _layer(attention.plan, family, old, attention.state_dict(), number)
        state |= {f"{place}.{name}": tensor for name, tensor in new.items()}
    made.load_state_dict(state)
    if getattr(model, "generation_config", None) is not None:
        made.generation_config = model.generation_config
    return made.train(model.training)


def _layer(
    plan: Plan, family: Family, old: dict[str, Tensor], like: dict[str, Tensor], number: int
) -> dict[str, Tensor]:
    """The weights of one layer of ours, from those of the library's."""
    new = _scales(plan, old, number)
    rows = _rows(plan, family, old)
    for role in ROLES:
        match plan.variant.source(role):
            case Own():
                continue
            case Stream():
                expected = _stream(rows[role], plan)
            case Same(origin):
                expected = rows[origin]
            case LearnedRotation(origin):
                turn = _rotation(rows[origin], rows[role])
                expected = turn @ rows[origin]
                new[f"rotation.{role}"] = ops.generator(turn)
            case Latent():
                raise AssertionError("no model of transformers here has a latent")
        _satisfied(plan, number, role, rows[role], expected)
    for name, tensor in like.items():
        if name not in new:
            new[name] = _map(name, plan, family, old)
        new[name] = new[name].to(tensor.dtype)
    return new


def _scales(plan: Plan, old: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The learned scales behind norms of heads; a tie of roles holds for theirs, too."""
    for role in ("q", "k"):
        norm = old.get(f"{role}_norm.weight")
        if norm is not None and role not in plan.scaled_roles:
            _satisfied(plan, number, role, norm, old[f"{plan.scaled_roles[0]}_norm.weight"])
    return {f"scale.{role}": old[f"{role}_norm.weight"] for role in plan.scaled_roles}


def _rows(plan: Plan, family: Family, old: dict[str, Tensor]) -> Rows:
    """What makes each role of the stream, in fp64: weights with offsets behind them, by head."""
    size = plan.geometry
    counts = {"q": size.heads, "k": size.kv_heads, "v": size.kv_heads}
    if isinstance(family.names, str):
        parts = [old[f"{family.names}.weight"].T, old[f"{family.names}.bias"][:, None]]
        lengths = [n * size.head_dim for n in counts.values()]
        whole = torch.cat(parts, dim=1).split(lengths)
    else:
        whole = [
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
        for role, rows in zip(ROLES, whole, strict=True)
    }


def _map(name: str, plan: Plan, family: Family, old: dict[str, Tensor]) -> Tensor:
    """A tensor that is the library's own, or those rows of its one map that the plan has."""
    if name.rpartition(".")[0] != family.names or not isinstance(family.names, str):
        return old[name]
    size = plan.geometry
    lengths = [n * size.head_dim for n in (size.heads, size.kv_heads, size.kv_heads)]
    pieces = dict(zip(ROLES, old[name].split(lengths, dim=-1), strict=True))
    return torch.cat([pieces[role] for role in ROLES if role in plan.matrix_rows], dim=-1)


def _stream(rows: Tensor, plan: Plan) -> Tensor:
    """What makes a role the stream itself: the identity, and no offset."""
    same = torch.eye(plan.geometry.d_model, dtype=rows.dtype).view(len(rows), rows.shape[1], -1)
    return torch.nn.functional.pad(same, (0, rows.shape[2] - same.shape[2]))


def _rotation(origin: Tensor, role: Tensor) -> Tensor:
    """The rotation of each head that brings the one nearest to the other.

    A reflection is none, and is left as the identity: that tie will then not be satisfied.
    """
    turns = []
    for one, other in zip(origin.numpy(), role.numpy(), strict=True):
        turn = best_rotation(one.T, other.T).T
        proper = np.linalg.det(turn) > 0 and abs(np.linalg.det(turn + np.eye(len(turn)))) > 1e-9
        turns.append(turn if proper else np.eye(len(turn)))
    return torch.from_numpy(np.stack(turns))


def _satisfied(plan: Plan, layer: int, role: Role, found: Tensor, expected: Tensor) -> None:
    """Refuse weights that do not satisfy a tie; ValueError says by how much."""
    away = float((found - expected).norm() / found.norm().clamp_min(1e-30))
    if away > TOLERANCE:
        raise ValueError(
            f"Layer {layer}: {role} is not what '{write(plan.variant)}' makes of it; the weights "
            f"are {away:.2g} of their size away, and {TOLERANCE:g} is allowed.\nOnly weights that "
            "satisfy a tie are converted here. Healing, or an approximate conversion, is another "
            "step, which is not built yet; from scratch the mode can be trained now."
        )
