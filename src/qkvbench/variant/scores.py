"""How a layer differs from softmax(Q·K / sqrt(head_dim))·V, and how each difference is written.

A suffix of the notation is one row of `SUFFIXES`; it sets fields of `Scores`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, ClassVar, Literal

from qkvbench.variant.frequencies import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
)
from qkvbench.variant.linear import Elu, Favor, GatedDelta, Linear
from qkvbench.variant.mask import Blocks

Role = Literal["q", "k", "v"]
ROLES: tuple[Role, ...] = ("q", "k", "v")

# Numbers that describe a position to a learned bias: sines and cosines of five frequencies.
# The study uses 10 channels for row and column together, arXiv:2606.04032.
FEATURES = 10


@dataclass(frozen=True)
class Separable:
    """Scores times a learned number, plus a learned function of the row and one of the column.

    The study's 2-D encoding, arXiv:2606.04032: position features of row and column beside each
    score, and a 1×1 convolution over them. Softmax cancels the part that depends on the row alone.
    """


@dataclass(frozen=True)
class Relative:
    """Scores times a learned number, plus a learned function of the distance from row to column.

    The features are those of `Separable`, taken of the signed difference.
    """


@dataclass(frozen=True)
class Bucketed:
    """A learned number for each head and bucket of distance, as in T5: arXiv:1910.10683, 2.1.

    Half of the buckets are a distance each, the others grow by a constant factor up to
    ``longest``. If a query also sees later keys, half of all buckets are for those.
    """

    buckets: int = 32
    longest: int = 128

    def table(self, *, causal: bool) -> list[int]:
        """The bucket of each distance from row to column, from -`longest` to `longest`."""
        each = self.buckets if causal else self.buckets // 2
        exact = each // 2
        growth = math.log(self.longest / exact)

        def bucket(distance: int) -> int:
            if distance < exact:
                return distance
            larger = math.log(distance / exact) / growth * (each - exact)
            return min(exact + int(larger), each - 1)

        earlier = [bucket(distance) for distance in range(self.longest + 1)]
        later = [0 if causal else each + number for number in earlier[:0:-1]]
        return [*later, *earlier]


Correction = Separable | Relative | Bucketed

# RoPE on V: the output is rotated back by the query's position, or it stays as it is.
RotatedValue = Literal["back", "stays"]

# The numbers that an output gate makes: one for each number of a head, or one for each head.
Gated = Literal["number", "head"]


@dataclass(frozen=True)
class HeadNorm:
    """The norm of the heads of Q, K and V, and the learned numbers behind it.

    ``kind``: RMS norm, or LayerNorm, which also subtracts the mean. ``over``: each head by itself,
    or all heads of a row together. ``per_head``: each head has a scale of its own. ``shifted``: a
    learned bias is added after the scale. ``after_rope``: the norm comes behind RoPE. ``on_root``:
    K's norm and scale are on the root, so that a V that is tied to K has them, too.
    """

    kind: Literal["rms", "layer"] = "rms"
    over: Literal["head", "row"] = "head"
    per_head: bool = False
    shifted: bool = False
    after_rope: bool = False
    on_root: bool = False


@dataclass(frozen=True)
class LogScale:
    """Scores of a row times 1 + STRENGTH·log(1 + ⌊keys / every⌋), which grows with the position.

    ``keys`` are those up to the row's own position, itself included unless it is ``earlier``.
    Length-scaled attention, arXiv:2501.19399, with the steps of Llama 4.
    """

    every: float
    earlier: bool = False

    STRENGTH: ClassVar[float] = 0.1

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers by which it is written."""
        return (self.every,)

    def steps(self, rows: Any) -> Any:
        """⌊keys / every⌋ of rows at these positions, an array of any framework."""
        return (rows + (0 if self.earlier else 1)) // self.every


