"""Perplexity lost by language models."""

from functools import partial

from qkvbench.claims.kit.arithmetic import Consistent, NotTestable, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim, Test
from qkvbench.claims.kit.figure import change, figure, percent
from qkvbench.claims.kit.reported import (
    LATER_PERPLEXITY,
    PERPLEXITY_300M,
    loss,
    loss_on_text,
    padding_share,
)
from qkvbench.claims.kit.runs import Runs
from qkvbench.claims.kit.scales import AT_1_2B, AT_300M

# Possible shares of padding among the targets.
PADDING = (0.3, 0.55)

# Perplexity after key and value of a trained model are averaged.
UNTRAINED = figure("6,430")


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
    times = UNTRAINED.value / LATER_PERPLEXITY["q,k,v"].value
    return Arithmetic(f"That is {times:.0f} times its perplexity before. Nothing bounds it.")


def _single() -> Arithmetic:
    others = [arm for arm in PERPLEXITY_300M if arm not in ("q,k,v", "q=k=v")]
    least, *_, most = sorted(map(loss, others), key=lambda lost: lost.value)
    return Arithmetic(
        "That is the study's own table at 300M, one run; its other variants lose "
        f"{least.value:.1f} to {most.value:.1f}%.",
        (loss("q=k=v"),),
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
            "That is its main table's loss at the same length. Where the two differ they "
            "contradict each other, unless their budgets differ too. Which is nearer is not known: "
            "one run each.",
            (loss("q,k=v"),),
        ),
        tests=(OwnFigures(),),
        figures=(figure("2.2", "%"),),
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
        "6,430.",
        place="authors' later runs, distillation on FineWeb-Edu",
        quantity="perplexity of a trained `q,k,v` right after it is made a `q,k=v`",
        arithmetic=_conversion,
        tests=(NotTestable("conversion of trained models, and the released 300M checkpoint"),),
        figures=(LATER_PERPLEXITY["q,k,v"], UNTRAINED),
    ),
    Claim(
        name="article-single-projection-free",
        text="The study finds that one projection for query, key and value costs no quality.",
        place="text, as an account of the study",
        quantity="perplexity that `q=k=v` loses in the study, percent",
        arithmetic=_single,
        tests=(Consistent(), Runs("q=k=v", "no worse", ("lm-reviews",), AT_300M)),
        figures=(figure("0", "%"),),
        recipe="quick",
    ),
)
