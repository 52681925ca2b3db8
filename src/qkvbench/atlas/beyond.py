"""More than one softmax, other products, other streams; and layers that are no attention."""

from qkvbench.atlas.kit.form import Form
from qkvbench.model import Rotary

FORMS = (
    Form(
        name="difference",
        about="the difference of two softmaxes over one V",
        equation=None,
        lacks="a difference of two attentions",
        source="arXiv:2410.05258",
        position=Rotary(),
        used_by=("diffllama DiffLlamaAttention",),
    ),
    Form(
        name="disentangled",
        about="products of content with relative positions are added to the scores",
        equation=None,
        lacks="scores of content with position, with matrices of their own",
        source="arXiv:2006.03654",
        library_keeps=(),
        used_by=(
            "deberta_v2 DisentangledSelfAttention",
            "deberta DisentangledSelfAttention",
            "sew_d DisentangledSelfAttention",
            "xlnet XLNetRelativeAttention",
            "funnel FunnelRelMultiheadAttention",
        ),
    ),
    Form(
        name="convolved",
        about="roots are convolved over time",
        equation=None,
        lacks="a root that reads the tokens before it, with a state of fixed size",
        source="transformers, models/zaya and models/inkling",
        position=Rotary(share=0.5),
        used_by=(
            "zaya ZayaCCAProjection",
            "inkling InklingAttention",
            "inkling2 Inkling2FullAttention",
        ),
    ),
    Form(
        name="other-streams",
        about="Q, K and V read other mixtures of the stream, or a table of tokens",
        equation=None,
        lacks="roles that read different inputs; a layer that is run several times",
        source="transformers, models/neomme and models/hrm_text",
        used_by=(
            "inkling2 Inkling2FullAttention",
            "neomme NeoMMEAttention",
            "hrm_text HrmTextAttention",
            "dory DoryAttention",
        ),
    ),
    Form(
        name="recurrence",
        about="a state of fixed size is updated by keys and values, without a softmax",
        equation=None,
        lacks="the convolutions, learned rates and norms of these layers; the rule of Gated "
        "DeltaNet alone is +gateddelta (docs/rivals.md)",
        source="arXiv:2412.06464",
        library_keeps=(),
        used_by=(
            "qwen3_next Qwen3NextGatedDeltaNet",
            "kimi_linear KimiLinearDeltaAttention",
            "minimax MiniMaxLightningAttention",
            "olmo_hybrid OlmoHybridGatedDeltaNet",
        ),
    ),
    Form(
        name="state-space",
        about="no queries, keys or values",
        equation=None,
        lacks="no Q, K and V",
        source="arXiv:2312.00752",
        library_keeps=(),
        used_by=(
            "mamba MambaMixer",
            "mamba2 Mamba2Mixer",
            "rwkv RwkvSelfAttention",
            "recurrent_gemma RecurrentGemmaRecurrentBlock",
            "lfm2 Lfm2ShortConv",
        ),
    ),
    Form(
        name="pooled-keys",
        about="K and V of a reduced picture: strided, pooled or sampled",
        equation=None,
        lacks="roles that read a reduced stream",
        source="transformers, models/pvt and models/segformer",
        library_keeps=(),
        used_by=(
            "pvt PvtEfficientSelfAttention",
            "segformer SegformerAttention",
            "cvt CvtSelfAttention",
            "hiera HieraMaskUnitAttention",
            "dinat NeighborhoodAttention",
        ),
    ),
    Form(
        name="approximate",
        about="sums over tokens replace the softmax over pairs",
        equation=None,
        lacks="no softmax over pairs of tokens",
        source="transformers, models/nystromformer and models/swiftformer",
        library_keeps=(),
        used_by=(
            "nystromformer NystromformerSelfAttention",
            "yoso YosoSelfAttention",
            "informer InformerProbSparseAttention",
            "swiftformer SwiftFormerEfficientAdditiveAttention",
            "mobilevitv2 MobileViTV2LinearSelfAttention",
        ),
    ),
)