@dataclass(frozen=True)
class LowRankOutput:
    """An output projection of two: `groups` of heads through `rank` numbers each, then one matrix.

    As DeepSeek V4 has it (transformers, models/deepseek_v4).
    """

    rank: int
    groups: int = 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers by which it is written."""
        return (self.rank,) if self.groups == 1 else (self.rank, self.groups)


@dataclass(frozen=True)
class Scores:
    """Everything that a layer does besides softmax(Q·K / sqrt(head_dim))·V, the default.

    ``normed`` are the roles whose heads get a ``norm``, Q and K with a learned scale after it
    (arXiv:2010.04245, arXiv:2302.05442): none, Q and K, or all three. ``latent_norm``: RMS norm
    with a learned scale on every latent (arXiv:2405.04434, section 3.1.2).
    ``diagonal`` False: no token attends to itself unless it sees nothing else.
    ``window``: a query sees keys less than `window` positions away, itself included
    (arXiv:2004.05150, section 3.1). ``sinks``: and always the first `sinks` keys
    (arXiv:2309.17453, section 3.2). ``global_tokens``: the first ones, which see all keys and are
    seen by all queries (arXiv:2004.05150, section 3.1, without projections of their own).
    ``chunk``: a query sees only keys of its own chunk of `chunk` positions. ``blocks``: only those
    of some blocks. ``log_scale``: scores grow with the query's position. ``softcap``: q·k becomes
    softcap·tanh(q·k / softcap), before any bias (arXiv:2408.00118, section 2). ``sink_logit``: a
    learned logit for each head joins the softmax and is dropped after it (arXiv:2508.10925,
    section 2.1). ``linear``: no softmax, see `Linear`; nothing then changes scores or hides keys.
    ``key_dim`` and ``value_dim``: numbers in each head of Q and K, and of V, if not head_dim. Roles
    that share a root take its first numbers. ``rope_head``: Q and K get so many more numbers, of K
    one head for all, and RoPE acts on these alone (arXiv:2405.04434, eq. 14 to 19).
    ``nope``: no positions inside this layer (arXiv:2305.19466). ``rope_base``: of the RoPE
    frequencies, if not the model's; ``rope_scaling`` changes them. ``rope_value``: RoPE acts on V,
    too, and its inverse on the output, unless that stays. ``clamp``: the numbers of the roots are
    kept between -clamp and clamp. ``first_value``: V becomes (1 - λ)·V + λ·V of the first layer
    (arXiv:2410.17897), with a learned λ.
    ``exclusive``: of each head's output the part along the token's own V is taken away
    (arXiv:2603.09078). ``gate``: the output is multiplied by a sigmoid of a linear map of the
    stream, number by number or head by head (arXiv:2505.06708). ``output_norm``: RMS norm with a
    learned scale of all heads of the output together. ``output_rank``: the output projection has
    two matrices.
    """

    normed: tuple[Role, ...] = ()
    norm: HeadNorm = HeadNorm()
    latent_norm: bool = False
    correction: Correction | None = None
    diagonal: bool = True
    window: int | None = None
    sinks: int = 0
    global_tokens: int = 0
    chunk: int | None = None
    blocks: Blocks | None = None
    log_scale: LogScale | None = None
    softcap: int | None = None
    sink_logit: bool = False
    linear: Linear | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    rope_head: int | None = None
    nope: bool = False
    rope_base: int | None = None
    rope_scaling: RopeScaling | None = None
    rope_value: RotatedValue | None = None
    clamp: int | None = None
    first_value: bool = False
    exclusive: bool = False
    gate: Gated | None = None
    output_norm: bool = False
    output_rank: LowRankOutput | None = None

    def __post_init__(self) -> None:
        """Refuse combinations without a meaning."""
        if self.normed not in ((), ("q", "k"), ROLES):
            raise ValueError(f"Normed are Q and K, all three roles or none, not {self.normed}.")
        self._check_mask()
        if self.nope and (self.rope_base or self.rope_scaling or self.rope_value):
            raise ValueError(
                "Without positions there is no RoPE to change: leave out '+nope', or the suffixes "
                "of RoPE."
            )
        if self.rope_head and self.rope_value:
            raise ValueError(
                "With '+ropehead' RoPE acts on parts of Q and K alone, and so on no V: leave out "
                "one of the two."
            )
        if self.rope_scaling and self.rope_scaling.factor <= 1:
            raise ValueError(
                "A factor of 1 changes no RoPE frequency: leave it out, or write more."
            )
        if self.rope_base == 1 and isinstance(self.rope_scaling, YarnScaling):
            raise ValueError(
                "At a base of 1 all pairs have one frequency, so none is slower than another: give "
                "'+ropebase' more."
            )
        if self.exclusive and self.output_norm:
            raise ValueError(
                "Of a token that sees only itself '-own' leaves rounding errors, which "
                "'+subnorm' would enlarge: leave out one of the two."
            )
        if self.linear:
            self._check_linear(self.linear)

    def _check_mask(self) -> None:
        """Refuse keys that are hidden in two ways, or none that are."""
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"A window of {self.window} shows nothing; use 1 (each position itself) or more, "
                "or leave it out to see everything."
            )
        if sum(each is not None for each in (self.window, self.chunk, self.blocks)) > 1:
            raise ValueError(
                "A query sees a window, its own chunk, or blocks: write one of '+window', '+chunk' "
                "and '+blocks'."
            )
        if self.blocks and self.blocks.every < 2:
            raise ValueError(
                "If each block is seen, none is hidden: write '+blocksNxM' with an M of 2 or more, "
                "or leave it out."
            )
        if self.sinks and (self.chunk or self.blocks):
            raise ValueError(
                "Sinks are beside a window alone: leave out '+sinks', or write '+window' in place "
                "of '+chunk' or '+blocks'."
            )
        if self.sinks and self.window is None:
            raise ValueError(
                "Without a window every key is visible, so sink tokens change nothing; write for "
                f"example '+window128+sinks{self.sinks}'."
            )
        if self.global_tokens and (self.window is None or self.sinks):
            raise ValueError(
                "Global tokens are beside a window, and all see them already: write for example "
                f"'+window128+global{self.global_tokens}'."
            )

    def _check_linear(self, linear: Linear) -> None:
        """Refuse linear attention with what changes a softmax, or random features in parts."""
        changed = [name for name in _OF_SOFTMAX if getattr(self, name) != _PLAIN[name]]
        if changed:
            written = write_scores(replace(Scores(), linear=linear))
            raise ValueError(
                f"'{written}' makes no softmax, so there are no scores to change and no keys to "
                f"hide: leave it out, or {_OF_SOFTMAX[changed[0]]}."
            )
        if isinstance(linear, Favor) and any(each % 1 for each in linear.numbers):
            raise ValueError(
                f"Random features are counted, and so are draws of them: write '+favor"
                f"{math.ceil(linear.features)}'."
            )


# What is no matter of linear attention, and how it is called.
_OF_SOFTMAX = {
    "correction": "the bias of the scores",
    "diagonal": "'-diag'",
    "window": "'+window'",
    "chunk": "'+chunk'",
    "blocks": "'+blocks'",
    "log_scale": "'+logscale'",
    "softcap": "'+softcap'",
    "sink_logit": "'+sinklogit'",
}


# The fields that are no matter of the scores once there is a plan, which holds them as sizes,
# derivations, mask, biases, RoPE and operations on the output.
IN_PLAN = frozenset(
    {
        *("normed", "norm", "latent_norm", "key_dim", "value_dim", "rope_head"),
        *("correction", "diagonal", "window", "sinks", "chunk", "blocks"),
        *("exclusive", "gate", "clamp"),
        "first_value",
        *("global_tokens", "log_scale"),
        *("output_norm", "output_rank"),
        *("nope", "rope_base", "rope_scaling", "rope_value"),
    }
)


@dataclass(frozen=True)
class Suffix:
    """The fields of `Scores` that a suffix sets; with `number`, the field that its number sets.

    The number is a multiple of `step`: RoPE needs pairs. The `form` has a letter for each number,
    of which the first is needed; the field is `made` of them. They may have decimals unless they
    are `whole`.
    """

    about: str
    sets: dict[str, Any]
    number: str | None = None
    step: int = 1
    form: str = "N"
    made: Callable[..., Any] = int
    whole: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that it sets."""
        return (*self.sets, *((self.number,) if self.number else ()))

    @property
    def pattern(self) -> str:
        """The regular expression of its numbers."""
        if self.number is None:
            return ""
        if self.made is int:
            return _WHOLE
        number = _WHOLE if self.whole else _DECIMAL
        return rf"{number}(?:x{number}){{0,{self.form.count('x')}}}"

    def written(self, value: Any) -> str | None:
        """The numbers of a value of the field; None if it is not made by this suffix."""
        numbers = (value,) if isinstance(value, int) else value.numbers
        if not 0 < len(numbers) <= len(self.form.split("x")) or self.made(*numbers) != value:
            return None
        return "x".join(map(_number_text, numbers))


