"""Time and hardware."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qkvbench.claims.kit.arithmetic import AtLeast, AtMost, Consistent, NotTestable, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim, Finding
from qkvbench.claims.kit.evidence import Pool
from qkvbench.claims.kit.figure import (
    Figure,
    change,
    exact_figure,
    figure,
    percent,
    reduction,
)
from qkvbench.claims.kit.models import (
    block_speedup,
    gpt2_small,
    quadratic_speedup_tokens,
    saved_flops,
    share_left,
    study_300m,
)
from qkvbench.claims.kit.probe import cpu_attention_kernel
from qkvbench.claims.kit.reported import ARTICLE, CHANGED, SPEED_300M
from qkvbench.claims.kit.runs import Measured, Runs
from qkvbench.claims.kit.scales import AT_125M

# Tokens of the gates' claim, and of the study's training sequences.
LONG, TRAINED = 8192, 2048

# Tokens that each token sees in a sparse layer (Longformer's window, arXiv:2004.05150), and
# features that stand for all tokens in a linear one (Performer, arXiv:2009.14794).
WINDOW, FEATURES = 512, 256

# What the article does not say of its measurements.
UNKNOWN = "the hardware, batch and length of the article's table"


@dataclass(frozen=True)
class RunsOnCpu:
    """Refuted if attention on this machine's CPU is computed by a flash kernel."""

    kernel: Callable[[], str | None] = cpu_attention_kernel

    def finding(self, claim: Claim, pool: Pool) -> Finding | None:
        """Refuted, or None."""
        kernel = self.kernel()
        if kernel is None or "flash_attention" not in kernel:
            return None
        return Finding("refuted", f"{kernel} on this machine's CPU, by a profiler.")


def _training() -> Arithmetic:
    most = 1 / (1 - saved_flops(study_300m(), "q,k=v", TRAINED)) - 1
    return Arithmetic(
        "Its tokens per second give that. The matrix products saved would allow "
        f"{100 * most:.1f}% if nothing else took time.",
        (change(figure("427"), figure("423")),),
    )


def _finetuning() -> Arithmetic:
    model = gpt2_small()
    shared, none = (1 / (1 - saved_flops(model, arm, 1)) for arm in ("q=k=v", "q=k=v=x"))
    return Arithmetic(
        f"Where matrix products take the time, `q=k=v` is at most {shared:.2f}× as fast, and "
        f"`q=k=v=x` {none:.2f}×. Time that goes elsewhere is not bounded by this."
    )


def _gates() -> Arithmetic:
    model = gpt2_small()
    kept, dropped = (block_speedup(model, arm, LONG) for arm in ("q=k=v=x", "none"))
    decode = 1 / min(share_left(model, arm) for arm in CHANGED)
    return Arithmetic(
        f"A pass over {LONG:,} tokens, causal scores at half, is {kept:.2f}× as fast if every "
        f"layer still attends, without any projection, and a decode step at most {decode:.2f}× at "
        "any length: projections alone cannot. A gate that drops the values drops the "
        f"layer: without any attention the blocks are {dropped:.2f}× as fast.",
        (exact_figure(dropped, f"{dropped:.2f}×"),),
    )


def _speeds() -> Arithmetic:
    arms = [arm for arm in SPEED_300M if arm != "q,k,v"]
    base = SPEED_300M["q,k,v"]
    bounds = [base.high / (1 - saved_flops(study_300m(), arm, TRAINED)) for arm in arms]
    gains = ", ".join(f"`{arm}` {change(SPEED_300M[arm], base).text}" for arm in arms)
    return Arithmetic(
        f"Above `q,k,v` that is {gains}. No arm is faster than its matrix products allow.",
        tuple(exact_figure(bound, f"{bound:.0f} k") for bound in bounds),
    )


def _bound(column: Callable[[str], Figure]) -> Arithmetic:
    """The least that is left of the baseline's figure in a column of the article's table."""
    base = column("q,k,v")
    shares = {arm: share_left(gpt2_small(), arm) for arm in CHANGED}
    unit = base.text.split()[1]
    least = [
        Figure(
            share * base.value,
            share * base.low,
            share * base.high,
            f"{share * base.value:.2f} {unit}",
        )
        for share in shares.values()
    ]
    text = ", ".join(f"`{arm}` {percent(share, 0)}" for arm, share in shares.items())
    return Arithmetic(
        "No part of inference (operations, weights, cache, an attention layer's tensors and calls) "
        f"falls below this share of its own in the same implementation: {text}.",
        tuple(least),
    )


