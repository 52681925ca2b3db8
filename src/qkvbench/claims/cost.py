"""Money: requests, deployments, and the market."""

from qkvbench.claims.kit.arithmetic import NotTestable, OtherConditions, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import Figure, figure, percent, reduction
from qkvbench.claims.kit.models import (
    cache_ratio,
    gpt2_small,
    saved_decode_time,
    saved_flops,
)

# Dollars for a million tokens, today and with fewer projections: both ends of each segment.
COSTS = (
    ("0.50", "0.30"),
    ("5.00", "3.00"),
    ("0.10", "0.05"),
    ("0.50", "0.30"),
    ("2.00", "1.00"),
    ("10.00", "6.00"),
    ("0.50", "0.20"),
    ("2.00", "1.00"),
)

# A device of each of its segments: cloud, smartphone, automotive, sensors with a computer.
SEGMENTS = ("h100", "snapdragon-8-gen-3", "jetson-agx-orin", "raspberry-pi-5")

YEARS = 5

# arXiv:2310.06825, table 1, with an untied embedding; memory of the card as sold.
MISTRAL = 7_241_732_096
CARD_BYTES = 12 * 10**9


def _request() -> Arithmetic:
    model = gpt2_small()
    compute = percent(saved_flops(model, "q=k=v=x", 1))
    cache = percent(1 - cache_ratio(model, "q,k=v"), 0)
    return Arithmetic(
        f"Compute falls by {compute} at most, even without any projection at 125M; the cache "
        f"that decoding reads by {cache}. Neither settles what a request costs."
    )


def _deployment() -> Arithmetic:
    saved = sorted(
        (reduction(figure(new), figure(old)) for old, new in COSTS), key=lambda each: each.value
    )
    return Arithmetic(
        f"The article's own table of costs for a million tokens saves {saved[0].value:.0f} to "
        f"{saved[-1].value:.0f}%. Both hold if part of the total is no cost of tokens, of which "
        "nothing is said.",
        (saved[0], saved[-1]),
    )


def _tokens() -> Arithmetic:
    model = gpt2_small()
    low, high = saved_decode_time(model, "q=k=v=x", SEGMENTS, (128, 1024))
    return Arithmetic(
        "At 125M, operations fall by "
        f"{percent(saved_flops(model, 'q=k=v=x', 1))} at most and the cache by "
        f"{percent(1 - cache_ratio(model, 'q,k=v'), 0)}; a cost that is neither does not fall. By "
        f"the data sheets of {', '.join(SEGMENTS)} the least time of a decode step falls by "
        f"{percent(low)} to {percent(high)} without any projection, over 128 and 1,024 tokens of 1 "
        "and 16 sequences; prices need not follow it."
    )


def _on_one_card() -> Arithmetic:
    bits = CARD_BYTES * 8 / MISTRAL
    return Arithmetic(
        f"{MISTRAL / 1e9:.2f} billion weights fit into its {CARD_BYTES / 1e9:.0f} GB at "
        f"{bits:.0f} bits each or fewer, without a cache. Nothing bounds its quality."
    )


def _growth() -> Arithmetic:
    now, then = figure("12.5"), figure("48.6")
    value, low, high = (
        100 * ((b / a) ** (1 / YEARS) - 1)
        for a, b in ((now.value, then.value), (now.high, then.low), (now.low, then.high))
    )
    rate = Figure(value, low, high, f"{value:.2f}% ({low:.2f} to {high:.2f})")
    return Arithmetic("The fifth root of the growth that it gives.", (rate,))


CLAIMS = (
    Claim(
        name="article-request-cost",
        text="A request to a hosted model costs 40% less.",
        place="text and table of costs, cloud",
        quantity="cost of one request, against `q,k,v`",
        arithmetic=_request,
        tests=(NotTestable("prices that follow time, and latencies measured on named hardware"),),
        figures=(figure("40", "%"),),
    ),
    Claim(
        name="article-total-cost",
        text="Deployment costs fall by 25 to 35% in total.",
        place="text, against the table of costs",
        quantity="smallest and largest saving over the segments of its table, percent",
        arithmetic=_deployment,
        tests=(OtherConditions(),),
        figures=(figure("25", "%"), figure("35", "%")),
    ),
    Claim(
        name="article-token-costs",
        text="A million tokens cost 40 to 60% less with fewer projections, in all four segments.",
        place="table of costs",
        quantity="cost of a million tokens by segment, against `q,k,v`",
        arithmetic=_tokens,
        tests=(NotTestable("prices that follow time, and latencies measured on named hardware"),),
        figures=tuple(figure(each, "$") for pair in COSTS for each in pair),
    ),
    Claim(
        name="article-adoption-years",
        text="With fewer projections each segment adopts such models one to four years earlier.",
        place="table of costs, years of adoption",
        quantity="years until adoption, by segment",
        arithmetic=lambda: Arithmetic("Nothing computes it: it is a forecast."),
        tests=(NotTestable("the years that it forecasts, and a world without the change"),),
    ),
    Claim(
        name="article-forecast-date",
        text="By the first quarter of 2026 savings of 30% or more are to be expected.",
        place="outlook of the article, itself of June 2026",
        quantity="date of the article beside that of its forecast, in years",
        arithmetic=lambda: Arithmetic(
            "The forecast is of a quarter that was over when the article appeared.",
            (Figure(2026 + 5.5 / 12, 2026 + 5 / 12, 2026 + 6 / 12, "June 2026"),),
        ),
        tests=(OwnFigures(),),
        figures=(Figure(2026 + 1.5 / 12, 2026, 2026 + 3 / 12, "Q1 2026"),),
    ),
    Claim(
        name="article-mistral-on-rtx-3060",
        text="Mistral 7B runs on one RTX 3060 at the level of GPT-3.5.",
        place="text on edge hardware",
        quantity="memory of the weights of a 7B model beside the card's; quality is not bounded",
        arithmetic=_on_one_card,
        tests=(
            NotTestable("the model and the card, and the benchmarks on which the levels are equal"),
        ),
    ),
    Claim(
        name="article-market-growth",
        text="A market that grows from 12.5 to 48.6 billion in five years grows by 31.2% a year.",
        place="text on the market",
        quantity="compound annual growth rate; what the market will do is not tested",
        arithmetic=_growth,
        tests=(OwnFigures(),),
        figures=(figure("31.2", "%"),),
    ),
)
