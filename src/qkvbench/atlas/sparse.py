"""The content decides which tokens are seen, or rows are of several tokens."""

from qkvbench.atlas.kit.form import Form, Kept
from qkvbench.model import Rotary

FORMS = (
    Form(
        name="indexer",
        about="a second, small attention chooses the 2048 tokens that a query sees",
        equation=None,
        lacks="a mask that depends on content; of its cost the cache of 128 numbers for a token",
        source="arXiv:2512.02556",
        position=Rotary(),
        library_keeps=(
            Kept("latent", 1, 512),
            Kept("RoPE head of K", 1, 64),
            Kept("index key", 1, 128),
        ),
        used_by=(
            "deepseek_v32 DeepseekV32Attention",
            "glm_moe_dsa GlmMoeDsaAttention",
            "hy_v4 HYV4Attention",
            "axk2 AXK2Attention",
            "mistral_large4 MistralLarge4TextAttention",
        ),
    ),
    Form(
        name="blocks",
        about="the same for blocks of tokens, by their best token or by pooled keys",
        equation=None,
        lacks="a mask that depends on content",
        source="transformers, models/minimax_m3_vl",
        position=Rotary(),
        used_by=(
            "minimax_m3_vl MiniMaxM3VLAttention",
            "qwen4_exp Qwen4ExpTextAttention",
            "glm5_next Glm5NextTextAttention",
        ),
    ),
    Form(
        name="column-bias",
        about="a function of V is added to the scores of its column",
        equation=None,
        lacks="a bias of the column that is made of V",
        source="arXiv:2412.11834",
        position=Rotary(),
        used_by=("doge DogeAttention",),
    ),
    Form(
        name="hashed",
        about="one projection is Q and K, the diagonal is masked, and hashes choose what is seen",
        equation=None,
        lacks="buckets by hashes of content, and a norm of K alone; without them it is q=k,v-diag",
        source="arXiv:2001.04451",
        library_keeps=(Kept("stream", 1, "d_model"),),
        used_by=("reformer LSHSelfAttention", "reformer LocalSelfAttention"),
    ),
    Form(
        name="global-tokens",
        about="marked tokens see and are seen by all, with projections of their own",
        equation=None,
        lacks="two sets of matrices, chosen by the token",
        source="arXiv:2004.05150",
        library_keeps=(),
        used_by=(
            "longformer LongformerSelfAttention",
            "led LEDEncoderSelfAttention",
            "longt5 LongT5TransientGlobalAttention",
            "pegasus_x PegasusXGlobalLocalAttention",
            "big_bird BigBirdBlockSparseAttention",
        ),
    ),
    Form(
        name="expert-heads",
        about="a router chooses the heads of Q and their output",
        equation=None,
        lacks="heads that are chosen by a router",
        source="arXiv:2404.07413",
        position=Rotary(),
        used_by=("jetmoe JetMoeAttention",),
    ),
)
