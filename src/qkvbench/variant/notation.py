"""The written form of a variant, such as ``q,k=v/4``: one canonical text for each.

Roles that hold the same tensor are joined by ``=``. A group ends in ``x`` if it is the stream, in
``R(role)`` if it is an earlier role times a learned rotation, in ``M(role)`` if times any learned
matrix, in ``L(rank)`` if it is made from the latent, in ``L(nxrank)`` if from one of n latents, in
``LV(rank)`` if from V's own beside that of K, in ``K(-n)`` or ``V(-n)`` if it is K or V of the
layer n below, in ``K(first)`` or ``V(first)`` if of the first layer, and in ``0`` if it is zeros;
otherwise it has a matrix of its own. ``none`` is zeros for all three: no attention. ``/g`` then
gives the number of key/value heads, and suffixes describe the scores (`scores.SUFFIXES`):
``q,k=v/4+qknorm+window128-diag``.
"""

import re
from functools import lru_cache
from typing import cast

from qkvbench.variant.scores import ROLES, NotationError, Role, parse_scores, write_scores
from qkvbench.variant.spec import (
    MAP_LETTERS,
    NO_ATTENTION,
    Latent,
    LayerBelow,
    LearnedMap,
    MapKind,
    Own,
    Same,
    Source,
    Stream,
    Variant,
    Zeros,
)

NONE = "none"

_EXAMPLE = (
    "write for example 'q,k,v', 'q,k=v', 'q=k=x,v', 'q,k=R(q),v', 'q,k,v=M(k)', 'q,k=L(8),v=L(8)', "
    "'q,k=K(-1),v=V(-1)' or 'q,k=v/4'"
)
_TERM = re.compile(
    r"(?P<name>[qkvx0])|(?P<map>[rm])\((?P<origin>[qkv])\)|l(?P<own>v?)"
    r"\((?:(?P<groups>[1-9][0-9]{0,11})x)?(?P<rank>[1-9][0-9]{0,11})\)"
    r"|(?P<below>[kv])\((?P<layers>first|-[1-9][0-9]{0,11})\)"
)
# The part before the suffixes, which begin at the first sign outside of parentheses.
_BODY = re.compile(r"(?:[^+\-(]|\([^)]*\)?)*")


@lru_cache(maxsize=4096)
def write(variant: Variant) -> str:
    """The canonical text: ``parse(write(variant)) == variant``."""
    if variant == NO_ATTENTION:
        return NONE
    groups: dict[Role, list[str]] = {}
    for role in ROLES:
        match variant.source(role):
            case Same(origin):
                groups[origin].append(role)
            case Stream() | Zeros() as source:
                first: Role = next(name for name in ROLES if variant.source(name) == source)
                groups.setdefault(first, []).append(role)
            case _:
                groups[role] = [role]
    equation = ",".join(
        "=".join(names + _ending(first, variant.source(first))) for first, names in groups.items()
    )
    heads = "" if variant.kv_heads is None else f"/{variant.kv_heads}"
    return "".join([equation, heads, write_scores(variant.scores)])


def parse(text: str) -> Variant:
    """The variant that `text` names; spaces, case and the order of terms do not matter.

    Raises ValueError, with what to write instead, if the text names none.
    """
    plain = re.sub(r"\s+", "", text.lower()).replace("−", "-")
    if plain == NONE:
        return NO_ATTENTION
    body = cast(re.Match[str], _BODY.match(plain))[0]
    equation, slash, heads = body.partition("/")
    if slash and not re.fullmatch(r"[1-9][0-9]{0,11}", heads):
        raise ValueError(
            f"'{text}': write the number of key/value heads after '/', a whole number from 1; "
            f"{_EXAMPLE}."
        )
    ties: dict[str, set[str]] = {name: {name} for name in (*ROLES, "x", "0")}
    made: dict[Role, Source] = {}
    mentioned: set[str] = set()
    for group in equation.split(","):
        if group in ("x", "0") or group in mentioned:
            raise ValueError(f"'{text}': '{group}' alone says nothing there; {_EXAMPLE}.")
        mentioned |= _read_group(text, group, ties, made)
    missing = [role for role in ROLES if role not in mentioned]
    if missing:
        named = " and ".join(role.upper() for role in missing)
        # Each missing role with its own projection.
        whole = ",".join([*equation.split(","), *missing]) + plain[len(equation) :]
        raise NotationError(
            f"'{text}' does not say where {named} {'comes' if len(missing) == 1 else 'come'} from: "
            f"write '{whole}', or set {named} equal to another, as in 'q,k=v'."
        )
    sources = {role: _source(text, role, ties, made) for role in ROLES}
    scores = parse_scores(text, plain[len(body) :])
    return Variant(**sources, kv_heads=int(heads) if slash else None, scores=scores)


