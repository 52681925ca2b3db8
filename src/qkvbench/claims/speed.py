"""Time and hardware."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qkvbench.claims.kit.arithmetic import AtMost, Consistent, NotTestable, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim, Finding
from qkvbench.claims.kit.evidence import StoreView, kernels
from qkvbench.claims.kit.figure import change, exact_figure, figure, reduction
from qkvbench.claims.kit.models import (
    attention_speedup,
    block_speedup,
    cache_ratio,
    gpt2_small,
    saved_flops,
    study_300m,
)
from qkvbench.variant import every_variant, write

# Tokens of the gates' claim, and of the study's training sequences.
LONG, TRAINED = 8192, 2048

FLASH = re.compile(r"(?<!no )(?<!not )(?<!without )\bflash", re.IGNORECASE)


@dataclass(frozen=True)
class NeverOnCpu:
    """Refuted by one measurement of a flash kernel on a CPU."""

    def finding(self, claim: Claim, stores: Sequence[StoreView]) -> Finding | None:
        """Refuted, or None."""
        for store, device, kernel in kernels(stores):
            if device.startswith("cpu") and FLASH.search(kernel):
                return Finding("refuted", f"Measured in {store} on {device}: {kernel}.")
        return None


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
    blocks = block_speedup(model, "q=k=v=x", LONG)
    alone = attention_speedup(model, "q=k=v=x", LONG)
    read = 1 / min(cache_ratio(model, write(variant)) for variant in every_variant())
    most = max(blocks, alone, read)
    return Arithmetic(
        f"By removing projections alone: compute {blocks:.2f}× with none of them left and "
        f"causal scores at half ({alone:.2f}× in the attention layers), bytes read in decoding "
        f"{read:.2g}×. More takes gates that also drop heads, share them or narrow the window.",
        (exact_figure(most, f"{most:.2f}×"),),
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
        name="article-finetuning-speed",
        text="Fine-tuning on consumer GPUs gets 20 to 30% faster.",
        place="text",
        quantity="training steps a second on a consumer GPU, against `q,k,v`",
        arithmetic=_finetuning,
        tests=(NotTestable("training steps of matched arms, timed on a consumer GPU"),),
        figures=(figure("20", "%"), figure("30", "%")),
    ),
    Claim(
        name="article-shared-latency",
        text="One shared projection makes inference 30% faster.",
        place="text, against the results table",
        quantity="latency saved by `q=k=v`, percent of that of `q,k,v`",
        arithmetic=lambda: Arithmetic(
            "That is what the article's own table gives for the two latencies in milliseconds.",
            (reduction(figure("9.5"), figure("12.3")),),
        ),
        tests=(OwnFigures(),),
        figures=(figure("30", "%"),),
    ),
    Claim(
        name="article-gate-speed",
        text="Gates that choose projections per layer in training make 8k tokens 2.3 times as "
        "fast, at less than 1% loss.",
        place="text on dynamic pruning",
        quantity="speed on 8,192 tokens with gates on projections, times that of `q,k,v`",
        arithmetic=_gates,
        tests=(AtMost(), NotTestable("learned gates on projections, which are not here yet")),
        figures=(figure("2.3", "×"),),
    ),
    Claim(
        name="article-flash-gpu-only",
        text="FlashAttention runs on GPUs only.",
        place="table of approaches, column Hardware",
        quantity="a measured step on a CPU whose kernel is a flash kernel",
        arithmetic=lambda: Arithmetic(
            "Nothing bounds it: the method is an order of computation, and names no device."
        ),
        tests=(
            NeverOnCpu(),
            NotTestable("a store with a measurement on a CPU whose kernel is a flash kernel"),
        ),
    ),
)
