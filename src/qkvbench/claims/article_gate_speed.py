"""The speed of gates that prune projections while training."""

from qkvbench.claims import ARTICLE, Arithmetic, AtMost, Claim, Elsewhere
from qkvbench.claims._figure import exact, printed
from qkvbench.claims._models import attention_speedup, block_speedup, gpt2_small, kept
from qkvbench.variant import every_variant, write

TOKENS = 8192


def _arithmetic() -> Arithmetic:
    model = gpt2_small()
    blocks = block_speedup(model, "q=k=v=x", TOKENS)
    alone = attention_speedup(model, "q=k=v=x", TOKENS)
    read = 1 / min(kept(model, write(variant)) for variant in every_variant())
    return Arithmetic(
        says=f"By removing projections alone: compute {blocks:.2f}× with none of them left and "
        f"causal scores at half ({alone:.2f}× in the attention layers), bytes read in decoding "
        f"{read:.2g}×. More takes gates that also drop heads, share them or narrow the window.",
        figures=(exact(max(blocks, alone, read), f"{max(blocks, alone, read):.2f}×"),),
    )


CLAIM = Claim(
    text="Gates that choose projections per layer in training make 8k tokens 2.3 times as fast, at "
    "less than 1% loss.",
    source=ARTICLE,
    place="text on dynamic pruning",
    quantity="speed on 8,192 tokens with gates on projections, times that of `q,k,v`",
    stated=(printed("2.3", "×"),),
    arithmetic=_arithmetic,
    tests=(AtMost(), Elsewhere("learned gates on projections, which are not here yet")),
)
