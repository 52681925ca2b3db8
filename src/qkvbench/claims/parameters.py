"""Parameter counts."""

from collections.abc import Callable

from qkvbench.claims.kit.arithmetic import Computed, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import (
    count_figure,
    figure,
    percent,
    range_figure,
)
from qkvbench.claims.kit.models import (
    cache_ratio,
    gpt2_small,
    saved_outside_embedding,
    saved_parameters,
    study_1_2b,
    study_300m,
    total_figure,
    total_parameters,
)

RELEASED = {
    "q,k,v": 305_534_976,
    "q=k,v": 284_542_976,
    "q,k=v": 284_542_976,
    "q=k=v": 263_550_976,
    "q,k,v/4": 274_046_976,
    "q,k,v/1": 266_174_976,
    "q,k=v/1": 264_862_976,
}


def _left(name: str, arm: str, left: str, text: str, context: Callable[[], str]) -> Claim:
    """A claim of the article's results table: the parameters left in its model, in millions."""
    place = {
        "q=k,v": "No Key",
        "q=k=v": "Shared QKV",
        "q=k=x,v": "Value-only",
        "q=k=v=x": "No projections",
    }[arm]
    return Claim(
        name=name,
        text=text,
        place=f"results table, {place}",
        quantity="parameters of the whole 125M model, millions",
        arithmetic=lambda: Arithmetic(context(), (total_figure(gpt2_small(), arm),)),
        tests=(Computed(),),
        figures=(figure(left, "M"),),
    )


def _largest_saving() -> Arithmetic:
    model = gpt2_small()
    whole = saved_parameters(model, "q=k=v=x")
    outside = saved_outside_embedding(model, "q=k=v=x")
    return Arithmetic(
        "That is all three projections gone: first of the whole of GPT-2 small, then of what "
        "is not embedding. It holds for a feed-forward of four times the width, as GPT-2 has; "
        "without one it would be three quarters of the attention layers.",
        (range_figure(whole, whole, outside),),
    )


def _saving(name: str, saved: str, text: str, *, place: str) -> Claim:
    """A claim of the article on the parameters that can be saved, in percent."""
    return Claim(
        name=name,
        text=text,
        place=place,
        quantity="largest share of the parameters that removing Q, K and V projections saves",
        arithmetic=_largest_saving,
        tests=(Computed(),),
        figures=(figure(saved, "%"),),
    )


def _released() -> Arithmetic:
    totals = {arm: total_parameters(study_300m(), arm) for arm in RELEASED}
    right = sum(totals[arm] == count for arm, count in RELEASED.items())
    return Arithmetic(
        f"{right} of {len(RELEASED)} counts are those of its architecture, to the last one.",
        tuple(count_figure(count) for count in totals.values()),
    )


def _qgqa4() -> Arithmetic:
    model = study_300m()
    counts = {groups: total_parameters(model, f"q,k=v/{groups}") for groups in (4, 8)}
    saved = {groups: 1 - cache_ratio(model, f"q,k=v/{groups}") for groups in counts}
    return Arithmetic(
        "; ".join(
            f"with {groups} groups there are {count:,} parameters and {percent(saved[groups])} is "
            "saved"
            for groups, count in counts.items()
        ).capitalize()
        + ". The released configuration has 8, the table says 87.5%.",
        (count_figure(counts[4]),),
    )


def _released_size() -> Arithmetic:
    totals = [total_figure(model, "q,k,v") for model in (study_300m(), study_1_2b())]
    return Arithmetic(
        f"The study's language models have {totals[0].text} and {totals[1].text} parameters.",
        (totals[1],),
    )


CLAIMS = (
    Claim(
        name="article-model-sizes",
        text="The study's experiments cover models of up to 125M parameters.",
        place="text on limits",
        quantity="parameters of the study's largest model, millions",
        arithmetic=_released_size,
        tests=(OwnFigures(),),
        figures=(figure("125", "M"),),
    ),
    _left(
        "article-no-key-parameters",
        "q=k,v",
        "110",
        "Using the query as key takes a 125M model to 110M parameters, 12% fewer.",
        lambda: (
            f"One projection of three is {percent(saved_parameters(gpt2_small(), 'q=k,v'))} of "
            f"GPT-2 small; {total_figure(gpt2_small(), 'q=k=v').text} is what is left without two."
        ),
    ),
    _left(
        "article-shared-parameters",
        "q=k=v",
        "84",
        "One projection for all takes a 125M model to 84M parameters, a third fewer.",
        lambda: (
            "Two projections of three are "
            f"{percent(saved_parameters(gpt2_small(), 'q=k=v'))} of GPT-2 small, and "
            f"{percent(saved_outside_embedding(gpt2_small(), 'q=k=v'))} of it without embeddings."
        ),
    ),
    _left(
        "article-value-only-parameters",
        "q=k=x,v",
        "42",
        "Keeping only the value projection takes a 125M model to 42M parameters.",
        lambda: (
            "One projection is kept, as in `q=k=v`, which therefore has "
            f"{total_figure(gpt2_small(), 'q=k=v').text} too; the article gives that one twice as "
            "many."
        ),
    ),
    _left(
        "article-no-projections-parameters",
        "q=k=v=x",
        "0",
        "Without any projection a model has no parameters.",
        lambda: (
            "Embeddings, feed-forward and output projection remain; all three projections are "
            f"{percent(saved_parameters(gpt2_small(), 'q=k=v=x'))} of GPT-2 small."
        ),
    ),
    _saving(
        "article-forty-percent",
        "40",
        "Removing projections saves up to 40% of the parameters of a 125M model.",
        place="text",
    ),
    _saving(
        "article-pruning-parameters",
        "30",
        "Removing projections saves at least 30% of the parameters of a 125M model.",
        place="table of approaches, QKV pruning",
    ),
    Claim(
        name="study-parameters-300m",
        text="The seven 300M models have the numbers of parameters that were released with them.",
        place="released parameter counts, 300M",
        quantity="parameters of " + " · ".join(f"`{arm}`" for arm in RELEASED),
        arithmetic=_released,
        tests=(Computed(),),
        figures=tuple(count_figure(count) for count in RELEASED.values()),
    ),
    Claim(
        name="study-qgqa4-released",
        text="The parameter count released for Q-GQA-4 is that of a model with four groups.",
        place="released parameter counts, 300M; the name in table 4",
        quantity="parameters of `q,k=v/4` at 300M",
        arithmetic=_qgqa4,
        tests=(Computed(),),
        figures=(count_figure(274_046_976),),
    ),
)
