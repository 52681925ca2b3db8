"""Perplexity lost by language models."""

import math
from functools import partial

from qkvbench.claims.kit.arithmetic import (
    Consistent,
    NotTestable,
    OtherConditions,
    OwnFigures,
)
from qkvbench.claims.kit.claim import Arithmetic, Claim, Test
from qkvbench.claims.kit.figure import Figure, change, figure, percent, reduction
from qkvbench.claims.kit.reported import (
    CONVERTED,
    HEALED,
    LATER_LOSS_NATS,
    LATER_PERPLEXITY,
    PERPLEXITY_1_2B,
    PERPLEXITY_300M,
    loss,
    loss_on_text,
    padding_share,
)
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import AT_1_2B, AT_300M

# Possible shares of padding among the targets.
PADDING = (0.3, 0.55)

# English characters in a token of GPT-2's vocabulary, on average over any ordinary text.
CHARACTERS = (2, 6)


def _from_perplexities(arm: str, size: str) -> Arithmetic:
    lost = loss(arm, size)
    return Arithmetic(
        f"Its perplexities give {lost.text}. One run, and padding is scored.", (lost,)
    )


def _loss(
    name: str, arm: str, lost: str, action: str, recipe: str | None, *, size: str = "300M"
) -> Claim:
    """A claim on the perplexity lost in percent; `recipe`, if any, tests its direction."""
    place, scale = {"300M": ("table 4", AT_300M), "1.2B": ("table 10", AT_1_2B)}[size]
    direction: Test = (
        Runs(arm, "worse", ("lm-reviews",), scale) if recipe else NotTestable(scale.requires)
    )
    return Claim(
        name=name,
        text=f"At {size}, {action} {lost}% of perplexity.",
        place=place,
        quantity=f"validation perplexity that `{arm}` loses against `q,k,v`, percent",
        arithmetic=partial(_from_perplexities, arm, size),
        tests=(Consistent(), direction),
        figures=(figure(lost, "%"),),
        recipe=recipe,
    )


def _on_text() -> Arithmetic:
    printed = loss("q,k=v").value
    padding = padding_share()
    low, middle, high = (
        loss_on_text(printed, share) for share in (PADDING[0], padding, PADDING[1])
    )
    later = change(LATER_PERPLEXITY["q,k=v"], LATER_PERPLEXITY["q,k,v"]).value
    return Arithmetic(
        f"Padding is scored, and if it costs nothing the loss on text is larger: {low:+.1f}% "
        f"where it is {percent(PADDING[0], 0)} of the targets, {high:+.1f}% at "
        f"{percent(PADDING[1], 0)}, {middle:+.1f}% at the {percent(padding)} that would lead to "
        "the authors' later, masked perplexity on other text. Their later pair differs by "
        f"{later:+.2f}%.",
    )


def _conversion() -> Arithmetic:
    times = [each.value / LATER_PERPLEXITY["q,k,v"].value for each in CONVERTED.values()]
    return Arithmetic(
        f"That is {times[0]:.0f} times its perplexity before; if the value alone is kept "
        f"{times[1]:.0f} times, the key alone {times[2]:.0f} times. Nothing bounds it."
    )


def _healing() -> Arithmetic:
    scratch = LATER_PERPLEXITY["q,k=v"]
    text = ", ".join(f"{name} {change(each, scratch).text}" for name, each in HEALED.items())
    return Arithmetic(
        f"Above the model that was trained with the tie from its first step: {text}. One run each."
    )


def _bits() -> Arithmetic:
    bits = LATER_LOSS_NATS.value / math.log(2)
    low, high = bits / CHARACTERS[1], bits / CHARACTERS[0]
    return Arithmetic(
        f"Its loss, {LATER_LOSS_NATS.text} nats a token, is {bits:.2f} bits a token. A token has "
        f"several characters: {CHARACTERS[0]} to {CHARACTERS[1]} are assumed.",
        (Figure((low + high) / 2, low, high, f"{low:.2f} to {high:.2f} bits"),),
    )


def _size_gain() -> Figure:
    return reduction(PERPLEXITY_1_2B["q,k,v"], PERPLEXITY_300M["q,k,v"])


def _single() -> Arithmetic:
    """The least loss of the readings: query and key, key and value, or all three."""
    readings = {arm: loss(arm) for arm in ("q,k=v", "q=k,v", "q=k=v")}
    least = min(readings.values(), key=lambda lost: lost.value)
    text = ", ".join(f"`{arm}` {each.text}" for arm, each in readings.items())
    return Arithmetic(
        'Which roles the sentence means by "both" is not clear. In the study\'s table at 300M, '
        f"one run each, every reading loses: {text}.",
        (least,),
    )


