"""The written form of a variant, such as ``q,k=v/4``: one canonical text for each.

Roles that hold the same tensor are joined by ``=``. A group ends in ``x`` where it is the stream,
in ``R(role)`` where it is a rotated earlier role, and in ``L(rank)`` where it is made from the
latent; otherwise it has a matrix of its own.
Behind it, ``/g`` gives the number of key/value heads, and what belongs to the scores follows:
``+qknorm`` or ``+qkvnorm``, ``+2d`` or ``++``, ``-diag``.
"""

import re
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, cast

from qkvbench.variant.spec import (
    ROLES,
    Latent,
    LearnedRotation,
    Own,
    Relative,
    Role,
    Same,
    Scores,
    Separable,
    Source,
    Stream,
    Variant,
)

_EXAMPLE = (
    "write for example 'q,k,v', 'q,k=v', 'q=k=x,v', 'q,k=R(q),v', 'q,k=L(8),v=L(8)' or 'q,k=v/4'"
)
# What each suffix says of the scores, in the order in which suffixes are written.
SUFFIXES: dict[str, dict[str, Any]] = {
    "+qknorm": {"normed": ("q", "k")},
    "+qkvnorm": {"normed": ROLES},
    "+2d": {"correction": Separable()},
    "++": {"correction": Relative()},
    "-diag": {"diagonal": False},
}
_SUFFIX = re.compile("|".join(re.escape(suffix) for suffix in SUFFIXES))
_TERM = re.compile(r"(?P<name>[qkvx])|r\((?P<origin>[qkv])\)|l\((?P<rank>[1-9][0-9]*)\)")


class SuffixError(ValueError):
    """What follows an equation that is right says nothing of the scores, or says it twice."""


@lru_cache(maxsize=4096)
def write(variant: Variant) -> str:
    """The canonical text: ``parse(write(variant)) == variant``."""
    groups: dict[Role, list[str]] = {}
    for role in ROLES:
        match variant.source(role):
            case Same(origin):
                groups[origin].append(role)
            case Stream():
                first: Role = next(name for name in ROLES if variant.source(name) == Stream())
                groups.setdefault(first, []).append(role)
            case _:
                groups[role] = [role]
    equation = ",".join(
        "=".join(names + _ending(variant.source(first))) for first, names in groups.items()
    )
    heads = "" if variant.kv_heads is None else f"/{variant.kv_heads}"
    said = [
        suffix
        for suffix, change in SUFFIXES.items()
        if all(getattr(variant.scores, field) == value for field, value in change.items())
    ]
    return "".join([equation, heads, *said])


def parse(text: str) -> Variant:
    """The variant that `text` names; spaces, case and the order of terms do not matter.

    Raises ValueError, with what to write instead, where the text names none.
    """
    plain = re.sub(r"\s+", "", text.lower()).replace("−", "-")
    body = re.split(r"[+-]", plain, maxsplit=1)[0]
    equation, slash, heads = body.partition("/")
    if slash and not re.fullmatch(r"[1-9][0-9]*", heads):
        raise ValueError(
            f"'{text}': after '/' stands the number of key/value heads, a whole number from 1; "
            f"{_EXAMPLE}."
        )
    ties: dict[str, set[str]] = {name: {name} for name in (*ROLES, "x")}
    made: dict[Role, Source] = {}
    mentioned: set[str] = set()
    for group in equation.split(","):
        if group == "x" or group in mentioned:
            raise ValueError(f"'{text}': '{group}' alone says nothing there; {_EXAMPLE}.")
        mentioned |= _read_group(text, group, ties, made)
    missing = [role for role in ROLES if role not in mentioned]
    if missing:
        raise ValueError(
            f"'{text}' does not say where {' and '.join(missing)} come from; {_EXAMPLE}."
        )
    sources = {role: _source(text, role, ties, made) for role in ROLES}
    scores = _scores(text, plain[len(body) :])
    return Variant(**sources, kv_heads=int(heads) if slash else None, scores=scores)


def _scores(text: str, suffixes: str) -> Scores:
    """What the suffixes say together; each thing is said once."""
    scores = Scores()
    rest = suffixes
    while rest:
        match = _SUFFIX.match(rest)
        if match is None:
            near = get_close_matches(rest, SUFFIXES, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SuffixError(
                f"'{text}': '{rest}' is none of the suffixes {', '.join(SUFFIXES)}, which come "
                f"last, as in 'q=k,v+2d' or 'q,k=v/4+qknorm-diag'.{hint}"
            )
        change = SUFFIXES[match[0]]
        if any(getattr(scores, field) != getattr(Scores(), field) for field in change):
            raise SuffixError(f"'{text}': '{match[0]}' and what is before it say the same twice.")
        scores = replace(scores, **change)
        rest = rest[match.end() :]
    return scores


def _ending(source: Source) -> list[str]:
    match source:
        case Stream():
            return ["x"]
        case LearnedRotation(origin):
            return [f"R({origin})"]
        case Latent(rank):
            return [f"L({rank})"]
        case _:
            return []


def _read_group(
    text: str, group: str, ties: dict[str, set[str]], made: dict[Role, Source]
) -> set[str]:
    """Join what one group ties together; the names that it mentions."""
    names: list[str] = []
    origins: list[Source] = []
    for term in group.split("="):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(
                f"'{text}': '{term}' is not q, k, v, x, R(role) or L(rank); {_EXAMPLE}."
            )
        if match["name"]:
            names.append(match["name"])
        elif match["origin"]:
            origins.append(LearnedRotation(cast(Role, match["origin"])))
        else:
            origins.append(Latent(int(match["rank"])))
    if not names:
        raise ValueError(f"'{text}': '{group}' is given to no role; {_EXAMPLE}.")
    joined = set[str]().union(*(ties[name] for name in names))
    for name in joined:
        ties[name] = joined
    if origins:
        first: Role | None = next((role for role in ROLES if role in joined), None)
        if first is None or "x" in joined or len(set(origins)) > 1 or first in made:
            raise ValueError(f"'{text}': '{group}' has two origins; {_EXAMPLE}.")
        made[first] = origins[0]
    return set(names)


def _source(text: str, role: Role, ties: dict[str, set[str]], made: dict[Role, Source]) -> Source:
    """Where `role` comes from, given what is tied to what."""
    tied = ties[role]
    first: Role = next(name for name in ROLES if name in tied)
    origins = {made[name] for name in ROLES if name in tied and name in made}
    if "x" in tied:
        if origins:
            raise ValueError(f"'{text}': {role} cannot be both the stream and made from it.")
        return Stream()
    if first != role:
        return Same(first)
    if len(origins) > 1:
        raise ValueError(f"'{text}': {role} has two origins; {_EXAMPLE}.")
    for source in origins:
        if isinstance(source, LearnedRotation) and ROLES.index(source.origin) >= ROLES.index(role):
            raise ValueError(
                f"'{text}': {role} comes before {source.origin}, so it cannot be rotated from it; "
                f"write {source.origin}=R({role}) instead."
            )
        return source
    return Own()
