"""Predict the next byte of film reviews: real prose, whole documents packed end to end."""

from qkvbench.data import reviews
from qkvbench.data.streams import SPLITS, Streams, byte_streams
from qkvbench.data.tokenizer import Bytes
from qkvbench.tasks.kinds.language import Source, language_model


def read() -> Streams:
    """The reviews as bytes."""
    found = reviews()
    return byte_streams({name: getattr(found, name) for name in SPLITS}, found.identity)


TASK = language_model(
    Source(
        about="Predict the next byte of film reviews (IMDb and Rotten Tomatoes).",
        tier="packaged",
        version=1,
        model="reviews",
        read=read,
    ),
    Bytes(),
)
