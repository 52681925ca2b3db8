"""What ``qkv_mode`` means: a mode by its name, or any equation, for all layers or one for each.

The three names are those under which the option was proposed. They are not the catalogue's, whose
`shared` and `no-key` are other variants, so a config that is saved holds equations.
"""

from collections.abc import Sequence
from dataclasses import replace

from qkvbench.variant.notation import parse, write
from qkvbench.variant.plan import Geometry, Plan
from qkvbench.variant.resolve import resolve
from qkvbench.variant.rope import Rope
from qkvbench.variant.scores import ROLES, Role, Scores
from qkvbench.variant.spec import Latent, Own, Same, Variant

MODES = {"canonical": "q,k,v", "shared": "q,k=R(q),v=R(q)", "no-key": "q=k,v"}

Mode = str | Sequence[str]

# The tie that shared heads allow: K and V have as many.
_TIED = Variant(Own(), Own(), Same("k"))


def equations(mode: Mode) -> str | list[str]:
    """The mode as equations in canonical form: one for all layers, or one for each.

    ValueError, with what to write instead, where one of them is none.
    """
    return write(_variant(mode)) if isinstance(mode, str) else [write(_variant(m)) for m in mode]


def variants(mode: Mode, layers: int) -> tuple[Variant, ...]:
    """The variant of each layer; ValueError where a list has another number of them."""
    if isinstance(mode, str):
        return (_variant(mode),) * layers
    if len(mode) != layers:
        raise ValueError(
            f"qkv_mode gives {len(mode)} equations, and the model has {layers} layers.\n"
            "Write one equation for all layers, or a list with one for each."
        )
    return tuple(_variant(one) for one in mode)


def planned(
    variant: Variant, geometry: Geometry, rope: Rope | None, normed: tuple[Role, ...] = ()
) -> Plan:
    """The plan of a layer in a model that shares heads as `geometry` says and norms `normed`.

    ValueError, with equations that would work, where the head sharing forbids the variant.
    """
    if any(isinstance(variant.source(role), Latent) for role in ROLES):
        raise ValueError(
            f"'{write(variant)}' makes K or V from a latent, which no model of transformers here "
            "can; take 'q,k=v' or another equation without L(…)."
        )
    if not variant.scores.normed:
        variant = replace(variant, scores=Scores(normed=normed))
    try:
        return resolve(variant, geometry, causal=True, rope=rope)
    except ValueError as error:
        unshared = replace(variant, kv_heads=geometry.heads)
        if geometry.kv_heads == geometry.heads and variant.kv_heads is None:
            raise
        if not _resolves(unshared, geometry, rope):
            raise
        forbidden = str(error).partition(" Leave out")[0]
        heads = "" if variant.kv_heads is None else f"/{variant.kv_heads}"
        raise ValueError(
            f"{forbidden}\n'{write(_TIED)}{heads}' would keep these key/value heads; "
            f"'{write(replace(unshared, scores=Scores()))}' makes {geometry.heads} of each."
        ) from None


def _variant(mode: str) -> Variant:
    """The variant that a name or an equation means."""
    try:
        variant = parse(MODES.get(mode.strip().lower(), mode))
    except ValueError as error:
        raise ValueError(
            f"qkv_mode {error}\nBesides equations there are {', '.join(map(repr, MODES))}."
        ) from None
    plain = replace(variant, scores=Scores(normed=variant.scores.normed))
    if plain != variant:
        raise ValueError(
            f"qkv_mode '{mode}' changes scores by place, for which the attention functions of "
            f"transformers have no room.\nWrite '{write(plain)}', or train it with the bench's "
            "own backends."
        )
    return variant


def _resolves(variant: Variant, geometry: Geometry, rope: Rope | None) -> bool:
    try:
        resolve(variant, geometry, causal=True, rope=rope)
    except ValueError:
        return False
    return True
