"""The style sheet of a figure that stands alone, in a paper or a download."""

import re
from pathlib import Path

_FOLDER = Path(__file__).parents[1]


def figure_style() -> str:
    """That of the page, in its light colours; many programs know no variables in a style sheet."""
    page, figure = (
        (_FOLDER / name).read_text(encoding="utf-8") for name in ("_page.css", "_figure.css")
    )
    light = dict(re.findall(r"--([\w-]+): ([^;]+);", page.partition("@media")[0]))
    return re.sub(r"var\(--([\w-]+)\)", lambda found: light[found[1]], figure)
