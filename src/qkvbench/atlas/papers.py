"""Forms of papers that no layer of transformers has: equations without an equal to prove."""

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