# No size or base is longer; and a number that may have decimals.
_WHOLE = r"[1-9][0-9]{0,11}"
_DECIMAL = rf"{_WHOLE}(?:\.[0-9]+)?"


def _number_text(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


def _norm(roles: tuple[Role, ...], **changes: Any) -> dict[str, Any]:
    """The fields of a suffix that norms these roles."""
    return {"normed": roles, "norm": HeadNorm(**changes)}


# In the order in which suffixes are written.
SUFFIXES: dict[str, Suffix] = {
    "+qknorm": Suffix(
        "RMS norm of each head of Q and K, with a learned scale (Qwen 3, Gemma 3)",
        _norm(("q", "k")),
    ),
    "+qkvnorm": Suffix(
        "the same, and V's heads are normed without a scale (Gemma 3n)", _norm(ROLES)
    ),
    "+rootnorm": Suffix(
        "RMS norm with a scale on Q and on the root of K and V (DeepSeek V4)",
        _norm(ROLES, on_root=True),
    ),
    "+qkrownorm": Suffix(
        "RMS norm of Q and of K over all heads together (OLMo 2)",
        _norm(("q", "k"), over="row", per_head=True),
    ),
    "+qklayernorm": Suffix(
        "LayerNorm of each head of Q and K, with scale and bias (Persimmon, Phi)",
        _norm(("q", "k"), kind="layer", shifted=True),
    ),
    "+qkheadnorm": Suffix(
        "LayerNorm of each head of Q and K, with a scale for each head (Cohere)",
        _norm(("q", "k"), kind="layer", per_head=True),
    ),
    "+qklatenorm": Suffix(
        "RMS norm of Q and K behind RoPE (Hunyuan)", _norm(("q", "k"), after_rope=True)
    ),
    "+latentnorm": Suffix(
        "RMS norm with a learned scale on each latent (DeepSeek V2)", {"latent_norm": True}
    ),
    "+keydim": Suffix("so many numbers in each head of Q and K", {}, number="key_dim", step=2),
    "+valuedim": Suffix("so many numbers in each head of V", {}, number="value_dim"),
    "+ropehead": Suffix(
        "Q and K get so many more numbers, of K one head for all; RoPE acts on these alone",
        {},
        number="rope_head",
        step=2,
    ),
    "+ropebase": Suffix("the base of the RoPE frequencies in this layer", {}, number="rope_base"),
    "+ropelinear": Suffix(
        "RoPE frequencies divided by N (Gemma 3)", {}, number="rope_scaling", made=LinearScaling
    ),
    "+ropellama": Suffix(
        "RoPE frequencies of waves longer than L tokens are divided by N; L is 8192 if left out "
        "(Llama 3)",
        {},
        number="rope_scaling",
        form="NxL",
        made=Llama3Scaling,
    ),
    "+ropeyarn": Suffix(
        "YaRN: those that turn less than once in L tokens, 4096 if left out, divided by N; the "
        "attention factor is A if written (Qwen 2, DeepSeek V3)",
        {},
        number="rope_scaling",
        form="NxLxA",
        made=YarnScaling,
    ),
    "+ropeyarnexact": Suffix(
        "YaRN without rounding its range to whole pairs (GPT-OSS)",
        {},
        number="rope_scaling",
        form="NxLxA",
        made=partial(YarnScaling, rounded=False),
    ),
    "+ropevalue": Suffix(
        "RoPE on V, too, and its inverse on the output (DeepSeek V4)", {"rope_value": "back"}
    ),
    "+ropevaluestays": Suffix(
        "RoPE on V, too, and nothing on the output (RoFormer's rotary_value)",
        {"rope_value": "stays"},
    ),
    "+nope": Suffix("no positions inside this layer (SmolLM3, Llama 4)", {"nope": True}),
    "+clamp": Suffix(
        "the numbers that the matrices make are kept within this limit (OLMo)", {}, number="clamp"
    ),
    "+firstvalue": Suffix(
        "V of the first layer is mixed into V, by a learned number (ResFormer)",
        {"first_value": True},
    ),
    "+2d": Suffix(
        "scores times a number, plus a learned function of row and column (arXiv:2606.04032)",
        {"correction": Separable()},
    ),
    "++": Suffix(
        "scores times a number, plus a learned function of the distance", {"correction": Relative()}
    ),
    "+t5bias": Suffix(
        "a learned number for each head and bucket of distance (T5)", {"correction": Bucketed()}
    ),
    "-diag": Suffix("no token attends to itself unless it sees nothing else", {"diagonal": False}),
    "+window": Suffix("a query sees keys less than so many positions away", {}, number="window"),
    "+sinks": Suffix("with +window: a query also sees the first N keys", {}, number="sinks"),
    "+global": Suffix(
        "with +window, encoders alone: the first N tokens see all and are seen by all (Longformer)",
        {},
        number="global_tokens",
    ),
    "+chunk": Suffix(
        "a query sees the keys of its own chunk of so many positions (Llama 4)", {}, number="chunk"
    ),
    "+blocks": Suffix(
        "a query sees its own block of N positions, the one before, in encoders the one behind, "
        "and each M-th block from the first on; M is 8 if left out (Sparse Transformer)",
        {},
        number="blocks",
        form="NxM",
        made=Blocks,
        whole=True,
    ),
    "+logscale": Suffix(
        "scores times 1 + 0.1·log(1 + ⌊n/N⌋) at the n-th position (Llama 4)",
        {},
        number="log_scale",
        made=LogScale,
    ),
    "+logscaleearlier": Suffix(
        "the same, with n the positions before it (Ministral 3)",
        {},
        number="log_scale",
        made=partial(LogScale, earlier=True),
    ),
    "+softcap": Suffix("scores are capped by a tanh (Gemma 2)", {}, number="softcap"),
    "+sinklogit": Suffix(
        "a learned logit for each head joins the softmax (GPT-OSS)", {"sink_logit": True}
    ),
    "+elu": Suffix(
        "linear attention: weights f(q)·f(k), f = elu + 1, with no softmax", {"linear": Elu()}
    ),
    "+favor": Suffix(
        "the softmax by N random features, their draw number D if written (Performer)",
        {},
        number="linear",
        form="NxD",
        made=Favor,
    ),
    "+gateddelta": Suffix(
        "a memory that decays and is corrected key by key (Gated DeltaNet)",
        {"linear": GatedDelta()},
    ),
    "-own": Suffix(
        "the output loses its part along the token's own V (exclusive attention)",
        {"exclusive": True},
    ),
    "+gate": Suffix(
        "each number of the output is multiplied by a sigmoid of the stream (Qwen3-Next)",
        {"gate": "number"},
    ),
    "+headgate": Suffix(
        "each head of the output is multiplied by a sigmoid of the stream (LFM 3)", {"gate": "head"}
    ),
    "+subnorm": Suffix(
        "RMS norm of the output over all heads together, with a scale (BitNet)",
        {"output_norm": True},
    ),
    "+outputrank": Suffix(
        "W_o of two matrices: each of G groups of heads is projected to N numbers, and all of them "
        "to the output; G is 1 if left out (DeepSeek V4)",
        {},
        number="output_rank",
        form="NxG",
        made=LowRankOutput,
        whole=True,
    ),
}
_PATTERN = re.compile(
    "|".join(f"(?:{re.escape(text)}{suffix.pattern})" for text, suffix in SUFFIXES.items())
)
# A suffix, known or not: a sign and what follows; `++` is one, and so is a sign alone.
_SIGNED = re.compile(r"\+\+[^+\-]*|[+\-][^+\-]*")
_PLAIN = {field.name: field.default for field in fields(Scores)}


class NotationError(ValueError):
    """The text is no equation, and the message says what to write, so no near name helps."""


def write_scores(scores: Scores) -> str:
    """The suffixes, in their order."""
    written = ""
    for text, suffix in SUFFIXES.items():
        if suffix.number is None:
            chosen = all(getattr(scores, name) == value for name, value in suffix.sets.items())
            written += text if chosen else ""
        elif (value := getattr(scores, suffix.number)) != _PLAIN[suffix.number]:
            numbers = suffix.written(value)
            written += "" if numbers is None else f"{text}{numbers}"
    return written


def parse_scores(text: str, suffixes: str) -> Scores:
    """The scores that `suffixes`, the end of `text`, describe; NotationError if they do not."""
    chosen: dict[str, Any] = {}
    for written in _SIGNED.findall(suffixes):
        match = _PATTERN.fullmatch(written)
        if match is None:
            raise NotationError(f"'{text}': {_unknown(written)}")
        name = _name(written)
        suffix = SUFFIXES[name]
        if chosen.keys() & set(suffix.names):
            raise NotationError(f"'{text}': '{written}' conflicts with an earlier suffix.")
        chosen |= suffix.sets
        if suffix.number:
            chosen[suffix.number] = _value(text, name, written.removeprefix(name))
    try:
        return replace(Scores(), **chosen)
    except ValueError as error:
        raise NotationError(f"'{text}': {error}") from None


def _name(written: str) -> str:
    """The suffix without its numbers."""
    return written if written in SUFFIXES else written.rstrip("0123456789x.")


def _value(text: str, name: str, written: str) -> Any:
    """The value of the field that the numbers of a suffix set."""
    suffix = SUFFIXES[name]
    if suffix.made is int and int(written) % suffix.step:
        raise NotationError(
            f"'{text}': RoPE rotates pairs, so the number of '{name}{written}' must be even; "
            f"write '{name}{int(written) + 1}'."
        )
    number = int if suffix.whole else float
    return suffix.made(*map(number, written.split("x")))


def _unknown(written: str) -> str:
    """The sentence that refuses a suffix, with the nearest one."""
    name = _name(written)
    if name in SUFFIXES:
        wants = "has no number" if SUFFIXES[name].number is None else f"is {_example(name)}"
        return (
            f"'{written}' is none of the suffixes: '{name}' {wants}, with whole numbers from 1; "
            f"write for example '{name}{'128' if SUFFIXES[name].number else ''}'."
        )
    near = get_close_matches(name, SUFFIXES, n=1)
    hint = f" Did you mean {_example(near[0])}?" if near else ""
    return (
        f"'{written}' is none of the suffixes, which come last, as in 'q=k,v+2d' or "
        f"'q,k=v/4+qknorm-diag'.{hint} 'qkvbench ls suffixes' lists them all."
    )


def _example(text: str) -> str:
    return text + SUFFIXES[text].form if SUFFIXES[text].number else text
