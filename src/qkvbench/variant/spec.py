"""A variant: for each of Q, K and V the source of the tensor; head sharing; and the scores."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from qkvbench.variant.scores import ROLES, Role, Scores


@dataclass(frozen=True)
class Own:
    """A projection matrix of its own."""


@dataclass(frozen=True)
class Stream:
    """The block's normed input itself, cut into heads; no weight."""


@dataclass(frozen=True)
class Same:
    """The same tensor as an earlier role."""

    origin: Role


# A learned map of heads: a rotation, or any matrix.
MapKind = Literal["rotation", "free"]


@dataclass(frozen=True)
class LearnedMap:
    """An earlier role times one learned matrix per head, of head_dim × head_dim numbers.

    K can also be V times any matrix, as without keys of its own in arXiv:2606.21848. With a
    rotation that would be V = R(K), since its inverse is a rotation, too.
    """

    origin: Role
    kind: MapKind = "rotation"

    @property
    def letter(self) -> str:
        """The letter by which it is written."""
        return MAP_LETTERS[self.kind]


MAP_LETTERS: dict[MapKind, str] = {"rotation": "R", "free": "M"}


@dataclass(frozen=True)
class Latent:
    """A learned up-projection of a latent: `rank` numbers for all heads, made from the stream.

    K and V of such a source have one latent in common, and each an up-projection of its own; Q has
    a latent of its own, and V if it is `own`. arXiv:2405.04434, eq. 9 to 13. ``groups`` latents of
    as many numbers are each for their share of the heads: arXiv:2505.21487.
    """

    rank: int
    groups: int = 1
    own: bool = False

    @property
    def text(self) -> str:
        """As it is written: ``L(64)``, ``L(2x64)``, ``LV(64)``."""
        groups = "" if self.groups == 1 else f"{self.groups}x"
        return f"L{'V' * self.own}({groups}{self.rank})"


@dataclass(frozen=True)
class LayerBelow:
    """The finished K or V of the layer that is `layers` below, or of the "first" one.

    After norm, scale and RoPE. K and V may be of two layers, or one of them the layer's own; Q has
    no such source. If that layer reads it itself, it is of the layer that it reads. A layer with
    fewer layers below it makes its own. arXiv:2405.12981, section 3; arXiv:2405.05254 with one
    layer for many; arXiv:2512.03870 with V of the first layer and K of one in the middle.
    """

    layers: int | Literal["first"]

    def distance(self, number: int) -> int:
        """How far below layer `number`, counted from 0; 0 if there is no such layer."""
        layers = number if self.layers == "first" else self.layers
        return layers if layers <= number else 0


@dataclass(frozen=True)
class Zeros:
    """Zeros, made from nothing: for the controls, which cannot choose what they attend to.

    Q and K of zeros give every visible key the same weight. If V has none either, there is no
    attention sub-layer at all.
    """


Source = Own | Stream | Same | LearnedMap | Latent | LayerBelow | Zeros


@dataclass(frozen=True)
class Variant:
    """One way to make Q, K and V; always in canonical form, so that equal means equal.

    ``kv_heads`` is the number of key/value heads; None leaves it to the geometry.
    """

    q: Source
    k: Source
    v: Source
    kv_heads: int | None = None
    scores: Scores = Scores()

    def __post_init__(self) -> None:
        """Bring the sources into canonical form: each tie names the first role that it can."""
        canonical: dict[Role, Source] = {}
        for role in _order(self):
            canonical[role] = _canonical(role, self.source(role), canonical)
        match canonical["k"], canonical["v"]:
            case Latent(), _:
                pass
            case _, Latent(own=True) as latent:
                # There is no other that K would have.
                canonical["v"] = replace(latent, own=False)
            case _:
                pass
        for role, source in canonical.items():
            object.__setattr__(self, role, source)
        _check_latents([canonical[role] for role in ROLES])
        _check_layers_below(self)
        _check_zeros(self)
        if self.kv_heads is not None and self.kv_heads < 1:
            raise ValueError(f"A variant needs at least 1 key/value head, not {self.kv_heads}.")

    def source(self, role: Role) -> Source:
        """The source of `role`."""
        return {"q": self.q, "k": self.k, "v": self.v}[role]

    @property
    def reads_below(self) -> bool:
        """True if something is read from a layer below."""
        below = any(isinstance(self.source(role), LayerBelow) for role in ROLES)
        return below or self.scores.first_value


def every_variant() -> Iterator[Variant]:
    """All distinct variants without head sharing that the sources give.

    Latents and layers below are left out, since each has a number, and so are free maps: each of
    them stands where a rotation does.
    """
    q_sources: list[Source] = [Own(), Stream()]
    k_sources: list[Source] = [Own(), Stream(), Same("q"), LearnedMap("q")]
    v_sources: list[Source] = [*k_sources, Same("k"), LearnedMap("k")]
    yield from dict.fromkeys(
        Variant(q, k, v) for q, k, v in product(q_sources, k_sources, v_sources)
    )


def without_value_rotation(variant: Variant) -> Variant:
    """The variant whose function class is the same once an output projection follows.

    A learned map on V is a fixed linear map on each head's output, so the output projection
    absorbs it, unless RoPE, V of the first layer, a gate of each number or a norm comes between;
    and so does leaving out the part along V, if the map is no rotation. Two variants with equal
    results here can represent the same functions.
    """
    scores = variant.scores
    between = scores.rope_value or scores.first_value or scores.output_norm
    match variant.v:
        case _ if between or scores.gate == "number":
            return variant
        case LearnedMap(origin) if variant.v.kind == "rotation" or not scores.exclusive:
            unrotated = replace(variant, v=Same(origin))
            return without_value_rotation(unrotated)
        case Same("k") if isinstance(variant.k, LearnedMap):
            if variant.k.kind == "rotation" or not scores.exclusive:
                return replace(variant, v=Same(variant.k.origin))
            return variant
        case _:
            return variant


