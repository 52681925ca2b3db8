"""The atlas as one Markdown page: docs/atlas.md."""

import re

from qkvbench import atlas
from qkvbench.atlas import Cost, Form
from qkvbench.cli.show import cache_text, decoding_text, drawing
from qkvbench.cost.units import bytes_text, count_text

HEAD = """# The atlas of attention

<!-- `qkvbench atlas --out docs/atlas.md` writes this page; tests/atlas hold it current. -->

{answer}

Each form is one equation in the notation of the [README](../README.md), made into a plan by the
same code that trains and decodes here. **Equal** is the largest difference between our layer and
the library's, as a share of the largest output. Ours has the library's weights, all of them, and
reads the input that the library's layer got in a small random model of its own: over whole
sequences, padded, and token by token over both caches. It is measured in fp64, with fp64 also
where the library's code says fp32
([benchmarks/atlas_library.py](../benchmarks/atlas_library.py)); the tables of single forms have
fp32, too.

Costs are computed from the plan of one layer at d_model {d_model:g}, {heads:g} heads of
{head_dim:g} and, where heads are grouped, {kv_heads:g} of K and V. MACs are those of {tokens}
tokens; biases are counted, which some models do not have. The cache is for one past token at
2 bytes a number: what **suffices** for the equation, and what transformers has **kept**, which is
measured on its live cache. A model's own sizes are those of its config if nothing is configured.

"""
# The space between a number and its unit, and one at which no line breaks.
UNIT, NO_BREAK = r"(?<=\d) (?=[KMG])", "\N{NO-BREAK SPACE}"
TABLE = (
    "| form | equation | positions | parameters | MACs | suffices | kept | equal |\n"
    "|---|---|---|---:|---:|---:|---:|---:|\n"
)
PAPERS = (
    "## Forms of papers\n\nNo layer of transformers has them, so there is none to which they could "
    "be equal.\n\n"
    "| form | what it is | equation | parameters | MACs | suffices | source |\n"
    "|---|---|---|---:|---:|---:|---|\n"
)
LACKING = "## Not expressed\n\n| form | what it is | lacks | used by |\n|---|---|---|---|\n"


def page() -> str:
    """The page."""
    forms = atlas.forms()
    said = [form for form in forms if form.equation]
    head = HEAD.format(answer=atlas.answer(), tokens=atlas.TOKENS, **atlas.COMMON)
    rows = "".join(map(_row, said))
    lacking = "".join(
        f"| {form.name} | {form.about} | {form.lacks} | {_code(form.users)} |\n"
        for form in forms
        if not form.equation
    )
    lacking += "".join(
        f"| {form.name} | {form.about} | {form.lacks} | {form.source} |\n"
        for form in atlas.NOT_EXPRESSED
    )
    drawn = "\n".join(map(_section, said))
    papers = PAPERS + "".join(map(_paper_row, atlas.PAPERS))
    return f"{head}{TABLE}{rows}\n{papers}\n{LACKING}{lacking}\n## The forms\n\n{drawn}"


def _row(form: Form) -> str:
    cost = atlas.cost_of(form, form.common)
    measured = [found.largest for layer in form.layers if (found := form.measured(layer))]
    cells = [
        f"[{form.name}](#{form.name})",
        f"`{form.written(form.common)}`",
        atlas.positions_text(form),
        count_text(cost.parameters),
        count_text(cost.macs),
        *_caches(form, cost),
        f"{max(measured):.0e}" if measured else "",
    ]
    return _table_row(cells)


def _paper_row(form: Form) -> str:
    cost = atlas.cost_of(form, form.common)
    cells = [
        *(form.name, form.about, f"`{form.written(form.common)}`"),
        *(count_text(cost.parameters), count_text(cost.macs), bytes_text(cost.cache_bytes)),
        form.source,
    ]
    return _table_row(cells)


def _caches(form: Form, cost: Cost) -> tuple[str, str]:
    if form.site == "encoder":
        return "–", "–"
    return bytes_text(cost.cache_bytes), bytes_text(cost.library_bytes)


def _section(form: Form) -> str:
    plan = form.plan(form.common)
    cache = [*cache_text(plan), decoding_text(plan)] if form.site == "decoder" else []
    picture = "\n".join([*drawing(plan), *(["", *cache] if cache else [])])
    keeps = ", ".join(each.text for each in form.library_keeps)
    rows = "".join(_layer_row(form, number) for number in range(len(form.layers)))
    others = f"\nAlso: {_code(form.used_by)}.\n" if form.used_by else ""
    others += "".join(
        f"\n`{layer.attention}` is this near in fp64 only: {layer.rounds}.\n"
        for layer in form.layers
        if layer.rounds
    )
    others += "".join(
        f"\nOn padded texts `{layer.attention}` is another function: {layer.counts_padding}.\n"
        for layer in form.layers
        if layer.counts_padding
    )
    library = f" transformers keeps {keeps}." if keeps else ""
    about = form.about[0].upper() + form.about[1:]
    return (
        f"### {form.name}\n\n{about}. Source: {form.source}.{library}\n\n```\n{picture}\n```\n\n"
        "| class | own sizes | equation | suffices | kept | fp64 | fp32 |\n"
        f"|---|---|---|---:|---:|---:|---:|\n{rows}{others}"
    )


def _layer_row(form: Form, number: int) -> str:
    layer = form.layers[number]
    cost, measured = atlas.cost_of(form, form.own(layer)), form.measured(layer)
    size = layer.own
    cells = [
        f"`{layer.attention}`",
        f"{size['d_model']:g}; {size['heads']:g} × {size['head_dim']:g}",
        f"`{form.written(form.own(layer))}`",
        *_caches(form, cost),
        f"{measured.largest:.0e}" if measured else "",
        f"{max(measured.fp32.values()):.0e}" if measured else "",
    ]
    return _table_row(cells)


def _table_row(cells: list[str]) -> str:
    """A row of a table; a number and its unit stay on one line."""
    return f"| {' | '.join(re.sub(UNIT, NO_BREAK, cell) for cell in cells)} |\n"


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
