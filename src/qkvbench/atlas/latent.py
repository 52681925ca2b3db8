"""K and V are made of a latent, and K has one more head of its own for RoPE."""

from qkvbench.atlas.kit.form import Form, Kept
from qkvbench.model import Rotary

# A latent and a head with RoPE for all heads together, as DeepSeek V2 keeps them.
LATENT = (Kept("latent", 1, "rank"), Kept("RoPE head of K", 1, "rope_dim"))
_NUMBERS = {"rank": 512, "rope_dim": 64}

FORMS = (
    Form(
        name="latent",
        about="K and V from one latent; one head with RoPE for all, joined to each head of K",
        equation=None,
        lacks="K joined from heads of the latent and one head of its own that alone gets RoPE; a "
        "latent of Q; a width of V of its own",
        source="arXiv:2405.04434",
        position=Rotary(),
        numbers=_NUMBERS,
        library_keeps=LATENT,
        used_by=(
            "deepseek_v2 DeepseekV2Attention",
            "deepseek_v3 DeepseekV3Attention",
            "minicpm3 MiniCPM3Attention",
            "youtu YoutuAttention",
            "longcat_flash LongcatFlashMLA",
            "axk1 AXK1Attention",
            "glm4_moe_lite Glm4MoeLiteAttention",
            "mistral4 Mistral4Attention",
        ),
    ),
    Form(
        name="latent-no-positions",
        about="the same without RoPE on the head of its own",
        equation=None,
        lacks="K joined from heads of the latent and one head of its own; a width of V of its own",
        source="arXiv:2510.26692",
        numbers=_NUMBERS,
        library_keeps=LATENT,
        used_by=("kimi_linear KimiLinearAttention", "glm5_next Glm5NextTextAttention"),
    ),
    Form(
        name="latent-gated",
        about="the same with a gate on what was attended",
        equation=None,
        lacks="what the latent form lacks, and a gate",
        source="transformers, models/bailing_hybrid and models/dots3_note",
        position=Rotary(),
        numbers=_NUMBERS,
        library_keeps=LATENT,
        used_by=(
            "bailing_hybrid BailingHybridAttention",
            "dots3_note Dots3NoteTextAttention",
            "axk2 AXK2Attention",
            "hy_v4 HYV4Attention",
        ),
    ),
)
