"""The table of the article that this project began from: five configurations at 125M.

Run       qkvbench run article-table
          qkvbench run article-table --size small    packaged tasks, on two cores
Takes     not run yet; `--dry-run` computes what it needs, and where its data would come from
Hardware  none is named in the source
Reported  parameters in millions, GLUE, WMT14 BLEU, latency in ms, memory in GB:
          canonical 125, 85.2, 28.4, 12.3, 2.1 · no key 110, 84.9, 28.1, 10.8, 1.8 ·
          shared 84, 84.7, 28.0, 9.5, 1.5 · value-only 42, 77.5, 24.1, 7.2, 1.1 ·
          no projections 0, 62.3, 18.9, 5.1, 0.8
Wrong     the parameters are impossible: without the key a model of that size has a twentieth
          fewer, not an eighth, and without any projection it keeps its embeddings and
          feed-forwards. No task, length, seed, hardware or training is named. GLUE here is the nine
          tasks from scratch, one by one: `--tasks glue-rte … --init-from masked-reviews` begins
          with an encoder that was pre-trained on film reviews, which is little
"""

from qkvbench.model.presets import gpt_125m
from qkvbench.recipes import CONTROLS, Study

SIZES = ("125m", "small")
ARMS = ("q,k,v", "q=k,v", "q,k=R(q),v=R(q)", "q=k=x,v", "q=k=v=x", *CONTROLS)
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli-mismatched", "qnli", "rte", "wnli")


def study(size: str = SIZES[0]) -> Study:
    """The five configurations and the controls, each task from scratch."""
    if size == "small":
        return Study(
            name="article-table-small",
            variants=ARMS,
            seeds={"sentiment": 3, "topics-8": 3, "translation": 3},
        )
    return Study(
        name="article-table",
        variants=ARMS,
        seeds={**dict.fromkeys((f"glue-{task}" for task in GLUE), 3), "wmt14-en-de": 3},
        model=gpt_125m(),
        precision="bf16",
    )
