"""A person's own data: text, tables and images, checked once, when they are read.

Each reader takes a name, for its messages, and content. DataRefusedError says what cannot be used,
where it is, and what can be used instead.
"""

from qkvbench.data.own.files import content, missing_error, shown
from qkvbench.data.own.images import (
    FORMATS,
    IMAGE_BYTES,
    IMAGE_PIXELS,
    MOST_IMAGES,
    Images,
    images,
    list_images,
)
from qkvbench.data.own.labels import MIN_EXAMPLES, Labelled, number_labels
from qkvbench.data.own.table import (
    LABELS,
    LARGEST,
    MOST_NUMBERS,
    TABLE_BYTES,
    TEXTS,
    Table,
    table,
)
from qkvbench.data.own.text import ENOUGH, TEXT_BYTES, json_documents, text_documents

__all__ = [
    "ENOUGH",
    "FORMATS",
    "IMAGE_BYTES",
    "IMAGE_PIXELS",
    "LABELS",
    "LARGEST",
    "MIN_EXAMPLES",
    "MOST_IMAGES",
    "MOST_NUMBERS",
    "TABLE_BYTES",
    "TEXTS",
    "TEXT_BYTES",
    "Images",
    "Labelled",
    "Table",
    "content",
    "images",
    "json_documents",
    "list_images",
    "missing_error",
    "number_labels",
    "shown",
    "table",
    "text_documents",
]
