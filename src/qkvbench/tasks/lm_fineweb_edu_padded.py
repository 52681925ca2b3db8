"""FineWeb-Edu as arXiv:2606.04032 trains and scores: cut at 2,048 tokens, padded, padding scored.

The study's own text is SlimPajama, another corpus. `lm-fineweb-edu-10bt` is the same text packed.
"""

from dataclasses import replace

from qkvbench.tasks.kinds.padded import padded_language_model
from qkvbench.tasks.lm_fineweb_edu_10bt import BYTE_PAIRS, PACKED

TASK = padded_language_model(
    replace(
        PACKED,
        about="Web pages, each cut or padded, the padding scored (not yet run on the real data).",
        model="fineweb-edu-padded",
    ),
    BYTE_PAIRS,
)
