"""What the loss is on text rather than padding."""

from qkvbench.claims import STUDY, Arithmetic, Claim, Elsewhere
from qkvbench.claims._figure import change, percent, printed
from qkvbench.claims._reported import LATER_PERPLEXITY, free_share, loss_300m, on_text

FREE = (0.3, 0.55)


def _arithmetic() -> Arithmetic:
    stated = loss_300m("q,k=v").value
    free = free_share()
    low, middle, high = (on_text(stated, share) for share in (FREE[0], free, FREE[1]))
    later = change(LATER_PERPLEXITY["q,k=v"], LATER_PERPLEXITY["q,k,v"]).value
    return Arithmetic(
        says=f"Padding is scored, and if it costs nothing the loss on text is larger: {low:+.1f}% "
        f"where it is {percent(FREE[0], 0)} of the targets, {high:+.1f}% at {percent(FREE[1], 0)}, "
        f"{middle:+.1f}% at the {percent(free)} that would lead to the authors' later, masked "
        f"perplexity on other text. Their later pair differs by {later:+.2f}%.",
    )


CLAIM = Claim(
    text="The 3.1% that sharing key and value costs at 300M is a loss on text.",
    source=STUDY,
    place="table 4, against the authors' later model card",
    quantity="perplexity that `q,k=v` loses at 300M with padding left out, percent",
    stated=(printed("3.1", "%"),),
    arithmetic=_arithmetic,
    tests=(
        Elsewhere("the released checkpoints of both arms, scored on SlimPajama without padding"),
    ),
)
