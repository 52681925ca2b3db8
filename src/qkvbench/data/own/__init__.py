"""What a person brings: text, tables and images, checked once where they enter.

Each reader takes a name, for its sentences, and content; what cannot be used raises
DataRefusedError, which says where and what can.
"""

from qkvbench.data.own.files import content, missing, shown
from qkvbench.data.own.images import IMAGE_BYTES, SIDES, Images, images, listed
from qkvbench.data.own.labels import FEWEST, Labelled, labelled
from qkvbench.data.own.table import TABLE_BYTES, Table, table
from qkvbench.data.own.text import TEXT_BYTES, json_documents, text_documents

__all__ = [
    "FEWEST",
    "IMAGE_BYTES",
    "SIDES",
    "TABLE_BYTES",
    "TEXT_BYTES",
    "Images",
    "Labelled",
    "Table",
    "content",
    "images",
    "json_documents",
    "labelled",
    "listed",
    "missing",
    "shown",
    "table",
    "text_documents",
]