def _order(variant: Variant) -> tuple[Role, ...]:
    """The roles in an order in which each comes after the one that it is made from."""
    match variant.k:
        case LearnedMap("v", "free"):
            return "q", "v", "k"
        case _:
            return ROLES


def _canonical(role: Role, source: Source, earlier: dict[Role, Source]) -> Source:
    """The same source, with its origin followed back as far as it goes."""
    match source:
        case Own() | Stream() | Latent() | LayerBelow() | Zeros():
            return source
        case Same(origin) | LearnedMap(origin):
            if origin not in earlier:
                raise ValueError(
                    f"{role} cannot be made from {origin}, which comes later or is made from it: "
                    "write for example 'q,k,v=M(k)'."
                )
            first = _first_equal(origin, earlier)
            if isinstance(source, LearnedMap):
                return replace(source, origin=first)
            return earlier[first] if earlier[first] in (Stream(), Zeros()) else Same(first)


def _check_latents(sources: list[Source]) -> None:
    """Refuse two common latents of K and V, and one of no numbers."""
    latents = [source for source in sources if isinstance(source, Latent)]
    if any(min(latent.rank, latent.groups) < 1 for latent in latents):
        raise ValueError("The numbers of a latent are whole and from 1, as in 'q=L(8),k,v'.")
    query, key, value = sources
    if any(isinstance(source, Latent) and source.own for source in (query, key)):
        raise ValueError(
            "'LV' is the latent of V alone, beside that of K: write for example 'q,k=L(8),v=LV(8)'."
        )
    match key, value:
        case Latent(), Latent(own=False) if key != value:
            raise ValueError(
                f"K and V have one latent in common, not {key.text} and {value.text}: write "
                f"'q,k={key.text},v={key.text}', or 'q,k={key.text},"
                f"v={replace(value, own=True).text}' for one each."
            )
        case _:
            pass


def _check_layers_below(variant: Variant) -> None:
    """Refuse a layer below that is not one, and whatever is made from what is read there."""
    q, k, v = (variant.source(role) for role in ROLES)
    below = {source.layers for source in (q, k, v) if isinstance(source, LayerBelow)}
    if isinstance(q, LayerBelow) or any(isinstance(n, int) and n < 1 for n in below):
        raise ValueError(
            "From a layer below K and V are read, each as it is there, and Q never: write for "
            "example 'q,k=K(-1),v=V(-1)', or 'q,k,v=V(first)'."
        )
    if isinstance(v, LayerBelow) and isinstance(k, LearnedMap) and k.origin == "v":
        raise ValueError(
            "V of a layer below is finished there, so K cannot be made from it: write for example "
            "'q,k=K(-1),v=V(-1)', or 'q,k,v=V(-1)' with a K of its own."
        )
    if isinstance(k, LayerBelow) and isinstance(v, Same | LearnedMap) and v.origin == "k":
        raise ValueError(
            "K of a layer below is finished there, so V cannot be made from it: write for example "
            "'q,k=K(-1),v=V(-1)', or 'q,k=K(-1),v' with a V of its own."
        )
    if isinstance(v, LayerBelow) and k == Zeros():
        raise ValueError(
            "The mean of what is visible is of the layer's own V, beside which nothing is cached: "
            "write for example 'q=k=0,v'."
        )
    if isinstance(v, LayerBelow) and variant.scores.first_value:
        raise ValueError(
            "V of a layer below is read as it is there, and nothing is mixed into it here: leave "
            "out '+firstvalue', or write it for the layer below."
        )
    if below and variant.scores.linear:
        raise ValueError(
            "Linear attention keeps no K and V, so none are read from a layer below: write its own "
            "'k,v'."
        )


def _check_zeros(variant: Variant) -> None:
    """Refuse zeros that make a part of the layer useless without saying so."""
    zeros = tuple(role for role in ROLES if variant.source(role) == Zeros())
    if zeros not in ((), ("q", "k"), ROLES):
        raise ValueError(
            "Scores of a query or a key of zeros are all zero: write 'q=k=0,v' for the mean of "
            "what is visible, or 'none' for no attention."
        )
    if zeros and variant.scores.linear:
        raise ValueError("Without a query linear attention is no other than the mean: 'q=k=0,v'.")
    if zeros and isinstance(variant.v, LearnedMap):
        raise ValueError("Zeros times a matrix are zeros: write 'none' for no attention.")
    if len(zeros) == len(ROLES) and (variant.kv_heads is not None or variant.scores != Scores()):
        raise ValueError("'none' is no attention: it has no heads and no scores to change.")


def _first_equal(role: Role, earlier: dict[Role, Source]) -> Role:
    """The first role that holds the same tensor as `role`."""
    match earlier[role]:
        case Same(origin):
            return origin
        case Stream() | Zeros() as source:
            return next(name for name in earlier if earlier[name] == source)
        case _:
            return role


# Three projections of their own, arXiv:1706.03762: what everything is compared with.
CANONICAL = Variant(Own(), Own(), Own())
# The controls: no attention sub-layer, and the mean of what is visible.
NO_ATTENTION = Variant(Zeros(), Zeros(), Zeros())
UNIFORM = Variant(Zeros(), Zeros(), Own())