CLAIMS = (
    _loss("study-loss-query-key-300m", "q=k,v", "4.9", "using the query as key costs", "quick"),
    _loss("study-loss-tied-300m", "q,k=v", "3.1", "sharing key and value costs", "longer"),
    _loss("study-loss-single-300m", "q=k=v", "25.4", "one projection for all costs", "quick"),
    _loss("study-loss-gqa-300m", "q,k,v/4", "0.7", "four groups cost", None),
    _loss("study-loss-mqa-300m", "q,k,v/1", "1.5", "one group costs", "longer"),
    _loss(
        "study-loss-tied-gqa-300m", "q,k=v/4", "3.9", "sharing on top of four groups costs", None
    ),
    _loss(
        "study-loss-tied-mqa-300m",
        "q,k=v/1",
        "4.8",
        "sharing on top of one group costs",
        "catalogue",
    ),
    _loss(
        "study-loss-tied-1-2b",
        "q,k=v",
        "2.48",
        "sharing key and value costs",
        "longer",
        size="1.2B",
    ),
    _loss("study-loss-gqa-1-2b", "q,k,v/8", "0.52", "eight groups cost", None, size="1.2B"),
    _loss("study-loss-mqa-1-2b", "q,k,v/1", "1.06", "one group costs", "longer", size="1.2B"),
    _loss(
        "study-loss-tied-mqa-1-2b",
        "q,k=v/1",
        "4.16",
        "sharing on top of one group costs",
        "catalogue",
        size="1.2B",
    ),
    Claim(
        name="study-loss-on-text",
        text="The 3.1% that sharing key and value costs at 300M is a loss on text.",
        place="table 4, against the authors' later model card",
        quantity="perplexity that `q,k=v` loses at 300M with padding left out, percent",
        arithmetic=_on_text,
        tests=(
            NotTestable(
                "the released checkpoints of both arms, scored on SlimPajama without padding"
            ),
        ),
        figures=(figure("3.1", "%"),),
    ),
    Claim(
        name="study-length-2048",
        text="At 2,048 tokens, by the table of lengths, sharing key and value costs 2.2%.",
        place="table 16 (seen in one secondary source), against table 4",
        quantity="validation perplexity that `q,k=v` loses at 2,048 tokens, percent",
        arithmetic=lambda: Arithmetic(
            "That is its main table's loss at the same length. The two contradict each other "
            "unless their budgets differ, which is not said; one run each.",
            (loss("q,k=v"),),
        ),
        tests=(OtherConditions(),),
        figures=(figure("2.2", "%"),),
    ),
    Claim(
        name="study-length-shorter",
        text="The shorter the sequences, the more sharing key and value costs: 3.7% at 1,024 "
        "tokens, 5.4% at 512.",
        place="table 16 (seen in one secondary source)",
        quantity="validation perplexity that `q,k=v` loses by the length of a sequence, percent",
        arithmetic=lambda: Arithmetic(
            "Padding is scored, and shorter sequences have less of it, which alone would make "
            "every loss larger. Nothing bounds a loss of quality."
        ),
        tests=(NotTestable(f"{AT_300M.requires}, at each length"),),
        figures=(figure("3.7", "%"), figure("5.4", "%")),
    ),
    Claim(
        name="study-order-of-ties",
        text="Using the query as key costs a language model more than sharing key and value.",
        place="table 4",
        quantity="validation perplexity of `q=k,v` beside that of `q,k=v`",
        arithmetic=lambda: Arithmetic(
            f"Its table gives {loss('q=k,v').text} against {loss('q,k=v').text}, one "
            "run each. Nothing bounds a difference of quality."
        ),
        tests=(Runs("q=k,v", "worse", ("lm-reviews",), AT_300M, against="q,k=v"),),
        recipe="quick",
    ),
    Claim(
        name="study-conversion-untrained",
        text="Averaging key and value of a trained 300M model takes its perplexity from 20.8 to "
        "6,430; keeping one of them, to 7,347 or 13,345.",
        place="authors' later runs, distillation on FineWeb-Edu",
        quantity="perplexity of a trained `q,k,v` right after it is made a `q,k=v`",
        arithmetic=_conversion,
        tests=(NotTestable("conversion of trained models, and the released 300M checkpoint"),),
        figures=(LATER_PERPLEXITY["q,k,v"], *CONVERTED.values()),
    ),
    Claim(
        name="study-conversion-healed",
        text="After 500M tokens of distillation a converted 300M model is at 22.87, 27.00 or "
        "29.00, near the 21.28 of one that was trained with the tie.",
        place="authors' later runs, distillation on FineWeb-Edu",
        quantity="perplexity of a converted and healed `q,k=v`",
        arithmetic=_healing,
        tests=(NotTestable("conversion of trained models, and the released 300M checkpoint"),),
        figures=(*HEALED.values(), LATER_PERPLEXITY["q,k=v"]),
    ),
    Claim(
        name="study-bits-per-character",
        text="The later 300M model needs 4.41 bits for a character.",
        place="authors' later model card",
        quantity="bits that `q,k=v` needs for a character of FineWeb-Edu",
        arithmetic=_bits,
        tests=(OwnFigures(),),
        figures=(figure("4.41", "bits"),),
    ),
    Claim(
        name="study-size-gain",
        text="Four times the parameters lower the baseline's perplexity by 2%.",
        place="table 4 and table 10",
        quantity="perplexity of `q,k,v` that 1.2B saves against 300M, percent",
        arithmetic=lambda: Arithmetic(
            f"Its perplexities give {_size_gain().text}. So little for so many parameters fits "
            "targets of which many are padding, which any model predicts, and a smaller learning "
            "rate.",
            (_size_gain(),),
        ),
        tests=(Consistent(), NotTestable(f"at both sizes, {AT_1_2B.requires}")),
        figures=(figure("2", "%"),),
    ),
    Claim(
        name="article-single-projection-free",
        text="The study finds that a single shared projection can serve both roles at no cost of "
        "quality.",
        place="text, as an account of the study",
        quantity="perplexity lost in the study by the tie that loses least, percent",
        arithmetic=_single,
        tests=(Consistent(), Runs("q,k=v", "no worse", ("lm-reviews",), AT_300M)),
        figures=(figure("0", "%"),),
        recipe="quick",
    ),
)
