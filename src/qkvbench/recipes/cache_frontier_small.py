"""Which numbers should a cache keep? Forms of attention in use, by their bytes, at a small size.

Run       qkvbench run cache-frontier-small
Takes     about three quarters of an hour on two cores, by `--dry-run`; `--tasks recall` alone 20
          minutes
Expect    a first look at quality for each cached byte, not the study of it: one size, one budget,
          one learning rate for all arms. Both tasks have one model, with rotary positions and
          heads of 24 numbers, so that an equation keeps as many bytes on one as on the other
"""

from qkvbench.model.presets import small_decoder
from qkvbench.recipes import CONTROLS, Study


def study() -> Study:
    """Heads shared, tied, split, thinned, made from latents or read from the layer below."""
    return Study(
        name="cache-frontier-small",
        variants=(
            "q,k,v",
            "q,k,v/2",
            "q,k,v/1",
            "q,k=v",
            "q,k=v/1",
            # Half of K is V's first half, the other half one head with RoPE (arXiv:2505.21487).
            "q,k=v+keydim12+ropehead12",
            "q,k=v/1+keydim12+ropehead12",
            # A latent with a RoPE key beside it, in half and in a quarter of the bytes of q,k,v.
            "q,k=L(84),v=L(84)+latentnorm+ropehead12",
            "q,k=L(36),v=L(36)+latentnorm+ropehead12",
            # The core of DeepSeek V4: one normed root, RoPE on it and its inverse on the output.
            "q=L(48),k=v/1+rootnorm+latentnorm+ropevalue+sinklogit",
            "q,k,v+keydim6",
            "q,k,v;q,k=K(-1),v=V(-1)",
            "q,k,v-own",
            "q=k,v-diag",
            *CONTROLS,
        ),
        seeds={"lm-reviews": 5, "recall": 5},
        model=small_decoder(),
    )
