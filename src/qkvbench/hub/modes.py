"""The values of ``qkv_mode``: a catalogue name or an equation, for all layers or one for each."""

from collections.abc import Sequence
from dataclasses import replace

from qkvbench.variant import HeadNorm, Scores, Variant, write
from qkvbench.variant.catalogue import named

# The catalogue names under which the option was proposed for transformers.
MODES = ("canonical", "shared", "no-key")

Mode = str | Sequence[str]


def equations(mode: Mode) -> str | list[str]:
    """The mode as equations in canonical form: one for all layers, or one for each.

    ValueError, with what to write instead, if one of them is neither a name nor an equation.
    """
    return write(_variant(mode)) if isinstance(mode, str) else [write(_variant(m)) for m in mode]


def variants(mode: Mode, layers: int) -> tuple[Variant, ...]:
    """The variant of each layer; ValueError if a list has another number of them."""
    if isinstance(mode, str):
        return (_variant(mode),) * layers
    if len(mode) != layers:
        raise ValueError(
            f"qkv_mode gives {len(mode)} equations, and the model has {layers} layers.\n"
            "Write one equation for all layers, or a list with one for each."
        )
    return tuple(_variant(one) for one in mode)


def _variant(mode: str) -> Variant:
    """The variant of a name or an equation."""
    try:
        variant = named(mode)
    except ValueError as error:
        raise ValueError(
            f"qkv_mode {error}\nBesides equations there are {', '.join(map(repr, MODES))}."
        ) from None
    norm = variant.scores.norm
    # One scale of a head's width: those of the library's `q_norm` and `k_norm`.
    known = replace(HeadNorm(), on_root=norm.on_root, after_rope=norm.after_rope)
    rope_value = variant.scores.rope_value
    scores = Scores(normed=variant.scores.normed, norm=known, rope_value=rope_value)
    plain = replace(variant, scores=scores)
    if plain != variant:
        raise ValueError(
            f"qkv_mode '{mode}' says more than where Q, K and V come from, an RMS norm of each "
            "head and RoPE on V, which is all that a layer of transformers can be given.\n"
            f"Write '{write(plain)}', or train it with the bench's own backends."
        )
    return variant
