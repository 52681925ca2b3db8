"""The decoders of arXiv:2606.04032 as its scripts train and score them, padding included.

Run       qkvbench run paper-as-written
          qkvbench run paper-as-written --size 1.2b; --size small for packaged text on two cores
Takes     not run yet; `--dry-run` computes what it needs, and where its text would come from
Hardware  the source: 8 A100 of 40 GB, bf16, 10B tokens a run, padding counted
Reported  validation perplexity at 300M, one seed: q,k,v 5.11 · q,k,v/4 5.15 · q,k,v/1 5.19 ·
          q,k=v 5.27 · q,k=v/4 5.32 · q=k,v 5.36 · q,k=v/1 5.36 · q=k=v 6.41; at 1.2B: q,k,v 5.004 ·
          q,k,v/8 5.030 · q,k,v/1 5.057 · q,k=v 5.128 · q,k=v/1 5.212
Wrong     documents are cut at 2,048 tokens and padded, and the padding is scored, so every
          perplexity is too low and every gap is diluted (`paper-corrected` packs them); one run of
          each arm; one learning rate for all; the released script of q,k=v/4 has 8 heads, not 4;
          the loss is read as equal size, though a tie has fewer parameters.
          Here: FineWeb-Edu in place of SlimPajama, byte pairs learned from it in place of GPT-2's,
          and no weight decay of biases, norms and scales, which theirs has
"""

from qkvbench.experiment import Training
from qkvbench.model.presets import gpt_1_2b, gpt_300m
from qkvbench.recipes import Study

SIZES = ("300m", "1.2b", "small")
ARMS_300M = ("q,k,v", "q=k,v", "q,k=v", "q=k=v", "q,k,v/4", "q,k,v/1", "q,k=v/4", "q,k=v/1")
ARMS_1_2B = ("q,k,v", "q,k=v", "q,k,v/8", "q,k,v/1", "q,k=v/8", "q,k=v/1")
TEXT = "lm-fineweb-edu-padded"
TRAINING_300M = Training(
    steps=4238,
    batch=1152,
    learning_rate=2e-4,
    warmup=500,
    final_learning_rate=2e-5,
    dropout=0.1,
)
TRAINING_1_2B = Training(
    steps=8477,
    batch=576,
    learning_rate=6e-5,
    warmup=1000,
    final_learning_rate=6e-6,
    dropout=0.1,
)


def study(size: str = SIZES[0]) -> Study:
    """The study's arms at one of its sizes, or on packaged text at that of its own task."""
    match size:
        case "300m":
            return Study(
                name="paper-as-written",
                variants=ARMS_300M,
                seeds={TEXT: 1},
                model=gpt_300m(),
                training=TRAINING_300M,
                precision="bf16",
                devices=8,
                micro_batches=8 * 24,
            )
        case "1.2b":
            return Study(
                name="paper-as-written-1.2b",
                variants=ARMS_1_2B,
                seeds={TEXT: 1},
                model=gpt_1_2b(),
                training=TRAINING_1_2B,
                precision="bf16",
                devices=8,
                micro_batches=8 * 36,
            )
        case _:
            return Study(
                name="paper-as-written-small",
                variants=("q,k,v", "q=k,v", "q,k=v", "q=k=v", "q,k,v/2", "q,k,v/1", "q,k=v/1"),
                seeds={"lm-reviews-padded": 1},
                position="learned",
            )
