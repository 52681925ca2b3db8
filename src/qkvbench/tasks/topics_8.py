"""Name the topic of a piece of news, of 8: Reuters-21578 (Lewis 1997)."""

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.topics import Topics, topic

TASK = topic(
    Topics(
        about="Name the topic, of 8, of a piece of news from its first {length} tokens (Reuters).",
        collection="reuters-r8",
        classes=8,
        length=128,
        # Half of the texts have one topic: always predicting it is right half of the time.
        metric="balanced_accuracy",
        training=Training(steps=400, batch=32, learning_rate=3e-3, warmup=40, evaluations=5),
    )
)