def _ending(role: Role, source: Source) -> list[str]:
    match source:
        case Stream():
            return ["x"]
        case Zeros():
            return ["0"]
        case LearnedMap(origin):
            return [f"{source.letter}({origin})"]
        case Latent():
            return [source.text]
        case LayerBelow(layers):
            return [f"{role.upper()}({layers if layers == 'first' else -layers})"]
        case _:
            return []


def _read_group(
    text: str, group: str, ties: dict[str, set[str]], made: dict[Role, Source]
) -> set[str]:
    """Join what one group ties together; the names that it mentions."""
    names: list[str] = []
    origins: list[Source] = []
    below: set[str] = set()
    for term in group.split("="):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(
                f"'{text}': '{term}' is not q, k, v, x, 0, R(role), M(role), L(rank), "
                f"L(nxrank), LV(rank), K(-n), V(-n), K(first) or V(first); {_EXAMPLE}."
            )
        if match["name"]:
            names.append(match["name"])
        else:
            origins.append(_origin(match))
            below |= {match["below"]} - {None}
    if not names:
        raise ValueError(f"'{text}': '{group}' is given to no role; {_EXAMPLE}.")
    if not below <= set(names):
        raise NotationError(
            f"'{text}': of a layer below, K can only be read as k and V as v; write for example "
            "'q,k=K(-1),v=V(-1)'."
        )
    joined = set[str]().union(*(ties[name] for name in names))
    for name in joined:
        ties[name] = joined
    if origins:
        first: Role | None = next((role for role in ROLES if role in joined), None)
        if first is None or joined & {"x", "0"} or len(set(origins)) > 1 or first in made:
            raise ValueError(f"'{text}': '{group}' has two origins; {_EXAMPLE}.")
        made[first] = origins[0]
    return set(names)


def _origin(match: re.Match[str]) -> Source:
    """The source of a term that is no name."""
    if match["origin"]:
        letters: dict[str, MapKind] = {letter.lower(): kind for kind, letter in MAP_LETTERS.items()}
        return LearnedMap(cast(Role, match["origin"]), letters[match["map"]])
    if match["below"]:
        layers = match["layers"]
        return LayerBelow("first" if layers == "first" else -int(layers))
    return Latent(int(match["rank"]), int(match["groups"] or 1), own=bool(match["own"]))


def _source(text: str, role: Role, ties: dict[str, set[str]], made: dict[Role, Source]) -> Source:
    """The source of `role`, given all ties."""
    tied = ties[role]
    first: Role = next(name for name in ROLES if name in tied)
    origins = {made[name] for name in ROLES if name in tied and name in made}
    if "x" in tied:
        if origins or "0" in tied:
            raise ValueError(f"'{text}': {role} cannot be both the stream and something else.")
        return Stream()
    if "0" in tied:
        return Zeros()
    if first != role:
        return Same(first)
    if len(origins) > 1:
        raise ValueError(f"'{text}': {role} has two origins; {_EXAMPLE}.")
    for source in origins:
        if isinstance(source, LearnedMap) and source.origin in tied:
            raise ValueError(f"'{text}': {role} cannot be made from itself; {_EXAMPLE}.")
        if isinstance(source, LearnedMap) and not _comes_before(role, source):
            raise ValueError(
                f"'{text}': {role} comes before {source.origin}, so it cannot be made from it; "
                f"write {source.origin}={source.letter}({role}) instead."
            )
        return source
    return Own()


def _comes_before(role: Role, source: LearnedMap) -> bool:
    """True if a role can be made from the origin: it is earlier, or K is any matrix times V."""
    earlier = ROLES.index(source.origin) < ROLES.index(role)
    return earlier or (role, source) == ("k", LearnedMap("v", "free"))
