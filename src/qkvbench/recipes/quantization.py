"""Does a tie cost more in few bits? Every form of rows and weights, of the same trained weights.

Run       qkvbench run quantization
Then      qkvbench report DIR --as quantization
Takes     about twenty-five minutes on two cores
Reported  users of Gemma 4, whose global layers tie K and V, say that 8 bits are free and 4 are not;
          arXiv:2402.02750 quantizes K by channel and V by token, and a tied tensor is both
Expect    written on 2026-11-29, before the first run: int8 costs nothing that is seen, in any arm
          and scheme; int4 by token costs `q,k=v` more than `q,k,v`, since one tensor serves both;
          K by channel and V by token (`kivi`) costs `q,k,v` less than by token alone (`late`); the
          smaller a cache already is (`q,k,v/1`, the latent), the more int4 costs it
"""

from qkvbench.recipes import CONTROLS, Study

FORMS = (
    "int8",
    "int8:channel",
    "int8+w8",
    "w8",
    "int4",
    "int4+w8",
    "int4:late",
    "int4:channel",
    "int4:kivi",
    "int4:hadamard",
    "int4:before-rope",
    "int4:nope",
    "int3",
    "int2",
)


def study() -> Study:
    """Ties, a shared head and a latent with a rotary key, on language and recall."""
    return Study(
        name="quantization",
        variants=(
            "q,k,v",
            "q,k=v",
            "q,k=v+ropevalue",
            "q,k,v/1",
            "q,k=L(48),v=L(48)+ropehead16",
            *CONTROLS,
        ),
        seeds={"lm-reviews": 5, "recall": 5},
        quantizations=FORMS,
    )