def _column(
    name: str, text: str, quantity: str, column: Callable[[str], Figure], *observations: Measured
) -> Claim:
    """A claim of the article's table: a column of what its configurations take."""
    return Claim(
        name=name,
        text=text,
        place="results table",
        quantity=quantity,
        arithmetic=partial(_bound, column),
        tests=(
            AtLeast(),
            *observations,
            NotTestable(UNKNOWN),
        ),
        figures=tuple(column(arm) for arm in CHANGED),
    )


def _decode(*arms: str) -> Measured:
    """Measured decode times at the article's size."""
    model = gpt2_small().name
    return Measured("time of a decode", arms, "falls", "the article's hardware", model)


def _long(arm: str) -> Measured:
    """Measured times of a rival of softmax attention over its longest texts here."""
    setting = "the article's length and hardware, which it does not name"
    return Measured("time of a long training step", (arm,), "falls", setting)


def _matching_latency() -> Figure:
    return reduction(ARTICLE["q=k=v"].latency, ARTICLE["q,k,v"].latency)


def _approach(columns: int, times: tuple[float, ...]) -> Arithmetic:
    model = gpt2_small()
    tokens = " and ".join(
        f"{each:g}× from {quadratic_speedup_tokens(model, each, columns):,} tokens"
        for each in times
    )
    return Arithmetic(
        f"In matrix products of a 125M model without a causal mask, {columns} columns instead of "
        f"all give {tokens} on; no length is given."
    )


def _rival_loss(kind: str, arm: str, method: str, figures: tuple[Figure, ...]) -> Claim:
    """The quality that a rival of softmax attention is said to lose."""
    least, most = (each.text for each in figures)
    return Claim(
        name=f"article-{kind}-attention-loss",
        text=f"{kind.capitalize()} attention loses {least.rstrip('%')} to {most}.",
        place=f"table of approaches, {method}",
        quantity=f"loss of {kind} attention, against `q,k,v`",
        arithmetic=lambda: Arithmetic("No task and no score are named, and nothing bounds a loss."),
        tests=(Runs(arm, "worse", ("lm-reviews", "long-plays"), AT_125M),),
        figures=figures,
        recipe="rivals",
    )


