"""Forms of papers that no layer of transformers has: equations without an equal to prove.

And those that no equation has, each with what the plan lacks.
"""

from qkvbench.atlas.kit.form import Form
from qkvbench.model import Rotary

_GROUPED = "q,k,v/{kv_heads}"

PAPERS = (
    Form(
        name="joined-key",
        about="half of K is V's first half, the other half one head with RoPE (GTA)",
        equation="q,k=v/{kv_heads}+keydim{half}+ropehead{half}",
        source="arXiv:2505.21487",
        position=Rotary(),
        numbers={"half": 32},
        library_keeps=(),
    ),
    Form(
        name="latents-by-group",
        about="two latents, each for half of the heads, and one head of K with RoPE (GLA)",
        equation="q,k=L({groups}x{rank}),v=L({groups}x{rank})+latentnorm+ropehead{rope_dim}",
        source="arXiv:2505.21487",
        position=Rotary(),
        numbers={"groups": 2, "rank": 256, "rope_dim": 64},
        library_keeps=(),
    ),
    Form(
        name="keyless",
        about="no matrix of K's own: a query is compared with any matrix times V, which is cached",
        equation="q,k=M(v),v/{kv_heads}",
        source="arXiv:2606.21848",
        position=Rotary(),
        library_keeps=(),
    ),
    Form(
        name="own-value-taken-away",
        about="the output loses its part along the token's own V (exclusive attention)",
        equation=f"{_GROUPED}-own",
        source="arXiv:2603.09078",
        position=Rotary(),
        library_keeps=(),
    ),
    Form(
        name="first-value-mixed",
        about="V of the first layer is mixed into V, by a learned number (ResFormer)",
        equation=f"{_GROUPED}+firstvalue",
        below=_GROUPED,
        source="arXiv:2410.17897",
        position=Rotary(),
        library_keeps=(),
    ),
    Form(
        name="first-value-shared",
        about="V of the first layer in all layers, which keep their K alone (SVFormer)",
        equation="q,k,v=V(first)",
        below=_GROUPED,
        source="arXiv:2410.17897",
        position=Rotary(),
        library_keeps=(),
    ),
    Form(
        name="key-and-value-below",
        about="K of a middle layer, V of the first one, and a Q of its own (FusedKV-Lite)",
        equation="q,k=K(-1),v=V(first)",
        below=_GROUPED,
        source="arXiv:2512.03870",
        position=Rotary(),
        library_keeps=(),
    ),
)

NOT_EXPRESSED = (
    Form(
        name="shared-and-low-rank",
        about="K and V of a head are one head for all plus a part of low rank of its own (LRKV)",
        equation=None,
        lacks="a sum of two roots, each cached: a score would be a sum of products with both, and "
        "every kernel reads one row of K",
        source="arXiv:2601.11471",
    ),
    Form(
        name="factored-by-token",
        about="K and V are sums of outer products of two vectors that the token makes (TPA)",
        equation=None,
        lacks="a root that is a product of two, both made of the token: no fixed map makes it from "
        "one cached row, so a query could not absorb anything",
        source="arXiv:2501.06425",
    ),
    Form(
        name="shifted-value",
        about="half of V is that of the token before, and K and Q are convolved (CCGQA)",
        equation=None,
        lacks="a root that reads the token before it: a state in decoding, and a stop at the "
        "border of every packed document",
        source="arXiv:2510.04476",
    ),
)
