"""Reports as text, for tests to look into."""

import json
import re
from io import StringIO

import pytest
from rich.console import Console

from qkvbench.reports import full


def printed(study, width):
    file = StringIO()
    console = Console(file=file, width=width, color_system=None)
    full.print_table(study, console)
    full.print_words(study, console)
    return file.getvalue()


def said(notes):
    return "\n".join(f"{note.topic}: {note.text}" for note in notes)


def data_of(html):
    """The JSON inside the page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    return json.loads(text, parse_constant=pytest.fail)
