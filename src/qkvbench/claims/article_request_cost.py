"""The cost of a request to a hosted model."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Elsewhere
from qkvbench.claims._figure import percent, printed
from qkvbench.claims._models import gpt2_small, kept, saved_flops


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    compute = percent(saved_flops(model, "q=k=v=x", 1))
    cache = percent(1 - kept(model, "q,k=v"), 0)
    return Arithmetic(
        says=f"Compute falls by {compute} at most, even without any projection at 125M; the cache "
        f"that decoding reads by {cache}. Neither settles what a request costs."
    )


CLAIM = Claim(
    text="A request to a hosted model costs 40% less.",
    source=ARTICLE,
    place="text and table of costs, cloud",
    quantity="cost of one request, against `q,k,v`",
    stated=(printed("40", "%"),),
    arithmetic=_arithmetic,
    tests=(Elsewhere("a model of cost on named hardware, and latencies measured on it"),),
)
