"""Fine-tuning on consumer GPUs."""

from qkvbench.claims import ARTICLE, Arithmetic, Claim, Elsewhere
from qkvbench.claims._figure import printed
from qkvbench.claims._models import gpt2_small, saved_flops


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    shared, none = (1 / (1 - saved_flops(model, arm, 1)) for arm in ("q=k=v", "q=k=v=x"))
    return Arithmetic(
        says=f"Where matrix products take the time, `q=k=v` is at most {shared:.2f}× as fast, and "
        f"`q=k=v=x` {none:.2f}×. Time that goes elsewhere is not bounded by this."
    )


CLAIM = Claim(
    text="Fine-tuning on consumer GPUs gets 20 to 30% faster.",
    source=ARTICLE,
    place="text",
    quantity="training steps a second on a consumer GPU, against `q,k,v`",
    stated=(printed("20", "%"), printed("30", "%")),
    arithmetic=_arithmetic,
    tests=(Elsewhere("training steps of matched arms, timed on a consumer GPU"),),
)
