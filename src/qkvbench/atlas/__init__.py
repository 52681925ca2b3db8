"""The atlas: every form of attention in transformers, as one equation of ours or with what lacks.

Each module of this folder is a table of forms, its value `FORMS`. A row has the equation, the
positions, the classes that use it, what the library keeps for a token, and for each layer that is
proved a small config and the map of its weights. Costs are computed from the plans; that each layer
is equal to the library's is tested (tests/atlas). To add a model, add a `Layer` to a form. `papers`
has forms that no layer of the library has.
"""

import importlib
import pkgutil
from functools import cache

from qkvbench.atlas.kit import text
from qkvbench.atlas.kit.equality import Equality, equalities, library
from qkvbench.atlas.kit.form import COMMON, CONFIG, TOKENS, Form, Kept, Layer
from qkvbench.atlas.kit.text import Cost, cost_of, positions_text, weights_text
from qkvbench.atlas.kit.weights import mapped
from qkvbench.atlas.papers import NOT_EXPRESSED, PAPERS

__all__ = [
    "COMMON",
    "CONFIG",
    "NOT_EXPRESSED",
    "PAPERS",
    "TOKENS",
    "Cost",
    "Equality",
    "Form",
    "Kept",
    "Layer",
    "answer",
    "cost_of",
    "equalities",
    "find",
    "forms",
    "library",
    "mapped",
    "positions_text",
    "weights_text",
]

# The tables in the order in which they are printed.
TABLES = (
    *("plain", "rotary", "scaled", "normed", "scores", "gated", "sources", "latent"),
    *("sparse", "beyond"),
)


def find(name: str) -> Form:
    """The form with this name; KeyError if there is none."""
    return {form.name: form for form in (*forms(), *PAPERS, *NOT_EXPRESSED)}[name]


@cache
def forms() -> tuple[Form, ...]:
    """Every form, table by table."""
    tables = {module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg}
    assert tables - {"papers"} == set(TABLES), "every table has its place in the order"
    modules = (importlib.import_module(f"{__name__}.{name}") for name in TABLES)
    return tuple(form for module in modules for form in module.FORMS)


def answer() -> str:
    """The atlas in one line."""
    return text.answer(forms())
