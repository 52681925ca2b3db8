"""Name the newsgroup of a post, of 20, from its subject and text (Lang 1995)."""

from qkvbench.experiment import Training
from qkvbench.tasks.kinds.topics import Topics, topic

TASK = topic(
    Topics(
        about="Name the newsgroup, of 20, of a post from its first {length} tokens.",
        collection="20newsgroups",
        classes=20,
        length=128,
        metric="accuracy",
        training=Training(
            steps=400, batch=32, learning_rate=3e-3, warmup=40, evaluations=5, scored=2000
        ),
    )
)
