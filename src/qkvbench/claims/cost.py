"""Money: requests, deployments, and the market."""

from qkvbench.claims.kit.arithmetic import NotTestable, OwnFigures
from qkvbench.claims.kit.claim import Arithmetic, Claim
from qkvbench.claims.kit.figure import Figure, figure, percent, reduction
from qkvbench.claims.kit.models import cache_ratio, gpt2_small, saved_flops

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

YEARS = 5


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
        f"{saved[-1].value:.0f}%. Both hold only if much of the total is no cost of tokens.",
        (saved[0], saved[-1]),
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
        tests=(NotTestable("a model of cost on named hardware, and latencies measured on it"),),
        figures=(figure("40", "%"),),
    ),
    Claim(
        name="article-total-cost",
        text="Deployment costs fall by 25 to 35% in total.",
        place="text, against the table of costs",
        quantity="smallest and largest saving over the segments of its table, percent",
        arithmetic=_deployment,
        tests=(OwnFigures(),),
        figures=(figure("25", "%"), figure("35", "%")),
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