CLAIMS = (
    Claim(
        name="study-training-speed",
        text="At 300M, sharing key and value trains 0.9% faster.",
        place="table 4, tokens per second",
        quantity="training tokens a second of `q,k=v` at 300M, percent above `q,k,v`",
        arithmetic=_training,
        tests=(
            Consistent(),
            NotTestable("training steps of both arms of gpt-300m, timed on a GPU"),
        ),
        figures=(figure("0.9", "%"),),
    ),
    Claim(
        name="study-training-speeds",
        text="At 300M, the other variants train on 435 to 460 thousand tokens a second.",
        place="table 4, tokens per second",
        quantity="training tokens a second at 300M, thousands",
        arithmetic=_speeds,
        tests=(
            AtMost(),
            NotTestable("training steps of all arms of gpt-300m, timed on a GPU"),
        ),
        figures=tuple(each for arm, each in SPEED_300M.items() if arm != "q,k,v"),
    ),
    Claim(
        name="article-finetuning-speed",
        text="Fine-tuning on consumer GPUs gets 20 to 30% faster.",
        place="text",
        quantity="training steps a second on a consumer GPU, against `q,k,v`",
        arithmetic=_finetuning,
        tests=(
            Measured(
                "time of a fine-tuning step",
                ("q=k,v", "q,k=R(q),v=R(q)", "q=k=v"),
                "falls",
                "a consumer GPU",
            ),
            NotTestable("training steps of matched arms, timed on a consumer GPU"),
        ),
        figures=(figure("20", "%"), figure("30", "%")),
        benchmark="finetune_speed",
    ),
    Claim(
        name="article-shared-latency",
        text="Configurations that match the canonical one reduce latency by 30%.",
        place="first paragraph, against the results table",
        quantity="latency saved by `q=k=v`, percent of that of `q,k,v`",
        arithmetic=lambda: Arithmetic(
            "That is its own table's latency of the fastest configuration that it calls a match; "
            "30% faster, which is another quantity, it would be.",
            (_matching_latency(),),
        ),
        tests=(
            OwnFigures(),
            _decode("q=k=v"),
        ),
        figures=(figure("30", "%"),),
        benchmark="article_table",
    ),
    Claim(
        name="article-takeaway-latency",
        text="One shared projection reduces latency by 23%.",
        place="takeaways, against the results table",
        quantity="latency saved by `q=k=v`, percent of that of `q,k,v`",
        arithmetic=lambda: Arithmetic(
            f"Its two latencies give {_matching_latency().text}, as the text says. A table that "
            "agrees with itself does not make its measurements right.",
            (_matching_latency(),),
        ),
        tests=(Consistent(), _decode("q=k=v"), NotTestable(UNKNOWN)),
        figures=(figure("23", "%"),),
        benchmark="article_table",
    ),
    _column(
        "article-latencies",
        "The simplified configurations take 10.8, 9.5, 7.2 and 5.1 ms instead of 12.3 ms.",
        "latency of the four simplified configurations, milliseconds",
        lambda arm: ARTICLE[arm].latency,
        _decode(*CHANGED),
    ),
    _column(
        "article-memory",
        "The simplified configurations take 1.8, 1.5, 1.1 and 0.8 GB of memory instead of 2.1 GB.",
        "memory of the four simplified configurations, gigabytes",
        lambda arm: ARTICLE[arm].memory,
    ),
    Claim(
        name="article-gate-speed",
        text="Gates that choose projections per layer in training make 8k tokens 2.3 times as "
        "fast, at less than 1% loss.",
        place="text on dynamic pruning",
        quantity="speed of a pass over 8,192 tokens with gates, times that of `q,k,v`",
        arithmetic=_gates,
        tests=(
            AtMost(),
            NotTestable(
                "gates learned at its size, which may drop whole layers, and the loss beside them; "
                "'qkvbench prune' learns them for the models of tasks"
            ),
        ),
        figures=(figure("2.3", "×"),),
    ),
    Claim(
        name="article-flash-gpu-only",
        text="FlashAttention runs on GPUs only.",
        place="table of approaches, column Hardware",
        quantity="the kernel that computes attention on a CPU",
        arithmetic=lambda: Arithmetic(
            "Nothing bounds it: the method is an order of computation, and names no device."
        ),
        tests=(RunsOnCpu(), NotTestable("PyTorch, on a machine that trains on its CPU")),
    ),
    Claim(
        name="article-flash-speed",
        text="FlashAttention is twice as fast on long sequences, without a loss.",
        place="table of approaches, FlashAttention",
        quantity="time of exact attention with and without materialized scores",
        arithmetic=lambda: Arithmetic(
            "It computes the same function, so no loss is right. It needs as many operations and "
            "fewer bytes; no length or hardware is given, so no time is bounded."
        ),
        tests=(NotTestable("a length and a GPU, of which the article names neither"),),
        figures=(figure("2", "×"),),
    ),
    Claim(
        name="article-sparse-attention",
        text="Sparse attention is 3 to 5 times as fast on long sequences.",
        place="table of approaches, Longformer",
        quantity="speed of sparse attention, against `q,k,v`",
        arithmetic=partial(_approach, WINDOW, (3, 5)),
        tests=(
            _long("q,k,v+window256+sinks4"),
            NotTestable("trained models of sparse attention and of `q,k,v`, at a length"),
        ),
        figures=(figure("3", "×"), figure("5", "×")),
        benchmark="rivals",
    ),
    _rival_loss(
        "sparse", "q,k,v+window64+sinks4", "Longformer", (figure("2", "%"), figure("5", "%"))
    ),
    Claim(
        name="article-linear-attention",
        text="Linear attention is 10 times as fast on long sequences.",
        place="table of approaches, Performer",
        quantity="speed of linear attention, against `q,k,v`",
        arithmetic=partial(_approach, FEATURES, (10,)),
        tests=(
            _long("q,k,v+favor128"),
            NotTestable("trained models of linear attention and of `q,k,v`, at a length"),
        ),
        figures=(figure("10", "×"),),
        benchmark="rivals",
    ),
    _rival_loss("linear", "q,k,v+favor64", "Performer", (figure("3", "%"), figure("8", "%"))),
)
